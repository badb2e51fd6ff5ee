"""Where images come from: every kind of source becomes a name, a key of its content and a stream of records."""

import difflib
import glob
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.config import DataConfig

TABLES = (".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
HUB = "hub:"
SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")} | {
    "test": ("test", "testing", "eval", "evaluation")
}


@dataclass(frozen=True)
class Item:
    """One image before decoding: a file, the bytes of a file, or pixels (h, w) uint8; `label` is an index or a name."""

    name: str
    data: Path | bytes | np.ndarray
    label: int | str | None = None


@dataclass(frozen=True)
class Records:
    """The items of a source in their fixed order, how many (None: not known beforehand) and the names of the classes.

    `labelled` tells that items carry labels; `classes` is then None where the labels themselves are all there is.
    """

    items: Generator[Item, None, None]
    count: int | None
    labelled: bool
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A source that was found: `name` for people, `key` (JSON) that changes with the content, `open` to read it."""

    name: str
    key: list
    open: Callable[[], Records]


def find_source(config: DataConfig) -> Source:
    """Find what `config.source` names, reading no image yet. Raises ValueError that says what is missing."""
    from training.data.folder import picture_folder
    from training.data.tables import hub_tables, local_tables

    text = config.source
    if text == "digits":
        return digits(config)
    if text.startswith(HUB):
        return hub_tables(config, text.removeprefix(HUB))
    path = Path(text).expanduser()
    if path.is_dir():
        pictures, tables = list(walk(path, PICTURES)), list(walk(path, TABLES))
        if pictures and tables:
            raise ValueError(
                f"data.source {text!r} holds both images ({pictures[0].name}, …) and tables ({tables[0].name}, …);"
                f" name the tables by a glob such as {text}/*{tables[0].suffix}, or move one kind elsewhere"
            )
        if tables:
            return local_tables(config, by_split(tables, path))
        return picture_folder(config, path, pictures)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise ValueError(
                f"data.source {text!r} is not a table ({' or '.join(TABLES)}); give such a file, or a folder"
            )
        return local_tables(config, {"train": [path]})
    if glob.has_magic(text):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in found if file.suffix.lower() in TABLES]
        if not files:
            raise ValueError(f"data.source {text!r} matches no file that ends in {' or '.join(TABLES)}")
        return local_tables(config, {"train": files})
    looks_like_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text)
    hint = f"; for a data set of the hub write {HUB}{text}" if looks_like_hub else ""
    raise ValueError(f"data.source {text!r}: there is no such folder or file{hint}")


def digits(config: DataConfig) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 px, levels 0..16 scaled to 0..255, classes "0".."9".

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository (test part).
    """
    no_columns(config, "a set of digits")
    choose_split(config, ["train"])

    def read() -> Records:
        from sklearn.datasets import load_digits

        table = load_digits()
        pixels = np.round(table.images * (255 / 16)).astype(np.uint8)
        labels = table.target.tolist() if config.labels is not False else [None] * len(pixels)
        rows = enumerate(zip(pixels, labels, strict=True))
        items = (Item(f"digit {i}", image, label) for i, (image, label) in rows)
        classes = tuple(str(name) for name in table.target_names)
        return Records(items, len(pixels), config.labels is not False, classes)

    return Source("digits", ["digits", 1], read)


def walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files below `folder` with one of the suffixes, hidden ones left out, links followed (once), in a fixed order."""
    seen = set()
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(real)
    kept = [file for file in found if file.suffix.lower() in suffixes]
    return iter(sorted(kept, key=lambda file: file.relative_to(folder).as_posix()))


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of ("val-00001.parquet": validation), or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in words if word in names), None)


def by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their path below `folder` speaks of; one that speaks of none belongs to train."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(folder).as_posix()) or "train", []).append(file)
    return splits


def choose_split(config: DataConfig, splits: Iterable[str]) -> str:
    """`config.split` under the name that `splits` has for it. Raises ValueError with the splits there are."""
    known = list(splits)
    for name in (config.split, split_of(config.split)):
        if name in known:
            return str(name)
    raise ValueError(f"data.split {config.split!r} is not a split of {config.source!r}; splits: {', '.join(known)}")


def no_columns(config: DataConfig, what: str) -> None:
    """Refuse column names where there are no columns."""
    for field in ("image_column", "label_column"):
        if getattr(config, field) is not None:
            raise ValueError(f"data.{field} is {getattr(config, field)!r} but {what} has no columns; leave it out")


def stamp(file: Path) -> list:
    """What tells that a file has changed: its path, size in bytes and time of change in nanoseconds."""
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def nearest(name: str, names: Iterable[str]) -> str:
    """The known names for an error message, the nearest one first."""
    known = list(names)
    close = difflib.get_close_matches(name, known, 1)
    return (f"nearest: {close[0]}; " if close else "") + f"columns: {', '.join(known)}"
