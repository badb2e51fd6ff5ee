"""Finds the source that the settings name, and checks that every setting has an effect on it."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from storage.read import require_regular
from training.data.config import HUB, DataConfig
from training.data.sources.array_file import array_file, image_arrays
from training.data.sources.arrays import ArrayOptions
from training.data.sources.folder import LabelOptions, image_folder
from training.data.sources.grids import SUFFIXES, grid_file
from training.data.sources.listing import KINDS, Listing
from training.data.sources.pairs import paired
from training.data.sources.records import Item, Records, Source, choose_split, split_of
from training.data.sources.table_files import features_of, open_table
from training.data.sources.tables import Columns, hub_tables, is_image, local_tables
from training.data.sources.vectors import VectorColumns

PICTURE_KINDS, TABLE_KINDS, ARRAY_KINDS = (
    ("named", "hub", "tables", "images"),
    ("hub", "tables"),
    ("arrays", "npy", "npz", "grids"),
)
USED_BY: dict[str, tuple[tuple[str, ...], str]] = {
    "range": (ARRAY_KINDS, "the range of pictures is known"),
    "normalisation": (ARRAY_KINDS, "pictures have a range, which is known"),
    "missing": (ARRAY_KINDS, "pictures have no missing values"),
    "axes": (("arrays", "npy", "npz"), "only arrays may have their channels last"),
    "variables": (("grids",), "only netCDF files and zarr stores have variables"),
    "image_column": ((*TABLE_KINDS, "npz"), "only tables and .npz files have columns"),
    "label_column": ((*TABLE_KINDS, "npz", "images", "arrays"), "only tables, label files and .npz files have columns"),
    "allow_outside": (TABLE_KINDS, "only tables name files"),
    "label_file": (("images", "arrays"), "it is for folders of images; a table has data.label_column"),
    "condition": ((*TABLE_KINDS, *ARRAY_KINDS, "images"), "the images of a named source have none"),
    "vector_columns": ((*TABLE_KINDS, "npz", "grids", "images", "arrays"), "its images have no columns of numbers"),
    "bits": (PICTURE_KINDS, "arrays keep their dtype"),
    "crop": (PICTURE_KINDS, "arrays are not cropped"),
    "autoencoder": (PICTURE_KINDS, "it encodes pictures; arrays may be latents themselves, with data.normalisation"),
}
"""field -> the kinds of sources that it has an effect on, and why not on others"""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
LISTS = (".csv", ".tsv", ".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class Found:
    """What a setting names: a kind of source, files, the folder that names are relative to, and what is left out."""

    kind: str
    folder: Path = Path()
    files: list[Path] = field(default_factory=list)
    left_out: str = ""
    metadata: list[Path] = field(default_factory=list)
    """files beside the images that may have their labels"""


def find_source(config: DataConfig, *, training: bool = True) -> Source:
    """Finds what `config.source` names, with the conditions of its images, without reading an image.

    Raises ValueError if there is no such source, and for fields that contradict it or have no effect on it. In a source
    for `training`, a column of vectors must not be constant.
    """
    label_file = None if config.label_file is None else Path(os.path.expanduser(config.label_file))
    found = find_files(config.source, label_file)
    kind = found.kind
    for name, (kinds, reason) in USED_BY.items():
        value = getattr(config, name)
        if value != getattr(DataConfig, name) and kind not in kinds:
            shown = str(value) if isinstance(value, Path) else value
            raise ValueError(f"data.{name} is {shown!r} but {reason}; leave it out")
    if kind not in ARRAY_KINDS and config.channels not in (None, 1, 3):
        raise ValueError(f"data.channels {config.channels} must be 1 (grey), 3 (RGB) or null (as found) for pictures")
    vectors = VectorColumns(config.vector_columns, training)
    condition = config.condition
    channels = tuple(each for each in condition if isinstance(each, int)) if isinstance(condition, tuple) else ()
    named = condition if isinstance(condition, str) else None
    options = Options(
        config.split,
        config.preprocessing.pixel_format,
        Columns(config.image_column, config.label_column, config.labels, config.allow_outside, vectors, named),
        LabelOptions(config.labels, label_file, config.label_column, found.metadata, vectors),
        ArrayOptions(
            config.range,
            config.axes,
            config.preprocessing,
            config.max_bad,
            bounded=config.normalisation == "range",
            missing=config.missing,
            condition=channels,
        ),
        config.variables,
    )
    source = open_found(found, config.source, options)
    if config.vector_columns:
        source = replace(source, key=[*source.key, ["vectors", config.vector_columns]])
    if channels:
        if kind not in ("arrays", "npy", "npz"):
            given = f"data.condition {list(channels)} is the numbers of channels"
            raise ValueError(f"{given}, which are for arrays; give a folder, a column or variables")
        return replace(source, key=[*source.key, ["condition", channels]])
    if condition is None:
        return source
    names = (condition,) if isinstance(condition, str) else tuple(map(str, condition))
    return paired(source, find_condition(names, found, config.source, options), kind in ("images", "arrays"))


@dataclass(frozen=True)
class Options:
    """The settings that a source may need, by the kind of source."""

    split: str
    pixel_format: PixelFormat
    """of pictures"""
    columns: Columns
    labels: LabelOptions
    arrays: ArrayOptions
    variables: tuple[str, ...]

    def of_condition(self, names: tuple[str, ...]) -> "Options":
        """Those of the conditions, in the columns or variables of these names; they have neither labels nor vectors."""
        columns = Columns(names[0], None, False, self.columns.allow_outside)
        arrays = replace(self.arrays, preprocessing=Preprocessing(), condition=())
        labels = LabelOptions(False, None, None, ())
        return replace(self, columns=columns, labels=labels, arrays=arrays, variables=names)


def open_found(found: Found, setting: str, options: Options) -> Source:
    """The source that a setting names, without conditions in another place."""
    kind, files, split, columns = found.kind, found.files, options.split, options.columns
    notes = (found.left_out,) if found.left_out else ()
    if kind == "named":
        return NAMED[key_of(setting)](setting, split, columns.labels, options.pixel_format)
    if kind == "hub":
        return hub_tables(setting, split, columns, options.pixel_format)
    if kind == "tables":
        splits: dict[str, list[Path]] = {}
        whole = os.path.isdir(os.path.expanduser(setting))
        for file in files:
            named = split_of(file.relative_to(found.folder).as_posix()) if whole else None
            splits.setdefault(named or "train", []).append(file)
        return local_tables(setting, splits, split, columns, options.pixel_format, notes)
    if kind in ("npy", "npz"):
        return array_file(files[0], setting, split, columns, options.arrays)
    if kind == "grids":
        return grid_file(files[0], setting, split, options.variables, columns, options.arrays)
    arrays = options.arrays if kind == "arrays" else None
    return image_folder(found.folder, files, split, options.labels, options.pixel_format, arrays, notes)


def find_condition(names: tuple[str, ...], found: Found, setting: str, options: Options) -> Source:
    """The source that the `names` in data.condition mean, for the images `found` at data.source, `setting`.

    Raises ValueError if there is none, or if its images are of another kind.
    """
    own, condition = options.of_condition(names), ", ".join(names)
    if found.kind == "grids":
        return replace(open_found(found, setting, own), setting=condition)
    if len(names) > 1:
        raise ValueError(f"data.condition {list(names)} names several, but only netCDF files have variables; give one")
    if found.kind in (*TABLE_KINDS, "npz"):
        if condition == options.columns.image:
            raise ValueError(f"data.condition is {condition!r}, as data.image_column; give another column")
        return replace(open_found(found, setting, own), setting=condition)
    try:
        other = find_files(condition, None)
        if other.kind == found.kind:
            return open_found(other, condition, own)
    except ValueError as error:
        raise ValueError(str(error).replace("data.source", "data.condition")) from None
    raise ValueError(
        f"data.condition {condition!r} has {other.kind}, but data.source {setting!r} has {found.kind}; give files"
        " of the same kind"
    )


def holds_arrays(setting: str) -> bool:
    """Whether a setting names arrays, not pictures. Raises ValueError as `find_files` does."""
    return find_files(setting, None).kind in ARRAY_KINDS


def image_columns(setting: str) -> list[str]:
    """The columns with images of a table, or the arrays of an .npz file that may hold some; none of another source.
    Raises ValueError as `find_files` does."""
    found = find_files(setting, None)
    if found.kind == "npz":
        return image_arrays(found.files[0])
    if found.kind != "tables":
        return []
    return [name for name, feature in features_of(open_table(found.files[0])).items() if is_image(feature)]


def find_files(setting: str, label_file: Path | None) -> Found:
    """What a setting names. Raises ValueError if there is no such thing, or if it cannot be read."""
    if key_of(setting) in NAMED:
        return Found("named")
    if setting.startswith(HUB):
        return Found("hub")
    path = Path(os.path.expanduser(setting))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"data.source {setting!r} cannot be read ({reason}); make it readable, or give another"
        ) from None
    if path.suffix.lower() in SUFFIXES and os.path.lexists(path):
        if not path.is_dir():
            require_regular(path)
        return Found("grids", path.parent, [path])
    if path.is_dir():
        return one_kind(setting, path, Listing.of(path, None, label_file))
    if os.path.lexists(path):
        require_regular(path)
        suffix = path.suffix.lower()
        if suffix in KINDS["tables"]:
            return Found("tables", path.parent, [path])
        if suffix in (".npy", ".npz"):
            return Found(suffix[1:], path.parent, [path])
        if suffix in KINDS["images"]:
            return one_kind(setting, path.parent, Listing.of(path.parent, [path], label_file))
        if suffix in ARCHIVES:
            raise ValueError(f"data.source {setting!r} is an archive; unpack it, and give the folder")
        hint = "; give a file of labels as data.label_file" if suffix in LISTS else ""
        raise ValueError(
            f"data.source {setting!r} is neither a table ({' or '.join(KINDS['tables'])}) nor arrays (.npy or .npz) nor"
            f" grids (.nc or .zarr); give such a file, or the folder of the pictures{hint}"
        )
    if glob.has_magic(setting):
        if matches := [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]:
            parts = path.parts
            magic = next(number for number, part in enumerate(parts) if glob.has_magic(part))
            folder = Path(*parts[:magic])
            return one_kind(setting, folder, Listing.of(folder, matches, label_file))
        raise ValueError(f"data.source {setting!r} matches no file; give a folder, or another pattern")
    looks_like_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", setting)
    hint = f"; for a data set of the hub write {HUB}{setting}" if looks_like_hub else ""
    if "://" in setting:
        hint = f"; a URL is not read: download the files and give their folder, or write {HUB}OWNER/NAME"
    raise ValueError(f"data.source {setting!r}: there is no such folder or file{hint}")


def one_kind(setting: str, folder: Path, listing: Listing) -> Found:
    """The one kind of files in a listing. Raises ValueError for none or several."""
    left_out = str(listing)
    if not listing.files:
        known = " ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
        raise ValueError(
            f"data.source {setting!r} holds no images, arrays or tables{f' ({left_out})' if left_out else ''};"
            f" looked for {known}; an .npz file is a data.source itself, and an archive is to be unpacked"
        )
    if len(listing.files) > 1:
        (one, other), (first, second) = list(listing.files)[:2], [files[0] for files in listing.files.values()][:2]
        pattern = Path(folder, *["*"] * (len(second.relative_to(folder).parts) - 1), f"*{second.suffix}")
        raise ValueError(
            f"data.source {setting!r} holds both {one} ({first.name}, …) and {other} ({second.name}, …); name one kind"
            f" by a pattern such as '{pattern}', or move the other elsewhere"
        )
    ((kind, files),) = listing.files.items()
    return Found(kind, folder, files, left_out, listing.metadata)


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


def photographs(setting: str, split: str, labels: bool | None, pixel_format: PixelFormat) -> Source:
    """The two colour photographs that scikit-learn ships, each 427x640 px: a temple (china.jpg) and a flower.

    The split train has their left halves, test their right halves; so nothing that is measured was trained on.
    Raises ValueError if labels are required.
    """
    split = choose_split(split, ["train", "test"], setting)
    if labels:
        raise ValueError(f"data.labels is true but data.source {setting!r} has no labels; leave it out")

    def read() -> Records:
        from sklearn.datasets import load_sample_images

        found = load_sample_images()
        names = [f"{split} half of {Path(name).name}" for name in found.filenames]
        halves = [
            image[:, : image.shape[1] // 2] if split == "train" else image[:, image.shape[1] // 2 :]
            for image in found.images
        ]
        items = [Item(name, half) for name, half in zip(names, halves, strict=True)]
        return Records(
            sizes=[len(items)],
            load=lambda shard: items,
            labels=None,
            classes=None,
            pixel_format=pixel_format,
            stamp=lambda: [[name, half.nbytes] for name, half in zip(names, halves, strict=True)],
        )

    return Source(setting, "photographs", ["photographs", 1, split], read)


NamedSource = Callable[[str, str, bool | None, PixelFormat], Source]
"""makes a source of pictures from `data.source`, `data.split`, `data.labels` and the format of decoded pictures"""

NAMED: dict[str, NamedSource] = {"digits": digits, "photographs": photographs}
"""named sources: key "NAME" for `data.source` NAME, key "NAME:" for NAME:ARGUMENT; a user's script may add to it"""


def key_of(setting: str) -> str:
    """The key of `NAMED` that a value of `data.source` would have."""
    name, colon, _ = setting.partition(":")
    return name + colon
