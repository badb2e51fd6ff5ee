"""The growing file of decoded images, in which grey pictures become RGB with the first one in colour."""

import math
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from storage.write import create_new
from training.data.cache.checksums import Checksums
from training.data.cache.journal import JOURNAL, Journal
from training.units import show_size


class PixelFile:
    """Images appended to a raw file: the first defines the size; the first in colour makes all of them RGB.

    It continues where the journal of the folder ends, or from the start if images that the journal counts are lost or
    damaged. `total` is the number of images to come; ValueError is raised as soon as the disk has not enough space for
    them.
    """

    def __init__(self, folder: Path, dtype: np.dtype, total: int):
        self.folder, self.dtype, self.total = folder, dtype, total
        self.journal = Journal(folder / JOURNAL)
        self.progress = self.journal.load()
        self.checksums = Checksums()
        """of the images written"""
        self._file: BinaryIO | None = None
        if self.progress.shape is not None:
            written = self.progress.count * math.prod(self.progress.shape) * dtype.itemsize
            checksums = Checksums.of(self.path, written) if self.path.exists() else Checksums()
            if checksums.total == self.progress.checksum:
                self._open(self.progress.shape, self.progress.count)
                self.checksums = checksums
            else:
                print(f"the decoded images in {folder} are damaged or lost: decoding starts again", file=sys.stderr)
                self.journal.path.unlink()
                self.progress = self.journal.load()
        self.save()  # records this process in the journal

    @property
    def path(self) -> Path:
        """The file with the images; there may be another one for another number of channels."""
        assert self.progress.shape is not None
        return self.folder / f"images-{self.progress.shape[0]}.bin"

    def append(self, image: Shaped[np.ndarray, "c h w"], name: str) -> None:
        """Appends one image. Raises ValueError if its size differs from that of the others."""
        progress = self.progress
        if progress.shape is None:
            self._open(image.shape, 0)
            progress.shape, progress.first = image.shape, name
        channels, height, width = progress.shape
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"images differ in size: {progress.first} has {height} x {width} px (height x width), {name} has"
                f" {image.shape[1]} x {image.shape[2]}; set data.size to bring all of them to one size"
            )
        if len(image) > channels:
            self._widen(len(image))
        elif len(image) < channels:
            image = np.repeat(image, channels // len(image), axis=0)
        self._write(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data)
        progress.count += 1

    def save(self) -> None:
        """Flushes images to the disk, then records them in the journal."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self.progress.checksum = self.checksums.total
        self.journal.save(self.progress)

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _open(self, shape: tuple[int, ...], count: int) -> None:
        """Opens the file for images of this shape, and keeps the first `count` of them, if there is enough space."""
        size = math.prod(shape) * self.dtype.itemsize
        needed, free = size * (self.total - count), shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"the decoded images need {show_size(needed)} but the disk of {self.folder} has {show_size(free)} free;"
                " free some, set data.cache to a folder on another disk, or data.size to something smaller"
            )
        path = self.folder / f"images-{shape[0]}.bin"
        if not count:
            create_new(path)
            self.checksums = Checksums()
        self._file = path.open("r+b")
        self._file.truncate(count * size)
        self._file.seek(0, os.SEEK_END)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self.checksums.add(data)

    def _widen(self, channels: int) -> None:
        """Copies the grey images (of a pair: two) written so far to a file in which they have `channels`, equal ones of
        each."""
        assert self.progress.shape is not None
        assert self._file is not None
        self._file.close()
        grey, (before, height, width) = self.path, self.progress.shape
        self._open((channels, height, width), 0)
        with open(grey, "rb") as file:
            for _ in range(self.progress.count * before):
                self._write(file.read(height * width * self.dtype.itemsize) * (channels // before))
        self.progress.shape = (channels, height, width)
        self.save()
        grey.unlink()
