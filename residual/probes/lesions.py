"""Lesions: what a model computes without some of its blocks, with fewer of them, or with them in another order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual.block import Residual
from residual.probes.visit import Loss, edited, evaluate, network, overridden, record, select


@contextmanager
def removed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """In this context the branches of the named blocks are zeros, so that the blocks are their shortcuts.

    A named module that is no residual block returns its input instead (Veit et al. 2016, section 4.1). It works for any
    use of the model in the context, for example sampling.
    Raises ValueError as `select` does, and in the call for a module that changes the shape of its input.
    """
    chosen = select(model, names) if names else {}
    blocks = {name: module for name, module in chosen.items() if isinstance(module, Residual)}
    others = {name: module for name, module in chosen.items() if name not in blocks}
    with edited(blocks, lambda _, s, f: (s, torch.zeros_like(f))), overridden(others, "forward", _skip):
        yield


def _skip(name: str, module: nn.Module) -> Callable[..., Tensor]:
    forward = module.forward

    def skip(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        y = forward(x, *rest, **options)
        if y.shape != x.shape:
            raise ValueError(f"{name} cannot be removed: it maps shape {tuple(x.shape)} to {tuple(y.shape)}")
        return x

    return skip


def lesions(
    model: nn.Module, x: Float[Tensor, "b *_"], loss: Loss, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "b"]]:
    """The increase of each image's loss when one block is removed, by block (Veit et al. 2016, figure 3).

    With the indicator of an error as loss, its mean is the increase of the error rate. For a diffusion network, a call
    per noise level shows where each block matters. See `removed`.
    """
    intact = evaluate(model, x, loss)

    def without(name: str) -> Tensor:
        with removed(model, [name]):
            return evaluate(model, x, loss) - intact

    return {name: without(name) for name in select(model, names)}


def truncations(
    model: nn.Module, x: Float[Tensor, "b *_"], loss: Loss, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "b"]]:
    """Each image's loss when all blocks after one are removed, by block, in the order of the call.

    The features behind a block reach the head through shortcuts alone. With `margin` as loss, it is the classification
    margin by depth.
    """
    order = [visit.name for visit in record(model, x, names).visits]

    def up_to(i: int) -> Tensor:
        with removed(model, order[i + 1 :]):
            return evaluate(model, x, loss)

    return {name: up_to(i) for i, name in enumerate(order)}


def margin(logits: Float[Tensor, "b classes"], label: Any) -> Float[Tensor, "b"]:
    """The logit of each image's label minus the largest other logit."""
    label = label.view(-1, 1)
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(dim=1)


@contextmanager
def reordered(model: nn.Module, source: Mapping[str, str]) -> Iterator[None]:
    """In this context block `source[name]` stands at the place of block `name`.

    Raises ValueError unless `source` is a permutation of its names and exchanges only blocks of equal parts.
    """
    net, blocks = network(model), select(model, list(source))
    if sorted(source) != sorted(source.values()):
        raise ValueError(f"the blocks {sorted(source.values())} are no permutation of the places {sorted(source)}")
    for place, name in source.items():
        if repr(blocks[place]) != repr(blocks[name]):
            raise ValueError(f"{name} cannot stand at {place}: their parts differ, so their shapes may")
    places = {place: place.rpartition(".") for place, name in source.items() if name != place}
    try:
        for place, (parent, _, key) in places.items():
            net.get_submodule(parent)._modules[key] = blocks[source[place]]
        yield
    finally:
        for place, (parent, _, key) in places.items():
            net.get_submodule(parent)._modules[key] = blocks[place]


class Reordering(NamedTuple):
    """The effect of one new order of blocks."""

    swaps: int
    """number of exchanges of two random blocks"""
    tau: float
    """Kendall's rank correlation with the old order: 1 for the same, -1 for the reverse"""
    increase: Float[Tensor, "b"]
    """of each image's loss"""


def reorderings(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    loss: Loss,
    swaps: Sequence[int] = (1, 2, 4, 8),
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Reordering]:
    """The increase of each image's loss after random exchanges of blocks with equal parts (Veit et al. 2016, figure 5).

    Each number in `swaps` is one new order. Raises ValueError if no two blocks have equal parts.
    """
    blocks, intact = select(model, names), evaluate(model, x, loss)
    parts = [repr(block) for block in blocks.values()]
    pairs = [(i, j) for i, j in combinations(range(len(parts)), 2) if parts[i] == parts[j]]
    if not pairs or not swaps or min(swaps) < 0:
        raise ValueError(
            f"swaps={list(swaps)} need two blocks of equal parts, and there are {len(pairs)} pairs of such"
        )
    generator, found = torch.Generator().manual_seed(seed), []
    for count in swaps:
        order = list(range(len(parts)))
        for choice in torch.randint(len(pairs), (count,), generator=generator).tolist():
            i, j = pairs[choice]
            order[i], order[j] = order[j], order[i]
        names = list(blocks)
        with reordered(model, {names[place]: names[i] for place, i in enumerate(order)}):
            found.append(Reordering(count, kendall_tau(order), evaluate(model, x, loss) - intact))
    return found


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of an order of different numbers with the ascending one (Kendall 1938)."""
    signs = [1 if first < second else -1 for first, second in combinations(order, 2)]
    return sum(signs) / len(signs)
