"""What the checkpoints of configs/cifar10-ddpm.yaml cost: seconds to write one, to verify and to load it.

    python -m benchmarks.checkpoint_cost [--folder DISK] [--rounds 5] [--images-per-second 3000]

A save is what the loop does: the files, their hashes, flushing all to the disk, the model folder, the renaming,
removing the oldest. Of training it takes the share that its seconds are of those between two saves:
`train.checkpoint_every_images` at the speed of the machine that trains, which `tasks.report` prints.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tasks import RUNS
from training import checkpoint, state
from training.accelerator import make_accelerator
from training.cli import parse
from training.data import Images
from training.loop import Loop
from training.run_folder import RunFolder
from training.script import ScriptParser, command
from training.units import show_size

RECIPE = Path(__file__).parents[1] / "configs" / "cifar10-ddpm.yaml"


@command
def main(argv: Sequence[str]) -> None:
    """Writes and reads checkpoints in a temporary folder; prints medians."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to be measured; default: the temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images-per-second", type=float, help="of the training, for the share of it that saves take")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        loop = begin(Path(folder))
        root = loop.folder.checkpoints
        saves, reads = [], []
        for _ in range(args.rounds):
            loop.step.updates += 1
            saves.append(seconds(loop.save))
            reads.append((seconds(lambda: checkpoint.newest(root)), seconds(lambda: restore(loop))))
        loop.step.close()
        size = sum(path.stat().st_size for path in checkpoint.list_folders(root)[0].iterdir())
    save, verify, both = median(saves), *(median(column) for column in zip(*reads, strict=True))
    print(f"checkpoint: {show_size(size)}   save: {save:.2f} s   verify: {verify:.2f} s   and load: {both:.2f} s")
    interval = loop.config.checkpoint_every_images
    print(f"one every {interval:,} images: below 1 % of training up to {interval / 100 / save:,.0f} images per second")
    if args.images_per_second:
        print(f"at {args.images_per_second:,.0f} images per second: {save * args.images_per_second / interval:.2%}")


def begin(folder: Path) -> Loop:
    """The loop of the recipe after one update (by a gradient of zero: what is measured does not depend on it)."""
    parsed = parse(RUNS, ["--config", str(RECIPE)])
    run, images = parsed.run, Images(np.zeros((parsed.run.train.batch, 3, 32, 32), np.uint8))
    accelerator = make_accelerator(run.train)
    where = RunFolder(folder / "run")
    where.open(run, parsed.resolved)
    loop = Loop(run.build(images), images, run, where, accelerator)
    loop.begin()
    for weight in loop.step.trainable:
        weight.grad = torch.zeros_like(weight)
    loop.step.optimizer.step()
    return loop


def restore(loop: Loop) -> None:
    """What a run that is started again does with its newest checkpoint."""
    found, _ = checkpoint.newest(loop.folder.checkpoints)
    assert found is not None
    state.restore(loop.step, found.update, lambda: checkpoint.read_tensors(found))


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
