"""Folders of pictures or arrays, with labels from their sub-folders or from a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pictures.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayOptions, first_array
from training.data.sources.label_file import read_label_file
from training.data.sources.records import SPLITS, Item, Records, Source, choose_split, stamp

SPLIT_FOLDERS = {name: split for split, names in SPLITS.items() for name in names}
Labelled = tuple[Mapping[str, int | str], tuple[str, ...] | None]


def image_folder(
    folder: Path,
    files: list[Path],
    split: str,
    labels: bool | None,
    label_file: Path | None,
    kind: PixelFormat | ArrayOptions,
) -> Source:
    """The images below `folder`, all pictures (of pixel format `kind`) or all arrays, in the order of their paths.

    The class of an image is the first sub-folder on its path; classes are numbered in the order of their names. If all
    first sub-folders are named train, validation (val, …) or test, they are splits, and classes are one level below; a
    class has the same number in each. Unless `labels` is True, a single sub-folder is not a class. With `label_file`
    folders are not classes: the file has the label of each image.
    Raises ValueError for an unknown split, for labels that are required but missing, for images beside class folders,
    and as `read_label_file` does.
    """
    whole, all_files = folder, files
    top_folders = {top(file, folder) for file in files}
    in_splits = all(name is not None and name.lower() in SPLIT_FOLDERS for name in top_folders)
    if in_splits:
        splits = {SPLIT_FOLDERS[str(name).lower()]: str(name) for name in sorted(map(str, top_folders))}
        folder = folder / splits[choose_split(split, splits, str(whole))]
        files = [file for file in files if folder in file.parents]
    else:
        choose_split(split, ["train"], str(whole))
    names = [file.relative_to(folder).as_posix() for file in files]
    if label_file is None:
        levels = {file: file.relative_to(whole).parts[in_splits:-1] for file in all_files}
        every_class = {level[0] for level in levels.values() if level}
        label_of, classes = folder_labels(folder, files, every_class, labels)
    else:
        label_of, classes = file_labels(label_file, whole, all_files, folder, names)

    def read() -> Records:
        if isinstance(kind, PixelFormat):
            pictures = (Item(name, file, label_of.get(name)) for name, file in zip(names, files, strict=True))
            return Records(pictures, len(files), kind, bool(label_of), classes)
        first = first_array(files, names, kind, str(whole))
        arrays = (
            Item(name, replace(first, path=file), label_of.get(name)) for name, file in zip(names, files, strict=True)
        )
        return Records(arrays, len(files), first.pixel_format, bool(label_of), classes)

    key: list = [classes, *([name, *stamp(file)] for name, file in zip(names, files, strict=True))]
    if label_file is not None:
        key.append(["labels", *stamp(label_file.expanduser())])
    if isinstance(kind, ArrayOptions):
        key.append(["range", kind.range])
    return Source(str(whole), folder.name, ["folder", *key], read)


def top(file: Path, folder: Path) -> str | None:
    """The first sub-folder on the path from `folder` to `file`; None if there is none between them."""
    parts = file.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def folder_labels(folder: Path, files: list[Path], every_class: set[str], labels: bool | None) -> Labelled:
    """The class number of each image by its name, and the names of all classes; {} and None without labels."""
    if labels is False:
        return {}, None
    folders = {file.relative_to(folder).as_posix(): top(file, folder) for file in files}
    loose = [name for name, above in folders.items() if above is None]
    classes = sorted(every_class)
    if classes and loose:
        raise ValueError(
            f"data.source {str(folder)!r} holds images both directly ({loose[0]}, …) and in sub-folders ({classes[0]}),"
            " so that their classes are unclear; move them, or set data.labels to false"
        )
    if labels and not classes:
        raise ValueError(
            f"data.labels is true but {str(folder)!r} has no sub-folders to take classes from;"
            " sort the images into one folder per class, give data.label_file, or set data.labels to false"
        )
    if not (labels or len(classes) > 1):
        return {}, None
    number = {name: index for index, name in enumerate(classes)}
    return {name: number[str(above)] for name, above in folders.items()}, tuple(classes)


def file_labels(path: Path, whole: Path, all_files: list[Path], folder: Path, names: list[str]) -> Labelled:
    """The label of each image by its name below `folder`, its split, and the classes if they have names.

    The file names images relative to `whole` and may leave out other splits; classes are those of all splits in the
    order of their names, so that a class has the same number in each.
    """
    found = read_label_file(path, [file.relative_to(whole).as_posix() for file in all_files])
    prefix = folder.relative_to(whole)
    given = {name: found.get((prefix / name).as_posix()) for name in names}
    missing = [name for name, label in given.items() if label is None]
    if missing:
        raise ValueError(
            f"data.label_file {str(path)!r} has no label for {len(missing)} of {len(names)} images, such as"
            f" {(prefix / missing[0]).as_posix()!r}; add them, or move the images elsewhere"
        )
    classes = tuple(sorted({label for label in found.values() if isinstance(label, str)}))
    number = {name: index for index, name in enumerate(classes)}
    labels = {
        name: number[label] if isinstance(label, str) else label for name, label in given.items() if label is not None
    }
    return labels, classes or None
