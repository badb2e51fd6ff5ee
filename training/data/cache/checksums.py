"""CRC-32 of each block of a file: computed while it is written, compared when it is opened."""

import os
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.read import open_regular, require_regular

BLOCK_BYTES = 8 << 20


class Checksums:
    """The CRC-32 of each block of `BLOCK_BYTES` bytes of a file that grows; the last block may be shorter."""

    def __init__(self) -> None:
        self._whole: list[int] = []
        self._part = self._part_bytes = 0

    @property
    def blocks(self) -> list[int]:
        """The checksum of each block."""
        return [*self._whole, self._part] if self._part_bytes else list(self._whole)

    @property
    def total(self) -> int:
        """One checksum for all blocks."""
        return zlib.crc32(repr(self.blocks).encode())

    def add(self, data: bytes | memoryview) -> None:
        """Appends the next bytes of the file."""
        view = memoryview(data)
        while view:
            head = view[: BLOCK_BYTES - self._part_bytes]
            self._part, self._part_bytes = zlib.crc32(head, self._part), self._part_bytes + len(head)
            if self._part_bytes == BLOCK_BYTES:
                self._whole.append(self._part)
                self._part = self._part_bytes = 0
            view = view[len(head) :]

    @classmethod
    def of(cls, path: Path, size: int | None = None) -> "Checksums":
        """The checksums of a regular file, or of its first `size` bytes."""
        sums = cls()
        for part in read_parts(path, size):
            sums.add(part)
        return sums


def read_parts(path: Path, size: int | None = None) -> Iterator[bytes]:
    """The content of a regular file, or its first `size` bytes, in blocks. Unlike a mapped file, it takes no memory."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        while size > 0 and (data := file.read(min(size, BLOCK_BYTES))):
            yield data
            size -= len(data)


def verify(path: Path, blocks: Sequence[int], seconds: float) -> float:
    """Compares the blocks of a file, in random order and in several threads, until `seconds` have passed.

    Returns the share of the blocks that were compared: at least one is. Raises ValueError for a file that is not
    regular, and for the first block that differs.
    """
    require_regular(path)
    deadline = time.monotonic() + seconds
    todo = random.SystemRandom().sample(range(len(blocks)), len(blocks))
    compared: list[int] = []

    def work() -> None:
        with open_regular(path) as file:
            while todo:
                try:
                    number = todo.pop()
                except IndexError:  # another thread took the last one
                    return
                file.seek(number * BLOCK_BYTES)
                if zlib.crc32(file.read(BLOCK_BYTES)) != blocks[number]:
                    todo.clear()
                    raise ValueError(f"{path.name} differs from its checksum near byte {number * BLOCK_BYTES:,}")
                compared.append(number)
                if time.monotonic() > deadline:
                    return

    threads = max(1, min(4, os.cpu_count() or 1, len(blocks)))
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        for job in [pool.submit(work) for _ in range(threads)]:
            job.result()
    return len(compared) / max(1, len(blocks))
