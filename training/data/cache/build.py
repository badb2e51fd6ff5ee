"""Fills the cache: decodes a source into a folder, once, whatever happens on the way.

A build writes to NAME.partial and keeps a journal there; one that was killed goes on where the journal ends, and what
comes out has the same bytes as if it had not been killed. When all is there the folder is renamed. One process builds
at a time: NAME.lock is locked by it, others wait for it, and the system unlocks it however the process ends.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from training.data.cache.journal import Journal, Progress
from training.data.cache.pixel_file import PixelFile, is_held
from training.data.config import DataConfig
from training.data.images import fingerprint, listing
from training.data.sources.labels import check_label, number_labels
from training.data.sources.records import Records, Source
from training.files import write_text

FORMAT_VERSION = 2
IMAGES, LABELS, INFO, JOURNAL = "images.bin", "labels.npy", "cache.json", "journal.jsonl"
SAVE_SECONDS = 5.0


class TooManyBad(ValueError):
    """More images cannot be read than may be skipped. What is decoded is kept: with a higher limit a build goes on."""


def settings(config: DataConfig) -> dict:
    """The fields of a config that change what is stored."""
    of_pixels = ("split", "channels", "bits", "range", "background", "crop", "center_share")
    names = (*of_pixels, "image_column", "label_column", "labels")
    return {"size": config.hw} | {name: getattr(config, name) for name in names}


def build(source: Source, config: DataConfig, folder: Path) -> None:
    """Decode a source into `folder`, unless that is there by the time that nobody else is building it.

    Raises ValueError for whatever is wrong with images, labels or the space on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    with only_builder(folder, partial):
        if folder.exists():
            return
        partial.mkdir(exist_ok=True)
        try:
            if not (partial / INFO).exists():
                write(source.open(), config, partial)
            (partial / JOURNAL).unlink(missing_ok=True)
            os.replace(partial, folder)
        except TooManyBad:
            raise
        except OSError as error:
            error.filename = error.filename or str(partial)  # of a full disk the system does not say which
            raise
        except ValueError:  # the next try would meet it again
            shutil.rmtree(partial)
            raise


@contextmanager
def only_builder(folder: Path, partial: Path) -> Iterator[None]:
    """Wait, and say for whom, until no other process builds `folder`."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {Journal(partial / JOURNAL).writer()}, which decodes the same images", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        if not partial.exists():
            Path(lock.lock_file).unlink(missing_ok=True)  # those who wait notice, and make another
        lock.release()


def write(records: Records, config: DataConfig, folder: Path) -> None:
    """Decode records into the files of a cache folder, from where its journal ends."""
    stored = records.pixel_format.stored
    journal = Journal(folder / JOURNAL)
    progress = journal.load()
    if not is_held(folder, progress, stored):
        journal.path.unlink()
        progress = journal.load()
    with closing(PixelFile(folder, journal, progress, stored, records.count)) as file:
        file.save()  # names this process
        decode_into(file, records, config)
    if progress.shape is None:
        raise ValueError(f"data.source {config.source!r} holds no image that can be read" + listing(progress.bad))
    array = np.memmap(file.path, stored, "r", shape=(progress.count, *progress.shape))
    numbers, classes = number_labels(progress.labels, records.classes) if records.labelled else (None, None)
    if numbers is not None:
        np.save(folder / LABELS, numbers)
    info = {
        "format_version": FORMAT_VERSION,
        "shape": array.shape,
        "dtype": stored.name,
        "pixels": asdict(records.pixel_format),
        "classes": classes,
        "bad": progress.bad,
        "notes": notes(progress),
        "fingerprint": fingerprint(array, numbers, classes, records.pixel_format),
        "source": config.source,
        "settings": settings(config),
    }
    del array  # Windows renames no file that is mapped
    os.replace(file.path, folder / IMAGES)
    for other in folder.glob("images-*.bin"):
        other.unlink()
    write_text(folder / INFO, json.dumps(info, indent=1))


def decode_into(file: PixelFile, records: Records, config: DataConfig) -> None:
    """Decode the records that `file.progress` has not taken yet. Raises ValueError for what is wrong with them."""
    from training.data.decode import decode_all

    progress, saved = file.progress, time.monotonic()
    check_bad(progress.bad, config.max_bad)
    limit = None if records.classes is None else len(records.classes)
    todo = islice(records.items, progress.taken, None)
    with (
        tqdm(
            desc="decoding images",
            total=records.count,
            initial=progress.taken,
            unit="image",
            unit_scale=True,
            disable=None,
        ) as bar,
        closing(records.items),  # an error must not leave a half-read table to the end of the program
        closing(decode_all(todo, config)) as stream,
    ):
        for item, decoded, several in stream:
            if isinstance(decoded, str):
                progress.bad.append(f"{item.name}: {decoded}")
                bar.write(f"skipped {progress.bad[-1]}", file=sys.stderr)
                check_bad(progress.bad, config.max_bad)
            else:
                if records.labelled:
                    check_label(item.label, progress.count, limit, item.name)
                file.append(decoded, item.name)
                progress.labels += [item.label] if records.labelled else []
                if several:
                    progress.several, progress.example = progress.several + 1, progress.example or item.name
            progress.taken += 1
            bar.update()
            if time.monotonic() - saved >= SAVE_SECONDS:
                file.save()
                saved = time.monotonic()
    file.save()


def notes(progress: Progress) -> list[str]:
    """What is worth saying of a set, one line each."""
    if not progress.several:
        return []
    files = "1 file holds" if progress.several == 1 else f"{progress.several:,} files hold"
    return [f"{files} several pictures, as {progress.example} does: the first was taken"]


def check_bad(bad: Sequence[str], most: int) -> None:
    """Raises ValueError if more images were unreadable than may be skipped."""
    if len(bad) > most:
        rule = f"more than data.max_bad {most} images cannot be read"
        raise TooManyBad(f"{rule}{listing(bad)}; repair or remove them, or raise data.max_bad")
