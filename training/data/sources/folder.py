"""Folders of pictures or arrays, with labels from their sub-folders or from a file."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pictures.pixel_format import PixelFormat
from residual.names import amount, shorten
from training.data.sources.arrays import ArrayOptions, first_array
from training.data.sources.label_file import NoLabels, Unlabelled, read_label_file, read_numbers
from training.data.sources.labels import normalize
from training.data.sources.records import SPLITS, Item, Records, Source, choose_split, split_of, stamp
from training.data.sources.vectors import NO_VECTORS, VectorColumns

SPLIT_FOLDERS = {name: split for split, names in SPLITS.items() for name in names}
PARALLEL = {
    *("image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels", "annotation", "annotations"),
    *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "gt", "groundtruth", "ground_truth"),
    *("depth", "depths", "normals", "edges", "input", "inputs", "target", "targets", "leftimg8bit", "gtfine"),
}
"""sub-folders, in lower case, that have something of every image, such as its mask: together they are not classes"""
SHARD = re.compile(
    r"(?:[^/]+/)*(?:(\d{5})/img\1\d{3}|(\d{2})000/\2\d{3}|([0-9a-f]{1,3})/\3[0-9a-f]{8,})\.\w+", re.IGNORECASE
)
"""an image in folders that are no classes but parts of a set: 1,000 images each, as of EDM's dataset_tool and of FFHQ,
or the first digits of hexadecimal names"""

Labelled = tuple[Sequence[int | str] | None, tuple[str, ...] | None]
"""the label of each image, and the names of all classes; None without labels, or without names"""


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels of a folder come from."""

    required: bool | None
    """True requires labels, False ignores them, None uses them if there are any"""
    file: Path | None
    """the label file of the settings"""
    column: str | None
    """its column with the labels; None finds it by usual names"""
    metadata: Sequence[Path]
    """files beside the images that may have labels"""
    vectors: VectorColumns = NO_VECTORS
    """columns of numbers, in the same files"""


def image_folder(
    folder: Path,
    files: list[Path],
    split: str,
    options: LabelOptions,
    pixel_format: PixelFormat,
    arrays: ArrayOptions | None,
    notes: tuple[str, ...] = (),
) -> Source:
    """The images below `folder`, all pictures (of `pixel_format`) or all arrays, in the order of their paths.

    Labels come from the label file of `options`, else from files of metadata beside the images, else from sub-folders:
    the class of an image is the first one on its path, and classes are numbered in the order of their names. If all
    first sub-folders are named train, validation (val, …) or test, they are splits, and classes are one level below; a
    class has the same number in each. Unless labels are required, a single sub-folder is not a class.

    Raises ValueError for an unknown split, for labels that are required but missing, for images beside class folders,
    for sub-folders that are hardly classes, and as `read_label_file` does.
    """
    setting, chosen = str(folder), folder
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    splits = find_splits(setting, {parts[0] if parts else "" for parts in parents}, options)
    if splits:
        chosen = folder / splits[choose_split(split, splits, setting)]
        parents = [parts[1:] for parts in parents]
    else:
        choose_split(split, ["train"], setting)
    members = [file for file in files if chosen in file.parents]
    names = [file.relative_to(chosen).as_posix() for file in members]
    label_files = list(options.metadata) if options.file is None else [options.file]
    found: Labelled | None = None
    if options.file is not None and options.required is not False:
        whole = [file.relative_to(folder).as_posix() for file in files]
        with suppress(NoLabels) if options.vectors.names and not options.required else nullcontext():
            given = read_label_file(options.file, whole, folder, options.column)
            found = file_labels(given, folder, members, f"data.label_file {str(options.file)!r}")
    elif options.required is not False:
        labels, more = metadata_labels(options, folder, files)
        notes += more
        if labels is not None:
            title = f"data.source: {str(options.metadata[0])!r}"
            found = file_labels(labels, folder, members, title) if labels else (None, None)
    if found is None:
        by_split = defaultdict[str, set[str]](set)
        for file, parts in zip(files, parents, strict=True):
            if parts:
                by_split[file.relative_to(folder).parts[0] if splits else ""].add(class_of(parts[0]))
        every_class = sorted(find_classes(by_split.values(), options))
        found, more = folder_labels(chosen, names, every_class, options)
        notes += more
    label_of, classes = found
    if options.required and label_of is None:
        raise ValueError(
            f"data.labels is true but {str(chosen)!r} has no sub-folders to take classes from"
            f"{''.join(f' ({note})' for note in notes)}; sort the images into one folder per class, give"
            " data.label_file, or set data.labels to false"
        )

    vectors = folder_vectors(options, label_files, folder, files, members)

    def read() -> Records:
        first = None if arrays is None else first_array(members, names, arrays, setting)
        items = [
            Item(name, file if first is None else first.of(file)) for name, file in zip(names, members, strict=True)
        ]
        return Records(
            sizes=[len(items)],
            load=lambda shard: items,
            labels=label_of,
            classes=classes,
            pixel_format=pixel_format if first is None else first.pixel_format,
            stamp=lambda: [[name, file.stat().st_size] for name, file in zip(names, members, strict=True)],
            shape=None if first is None else first.shape,
            conditions=0 if arrays is None else len(arrays.condition),
            vectors=vectors,
            vector_columns=options.vectors.names,
            item_files=members,
        )

    key: list = [classes, *([name, *stamp(file)] for name, file in zip(names, members, strict=True))]
    if label_files and (options.required is not False or options.vectors.names):
        kind = "numbers" if options.required is False else "labels"
        key.append([kind, options.column, *(part for file in label_files for part in stamp(file))])
    if arrays is not None:
        key.append(["range", arrays.range, *([] if arrays.axes is None else [arrays.axes]), *arrays.key])
    return Source(setting, chosen.name, ["folder", *key], read, notes)


def folder_vectors(
    options: LabelOptions, tables: Sequence[Path], folder: Path, files: list[Path], members: list[Path]
) -> Float32[np.ndarray, "n v"] | None:
    """The numbers of `members`, the files of a split, from the label file or the metadata `tables`; None without any.

    Raises ValueError for an image without a number, for a column that no table has, and as `read_numbers` does.
    """
    columns: dict[str, list[float]] = {}
    names = [file.relative_to(folder).as_posix() for file in files]
    for column in options.vectors.names:
        found: dict[str, float] = {}
        faults = []
        for table in tables:
            place = folder if options.file is not None else table.parent
            prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
            own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            try:
                found |= {prefix + name: number for name, number in read_numbers(table, own, place, column, "").items()}
            except ValueError as error:
                faults.append(str(error))
        if not tables:
            faults.append("there is neither data.label_file nor metadata.csv, .jsonl or .parquet")
        needed = [file.relative_to(folder).as_posix() for file in members]
        if missing := [name for name in needed if name not in found]:
            why = f" ({faults[0]})" if faults else ""
            raise ValueError(
                f"data.vector_columns: {amount(len(missing), 'image')} of data.source {str(folder)!r}, such as"
                f" {missing[0]!r}, have no number {column!r}{why}"
            )
        columns[column] = [found[name] for name in needed]
    return options.vectors.stack(columns, f"data.source {str(folder)!r}")


def find_splits(setting: str, tops: Collection[str], options: LabelOptions) -> dict[str, str]:
    """The first sub-folders by the split that each is, if all are splits; else empty.

    Raises ValueError for two that are the same split, and for several splits beside other sub-folders.
    """
    found = {top: SPLIT_FOLDERS.get(top.lower()) for top in sorted(tops)}
    if len(found) > 1 and all(map(split_of, found)):  # such as train2017 and val2017
        found = {top: split_of(top) for top in found}
    splits: dict[str, str] = {}
    others = [top for top, name in found.items() if name is None]
    for top, name in found.items():
        if name is None:
            continue
        if not others and name in splits:
            raise ValueError(
                f"data.source {setting!r} has the sub-folders {splits[name]} and {top}, which are both the split"
                f" {name}; merge them, or rename one"
            )
        splits[name] = top
    if others and len(splits) > 1 and options.required is None and options.file is None:
        other = f"the sub-folder {others[0]!r}" if others[0] else "images"
        raise ValueError(
            f"data.source {setting!r} has the splits {' and '.join(splits.values())}, but {other} beside them; move it"
            " elsewhere, or set data.labels to true if all sub-folders are classes, to false to use all images"
        )
    return {} if others else splits


def find_classes(by_split: Collection[set[str]], options: LabelOptions) -> set[str]:
    """The classes of all splits. Unless labels are required, a single one, such as val/images, is not a class."""
    several = [names for names in by_split if len(names) > 1]
    return set[str]().union(*(several if several and not options.required else by_split))


def class_of(folder: str) -> str:
    """The class of the images in a sub-folder: its name, normalised unless nothing is left of it."""
    return normalize(folder) or folder


def folder_labels(
    folder: Path, names: list[str], classes: list[str], options: LabelOptions
) -> tuple[Labelled, tuple[str, ...]]:
    """The first sub-folder of each image, and remarks; `classes` are those of all splits."""
    if options.required is False:
        return (None, None), ()
    if options.column is not None:
        raise ValueError(
            f"data.label_column is {options.column!r} but {str(folder)!r} has no table of labels; leave it out, or give"
            " data.label_file"
        )
    known = set(classes)
    loose = [name for name in names if "/" not in name or class_of(name.partition("/")[0]) not in known]
    if classes and loose:
        if len(loose) == len(names):
            raise ValueError(
                f"data.source: {str(folder)!r} holds images such as {loose[0]}, but no sub-folders for the classes of"
                f" the other splits ({shorten(classes, 3)}); sort its images into the same sub-folders, give"
                " data.label_file, or set data.labels to false"
            )
        raise ValueError(
            f"data.source {str(folder)!r} holds images both directly ({loose[0]}, …) and in sub-folders ({classes[0]}),"
            " so that their classes are unclear; move them, or set data.labels to false"
        )
    if options.required:
        return ([class_of(name.partition("/")[0]) for name in names] if classes else None, tuple(classes) or None), ()
    if len(classes) < 2:
        inner = {name.split("/")[1] for name in names if name.count("/") > 1}
        if len(inner) > 1 and all(name.lower() in SPLIT_FOLDERS for name in inner):
            raise ValueError(
                f"data.source {str(folder)!r} holds splits one level too deep ({shorten(sorted(inner))}); give"
                f" {str(folder / classes[0])!r}, or set data.labels to false to use all images"
            )
        hint = f"labels: none, as all images are in the sub-folder {classes[0]}" if len(inner) > 1 else ""
        return (None, None), (f"{hint}; give it as data.source if its sub-folders are classes",) if hint else ()
    if all(SHARD.fullmatch(name) for name in names):
        return (None, None), ("labels: none, as the sub-folders are parts of a set without dataset.json",)
    if PARALLEL.issuperset(name.casefold() for name in classes):
        pictures = next((name for name in classes if name.casefold().startswith(("im", "in", "jpeg"))), classes[0])
        raise ValueError(
            f"data.source {str(folder)!r} has the sub-folders {shorten(classes)}, which are hardly classes; give"
            f" {str(folder / pictures)!r}, or set data.labels to true if they are classes, to false to use all images"
        )
    return ([class_of(name.partition("/")[0]) for name in names], tuple(classes)), ()


def file_labels(found: Mapping[str, int | str], folder: Path, members: list[Path], title: str) -> Labelled:
    """The label that label files have for each of `members`, the files of a split, by its name relative to `folder`.

    The files may leave out other splits; classes are those of all splits in the order of their names, so that a class
    has the same number in each. Raises ValueError, which begins with `title`, for an image without a label.
    """
    names = [file.relative_to(folder).as_posix() for file in members]
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"{title} has no label for {len(missing)} of {len(names)} images, such as {missing[0]!r}; add them, move"
            " the images elsewhere, or set data.labels to false"
        )
    classes = tuple(sorted({label for label in found.values() if isinstance(label, str)}))
    return [found[name] for name in names], classes or None


def metadata_labels(
    options: LabelOptions, folder: Path, files: list[Path]
) -> tuple[dict[str, int | str] | None, tuple[str, ...]]:
    """The labels by file name (relative to `folder`) in the metadata beside the images, and remarks.

    None if there are none; empty if the metadata have it that images have no labels. Raises ValueError as
    `read_label_file` does, and for two files that contradict each other.
    """
    names = [file.relative_to(folder).as_posix() for file in files]  # sorted
    labels: dict[str, int | str] = {}
    used, unused, unlabelled = list[str](), list[str](), False
    for file in options.metadata:
        shown, below = file.relative_to(folder).as_posix(), file.parent.relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        own = names[bisect_left(names, prefix) : bisect_left(names, f"{prefix}\U0010ffff")]
        try:
            found = read_label_file(file, [name.removeprefix(prefix) for name in own], file.parent, options.column, "")
        except Unlabelled:
            unlabelled = True
            used.append(f"{shown} (null: no image has a label)")
            continue
        except NoLabels as error:
            unused.append(str(error))
            continue
        except ValueError as error:
            raise ValueError(
                f"data.source: {error}. Correct it, give data.label_file, or set data.labels to false"
            ) from None
        for name, label in found.items():
            if labels.setdefault(prefix + name, label) != label:
                raise ValueError(
                    f"data.source: image {prefix + name!r} has the label {labels[prefix + name]!r}, but {label!r} in"
                    f" {str(file)!r}; give one file as data.label_file, or set data.labels to false"
                )
        used.append(shown)
    if len({type(label) for label in labels.values()}) > 1:
        raise ValueError(f"data.source: {shorten(used)} hold names as well as numbers of classes; give one kind")
    notes = [("labels", f"from {shorten(used, 3)}")] if used else []
    if unused and not options.vectors.names:
        notes.append(("metadata", f"not used: {'; '.join(unused[:3])}"))
    return labels if labels or unlabelled else None, tuple(map(": ".join, notes))
