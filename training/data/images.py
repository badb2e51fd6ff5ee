"""Decoded images: pixels in memory or memory-mapped, their labels and the names of the classes."""

import copy
import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from pictures.autoencoder import Autoencoder
from pictures.coordinates import Coordinates
from pictures.pixel_format import BYTES
from pictures.units import AnyFormat, Units
from residual.names import amount
from training.data.order import image_index
from training.data.originals import DataLost
from training.data.sources.labels import count_classes, name_classes, summarize


class MappedFile:
    """An open file that is memory-mapped, with its size and time of modification when this object was made.

    Its content stays after it is removed or replaced by renaming; only a change in place is one of the mapping.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._before = self._state()

    def check(self) -> None:
        """Raises DataLost if the file has been changed in place."""
        if self._state() != self._before:
            raise DataLost(f"{self._path} has been changed by another program; run the same command to check it")

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns


class Images:
    """A set of images of one shape, read by number.

    `array` is in memory or memory-mapped, of dtype `pixel_format.stored`; `labels` are class numbers, `classes` their
    names ("0", "1", … by default). The last `conditions` channels of an image are a condition, the first ones the
    target. `static` are further channels that all images share, `vectors` are numbers of each image; both are not
    scaled. `fingerprint` is that of the set without `static`. `file` is the one that `array` is mapped from; it is
    checked at every read.

    Raises ValueError for an empty set, another dtype, a label out of range, no target channel, and for static fields
    and vectors that do not fit the images.
    """

    def __init__(
        self,
        array: Shaped[np.ndarray, "n c h w"],
        labels: Int[np.ndarray, "n"] | None = None,
        classes: Sequence[str] | None = None,
        *,
        pixel_format: AnyFormat = BYTES,
        conditions: int = 0,
        static: Float32[np.ndarray, "k rows columns"] | None = None,
        vectors: Float32[np.ndarray, "m v"] | None = None,
        vector_columns: Sequence[str] = (),
        coordinates: Coordinates | None = None,
        fingerprint: str | None = None,
        bad: Sequence[str] = (),
        notes: Sequence[str] = (),
        file: MappedFile | None = None,
    ):
        if len(array) == 0:
            raise ValueError("the set of images is empty; at least one is needed")
        if array.dtype != pixel_format.stored:
            raise ValueError(
                f"the images are {array.dtype} but their pixel format is stored as {pixel_format.stored}; convert them"
            )
        if labels is None and classes is not None:
            raise ValueError(
                f"{amount(len(classes), 'class name')} but no labels; give labels too, or leave the names out"
            )
        self._array = np.asarray(array)  # a plain view: np.memmap is slower at every access
        self.labels = None if labels is None else labels.astype(np.int64)
        """class number of each image, int64 (n,), or None"""
        self.classes = None if labels is None else name_classes(labels, classes)
        """names of the classes, or None without labels"""
        self.shape: tuple[int, int, int] = (array.shape[1], array.shape[2], array.shape[3])
        """channels, height, width"""
        self.pixel_format = pixel_format
        """how stored values become those of networks"""
        self.seen: np.ndarray | None = None
        """where at least one training image has a value, bool (c, h, w); None if none may be missing"""
        self.autoencoder: Autoencoder | None = None
        """what has encoded the images, if they are latents"""
        self.conditions = conditions
        """number of channels that are a condition: the last ones"""
        self.static = static
        """channels (k, h, w) that all images share, unscaled, or None"""
        self.vectors = vectors
        """numbers of each image, unscaled, float32 (n, v), or None"""
        self.vector_columns = tuple(vector_columns)
        """names of the columns of `vectors`"""
        self.coordinates = coordinates
        """names and units of the channels and axes, or None"""
        check_parts(self.shape, conditions, static)
        if (None if vectors is None else vectors.shape) != (
            (len(array), len(vector_columns)) if vector_columns else None
        ):
            found = "no vectors" if vectors is None else f"vectors of shape {vectors.shape}"
            raise ValueError(f"{found} for {amount(len(array), 'image')} and vector_columns {list(vector_columns)}")
        self.bad = tuple(bad)
        """name and reason of each image that cannot be read, and was skipped"""
        self.notes = tuple(notes)
        """further remarks, one line each"""
        self._fingerprint, self._file = fingerprint, file
        self._numbers: np.ndarray | None = None  # of a part: numbers of its images in the whole

    def __len__(self) -> int:
        return len(self._array if self._numbers is None else self._numbers)

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """The number of images of each class, or None without labels."""
        return None if self.labels is None or self.classes is None else count_classes(self.labels, self.classes)

    def __str__(self) -> str:
        """A summary in one line."""
        skipped = f"; {len(self.bad)} more could not be read{listing(self.bad)}" if self.bad else ""
        notes = "".join(f"; {note}" for note in self.notes)
        if self.autoencoder is not None:
            height, width = (side * self.autoencoder.factor for side in self.shape[1:])
            notes = f"; latents of {height} x {width} px{notes}"
        classes = summarize(self.class_counts, self.classes)
        static = 0 if self.static is None else len(self.static)
        text = describe(
            len(self), self.shape, self.pixel_format, self.classes, self.conditions, self.vector_columns, static
        )
        return f"{text}{classes}{skipped}{notes}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all of the set: pixels and their format, labels and class names, which channels are
        a condition, static fields, vectors; independent of the machine."""
        return with_static(self._stored_fingerprint(), self.static)

    def _stored_fingerprint(self) -> str:
        """The fingerprint without static fields, which are not in the cache."""
        if self._fingerprint is None:
            parts = (np.ascontiguousarray(image).data for image in self._array)
            self._fingerprint = fingerprint(
                parts,
                self._array.shape,
                self.labels,
                self.classes,
                self.pixel_format,
                self.conditions,
                self.vectors,
                self.vector_columns,
            )
        return self._fingerprint

    def read(
        self, indices: Int[np.ndarray, "b"], out: Shaped[np.ndarray, "b c h w"] | None = None
    ) -> Shaped[np.ndarray, "b c h w"]:
        """Copies the images with these numbers, into `out` if given.

        Raises IndexError for a number out of range, and DataLost if the mapped file was changed.
        """
        if self._file is not None:
            self._file.check()
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"image numbers {indices.min()}..{indices.max()} outside 0..{len(self) - 1}")
        if self._numbers is not None:
            indices = self._numbers[indices]
        if out is None:
            out = np.empty((len(indices), *self.shape), self.pixel_format.stored)
        return np.take(self._array, indices, axis=0, out=out, mode="clip")  # "raise" would copy twice

    def part(self, numbers: Int64[np.ndarray, "m"]) -> "Images":
        """The images with these numbers as a set of their own, without a copy. Raises ValueError if there are none."""
        if len(numbers) == 0:
            raise ValueError(f"a part of 0 of {amount(len(self), 'image')} is empty; raise data.validation")
        part = copy.copy(self)
        part._numbers = numbers if self._numbers is None else self._numbers[numbers]
        part.labels = None if self.labels is None else self.labels[numbers]
        part.vectors = None if self.vectors is None else self.vectors[numbers]
        part._fingerprint = hashlib.sha256(
            self._stored_fingerprint().encode() + numbers.astype("<i8").tobytes()
        ).hexdigest()
        return part

    def targets(self) -> "Images":
        """The images alone as a set of their own, without a copy: without condition, static fields and vectors."""
        targets, channels = copy.copy(self), self.shape[0] - self.conditions
        targets._array, targets.shape = self._array[:, :channels], (channels, *self.shape[1:])
        if isinstance(self.pixel_format, Units):
            targets.pixel_format = self.pixel_format.channels(0, channels)
        targets.seen = None if self.seen is None else self.seen[:channels]
        targets.conditions, targets.static, targets.vectors, targets.vector_columns = 0, None, None, ()
        targets._fingerprint = hashlib.sha256(f"{self._stored_fingerprint()} targets".encode()).hexdigest()
        return targets

    def take(
        self, position: Int64[np.ndarray, "b"], seed: int, out: Shaped[np.ndarray, "b c h w"]
    ) -> Int64[np.ndarray, "b"]:
        """Copies the images at these positions of a run (`image_index`) into `out`; returns their numbers."""
        indices = image_index(position, len(self), seed)
        self.read(indices, out)
        return indices


def check_parts(shape: tuple[int, int, int], conditions: int, static: Float32[np.ndarray, "k h w"] | None) -> None:
    """Raises ValueError if images of this shape have no target channel, and for static fields of another size."""
    channels, height, width = shape
    if not 0 <= conditions < channels:
        raise ValueError(f"conditions {conditions} of {amount(channels, 'channel')}: at least one must be a target")
    if static is not None and static.shape[1:] != (height, width):
        raise ValueError(
            f"data.static has {static.shape[1]} x {static.shape[2]} px (height x width), but the images have {height} x"
            f" {width}; give fields of that size"
        )


def with_static(whole: str, static: Float32[np.ndarray, "k h w"] | None) -> str:
    """The fingerprint of a set with static fields, from that of the set without them."""
    if static is None:
        return whole
    head = json.dumps([whole, static.shape]).encode()
    return hashlib.sha256(head + np.ascontiguousarray(static, "<f4").tobytes()).hexdigest()


def describe(
    count: int,
    shape: tuple[int, int, int],
    pixel_format: AnyFormat,
    classes: Sequence[str] | None,
    conditions: int = 0,
    vector_columns: Sequence[str] = (),
    static: int = 0,
) -> str:
    """Number, kind and size of images, of which channels, what comes with them, and number of classes, in one line."""
    channels, height, width = shape[0] - conditions, *shape[1:]
    if pixel_format.file == "npy":
        kind = f"{channels}-channel {pixel_format.dtype} array"
    else:
        deep = "16-bit " if pixel_format.dtype == "uint16" else ""
        kind = deep + {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel") + " image"
    more = f", with a condition of {amount(conditions, 'channel')}" if conditions else ""
    more += f", {amount(static, 'static field')}" if static else ""
    more += f", vectors of {', '.join(vector_columns)}" if vector_columns else ""
    labels = "no labels" if classes is None else amount(len(classes), "class")
    return f"{amount(count, kind)} of {height} x {width} px (height x width){more}, {labels}"


def listing(bad: Sequence[str]) -> str:
    """The first few unreadable images, for a message."""
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    return f" ({'; '.join(bad[:10])}{more})" if bad else ""


class TooManyBad(DataLost):
    """More images are unreadable than may be skipped."""


def check_bad(bad: Sequence[str], limit: int) -> None:
    """Raises TooManyBad if more than `limit` images are unreadable."""
    if len(bad) > limit:
        rule = f"more than data.max_bad {limit} images cannot be read"
        raise TooManyBad(f"{rule}{listing(bad)}; repair or remove them, or raise data.max_bad")


def fingerprint(
    parts: Iterable[bytes | memoryview],
    shape: tuple[int, ...],
    labels: Int64[np.ndarray, "n"] | None,
    classes: Sequence[str] | None,
    pixel_format: AnyFormat,
    conditions: int = 0,
    vectors: Float32[np.ndarray, "n v"] | None = None,
    vector_columns: Sequence[str] = (),
) -> str:
    """See `Images.fingerprint`; `parts` are the pixels of all images in C order, `shape` is (n, c, h, w)."""
    extra: list = [] if pixel_format == BYTES else [asdict(pixel_format)]
    if conditions or vector_columns:
        extra.append({"conditions": conditions, "vector_columns": list(vector_columns)})
    digest = hashlib.sha256(json.dumps([shape, classes, *extra]).encode())
    for part in parts:
        digest.update(part)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    if vectors is not None:
        digest.update(np.ascontiguousarray(vectors, dtype="<f4").data)
    return digest.hexdigest()
