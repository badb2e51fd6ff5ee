"""Validates every image of a set before training, and reports what is wrong with each."""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pictures.decode import open_image, orientation
from pictures.preprocessing import Preprocessing
from storage.read import open_regular
from storage.show import printable
from training.data.config import DataConfig
from training.data.decode import attempt, in_threads
from training.data.images import check_parts, describe
from training.data.sources.arrays import ArrayImage
from training.data.sources.labels import MAX_CLASSES, check_label
from training.data.sources.records import Content, Item, Records
from training.data.sources.source import find_source
from training.data.sources.static_fields import read_static
from training.progress import Bar

MAX_LISTED = 10
"""entries at each end of a long list"""
PART_BYTES = 1 << 20


def validate(config: DataConfig) -> None:
    """Decodes every image as a run would and discards it; prints one line for each error, then a summary of the set.

    Raises ValueError if an image or its label is invalid, or if images differ in size and `data.size` is not set.
    """
    source = find_source(config)
    static = None if config.static is None else read_static(config.static)
    records = source.open()
    report = SetReport(records)
    inspect = partial(ImageReport.of, preprocessing=config.preprocessing)
    with (
        Bar(total=records.count, desc="validating images", unit="image", unit_scale=True, disable=None) as bar,
        closing(in_threads(inspect, records.items())) as images,
    ):
        for image in images:
            if problem := report.add(image):
                bar.write(printable(f"{image.name}: {problem}"), file=sys.stdout)
            bar.update()
    rows = report.rows() | dict(note.split(": ", 1) for note in source.notes)
    print("\n".join(f"{name:<16}{printable(text)}" for name, text in rows.items()))
    if report.invalid:
        raise ValueError(
            f"{report.invalid:,} of {records.count:,} images of data.source {config.source!r} are invalid, see the"
            " lines above; repair or remove them"
        )
    if records.count == 0:
        raise ValueError(f"data.source {config.source!r} holds no image")
    if len(report.sizes) > 1:
        raise ValueError(
            f"images have {len(report.sizes):,} different sizes; set data.size to bring all of them to one size"
        )
    for size in report.sizes:
        check_parts((1, *size), 0, static)


@dataclass(frozen=True)
class ImageReport:
    """Properties of one image; only its name is set if there is a problem."""

    name: str
    problem: str = ""
    shape: tuple[int, ...] = ()
    """channels, height, width of the decoded image"""
    mode: str = ""
    """Pillow's mode, or the dtype of an array; of a pair, as the rest, that of the target"""
    size: tuple[int, ...] = ()
    """height and width in the file, in pixels"""
    content: bytes = b""
    """a hash of the file"""
    traits: tuple[str, ...] = ()
    """further properties, such as transparent"""

    @classmethod
    def of(cls, item: Item, may_start: Callable[[], bool], preprocessing: Preprocessing) -> "ImageReport":
        """Decodes an image, and collects the properties that it had before."""
        _, decoded, _ = attempt(item, may_start, preprocessing=preprocessing)
        if isinstance(decoded, str):
            return cls(item.name, decoded)
        shape = decoded.shape
        del decoded  # before another thread decodes a large one
        content = b"".join(map(content_hash, item.contents))
        target = item.contents[0]
        if isinstance(target, ArrayImage):
            return cls(item.name, "", shape, target.pixel_format.dtype, shape[1:], content)
        with open_image(target) as image:
            traits = {
                "animated": getattr(image, "is_animated", False),
                "transparent": image.has_transparency_data,
                "turned by EXIF": orientation(image) != 1,
            }
            present = tuple(name for name, is_present in traits.items() if is_present)
            return cls(item.name, "", shape, image.mode, (image.height, image.width), content, present)


def content_hash(data: Content) -> bytes:
    """A hash of bytes or pixels, or of a file, which is read in parts."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(data, ArrayImage):
        data = data.data if isinstance(data.data, Path) else data.values
    if isinstance(data, Path):
        with open_regular(data) as file:
            while part := file.read(PART_BYTES):
                digest.update(part)
    else:
        digest.update(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data)
    return digest.digest()


class SetReport:
    """The properties of a set, collected image by image."""

    def __init__(self, records: Records):
        self.records, self.count, self.invalid, self.channels = records, 0, 0, 1
        self.modes, self.file_sizes = Counter[str](), Counter[str]()
        self.classes = Counter[str](dict.fromkeys(records.classes or (), 0))
        self.sizes: set[tuple[int, int]] = set()
        """height and width of decoded images"""
        self.names: defaultdict[str, list[str]] = defaultdict(list)
        """images with each further property"""
        self.first: dict[bytes, str] = {}
        """the first image with each content"""

    def add(self, image: ImageReport) -> str:
        """Counts an image; returns its error, or an empty text."""
        index, classes = self.count, self.records.classes
        self.count += 1
        problem = image.problem
        if not problem and self.records.labels is not None:
            label = self.records.labels[index]
            try:
                check_label(label, index, None if classes is None else len(classes), image.name)
                self.classes[classes[label] if classes and isinstance(label, int) else str(label)] += 1
            except ValueError as error:
                problem = str(error)
        if problem:
            self.invalid += 1
            return problem
        self.modes[image.mode] += 1
        self.file_sizes["{} x {}".format(*image.size)] += 1
        self.sizes.add((image.shape[1], image.shape[2]))
        self.channels = max(self.channels, image.shape[0])
        for trait in image.traits:
            self.names[trait].append(image.name)
        first = self.first.setdefault(image.content, image.name)
        if first != image.name:
            self.names["same content"].append(f"{image.name} = {first}")
        return ""

    def rows(self) -> dict[str, str]:
        """The summary, by the name of each row."""
        valid = self.count - self.invalid
        rows = {"images": f"{valid:,} of {self.count:,} are valid"}
        if self.records.classes is None:  # numbers below the largest are classes, too
            largest = max((label for label in self.records.labels or () if isinstance(label, int)), default=-1)
            self.classes.update(dict.fromkeys(map(str, range(min(largest + 1, MAX_CLASSES))), 0))
        classes = None if self.records.labels is None else tuple(self.classes)
        if len(self.sizes) == 1:
            ((height, width),) = self.sizes
            shape = (self.channels, height, width)
            conditions = self.records.condition_channels(self.channels)
            rows["used in a run"] = describe(
                valid, shape, self.records.pixel_format, classes, conditions, self.records.vector_columns
            )
        rows |= {"modes": counts(self.modes), "height x width": counts(self.file_sizes)}
        rows |= {} if classes is None else {"classes": counts(self.classes)}
        for trait, names in sorted(self.names.items()):
            rows[trait] = f"{len(names):,} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        return rows


def counts(counter: Counter[str]) -> str:
    """The number of each, the most frequent first, without the middle of a long list."""
    texts = [f"{name}: {number:,}" for name, number in counter.most_common()]
    if len(texts) > 2 * MAX_LISTED:
        texts[MAX_LISTED:-MAX_LISTED] = [f"… ({len(texts) - 2 * MAX_LISTED:,} more) …"]
    return ", ".join(texts)
