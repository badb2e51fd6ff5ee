"""Time and peak memory of the Fréchet distance of random features, on the CPU.

python -m benchmarks.frechet --images 10000 --features 2048
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import torch

from metrics import frechet_distance
from training.script import ScriptParser, command

UNIT = 2**30 if sys.platform == "darwin" else 2**20
"""of ru_maxrss, per GiB"""


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, computes one distance, prints one line."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="of each of the two sets")
    parser.add_argument("--features", type=int, default=2048, help="of each image")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    random = torch.Generator().manual_seed(0)
    real = torch.randn(args.images, args.features, generator=random)
    drawn = torch.randn(args.images, args.features, generator=random) * 1.1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT
    began = time.perf_counter()
    distance = frechet_distance(real, drawn)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT
    print(f"distance {distance:.4f}: {seconds:.1f} s, peak memory {peak:.2f} GiB ({before:.2f} GiB before it)")


if __name__ == "__main__":
    main()
