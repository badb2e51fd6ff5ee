"""Decodes the items of a source in order, in threads where that helps; errors become text."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import UnidentifiedImageError

from pictures.decode import decode_file
from pictures.preprocessing import Preprocessing
from training.data.sources.arrays import ArrayFile
from training.data.sources.records import Item
from training.data.sources.table_files import first_line

T = TypeVar("T")

CHUNK = 32
QUICK_SECONDS = 5e-4
WORKERS = min(16, os.cpu_count() or 1)

Decoded = tuple[Item, np.ndarray | str, bool]


def decode_all(items: Iterable[Item], preprocessing: Preprocessing) -> Generator[Decoded, None, None]:
    """Each item in order with its pixels (c, h, w) or the reason why it cannot be read, and whether its file holds
    several pictures.

    Pillow decodes and resizes without Python's lock, so threads help with large images; with small ones they only
    compete for the lock. The time of the first chunk decides. A stream is not read far ahead.
    """
    todo = iter(items)
    start = time.perf_counter()
    first = [attempt(item, preprocessing) for item in islice(todo, CHUNK)]
    quick = time.perf_counter() - start < QUICK_SECONDS * len(first)
    yield from first
    if quick:
        yield from (attempt(item, preprocessing) for item in todo)
    else:
        yield from in_threads(partial(attempt, preprocessing=preprocessing), todo)


def in_threads(
    function: Callable[[Item], T], items: Iterable[Item], workers: int = WORKERS
) -> Generator[T, None, None]:
    """`function` of each item, in order, computed by threads; at most 2 * workers chunks are read ahead."""
    todo = iter(items)
    pending: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(pending) < 2 * workers and (chunk := list(islice(todo, CHUNK))):
                    pending.append(pool.submit(lambda chunk: [function(item) for item in chunk], chunk))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def attempt(item: Item, preprocessing: Preprocessing, random: np.random.Generator | None = None) -> Decoded:
    """`decode_file` of an item, with an error as text."""
    try:
        if isinstance(item.data, ArrayFile):
            return item, item.data.read(), False
        return item, *decode_file(item.data, preprocessing, random)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its text repeats the path
        return item, "not an image", False
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, …
        return item, getattr(error, "strerror", None) or first_line(error), False
