"""Finds the source that the settings name, and checks that every setting has an effect on it."""

import glob
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pictures.pixel_format import PixelFormat
from training.data.config import HUB, DataConfig
from training.data.sources.arrays import ArrayOptions
from training.data.sources.folder import image_folder
from training.data.sources.records import ARRAYS, PICTURES, TABLES, Item, Records, Source, choose_split, split_of, walk
from training.data.sources.tables import Columns, hub_tables, local_tables

PICTURE_KINDS, TABLE_KINDS = ("named", "hub", "tables", "images"), ("hub", "tables")
USED_BY: dict[str, tuple[tuple[str, ...], str]] = {
    "range": (("arrays",), "the range of pictures is known"),
    "image_column": (TABLE_KINDS, "only tables have columns"),
    "label_column": (TABLE_KINDS, "only tables have columns"),
    "label_file": (("images", "arrays"), "it is for folders of images; a table has data.label_column"),
    "bits": (PICTURE_KINDS, "arrays keep their dtype"),
    "crop": (PICTURE_KINDS, "arrays are not cropped"),
}
"""field -> the kinds of sources that it has an effect on, and why not on others"""


def find_source(config: DataConfig) -> Source:
    """Finds what `config.source` names, without reading an image.

    Raises ValueError if there is no such source, and for fields that contradict it or have no effect on it.
    """
    kind, files = find_files(config.source)
    for field, (kinds, reason) in USED_BY.items():
        value = getattr(config, field)
        if value != getattr(DataConfig, field) and kind not in kinds:
            shown = str(value) if isinstance(value, Path) else value
            raise ValueError(f"data.{field} is {shown!r} but {reason}; leave it out")
    if kind != "arrays" and config.channels not in (None, 1, 3):
        raise ValueError(f"data.channels {config.channels} must be 1 (grey), 3 (RGB) or null (as found) for pictures")
    columns = Columns(config.image_column, config.label_column, config.labels)
    pixel_format, folder = config.preprocessing.pixel_format, Path(config.source).expanduser()
    if kind == "named":
        return NAMED[key_of(config.source)](config.source, config.split, config.labels, pixel_format)
    if kind == "hub":
        return hub_tables(config.source, config.split, columns, pixel_format)
    if kind == "tables":
        splits: dict[str, list[Path]] = {}
        for file in files:
            named = split_of(file.relative_to(folder).as_posix()) if folder.is_dir() else None
            splits.setdefault(named or "train", []).append(file)
        return local_tables(config.source, splits, config.split, columns, pixel_format)
    arrays = ArrayOptions(config.range, config.preprocessing, config.max_bad) if kind == "arrays" else None
    return image_folder(folder, files, config.split, config.labels, config.label_file, pixel_format, arrays)


def find_files(setting: str) -> tuple[str, list[Path]]:
    """The kind of a source and its files. Raises ValueError if there is none."""
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
        items = [Item(f"digit {i}", image) for i, image in enumerate(pixels)]
        return Records(
            sizes=[len(items)],
            load=lambda shard: items,
            labels=table.target.tolist() if labelled else None,
            classes=tuple(map(str, table.target_names)) if labelled else None,
            pixel_format=pixel_format,
            stamp=lambda: [[item.name, image.nbytes] for item, image in zip(items, pixels, strict=True)],
        )

    return Source(setting, "digits", ["digits", 1, labelled], read)


NamedSource = Callable[[str, str, bool | None, PixelFormat], Source]
"""makes a source of pictures from `data.source`, `data.split`, `data.labels` and the format of decoded pictures"""

NAMED: dict[str, NamedSource] = {"digits": digits}
"""named sources: key "NAME" for `data.source` NAME, key "NAME:" for NAME:ARGUMENT; a user's script may add to it"""


def key_of(setting: str) -> str:
    """The key of `NAMED` that a value of `data.source` would have."""
    name, colon, _ = setting.partition(":")
    return name + colon
