"""Finds the source that the settings name, and checks that every setting has an effect on it."""

import glob
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from training.data.config import HUB, DataConfig
from training.data.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayOptions
from training.data.sources.folder import image_folder
from training.data.sources.records import (
    ARRAYS,
    PICTURES,
    TABLES,
    Columns,
    Item,
    Records,
    Source,
    by_split,
    choose_split,
    walk,
)
from training.data.sources.tables import hub_tables, local_tables

RANGE = {"range": "data.source holds pictures, whose range is known"}
FOLDER = dict.fromkeys(("image_column", "label_column"), "a folder of images has no columns")
TABLE = RANGE | {"label_file": "a table has a column for labels, data.label_column"}
UNUSED: dict[str, Mapping[str, str]] = {
    "named": RANGE
    | dict.fromkeys(("image_column", "label_column"), "a named source has no columns")
    | {"label_file": "a named source has labels of its own"},
    "hub": TABLE,
    "tables": TABLE,
    "images": RANGE | FOLDER,
    "arrays": FOLDER,
}
"""kind of source -> fields without an effect on it, and why"""


def find_source(config: DataConfig) -> Source:
    """Finds what `config.source` names, without reading an image.

    Raises ValueError if there is no such source, and for fields that contradict it or have no effect on it.
    """
    kind, files = find_files(config.source)
    for field, reason in UNUSED[kind].items():
        if (value := getattr(config, field)) is not None:
            shown = str(value) if isinstance(value, Path) else value
            raise ValueError(f"data.{field} is {shown!r} but {reason}; leave it out")
    if kind != "arrays" and config.channels not in (None, 1, 3):
        raise ValueError(f"data.channels {config.channels} must be 1 (grey), 3 (RGB) or null (as found) for pictures")
    preprocessing, columns = config.preprocessing, Columns(config.image_column, config.label_column, config.labels)
    pixel_format, folder = preprocessing.pixel_format, Path(config.source).expanduser()
    if kind == "named":
        return NAMED[key_of(config.source)](config.source, config.split, config.labels, pixel_format)
    if kind == "hub":
        return hub_tables(config.source, config.split, columns, pixel_format)
    if kind == "tables":
        splits = by_split(files, folder) if folder.is_dir() else {"train": files}
        return local_tables(config.source, splits, config.split, columns, pixel_format)
    arrays = ArrayOptions(config.range, preprocessing, config.max_bad) if kind == "arrays" else None
    return image_folder(folder, files, config.split, config.labels, config.label_file, arrays or pixel_format)


def find_files(setting: str) -> tuple[str, list[Path]]:
    """The kind of a source (a key of `UNUSED`) and its files. Raises ValueError if there is none."""
    if key_of(setting) in NAMED:
        return "named", []
    if setting.startswith(HUB):
        return "hub", []
    path = Path(setting).expanduser()
    if path.is_dir():
        return folder_files(path)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise ValueError(
                f"data.source {setting!r} is not a table ({' or '.join(TABLES)}); give such a file, or a folder"
            )
        return "tables", [path]
    if glob.has_magic(setting):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if files := [file for file in found if file.suffix.lower() in TABLES]:
            return "tables", files
        raise ValueError(f"data.source {setting!r} matches no file that ends in {' or '.join(TABLES)}")
    looks_like_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", setting)
    hint = f"; for a data set of the hub write {HUB}{setting}" if looks_like_hub else ""
    raise ValueError(f"data.source {setting!r}: there is no such folder or file{hint}")


def folder_files(folder: Path) -> tuple[str, list[Path]]:
    """The one kind of files that a folder holds: images, arrays or tables. Raises ValueError for none or several."""
    files = walk(folder, PICTURES + ARRAYS + TABLES)
    kinds = {"images": PICTURES, "arrays": ARRAYS, "tables": TABLES}
    found = {kind: those for kind, ends in kinds.items() if (those := [f for f in files if f.suffix.lower() in ends])}
    if not found:
        raise ValueError(
            f"data.source {str(folder)!r} holds no images, arrays or tables;"
            f" looked for {' '.join(PICTURES + ARRAYS + TABLES)}"
        )
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        glob_hint = f"name the tables by a glob such as {folder}/*{second[0].suffix}, or " if other == "tables" else ""
        raise ValueError(
            f"data.source {str(folder)!r} holds both {one} ({first[0].name}, …) and {other} ({second[0].name}, …);"
            f" {glob_hint}move one kind elsewhere"
        )
    return found.popitem()


def digits(setting: str, split: str, labels: bool | None, pixel_format: PixelFormat) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 px, levels 0..16 scaled to 0..255, classes "0".."9".

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository (test part).
    """
    choose_split(split, ["train"], setting)
    labelled = labels is not False

    def read() -> Records:
        from sklearn.datasets import load_digits

        table = load_digits()
        pixels = np.round(table.images * (255 / 16)).astype(np.uint8)
        rows = enumerate(zip(pixels, table.target.tolist(), strict=True))
        items = (Item(f"digit {i}", image, label if labelled else None) for i, (image, label) in rows)
        return Records(items, len(pixels), pixel_format, labelled, tuple(str(name) for name in table.target_names))

    return Source(setting, "digits", ["digits", 1, labelled], read)


NamedSource = Callable[[str, str, bool | None, PixelFormat], Source]
"""makes a source of pictures from `data.source`, `data.split`, `data.labels` and the format of decoded pictures"""

NAMED: dict[str, NamedSource] = {"digits": digits}
"""named sources: key "NAME" for `data.source` NAME, key "NAME:" for NAME:ARGUMENT; a user's script may add to it"""


def key_of(setting: str) -> str:
    """The key of `NAMED` that a value of `data.source` would have."""
    name, colon, _ = setting.partition(":")
    return name + colon
