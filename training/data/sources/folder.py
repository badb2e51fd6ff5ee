"""A folder of images, pictures or arrays, with labels from its sub-folders or from a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from training.data.config import DataConfig
from training.data.sources.arrays import example
from training.data.sources.label_file import read_label_file
from training.data.sources.records import (
    ARRAYS,
    PICTURE_FORMATS,
    SPLITS,
    Item,
    Records,
    Source,
    choose_split,
    no_columns,
    only_pictures,
    stamp,
)

SPLIT_FOLDERS = {name: split for split, names in SPLITS.items() for name in names}
Labelled = tuple[Mapping[str, int | str], tuple[str, ...] | None]


def file_folder(config: DataConfig, folder: Path, files: list[Path]) -> Source:
    """The images below `folder`, all pictures or all arrays, in the order of their paths.

    The class of an image is the first sub-folder on its path; classes are numbered in the order of their names. If all
    first sub-folders are called train, validation (val, …) or test, they are splits and classes are one floor below; a
    class has the same number in each.
    Where labels are not demanded, a single sub-folder is no class. With `data.label_file` folders are no classes: the
    file has the label of each image. Raises ValueError for an unknown split, labels that are demanded but not there,
    images beside class folders (which class are they?), and what `read_label_file` refuses.
    """
    no_columns(config, "a folder of images")
    arrays = files[0].suffix.lower() in ARRAYS
    if not arrays:
        only_pictures(config)
    whole, all_files = folder, files
    below = {top(file, folder) for file in files}
    in_splits = all(name is not None and name.lower() in SPLIT_FOLDERS for name in below)
    if in_splits:
        splits = {SPLIT_FOLDERS[str(name).lower()]: str(name) for name in sorted(map(str, below))}
        folder = folder / splits[choose_split(config, splits)]
        files = [file for file in files if folder in file.parents]
    else:
        choose_split(config, ["train"])
    names = [file.relative_to(folder).as_posix() for file in files]
    if config.label_file is None:
        floors = {file: file.relative_to(whole).parts[in_splits:-1] for file in all_files}
        every = {floor[0] for floor in floors.values() if floor}
        labels, classes = folder_labels(config, folder, files, every)
    else:
        labels, classes = file_labels(config.label_file, whole, all_files, folder, names)

    def read() -> Records:
        first = example(config, files, names) if arrays else None
        pixels = PICTURE_FORMATS[config.bits] if first is None else first.pixel_format
        items = (
            Item(name, file if first is None else replace(first, path=file), labels.get(name))
            for name, file in zip(names, files, strict=True)
        )
        return Records(items, len(files), pixels, bool(labels), classes)

    key: list = [classes, *([name, *stamp(file)] for name, file in zip(names, files, strict=True))]
    if config.label_file is not None:
        key.append(["labels", *stamp(config.label_file.expanduser())])
    return Source(folder.name, ["folder", *key], read)


def top(file: Path, folder: Path) -> str | None:
    """The first sub-folder on the way from `folder` to `file`; None if there is none between them."""
    parts = file.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def folder_labels(config: DataConfig, folder: Path, files: list[Path], every: set[str]) -> Labelled:
    """The class number of each image by its name, and the classes, `every` sub-folder of any split; neither where
    images go without labels."""
    if config.labels is False:
        return {}, None
    folders = {file.relative_to(folder).as_posix(): top(file, folder) for file in files}
    loose = [name for name, above in folders.items() if above is None]
    classes = sorted(every)
    if classes and loose:
        raise ValueError(
            f"data.source {str(folder)!r} holds images both directly ({loose[0]}, …) and in sub-folders ({classes[0]});"
            " which class have they? move them, or set data.labels to false"
        )
    if config.labels and not classes:
        raise ValueError(
            f"data.labels is true but {str(folder)!r} has no sub-folders to take classes from;"
            " sort the images into one folder per class, give data.label_file, or set data.labels to false"
        )
    if not (config.labels or len(classes) > 1):
        return {}, None
    number = {name: index for index, name in enumerate(classes)}
    return {name: number[str(above)] for name, above in folders.items()}, tuple(classes)


def file_labels(path: Path, whole: Path, all_files: list[Path], folder: Path, names: list[str]) -> Labelled:
    """The label of each image by its name below `folder`, its split, and the classes if they have names.

    The file speaks of images by their names below `whole`, and may leave out other splits; classes are those of all
    splits in the order of their names, so that a class has the same number in each.
    """
    said = read_label_file(path, [file.relative_to(whole).as_posix() for file in all_files])
    prefix = folder.relative_to(whole)
    labels = {name: said.get((prefix / name).as_posix()) for name in names}
    missing = [name for name, label in labels.items() if label is None]
    if missing:
        raise ValueError(
            f"data.label_file {str(path)!r} has no label for {len(missing)} of {len(names)} images, such as"
            f" {(prefix / missing[0]).as_posix()!r}; add them, or move the images elsewhere"
        )
    classes = tuple(sorted({label for label in said.values() if isinstance(label, str)}))
    number = {name: index for index, name in enumerate(classes)}
    given = {
        name: number[label] if isinstance(label, str) else label for name, label in labels.items() if label is not None
    }
    return given, classes or None
