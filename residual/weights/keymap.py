"""Renaming weights between our modules and a published layout, in both directions from one table.

A layout is described by two things. A *walk* over a network's config yields one `Place` per module: the kind of block,
its prefix with us and its prefix with them. A *table* gives for each kind a list of `Rule`s: which of our modules is
which of theirs, and how a tensor changes on the way. What a rule covers is found from the tensors that are there
(`weight`, `bias`, …), so one rule serves both directions and every module type.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


class Difference(ValueError):
    """Names or shapes of weights are others than those of the network."""


@dataclass(frozen=True)
class Transform:
    """How tensors change between a layout and ours; `outward` is the exact inverse of `inward`.

    `inward` makes our tensor from theirs (one per published name), `outward` makes theirs from ours; both are given
    the number of attention heads of the place.
    """

    inward: Callable[[list[Tensor], int], Tensor]
    outward: Callable[[Tensor, int], list[Tensor]]


same = Transform(lambda theirs, heads: theirs[0], lambda ours, heads: [ours])


def linear_to_conv(axes: int = 2) -> Transform:
    """Their linear map over channels, with `axes` axes in its weight, is our 1×1 convolution."""
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
    """Their one map to queries, keys and values orders its rows otherwise than ours, which is `three n d`: (query, key,
    value) × head × channel. `axes` is the number of axes of its weight."""
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
    """One module of ours and the module (or modules) of theirs that hold the same weights, relative to the block.

    Where the tensor itself has another name there, both sides name the tensor instead.
    """

    ours: str
    theirs: str | tuple[str, ...]
    transform: Transform = same

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Place:
    """Where a block of some kind stands: its prefix in our network and in theirs."""

    kind: str
    ours: str
    theirs: str
    heads: int = 1


Table = Mapping[str, Sequence[Rule]]


def import_state(
    places: Iterable[Place], table: Table, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state dict from theirs. `expected` is our network's own state dict: it says which tensors there are.

    Raises ValueError with the difference if a tensor of theirs is missing, left over, or of another shape.
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
            except RuntimeError:  # rows that cannot be split or put together as here
                wrong.extend(f"{name} has {tuple(theirs[name].shape)}" for name in their_names)
            else:
                if ours[our_name].shape != expected[our_name].shape:
                    wrong.append(_misfit(" + ".join(their_names), ours[our_name], expected[our_name]))
    raise_difference(missing, [name for name in theirs if name not in used], wrong)
    return ours


def export_state(places: Iterable[Place], table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict from ours: the exact inverse of `import_state`."""
    theirs: dict[str, Tensor] = {}
    for rule, our_name, their_names, heads in _pairs(places, table, ours):
        theirs.update(zip(their_names, rule.transform.outward(ours[our_name], heads), strict=True))
    return theirs


def published_names(places: Iterable[Place], table: Table, ours: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Under which name, or names, the layout has each of our tensors."""
    return {our_name: their_names for _, our_name, their_names, _ in _pairs(places, table, ours)}


def check_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError with the difference unless both hold tensors of the same names and shapes."""
    wrong = [
        _misfit(name, found[name], tensor)
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    raise_difference([n for n in expected if n not in found], [n for n in found if n not in expected], wrong)


def raise_difference(missing: Sequence[str], unknown: Sequence[str], wrong: Sequence[str], show: int = 4) -> None:
    """Raise Difference, a ValueError, naming the first few of each sort of difference; return if there is none."""
    sorts = (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
    parts = [
        f"{len(names)} {sort}: {', '.join(names[:show])}{', …' if len(names) > show else ''}"
        for sort, names in sorts
        if names
    ]
    if parts:
        raise Difference("the weights do not fit this network: " + "; ".join(parts))


def _misfit(name: str, found: Tensor, expected: Tensor) -> str:
    return f"{name} has {tuple(found.shape)}, here {tuple(expected.shape)}"


def _pairs(
    places: Iterable[Place], table: Table, expected: Mapping[str, Tensor]
) -> Iterator[tuple[Rule, str, tuple[str, ...], int]]:
    """Each of our tensors with the rule that covers it, the published names it corresponds to, and the heads there."""
    leaves: dict[str, list[str]] = {}
    for name in expected:
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, []).append(leaf)
    for place in places:
        for rule in table[place.kind]:
            module, leaf = _join(place.ours, rule.ours), ""
            if module in expected:  # the rule names one tensor, whose last name is another there
                module, _, leaf = module.rpartition(".")
                leaves[module].remove(leaf)
                theirs = tuple(_join(place.theirs, source) for source in rule.sources)
                yield rule, _join(module, leaf), theirs, place.heads
                continue
            for leaf in leaves.pop(module, ()):
                theirs = tuple(_join(place.theirs, source, leaf) for source in rule.sources)
                yield rule, _join(module, leaf), theirs, place.heads
    left = [_join(module, leaf) for module, names in leaves.items() for leaf in names]
    assert not left, f"no rule for {left}"


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
