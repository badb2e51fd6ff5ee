"""Folders of pictures or arrays, with labels from their sub-folders or from a file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pictures.pixel_format import PixelFormat
from training.data.sources.arrays import ArrayOptions, first_array
from training.data.sources.label_file import read_label_file
from training.data.sources.records import SPLITS, Item, Records, Source, choose_split, stamp

SPLIT_FOLDERS = {name: split for split, names in SPLITS.items() for name in names}
Labelled = tuple[Sequence[int | str] | None, tuple[str, ...] | None]
"""the label of each image, and the names of all classes; None without labels, or without names"""


def image_folder(
    folder: Path,
    files: list[Path],
    split: str,
    labels: bool | None,
    label_file: Path | None,
    pixel_format: PixelFormat,
    arrays: ArrayOptions | None,
) -> Source:
    """The images below `folder`, all pictures (of `pixel_format`) or all arrays, in the order of their paths.

    The class of an image is the first sub-folder on its path; classes are numbered in the order of their names. If all
    first sub-folders are named train, validation (val, …) or test, they are splits, and classes are one level below; a
    class has the same number in each. Unless `labels` is True, a single sub-folder is not a class. With `label_file`
    folders are not classes: the file has the label of each image.
    Raises ValueError for an unknown split, for labels that are required but missing, for images beside class folders,
    and as `read_label_file` does.
    """
    setting, chosen = str(folder), folder
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    tops = sorted({parts[0] if parts else "" for parts in parents})
    splits = {SPLIT_FOLDERS.get(top.lower(), ""): top for top in tops}
    if "" in splits:  # not all of them are splits
        choose_split(split, ["train"], setting)
    else:
        chosen = folder / splits[choose_split(split, splits, setting)]
        parents = [parts[1:] for parts in parents]
    members = [file for file in files if chosen in file.parents]
    names = [file.relative_to(chosen).as_posix() for file in members]
    if label_file is None:
        every_class = sorted({parts[0] for parts in parents if parts})
        label_of, classes = folder_labels(chosen, names, every_class, labels)
    else:
        label_of, classes = file_labels(label_file, folder, files, members)

    def read() -> Records:
        first = None if arrays is None else first_array(members, names, arrays, setting)
        items = [
            Item(name, file if first is None else replace(first, path=file))
            for name, file in zip(names, members, strict=True)
        ]
        return Records(
            sizes=[len(items)],
            load=lambda shard: items,
            labels=label_of,
            classes=classes,
            pixel_format=pixel_format if first is None else first.pixel_format,
            stamp=lambda: [[name, file.stat().st_size] for name, file in zip(names, members, strict=True)],
            shape=None if first is None else first.shape,
        )

    key: list = [classes, *([name, *stamp(file)] for name, file in zip(names, members, strict=True))]
    if label_file is not None:
        key.append(["labels", *stamp(label_file.expanduser())])
    if arrays is not None:
        key.append(["range", arrays.range])
    return Source(setting, chosen.name, ["folder", *key], read)


def folder_labels(folder: Path, names: list[str], classes: list[str], labels: bool | None) -> Labelled:
    """The first sub-folder of each image; `classes` are those of all splits."""
    if labels is False:
        return None, None
    loose = [name for name in names if "/" not in name]
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
    if not labels and len(classes) < 2:
        return None, None
    return [name.partition("/")[0] for name in names], tuple(classes)


def file_labels(path: Path, folder: Path, files: list[Path], members: list[Path]) -> Labelled:
    """The label that the file has for each of `members`, the files of a split.

    The file names images relative to `folder` and may leave out other splits; classes are those of all splits in the
    order of their names, so that a class has the same number in each.
    """
    found = read_label_file(path, [file.relative_to(folder).as_posix() for file in files], folder)
    names = [file.relative_to(folder).as_posix() for file in members]
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"data.label_file {str(path)!r} has no label for {len(missing)} of {len(names)} images, such as"
            f" {missing[0]!r}; add them, or move the images elsewhere"
        )
    classes = tuple(sorted({label for label in found.values() if isinstance(label, str)}))
    return [found[name] for name in names], classes or None
