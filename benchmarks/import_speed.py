"""How long importing a published checkpoint of 300 million parameters takes, and how much memory.

    python -m benchmarks.import_speed

Random weights of the preset are written once, in OpenAI's names, to a temporary safetensors file. Fresh processes then
import it; memory is the peak of the process (resident, file-backed pages included) above that of one which only has
everything imported, as a multiple of the file. Either the network is built without memory of its own, on the meta
device, or as usual, with initial weights that are then overwritten.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORT = """
import resource, sys, time
import torch, unet, safetensors.torch
torch.set_num_threads({threads})
with torch.device("meta"):
    unet.UNet(unet.preset("ddpm-cifar10"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, start = peak(), time.perf_counter()
with torch.device("{device}"):
    net = unet.UNet(unet.preset("{preset}"))
net.import_weights("{path}", layout="adm-new-order")
total = sum(float(p.sum()) for p in net.parameters())  # touches every page
print(time.perf_counter() - start, peak() - before)
"""
WRITE = """
import torch, unet
from safetensors.torch import save_file
save_file(unet.UNet(unet.preset("{preset}")).export_weights("adm-new-order"), "{path}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="adm-imagenet64", help="network to import")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each way")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        run(WRITE.format(preset=args.preset, path=path))
        size = path.stat().st_size
        print(f"{args.preset}, {size / 1e9:.2f} GB, {args.threads} thread(s)")
        for device, way in (("meta", "built on the meta device"), ("cpu", "built as usual")):
            for _ in range(args.repeats):
                code = IMPORT.format(preset=args.preset, path=path, device=device, threads=args.threads)
                seconds, peak = map(float, run(code).split())
                print(f"{way:>26}: {seconds:5.2f} s, {peak / size:.2f} x its size in memory")


def run(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
