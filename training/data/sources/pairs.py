"""Pairs: two sources whose images belong together, a target and its condition, as one source."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import overload

from residual.names import shorten
from training.data.sources.records import Item, Pair, Records, Source


def paired(target: Source, condition: Source, by_name: bool) -> Source:
    """The images of `target`, each with its condition from the other source: that of the same relative name without
    suffix, or else that of the same number.

    Opening it raises ValueError for images without a partner, for a picture beside an array, and for arrays of another
    dtype, range or order of axes, or larger than their target.
    """

    def read() -> Records:
        try:
            other = condition.open()
        except ValueError as error:
            text = re.sub(r"data\.(source|image_column|variables)", "data.condition", str(error))
            title = "" if "data.condition" in text else f"data.condition {condition.setting!r}: "
            raise ValueError(title + text) from None
        return joined(target.open(), other, target.setting, condition.setting, by_name)

    return replace(target, key=["pair", target.key, condition.key], open=read)


def joined(target: Records, condition: Records, source: str, other: str, by_name: bool) -> Records:
    """See `paired`; `source` and `other` are the values of data.source and data.condition."""
    title = f"data.condition {other!r}"
    if target.pixel_format != condition.pixel_format:
        kinds = [f"{records.pixel_format.dtype} in {records.pixel_format.file}" for records in (condition, target)]
        raise ValueError(f"{title} has {kinds[0]}, but data.source {source!r} has {kinds[1]}; convert one of them")
    if by_name:
        items = match(target.load(0), condition.load(0), source, other)
        joint = replace(target, load=lambda shard: items)
    elif list(target.sizes) != list(condition.sizes):
        raise ValueError(f"{title} has {condition.count:,} images, but data.source {source!r} has {target.count:,}")
    else:
        reads = (target.read or target.load), (condition.read or condition.load)
        joint = replace(
            target,
            load=lambda shard: Pairs(target.load(shard), condition.load(shard)),
            read=lambda shard: map(pair, *(read(shard) for read in reads)),
            bytes=[one + two for one, two in zip(target.bytes, condition.bytes, strict=True)],
        )
    shape, count = target.shape, None
    if target.shape is not None and condition.shape is not None:
        channels, height, width = target.shape
        count, rows, columns = condition.shape
        if rows > height or columns > width:
            raise ValueError(
                f"{title} has {rows} x {columns} (height x width), more than the {height} x {width} of data.source;"
                " reduce it, as arrays are only interpolated to a finer grid"
            )
        shape = channels + count, height, width
    coordinates = target.coordinates
    if coordinates is not None and condition.coordinates is not None:
        coordinates = coordinates.beside(condition.coordinates)
    joint = replace(joint, coordinates=coordinates)
    return replace(joint, shape=shape, conditions=count, stamp=lambda: [target.stamp(), condition.stamp()])


def match(targets: Sequence[Item], conditions: Sequence[Item], source: str, other: str) -> list[Item]:
    """The targets in their order, each with the condition of the same name without suffix.

    Raises ValueError with the names that only one of the sources has, and for two files of one name.
    """
    known = [by_stem(targets, f"data.source {source!r}"), by_stem(conditions, f"data.condition {other!r}")]
    lacks = []
    for setting, have, needed in (("data.condition", known[1], known[0]), ("data.source", known[0], known[1])):
        if missing := [name for name in needed if name not in have]:
            lacks.append(f"{setting} lacks {shorten(missing)}")
    if lacks:
        raise ValueError(
            f"data.source {source!r} and data.condition {other!r} do not match: {'; '.join(lacks)}; give the two files"
            " of a pair the same relative name, without suffix"
        )
    return [pair(item, known[1][name]) for name, item in known[0].items()]


def by_stem(items: Sequence[Item], title: str) -> dict[str, Item]:
    """The items by their name without suffix. Raises ValueError for two of the same."""
    found: dict[str, Item] = {}
    for item in items:
        name = PurePosixPath(item.name).with_suffix("").as_posix()
        if name in found:
            raise ValueError(
                f"{title} has two files {name}: {found[name].name} and {item.name}; remove one of each pair"
            )
        found[name] = item
    return found


class Pairs(Sequence):
    """The items of a shard of the targets, each with the condition of the same row."""

    def __init__(self, targets: Sequence[Item], conditions: Sequence[Item]):
        self._targets, self._conditions = targets, conditions

    def __len__(self) -> int:
        return len(self._targets)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return list(map(pair, self._targets[index], self._conditions[index]))
        return pair(self._targets[index], self._conditions[index])


def pair(target: Item, condition: Item) -> Item:
    """One item of two, with the name of the target."""
    assert not isinstance(target.data, Pair)
    assert not isinstance(condition.data, Pair)
    return Item(target.name, Pair(target.data, condition.data))
