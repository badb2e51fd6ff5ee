"""Looks at every image of a set before anything is trained on it, and tells of each what is wrong."""

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

from training.data.config import DataConfig
from training.data.decode import attempt, in_threads, open_image
from training.data.images import describe
from training.data.sources.arrays import ArrayFile
from training.data.sources.labels import Label, check_label
from training.data.sources.records import Item, Records
from training.data.sources.source import find_source

MOST = 10
"""how many of a kind are listed at each end of a long list"""


def validate(config: DataConfig) -> None:
    """Decode every image as a run would, keep none; print one line for each that is wrong, then what the set holds.

    Raises ValueError if an image or its label is wrong, or if they differ in size and the config does not say to which
    they are to be brought.
    """
    records = find_source(config).open()
    found = Found(records)
    with (
        tqdm(total=records.count, desc="looking at images", unit="image", unit_scale=True, disable=None) as bar,
        closing(records.items),
        closing(in_threads(partial(look, config=config), records.items, min(16, os.cpu_count() or 1))) as looks,
    ):
        for each in looks:
            if problem := found.add(each):
                bar.write(f"{each.name}: {problem}", file=sys.stdout)
            bar.update()
    print("\n".join(f"{name:<16}{text}" for name, text in found.rows().items()))
    if found.wrong:
        raise ValueError(
            f"{found.wrong:,} of {found.count:,} images of {config.source!r} are wrong, each is named above;"
            " repair or remove them"
        )
    if len(found.shapes) == 0:
        raise ValueError(f"data.source {config.source!r} holds no image")
    if len(found.shapes) > 1:
        raise ValueError(
            f"images have {len(found.shapes):,} different sizes; set data.size to bring all of them to one size"
        )


@dataclass(frozen=True)
class Look:
    """What one image is; only its name and label are known where there is a problem."""

    name: str
    label: Label
    problem: str = ""
    kind: str = ""
    """Pillow's mode, or the dtype of an array"""
    size: tuple[int, int] = (0, 0)
    """height and width in the file, in pixels"""
    shape: tuple[int, ...] = ()
    """channels, height, width once it is decoded"""
    traits: tuple[str, ...] = ()
    """what it is besides, such as transparent"""
    content: bytes = b""
    """a hash of what the file holds"""


def look(item: Item, config: DataConfig) -> Look:
    """Decode an image, and see what it was before that."""
    decoded = attempt(item, config)
    if isinstance(decoded, str):
        return Look(item.name, item.label, decoded)
    data = item.data.path if isinstance(item.data, ArrayFile) else item.data
    raw = data.read_bytes() if isinstance(data, Path) else data if isinstance(data, bytes) else data.tobytes()
    content = blake2b(raw, digest_size=16).digest()
    if isinstance(item.data, ArrayFile):
        size, kind = (decoded.shape[1], decoded.shape[2]), item.data.pixel_format.dtype
        return Look(item.name, item.label, "", kind, size, decoded.shape, (), content)
    with Image.fromarray(data) if isinstance(data, np.ndarray) else open_image(raw) as image:
        size = (image.height, image.width)
        return Look(item.name, item.label, "", image.mode, size, decoded.shape, traits(image), content)


def traits(image: Image.Image) -> tuple[str, ...]:
    """What an image is that changes how it is decoded."""
    there = {
        "animated": getattr(image, "is_animated", False),
        "transparent": image.has_transparency_data,
        "turned by EXIF": image.getexif().get(Base.Orientation, 1) not in (0, 1),
    }
    return tuple(name for name, true in there.items() if true)


@dataclass
class Found:
    """What a set holds, image by image."""

    records: Records
    count: int = 0
    wrong: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    shapes: set[tuple[int, int]] = field(default_factory=set)
    """height and width of decoded images"""
    channels: int = 1
    traits: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[bytes, str] = field(default_factory=dict)
    """the first image with each content"""
    copies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.classes.update(dict.fromkeys(self.records.classes or (), 0))

    def add(self, image: Look) -> str:
        """Count an image; returns what is wrong with it, if anything."""
        self.count += 1
        problem = image.problem or self._label(image)
        if problem:
            self.wrong += 1
            return problem
        self.kinds[image.kind] += 1
        self.sizes["{} x {}".format(*image.size)] += 1
        self.shapes.add((image.shape[1], image.shape[2]))
        self.channels = max(self.channels, image.shape[0])
        for trait in image.traits:
            self.traits.setdefault(trait, []).append(image.name)
        first = self.contents.setdefault(image.content, image.name)
        if first != image.name:
            self.copies.append(f"{image.name} = {first}")
        return ""

    def _label(self, image: Look) -> str:
        """Count the class of an image; returns what is wrong with its label."""
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
        rows = {"images": f"{self.count - self.wrong:,} of {self.count:,} are fine"}
        if len(self.shapes) == 1:
            shape = (self.channels, *next(iter(self.shapes)))
            classes = tuple(self.classes) if self.records.labelled else None
            rows["a run would see"] = describe(self.count - self.wrong, shape, self.records.pixel_format, classes)
        rows |= {"modes": counts(self.kinds), "height x width": counts(self.sizes)}
        rows |= {trait: few(names) for trait, names in sorted(self.traits.items())}
        rows |= {"classes": counts(self.classes)} if self.records.labelled else {}
        return rows | ({"same content": few(self.copies)} if self.copies else {})


def counts(counter: Counter[str]) -> str:
    """How many of each, the most frequent first; the middle of a long list is left out."""
    texts = [f"{name}: {number:,}" for name, number in counter.most_common()]
    if len(texts) > 2 * MOST:
        texts[MOST:-MOST] = [f"… ({len(texts) - 2 * MOST:,} more) …"]
    return ", ".join(texts)


def few(names: Iterable[str]) -> str:
    """How many, and the first of them."""
    known = list(names)
    return f"{len(known):,} ({', '.join(known[:3])}{', …' if len(known) > 3 else ''})"
