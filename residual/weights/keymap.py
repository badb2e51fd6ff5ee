"""Renaming weights between our modules and a published layout, in both directions from one table.

A layout has two parts. A *walk* over a network's config yields one `Place` per block: its kind, our prefix and their
prefix. A *table* maps each kind to a list of `Rule`s, which pair our modules with theirs and transform the tensors. A
rule applies to all tensors of a module that exist (`weight`, `bias`, …), so one rule serves both directions and every
module type. “Ours” are the names of this project, “theirs” those of the other library.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


class Difference(ValueError):
    """Names or shapes of weights differ from those of the network."""


@dataclass(frozen=True)
class Transform:
    """A conversion of tensors between another layout and ours; `outward` is the exact inverse of `inward`.

    `inward` returns our tensor for a list of theirs (one per published name), `outward` their tensors for ours. The
    second argument of both is the number of attention heads of the place.
    """

    inward: Callable[[list[Tensor], int], Tensor]
    outward: Callable[[Tensor, int], list[Tensor]]


same = Transform(lambda theirs, heads: theirs[0], lambda ours, heads: [ours])


def linear_to_conv(axes: int = 2) -> Transform:
    """Their linear map over channels, whose weight has `axes` axes, is our 1×1 convolution."""
    return Transform(lambda theirs, heads: _as_conv(theirs[0]), lambda ours, heads: [_as_linear(ours, axes)])


conv_to_linear = Transform(
    lambda theirs, heads: _as_linear(theirs[0], 2),
    lambda ours, heads: [_as_conv(ours)],
)
"""Their 1×1 convolution is our linear map."""

stacked_to_conv = Transform(
    lambda theirs, heads: _as_conv(torch.cat(theirs)),
    lambda ours, heads: [part.contiguous() for part in _as_linear(ours, 2).chunk(3)],
)
"""Their three linear maps (query, key, value) are the stacked rows of our one 1×1 convolution."""


def qkv_rows(order: str, axes: int) -> Transform:
    """Their map to queries, keys and values has its rows in another order than ours.

    Ours is `three n d`: (query, key, value) × head × channel. `axes` is the number of axes of their weight.
    """
    return Transform(
        lambda theirs, n: rearrange(_as_conv(theirs[0]), f"({order}) ... -> (three n d) ...", three=3, n=n),
        lambda ours, n: [rearrange(_as_linear(ours, axes), f"(three n d) ... -> ({order}) ...", three=3, n=n)],
    )


def _as_conv(t: Tensor) -> Tensor:
    return t if t.dim() == 1 else t.reshape(*t.shape[:2], 1, 1)


def _as_linear(t: Tensor, axes: int) -> Tensor:
    return t if t.dim() == 1 else t.reshape(*t.shape[:2], *[1] * (axes - 2))


@dataclass(frozen=True)
class Rule:
    """A module of ours and the module (or modules) of theirs with the same weights, named relative to the block.

    If the tensors themselves have different names, both sides name the tensor instead of the module.
    """

    ours: str
    theirs: str | tuple[str, ...]
    transform: Transform = same

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Place:
    """A block: its kind, its prefix in our network and in theirs, and its number of attention heads."""

    kind: str
    ours: str
    theirs: str
    heads: int = 1


Table = Mapping[str, Sequence[Rule]]


def import_state(
    places: Iterable[Place], table: Table, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state dict from theirs. `expected` is our network's state dict, which gives names and shapes.

    Raises Difference if a tensor of theirs is missing, unknown, or of another shape.
    """
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    for rule, our_name, their_names, heads in _pairs(places, table, expected):
        used.update(their_names)
        absent = [name for name in their_names if name not in theirs]
        missing.extend(absent)
        if not absent:
            try:
                ours[our_name] = rule.transform.inward([theirs[name] for name in their_names], heads)
            except RuntimeError:  # rows that cannot be split or joined
                wrong.extend(f"{name} has {tuple(theirs[name].shape)}" for name in their_names)
            else:
                if ours[our_name].shape != expected[our_name].shape:
                    wrong.append(_misfit(" + ".join(their_names), ours[our_name], expected[our_name]))
    _check(missing, [name for name in theirs if name not in used], wrong)
    return ours


def export_state(places: Iterable[Place], table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict from ours. The exact inverse of `import_state`."""
    theirs: dict[str, Tensor] = {}
    for rule, our_name, their_names, heads in _pairs(places, table, ours):
        theirs.update(zip(their_names, rule.transform.outward(ours[our_name], heads), strict=True))
    return theirs


def published_names(places: Iterable[Place], table: Table, ours: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The published name or names of each of our tensors."""
    return {our_name: their_names for _, our_name, their_names, _ in _pairs(places, table, ours)}


def check_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises Difference unless both have tensors of the same names and shapes."""
    both = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    wrong = [_misfit(name, found[name], expected[name]) for name in both]
    _check([n for n in expected if n not in found], [n for n in found if n not in expected], wrong)


def _check(missing: Sequence[str], unknown: Sequence[str], wrong: Sequence[str]) -> None:
    """Raises Difference with the first names of each sort of difference. Returns if there is none."""
    sorts = (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
    parts = [
        f"{len(names)} {sort}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for sort, names in sorts
        if names
    ]
    if parts:
        raise Difference("the weights do not fit this network: " + "; ".join(parts))


def _misfit(name: str, found: Tensor, expected: Tensor) -> str:
    return f"{name} has {tuple(found.shape)}, expected {tuple(expected.shape)}"


def _pairs(
    places: Iterable[Place], table: Table, expected: Mapping[str, Tensor]
) -> Iterator[tuple[Rule, str, tuple[str, ...], int]]:
    """Yields the rule, our name, the published names and the number of heads for each of our tensors."""
    modules: dict[str, list[str]] = {}
    for name in expected:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    left = dict.fromkeys(expected)
    for place in places:
        for rule in table[place.kind]:
            ours = _join(place.ours, rule.ours)
            for name in [ours] if ours in expected else modules.get(ours, ()):
                if name in left:  # no earlier rule names the tensor
                    del left[name]
                    leaf = name[len(ours) :].removeprefix(".")
                    yield rule, name, tuple(_join(place.theirs, source, leaf) for source in rule.sources), place.heads
    assert not left, f"no rule for {list(left)}"


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
