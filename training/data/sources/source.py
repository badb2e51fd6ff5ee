"""Where images come from: every kind of source becomes a name, a key of its content and a stream of records."""

import glob
import re
from pathlib import Path

import numpy as np

from training.data.config import DataConfig
from training.data.sources.folder import file_folder
from training.data.sources.records import (
    ARRAYS,
    PICTURE_FORMATS,
    PICTURES,
    TABLES,
    Item,
    Records,
    Source,
    by_split,
    choose_split,
    no_columns,
    only_pictures,
    refuse,
    walk,
)
from training.data.sources.tables import hub_tables, local_tables

HUB = "hub:"


def find_source(config: DataConfig) -> Source:
    """Find what `config.source` names, reading no image yet. Raises ValueError that says what is missing."""
    text = config.source
    if text == "digits":
        return digits(config)
    if text.startswith(HUB):
        return hub_tables(config, text.removeprefix(HUB))
    path = Path(text).expanduser()
    if path.is_dir():
        return folder_source(config, path)
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


def folder_source(config: DataConfig, folder: Path) -> Source:
    """What a folder holds: pictures, arrays or tables. Raises ValueError for none, and for several of these."""
    files = list(walk(folder, PICTURES + ARRAYS + TABLES))
    kinds = {"images": PICTURES, "arrays": ARRAYS, "tables": TABLES}
    found = {kind: those for kind, ends in kinds.items() if (those := [f for f in files if f.suffix.lower() in ends])}
    if not found:
        raise ValueError(
            f"data.source {str(folder)!r} holds no images, nor arrays or tables;"
            f" looked for {' '.join(PICTURES + ARRAYS + TABLES)}"
        )
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        glob_hint = f"name the tables by a glob such as {folder}/*{second[0].suffix}, or " if other == "tables" else ""
        raise ValueError(
            f"data.source {str(folder)!r} holds both {one} ({first[0].name}, …) and {other} ({second[0].name}, …);"
            f" {glob_hint}move one kind elsewhere"
        )
    if "tables" in found:
        return local_tables(config, by_split(files, folder))
    return file_folder(config, folder, files)


def digits(config: DataConfig) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 px, levels 0..16 scaled to 0..255, classes "0".."9".

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository (test part).
    """
    no_columns(config, "a set of digits")
    only_pictures(config)
    refuse(config, ("label_file",), "digits have labels")
    choose_split(config, ["train"])

    def read() -> Records:
        from sklearn.datasets import load_digits

        table = load_digits()
        pixels = np.round(table.images * (255 / 16)).astype(np.uint8)
        labels = table.target.tolist() if config.labels is not False else [None] * len(pixels)
        rows = enumerate(zip(pixels, labels, strict=True))
        items = (Item(f"digit {i}", image, label) for i, (image, label) in rows)
        classes = tuple(str(name) for name in table.target_names)
        return Records(items, len(pixels), PICTURE_FORMATS[config.bits], config.labels is not False, classes)

    return Source("digits", ["digits", 1], read)
