"""Validates every image of a set before training, and reports what is wrong with each."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from tqdm import tqdm

from pictures.decode import open_image
from pictures.preprocessing import Preprocessing
from training.data.config import DataConfig
from training.data.decode import attempt, in_threads
from training.data.images import describe
from training.data.sources.arrays import ArrayFile
from training.data.sources.labels import Label, check_label
from training.data.sources.records import Item, Records
from training.data.sources.source import find_source

MAX_LISTED = 10
"""entries at each end of a long list"""


def validate(config: DataConfig) -> None:
    """Decodes every image as a run would and discards it; prints one line for each error, then a summary of the set.

    Raises ValueError if an image or its label is invalid, or if images differ in size and `data.size` is not set.
    """
    records = find_source(config).open()
    report = ValidationReport(records)
    with (
        tqdm(total=records.count, desc="validating images", unit="image", unit_scale=True, disable=None) as bar,
        closing(records.items),
        closing(
            in_threads(
                partial(inspect, preprocessing=config.preprocessing), records.items, min(16, os.cpu_count() or 1)
            )
        ) as images,
    ):
        for image in images:
            if problem := report.add(image):
                bar.write(f"{image.name}: {problem}", file=sys.stdout)
            bar.update()
    print("\n".join(f"{name:<16}{text}" for name, text in report.rows().items()))
    if report.invalid:
        raise ValueError(
            f"{report.invalid:,} of {report.count:,} images of data.source {config.source!r} are invalid, see the lines"
            " above; repair or remove them"
        )
    if len(report.shapes) == 0:
        raise ValueError(f"data.source {config.source!r} holds no image")
    if len(report.shapes) > 1:
        raise ValueError(
            f"images have {len(report.shapes):,} different sizes; set data.size to bring all of them to one size"
        )


@dataclass(frozen=True)
class ImageReport:
    """Properties of one image; only `name` and `label` are set if there is a problem."""

    name: str
    label: Label
    problem: str = ""
    mode: str = ""
    """Pillow's mode, or the dtype of an array"""
    size: tuple[int, int] = (0, 0)
    """height and width in the file, in pixels"""
    shape: tuple[int, ...] = ()
    """channels, height, width of the decoded image"""
    traits: tuple[str, ...] = ()
    """further properties, such as transparent"""
    content: bytes = b""
    """a hash of the file"""


def inspect(item: Item, preprocessing: Preprocessing) -> ImageReport:
    """Decodes an image, and collects its properties before that."""
    _, decoded, _ = attempt(item, preprocessing)
    if isinstance(decoded, str):
        return ImageReport(item.name, item.label, decoded)
    data = item.data.path if isinstance(item.data, ArrayFile) else item.data
    raw = data.read_bytes() if isinstance(data, Path) else data if isinstance(data, bytes) else data.tobytes()
    content = blake2b(raw, digest_size=16).digest()
    if isinstance(item.data, ArrayFile):
        size, mode = (decoded.shape[1], decoded.shape[2]), item.data.pixel_format.dtype
        return ImageReport(item.name, item.label, "", mode, size, decoded.shape, (), content)
    with Image.fromarray(data) if isinstance(data, np.ndarray) else open_image(raw) as image:
        size = (image.height, image.width)
        return ImageReport(item.name, item.label, "", image.mode, size, decoded.shape, traits(image), content)


def traits(image: Image.Image) -> tuple[str, ...]:
    """Properties of an image that change how it is decoded."""
    present = {
        "animated": getattr(image, "is_animated", False),
        "transparent": image.has_transparency_data,
        "turned by EXIF": image.getexif().get(Base.Orientation, 1) not in (0, 1),
    }
    return tuple(name for name, is_present in present.items() if is_present)


@dataclass
class ValidationReport:
    """The properties of a set, collected image by image."""

    records: Records
    count: int = 0
    invalid: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    shapes: set[tuple[int, int]] = field(default_factory=set)
    """height and width of decoded images"""
    channels: int = 1
    traits: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[bytes, str] = field(default_factory=dict)
    """the first image with each content"""
    duplicates: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.classes.update(dict.fromkeys(self.records.classes or (), 0))

    def add(self, image: ImageReport) -> str:
        """Counts an image; returns its error, or an empty text."""
        self.count += 1
        problem = image.problem or self._label(image)
        if problem:
            self.invalid += 1
            return problem
        self.modes[image.mode] += 1
        self.sizes["{} x {}".format(*image.size)] += 1
        self.shapes.add((image.shape[1], image.shape[2]))
        self.channels = max(self.channels, image.shape[0])
        for trait in image.traits:
            self.traits.setdefault(trait, []).append(image.name)
        first = self.contents.setdefault(image.content, image.name)
        if first != image.name:
            self.duplicates.append(f"{image.name} = {first}")
        return ""

    def _label(self, image: ImageReport) -> str:
        """Counts the class of an image; returns the error of its label, or an empty text."""
        if not self.records.labelled:
            return ""
        names, label = self.records.classes, image.label
        try:
            check_label(label, self.count - 1, None if names is None else len(names), image.name)
        except ValueError as error:
            return str(error)
        self.classes[names[label] if names and isinstance(label, int) else str(label)] += 1
        return ""

    def rows(self) -> dict[str, str]:
        """The summary, by the name of each row."""
        rows = {"images": f"{self.count - self.invalid:,} of {self.count:,} are valid"}
        if len(self.shapes) == 1:
            shape = (self.channels, *next(iter(self.shapes)))
            classes = tuple(self.classes) if self.records.labelled else None
            rows["used in a run"] = describe(self.count - self.invalid, shape, self.records.pixel_format, classes)
        rows |= {"modes": counts(self.modes), "height x width": counts(self.sizes)}
        rows |= {trait: few(names) for trait, names in sorted(self.traits.items())}
        rows |= {"classes": counts(self.classes)} if self.records.labelled else {}
        return rows | ({"same content": few(self.duplicates)} if self.duplicates else {})


def counts(counter: Counter[str]) -> str:
    """The number of each, the most frequent first, without the middle of a long list."""
    texts = [f"{name}: {number:,}" for name, number in counter.most_common()]
    if len(texts) > 2 * MAX_LISTED:
        texts[MAX_LISTED:-MAX_LISTED] = [f"… ({len(texts) - 2 * MAX_LISTED:,} more) …"]
    return ", ".join(texts)


def few(names: Iterable[str]) -> str:
    """The number of names, and the first three."""
    listed = list(names)
    return f"{len(listed):,} ({', '.join(listed[:3])}{', …' if len(listed) > 3 else ''})"
