"""Opens images that were drawn elsewhere, such as by sample.py: a folder of them, or an .npz file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pictures.pixel_format import BYTES
from pictures.units import AnyFormat
from residual.names import amount, shorten
from storage.read import is_regular
from tasks.comparison import class_names
from training.data import DataConfig, Images, open_as_trained
from training.data.images import listing
from training.data.sources.listing import Listing
from training.processes import on_main

RECORD, LABELS = "samples.json", "labels.csv"
"""what sample.py writes beside its folder of images"""
NO_LABEL = "none"
"""class of images that were drawn without a label"""
ANY = 2**31
"""images that may be unreadable while opening them; they are an error afterwards"""
ESCAPED = ("'=", "'+", "'-", "'@")
"""how names of classes begin in labels.csv that a spreadsheet would calculate"""


def are_images(path: Path) -> bool:
    """Whether there is an .npz file, or a folder with images."""
    return path.suffix == ".npz" if not path.is_dir() else not {"images", "arrays"}.isdisjoint(Listing.of(path).files)


def open_drawn(path: Path, data: DataConfig, held_out: Images) -> Images:
    """The images in an .npz file (arr_0 (n, h, w, 3), arr_1) or below a folder, with the class names of `held_out`.

    Those of sample.py have their labels in arr_1 or labels.csv; other folders as `data.source` has them. `data` has the
    folder of the cache. Raises ValueError, in one line that names `path`, for images that cannot be read or that
    are not all of one size, and for classes that the held-out images do not have.
    """
    try:
        if path.suffix == ".npz":
            label = "arr_1" if is_regular(path) and _has_labels(path) else None
            images = _read(path, data, BYTES, image_column="arr_0", axes="hwc", label_column=label)
            return _numbered(_grey(images, held_out), held_out)
        return _named(_read_folder(path, data, held_out), held_out)
    except ValueError as error:
        rule = "; arr_0 should be uint8 of shape (n, height, width, 3)" if path.suffix == ".npz" else ""
        raise ValueError(f"drawn images {str(path)!r}: {error}{rule}") from None


def _has_labels(path: Path) -> bool:
    """Whether an .npz file has an arr_1, which must then fit the images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "arr_1.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # reading the images reports what is wrong


def _read(source: Path, data: DataConfig, values: AnyFormat, **fields: Any) -> Images:
    settings = {"source": str(source.absolute()), "cache": data.cache, "max_bad": ANY, **fields}
    images = open_as_trained(values, on_main=on_main, **settings)
    assert isinstance(images, Images), "they are not streamed"
    if images.bad:
        bad = f"{amount(len(images.bad), 'image')} cannot be read{listing(images.bad)}"
        raise ValueError(f"{bad}; draw or copy them again")
    return images


def _read_folder(path: Path, data: DataConfig, held_out: Images) -> Images:
    fields: dict[str, Any] = {}
    source = path / "images" if is_regular(path / RECORD) else path
    if is_regular(path / LABELS) and source != path:
        fields = {"label_file": path / LABELS, "label_column": "class"}
    if "arrays" in Listing.of(source).files:
        targets = held_out.pixel_format.channels(0, held_out.shape[0] - held_out.conditions)
        return _read(source, data, targets, missing=data.missing, **fields)
    channels = 3 if held_out.shape[0] == 3 else None  # colour pictures may all be grey by chance
    return _read(source, data, BYTES, channels=channels, bits=data.bits, **fields)


def _grey(images: Images, held_out: Images) -> Images:
    """Images of an .npz file, which always has three channels, as grey ones if the held-out images are grey."""
    if (images.shape[0], held_out.shape[0]) != (3, 1):
        return images
    pixels = images.read(np.arange(len(images)))
    if not (pixels == pixels[:, :1]).all():
        raise ValueError("they have colours, but the images of data.validation are grey")
    return Images(pixels[:, :1], images.labels, images.classes, pixel_format=images.pixel_format)


def _numbered(images: Images, held_out: Images) -> Images:
    """The images with the names of the held-out images' classes, which their labels number."""
    if images.classes is None or held_out.classes is None:
        return images
    if len(images.classes) > len(held_out.classes):
        raise ValueError(
            f"its labels go up to {len(images.classes) - 1}, but the images of data.validation have "
            f"{amount(len(held_out.classes), 'class')}"
        )
    return _with_classes(images, held_out.classes)


def _named(images: Images, held_out: Images) -> Images:
    """The images with classes that the held-out images have, by name or else by number."""
    if images.classes is None or held_out.classes is None:
        return images
    names = tuple(name[1:] if name.startswith(ESCAPED) else name for name in images.classes)
    images = _with_classes(images, names)
    used = set(class_names(images) or ())
    if used == {NO_LABEL} and NO_LABEL not in held_out.classes:
        return _with_classes(images, None)
    if unknown := sorted(used - set(held_out.classes)):
        if names == tuple(map(str, range(len(names)))):
            return _numbered(images, held_out)
        raise ValueError(
            f"they have classes that the images of data.validation lack: {shorten(unknown)}; those have "
            f"{shorten(held_out.classes)}"
        )
    return images


def _with_classes(images: Images, classes: tuple[str, ...] | None) -> Images:
    renamed = images.part(np.arange(len(images)))
    renamed.classes = classes
    if classes is None:
        renamed.labels = None
    return renamed
