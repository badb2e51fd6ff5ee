"""Measures images per second from the cache, read as in training, and bytes per second of its verification.

    python -m benchmarks.cache_read

Writes random images to a file, memory-maps it and reads it once, so that it is in memory. Then copies shuffled batches
into one preallocated tensor, as `BatchReader` does, on one core. Each pass reads a whole epoch; prints the best and the
median. Then the file is compared with its checksums, as at the start of a run.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from training.data import Images, PixelFormat, image_index
from training.data.cache.checksums import Checksums, verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dtype", choices=("uint8", "uint16", "float32"), default="uint8", help="as it is stored")
    parser.add_argument("--passes", type=int, default=10, help="epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = (args.images, args.channels, args.side, args.side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.bin"
        array = np.memmap(path, args.dtype, "w+", shape=shape)
        random = np.random.default_rng(0)
        for start in range(0, args.images, args.batch):
            part = array[start : start + args.batch]
            part[:] = random.integers(0, 256, part.shape)
        array.flush()
        images = Images(np.memmap(path, args.dtype, "r", shape=shape), pixel_format=PixelFormat(dtype=args.dtype))
        rates = [rate(images, args.batch, epoch) for epoch in range(args.passes + 1)][1:]  # the first fills the memory
        blocks = Checksums.of(path).blocks
        began = time.perf_counter()
        verify(path, blocks, math.inf)
        speed = path.stat().st_size / (time.perf_counter() - began)
    print(
        f"{args.images:,} images of {args.channels} x {args.side} x {args.side}, {args.dtype}, batches of {args.batch}:"
        f" {max(rates):,.0f} images/s at best, {statistics.median(rates):,.0f} in the median of {args.passes} epochs"
        f"; verified at {speed / 1e9:.2f} GB/s"
    )


def rate(images: Images, batch: int, epoch: int) -> float:
    """Images read per second, over the whole batches of one epoch; the order is drawn beforehand."""
    batches = len(images) // batch
    order = image_index(np.arange(batches * batch, dtype=np.int64) + epoch * len(images), len(images), seed=0)
    out = torch.empty((batch, *images.shape), dtype=getattr(torch, images.pixel_format.stored.name)).numpy()
    start = time.perf_counter()
    for indices in order.reshape(batches, batch):
        images.read(indices, out)
    return batches * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
