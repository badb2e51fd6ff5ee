"""Builds the cache: decodes a source into a folder, once, and resumes after an interruption.

A build writes to NAME.partial and keeps a journal there; the next build resumes where the journal ends, and the result
has the same bytes as without the interruption. The complete folder is renamed. One process builds at a time: it locks
NAME.lock, others wait for it, and the system releases the lock however the process ends.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from pictures.autoencoder import Autoencoder
from pictures.preprocessing import Preprocessing
from storage.show import printable
from storage.write import remove, replace_file, write_text
from training.data.cache.checksums import BLOCK_BYTES, Checksums, read_parts
from training.data.cache.files import FORMAT_VERSION, IMAGES, INFO, LABELS, VECTORS, damage
from training.data.cache.journal import JOURNAL, Journal, Progress, crc32
from training.data.cache.pixel_file import PixelFile
from training.data.images import TooManyBad, check_bad, fingerprint, listing
from training.data.latents import LATENTS, chained, encode
from training.data.sources.labels import check_label, number_labels
from training.data.sources.records import Records, Source
from training.progress import Bar

SAVE_SECONDS = 5.0


def build(source: Source, preprocessing: Preprocessing, folder: Path, max_bad: int) -> None:
    """Decodes a source into `folder`, unless another process has just built it. A damaged cache is removed.

    Raises ValueError for errors in images or labels, for more than `max_bad` unreadable images (what is decoded is
    kept: with a higher limit the build resumes), and if the disk has not enough space.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    with only_builder(folder, partial):
        reason = damage(folder)
        if not reason:
            return
        if os.path.lexists(folder):
            print(f"the cache {folder} {reason}; it is removed and built again", file=sys.stderr)
            remove(folder)
        open_partial(partial)
        try:
            if not (partial / INFO).exists() or damage(partial):
                write(source, preprocessing, partial, max_bad)
            (partial / JOURNAL).unlink(missing_ok=True)
            os.replace(partial, folder)
        except TooManyBad:
            raise
        except OSError as error:
            error.filename = error.filename or str(partial)  # the system does not name a full disk
            raise
        except ValueError:  # the next build would raise it again
            remove(partial)
            raise


def open_partial(folder: Path) -> None:
    """Creates the folder of a build, or keeps that of an interrupted one. Nothing in it is a link or a pipe."""
    if not folder.is_dir() or folder.is_symlink():
        remove(folder)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not path.is_file() or path.is_symlink():
            remove(path)


@contextmanager
def only_builder(folder: Path, partial: Path) -> Iterator[None]:
    """Waits until no other process builds `folder`, and prints which process that is."""
    path = folder.with_name(f"{folder.name}.lock")
    if not path.is_file() or path.is_symlink():
        remove(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {Journal(partial / JOURNAL).writer()}, which decodes the same images", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        if not partial.exists():
            path.unlink(missing_ok=True)  # waiting processes notice, and create another
        lock.release()


def write(source: Source, preprocessing: Preprocessing, folder: Path, max_bad: int) -> None:
    """Decodes a source into the files of a cache folder, from where its journal ends."""
    records, autoencoder = source.open(), source.autoencoder
    pixel_format = records.pixel_format if autoencoder is None else LATENTS
    stored = pixel_format.stored
    with closing(PixelFile(folder, stored, records.count)) as file:
        decode_into(file, records, preprocessing, max_bad, autoencoder)
    progress = file.progress
    if progress.shape is None:
        raise ValueError(f"data.source {source.setting!r} holds no image that can be read" + listing(progress.bad))
    shape = (progress.count, *progress.shape)
    labelled = records.labels is not None
    numbers, classes = number_labels(progress.labels, records.classes) if labelled else (None, None)
    blocks = {IMAGES: file.checksums.blocks}
    if numbers is not None:
        replace_file(folder / LABELS, lambda new: np.save(new, numbers))
        blocks[LABELS] = Checksums.of(folder / LABELS).blocks
    vectors, parts = None, dict[str, Any]()
    conditions = records.condition_channels(shape[1])
    if conditions:
        parts["conditions"] = conditions
    if records.vectors is not None:
        vectors = np.delete(records.vectors, progress.skipped, axis=0)
        replace_file(folder / VECTORS, lambda new: np.save(new, vectors))
        blocks[VECTORS] = Checksums.of(folder / VECTORS).blocks
        parts["vector_columns"] = records.vector_columns
    if records.coordinates is not None:
        parts["coordinates"] = asdict(records.coordinates)
    content = read_parts(file.path)
    if autoencoder is not None:  # whose latents differ in the last bits between devices
        content = iter([progress.pixels.encode(), autoencoder.fingerprint.encode()])
        parts["autoencoder"] = {"sha256": autoencoder.fingerprint, "units": asdict(autoencoder.units)}
    info = {
        "format_version": FORMAT_VERSION,
        "shape": shape,
        "dtype": stored.name,
        "pixel_format": asdict(pixel_format),
        "classes": classes,
        "bad": progress.bad,
        "notes": notes(progress),
        "fingerprint": fingerprint(
            content,
            shape,
            numbers,
            classes,
            pixel_format,
            conditions,
            vectors,
            records.vector_columns,
        ),
        "source": source.setting,
        "preprocessing": asdict(preprocessing),
        "block_bytes": BLOCK_BYTES,
        "blocks": blocks,
        **parts,
    }
    os.replace(file.path, folder / IMAGES)
    for other in folder.glob("images-*.bin"):
        other.unlink()
    write_text(folder / INFO, json.dumps(info | {"crc32": crc32(info)}, indent=1))


def decode_into(
    file: PixelFile,
    records: Records,
    preprocessing: Preprocessing,
    max_bad: int,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Decodes the records after those of `file.progress`, and encodes them if an autoencoder is given.

    Raises ValueError for errors in images and labels.
    """
    from training.data.decode import decode_all

    progress, saved = file.progress, time.monotonic()
    check_bad(progress.bad, max_bad)
    limit = None if records.classes is None else len(records.classes)
    todo = islice(records.items(), progress.taken, None)
    with (
        Bar(
            desc="decoding images",
            total=records.count,
            initial=progress.taken,
            unit="image",
            unit_scale=True,
            disable=None,
        ) as bar,
        closing(decode_all(todo, preprocessing)) as stream,
    ):
        for item, decoded, several in stream:
            if isinstance(decoded, str):
                progress.bad.append(f"{item.name}: {decoded}")
                progress.skipped.append(progress.taken)
                bar.write(printable(f"skipped {progress.bad[-1]}"), file=sys.stderr)
                check_bad(progress.bad, max_bad)
            else:
                label = None if records.labels is None else records.labels[progress.taken]
                if records.labels is not None:
                    check_label(label, progress.count, limit, item.name)
                if autoencoder is not None:
                    progress.pixels = chained(progress.pixels, decoded)
                    decoded = encode(autoencoder, decoded)
                file.append(decoded, item.name)
                progress.labels.append(label)
                if several:
                    progress.several, progress.example = progress.several + 1, progress.example or item.name
            progress.taken += 1
            bar.update()
            if time.monotonic() - saved >= SAVE_SECONDS:
                file.save()
                saved = time.monotonic()
    file.save()


def notes(progress: Progress) -> list[str]:
    """Remarks about a set, one line each."""
    if not progress.several:
        return []
    files = "1 file holds" if progress.several == 1 else f"{progress.several:,} files hold"
    return [f"{files} several pictures, such as {progress.example}; the first is used"]
