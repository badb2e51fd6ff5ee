"""Decodes the items of a source in order, in threads where that helps; errors become text."""

import copy
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped

from pictures.decode import IN_FLIGHT, DecodedFile, Postponed, decode_file
from pictures.preprocessing import Preprocessing
from training.data.sources.arrays import ArrayImage
from training.data.sources.records import Content, Item
from training.data.sources.table_files import first_line

T = TypeVar("T")

CHUNK = 32
QUICK_SECONDS = 5e-4
WORKERS = min(16, os.cpu_count() or 1)
MAX_HELD = 256 << 20
"""bytes of decoded images that wait for an earlier one; beyond them, threads decode no further"""

Decoded = tuple[Item, np.ndarray | str, bool]


def decode_all(items: Iterable[Item], preprocessing: Preprocessing) -> Generator[Decoded, None, None]:
    """Each item in order with its pixels (c, h, w) or the reason why it cannot be read, and whether its file holds
    several pictures.

    Pillow decodes and resizes without Python's lock, so threads help with large images; with small ones they only
    compete for the lock. The time of the first chunk decides. A stream is not read far ahead.
    """
    todo = iter(items)
    seconds = []
    for item in islice(todo, CHUNK):
        start = time.perf_counter()
        decoded = attempt(item, preprocessing=preprocessing)
        seconds.append(time.perf_counter() - start)
        yield decoded
    if sum(seconds) < QUICK_SECONDS * len(seconds):
        yield from (attempt(item, preprocessing=preprocessing) for item in todo)
    else:
        yield from in_threads(partial(attempt, preprocessing=preprocessing), todo, size=decoded_bytes)


def decoded_bytes(decoded: Decoded) -> int:
    """Memory of the pixels."""
    return 0 if isinstance(decoded[1], str) else decoded[1].nbytes


def in_threads(
    function: Callable[[Item, Callable[[], bool]], T],
    items: Iterable[Item],
    workers: int = WORKERS,
    size: Callable[[T], int] = lambda result: 0,
) -> Generator[T, None, None]:
    """`function` of each item, in order, computed by threads; at most 2 * workers chunks are read ahead.

    `size` is the memory of a result in bytes. Once results of `MAX_HELD` bytes wait, a thread leaves the rest of its
    chunk to the reader. `function` also takes a callable, whether fewer wait: if it has to wait itself, it calls
    that afterwards, and raises Postponed if not.
    """
    todo = iter(items)
    pending: deque[tuple[list[Item], Future[list[T]]]] = deque()
    held, lock = 0, threading.Lock()

    def may_start() -> bool:
        return held <= MAX_HELD

    def compute(chunk: list[Item]) -> list[T]:
        nonlocal held
        results: list[T] = []
        with suppress(Postponed):
            for item in chunk:
                if not may_start():
                    break
                results.append(function(item, may_start))
                with lock:
                    held += size(results[-1])
        return results

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(pending) < 2 * workers and (chunk := take(todo, MAX_HELD // (2 * workers))):
                    pending.append((chunk, pool.submit(compute, chunk)))
                if not pending:
                    return
                chunk, future = pending.popleft()
                results = future.result()
                del future  # it holds the results, too
                computed = len(results)
                while results:
                    with lock:
                        held -= size(results[0])
                    yield results.pop(0)
                yield from (function(item, lambda: True) for item in chunk[computed:])
        finally:
            for _, future in pending:
                future.cancel()


def take(todo: Iterable[Item], limit: int) -> list[Item]:
    """The next `CHUNK` items, or fewer that have `limit` bytes."""
    chunk, size = [], 0
    for item in islice(todo, CHUNK):
        chunk.append(item)
        size += sum(len(content) for content in item.contents if isinstance(content, bytes))
        if size >= limit:
            break
    return chunk


def attempt(
    item: Item,
    may_start: Callable[[], bool] = lambda: True,
    *,
    preprocessing: Preprocessing,
    random: np.random.Generator | None = None,
) -> Decoded:
    """`decode_file` of an item, with an error as text. The channels of a pair are those of its target, then those of
    its condition."""
    again, part = copy.deepcopy(random), ""  # a condition is cropped as its target
    target, *conditions = item.contents
    try:
        pixels, several, size = decode_content(target, preprocessing, random, may_start)
        for condition in conditions:
            part = "its condition: "
            more = decode_content(condition, preprocessing, again, may_start, size).pixels
            pixels = np.concatenate([pixels, more] if isinstance(target, ArrayImage) else equal_channels(pixels, more))
    except (OSError, ValueError) as error:
        return item, part + (getattr(error, "strerror", None) or first_line(error)), False
    return item, pixels, several


def decode_content(
    content: Content,
    preprocessing: Preprocessing,
    random: np.random.Generator | None,
    may_start: Callable[[], bool],
    size: tuple[int, int] | None = None,
) -> DecodedFile:
    """`decode_file` for pictures, and alike for arrays, which `enlarge` brings to the width and height `size`."""
    if not isinstance(content, ArrayImage):
        return decode_file(content, preprocessing, random, may_start, size)
    with IN_FLIGHT.hold(math.prod(content.shape) // 3):  # as a colour picture with so many values
        if not may_start():
            raise Postponed
        array = content.read()
    if size is not None:
        array = enlarge(array, size[::-1])
    return DecodedFile(array, False, (array.shape[2], array.shape[1]))


def equal_channels(*pictures: Shaped[np.ndarray, "_ h w"]) -> list[Shaped[np.ndarray, "_ h w"]]:
    """Pictures with as many channels as the one with the most: grey ones among pictures in colour become RGB."""
    most = max(map(len, pictures))
    return [np.repeat(picture, most // len(picture), axis=0) for picture in pictures]


def enlarge(array: Shaped[np.ndarray, "c h w"], size: tuple[int, int]) -> Shaped[np.ndarray, "c height width"]:
    """An array on a grid of this height and width: bilinear interpolation between the centres of its cells, constant
    beyond the outermost centres (torch's `interpolate` with `align_corners=False`). Integers are rounded.
    """
    if array.shape[1:] == size:
        return array
    coarse = torch.from_numpy(array.astype(np.float32))[None]
    values = F.interpolate(coarse, size, mode="bilinear", align_corners=False)[0].numpy()
    return (np.rint(values) if np.issubdtype(array.dtype, np.integer) else values).astype(array.dtype)
