"""Where images come from: every kind of source becomes a name, a key of its content and a stream of records."""

import glob
import re
from pathlib import Path

import numpy as np

from training.data.config import DataConfig
from training.data.folder import picture_folder
from training.data.records import PICTURES, TABLES, Item, Records, Source, by_split, choose_split, no_columns, walk
from training.data.tables import hub_tables, local_tables

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
