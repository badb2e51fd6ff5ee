"""What a checkpoint that came through another library's names is worth: 200 updates from it, and 200 from scratch.

    python -m benchmarks.finetune_digits

A small network learns the handwritten digits at 16x16 px, is exported in each layout that can hold it, and trained on
through `train.py --init`, with another seed. What is compared is the training loss, mean of the last 20 updates, with
the same seed from scratch. EDM's networks are built otherwise, so its layout has a network, and a pair, of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import save_file

from export import save_diffusers
from pipelines.diffusion import load_model

ROOT = Path(__file__).parents[1]
LAST = 20
SHARED = """task: diffusion
data: {source: digits, size: 16}
sample: {num: 0}
train: {warmup_images: 640, learning_rate: 1e-3, checkpoint_every_images: 1e9, eval_every_images: 1e9, trackers: []}
"""
LEVELS = "base_channels: 32, channel_multipliers: [1, 2], blocks_per_level: 1, attention_levels: [1], head_channels: 32"
ADM = f"model: {{{LEVELS}, conditioning: scale_shift, resample: block, time_embedding: adm}}\n"
EDM = ADM.replace("}", ", group_channels: 4, label_embedding: linear}")
NETWORKS = {"ADM": (ADM, ("ours", "diffusers", "adm", "adm-new-order")), "EDM": (EDM, ("edm",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200, help="of fine-tuning, and from scratch")
    parser.add_argument("--pretrain", type=int, default=300, help="updates of the checkpoint")
    parser.add_argument("--batch", type=int, default=64, help="images per update")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, (model, layouts) in NETWORKS.items():
            config, bare = work / f"{name}.yaml", work / "bare.yaml"
            config.write_text(SHARED + model)
            bare.write_text(SHARED)
            start = time.perf_counter()
            train(work / name, config, args.pretrain, args.batch, seed=0)
            print(
                f"{name}-like network: {args.pretrain} updates of {args.batch} in {time.perf_counter() - start:.0f} s"
            )
            scratch = train(work / f"{name}-scratch", config, args.updates, args.batch, seed=1)
            print(f"{'from scratch':>24}: loss {scratch:.4f} after {args.updates} updates", flush=True)
            for layout in layouts:
                init = export(work / name, layout, work / layout)
                flags = ["--init", str(init), *(["--init_layout", layout] if init.is_file() else [])]
                from_it = bare if init.is_dir() else config  # folders tell the shape of the network
                loss = train(work / f"{name}-{layout}", from_it, args.updates, args.batch, 1, flags)
                print(f"{f'through {layout}':>24}: loss {loss:.4f}, {loss / scratch:.2f} of that", flush=True)


def export(run: Path, layout: str, target: Path) -> Path:
    """The averaged model of a run as a folder or file of this layout."""
    if layout == "ours":
        return run
    if layout == "diffusers":
        save_diffusers(load_model(run), target)
        return target
    path = target.with_suffix(".safetensors")
    save_file(load_model(run).net.export_weights(layout), path)
    return path


def train(run: Path, config: Path, updates: int, batch: int, seed: int, flags: list[str] | None = None) -> float:
    """The loss of a run of `train.py`, mean of its last updates."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run", str(run), *(flags or [])]
    command += ["--train.images", str(updates * batch), "--train.batch", str(batch), "--train.seed", str(seed)]
    subprocess.run([*command, "--train.log_every_images", str(batch)], check=True, capture_output=True)
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return sum(losses[-LAST:]) / LAST


if __name__ == "__main__":
    main()
