"""A folder of images, with labels from its sub-folders."""

from pathlib import Path

from training.data.config import DataConfig
from training.data.records import PICTURES, SPLITS, Item, Records, Source, choose_split, no_columns, stamp

SPLIT_FOLDERS = {name: split for split, names in SPLITS.items() for name in names}


def picture_folder(config: DataConfig, folder: Path, pictures: list[Path]) -> Source:
    """The images below `folder`, in the order of their paths.

    The class of an image is the first sub-folder on its path; classes are numbered in the order of their names. If all
    first sub-folders are called train, validation (val, …) or test, they are splits and classes are one floor below.
    Where labels are not demanded, a single sub-folder is no class. Raises ValueError for a folder without images, an
    unknown split, labels that are demanded but not there, and images beside class folders (which class are they?).
    """
    no_columns(config, "a folder of images")
    if not pictures:
        raise ValueError(f"data.source {str(folder)!r} holds no images, nor tables; looked for {' '.join(PICTURES)}")
    below = {top(file, folder) for file in pictures}
    if all(name is not None and name.lower() in SPLIT_FOLDERS for name in below):
        splits = {SPLIT_FOLDERS[str(name).lower()]: str(name) for name in sorted(map(str, below))}
        folder = folder / splits[choose_split(config, splits)]
        pictures = [file for file in pictures if folder in file.parents]
    else:
        choose_split(config, ["train"])
    classes = class_folders(config, folder, pictures)

    def read() -> Records:
        number = {name: index for index, name in enumerate(classes)}
        items = (
            Item(file.relative_to(folder).as_posix(), file, number[str(top(file, folder))] if classes else None)
            for file in pictures
        )
        return Records(items, len(pictures), bool(classes), classes or None)

    return Source(folder.name, ["folder", *(stamp(file) for file in pictures)], read)


def top(file: Path, folder: Path) -> str | None:
    """The first sub-folder on the way from `folder` to `file`; None if there is none between them."""
    parts = file.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def class_folders(config: DataConfig, folder: Path, pictures: list[Path]) -> tuple[str, ...]:
    """Names of the class folders; empty where images go without labels."""
    if config.labels is False:
        return ()
    loose = [file.name for file in pictures if top(file, folder) is None]
    names = sorted({name for file in pictures if (name := top(file, folder)) is not None})
    if names and loose:
        raise ValueError(
            f"data.source {str(folder)!r} holds images both directly ({loose[0]}, …) and in sub-folders ({names[0]});"
            " which class have they? move them, or set data.labels to false"
        )
    if config.labels and not names:
        raise ValueError(
            f"data.labels is true but {str(folder)!r} has no sub-folders to take classes from;"
            " sort the images into one folder per class, or set data.labels to false"
        )
    return tuple(names) if config.labels or len(names) > 1 else ()
