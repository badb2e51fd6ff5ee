"""Reading images for training: from the cache, and as diffusers' script reads them.

    python -m benchmarks.data --images 10000 --batch 64

Random images are written as the cache's memory-mapped file and as PNG files, both in memory then. Ours are shuffled
batches that `BatchReader` reads and that become float32 in [-1, 1]; theirs are PNG files that a `DataLoader` opens one
by one, decodes and normalises in the main process, as the script does by default. A further row copies batches into
memory without the reader. At last the file is compared with its checksums, as at the start of a run.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.paired import CONTROL, Call, add_options, measure, seconds_of, start
from pictures.units import AnyFormat
from training.data import BatchReader, Images, image_index
from training.data.cache.checksums import Checksums, verify
from training.script import ScriptParser, command

MAX_FILES = 2_000
"""PNG files, which the DataLoader reads again and again"""


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512)
    add_options(parser, rounds=20)
    args = parser.parse_args(argv)
    if not 1 <= args.batch <= args.images:
        raise ValueError(f"--batch={args.batch} is out of range; give 1 to --images={args.images}")
    plan = start(args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.bin"
        images = random_images(path, args.images, args.side)
        with closing(BatchReader(images, 0, args.batch)) as reader, closing(BatchReader(images, 0, args.batch)) as twin:
            calls = {
                "ours": read_batches(reader, images.pixel_format),
                CONTROL: read_batches(twin, images.pixel_format),
                "DataLoader of PNG files": load_batches(images, args.batch, Path(folder)),
                "copies from the cache alone": copy_batches(images, args.batch),
            }
            timings = measure(calls, plan)
        print(timings.table(f"{args.side}x{args.side} px, batches of {args.batch}", args.batch))
        blocks = Checksums.of(path).blocks
        seconds = seconds_of(lambda: verify(path, blocks, math.inf))
        print(f"verified at {path.stat().st_size / seconds / 1e9:.2f} GB/s")


def random_images(path: Path, count: int, side: int) -> Images:
    """Random RGB images in a memory-mapped file."""
    shape = (count, 3, side, side)
    array = np.memmap(path, "uint8", "w+", shape=shape)
    random = np.random.default_rng(0)
    for start_of in range(0, count, 1024):
        part = array[start_of : start_of + 1024]
        part[:] = random.integers(0, 256, part.shape)
    array.flush()
    return Images(np.memmap(path, "uint8", "r", shape=shape))


def read_batches(reader: BatchReader, pixel_format: AnyFormat) -> Call:
    """The next batch of a reader, as float32 in [-1, 1]."""
    updates = itertools.count()
    return lambda: pixel_format.to_unit(reader.get(next(updates))[0])


def copy_batches(images: Images, batch: int) -> Call:
    """The next shuffled batch, copied from the file into the same memory."""
    out, updates = np.empty((batch, *images.shape), np.uint8), itertools.count()

    def call() -> None:
        positions = np.arange(batch, dtype=np.int64) + next(updates) * batch
        images.read(image_index(positions, len(images), seed=0), out)

    return call


class Files(Dataset[Tensor]):
    """PNG files as float32 in [-1, 1], as torchvision's ToTensor and Normalize make them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        return pixels.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def load_batches(images: Images, batch: int, folder: Path) -> Call:
    """The next batch of a DataLoader of the first images, written as PNG files into `folder`."""
    paths = []
    for number in range(max(batch, min(len(images), MAX_FILES))):
        paths.append(folder / f"{number}.png")
        Image.fromarray(images.read(np.array([number]))[0].transpose(1, 2, 0)).save(paths[-1])
    loader = DataLoader(Files(paths), batch, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return lambda: next(batches)


if __name__ == "__main__":
    main()
