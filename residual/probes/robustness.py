"""Losses around images and weights: attacks, slices of the loss landscape, exact statistics of batch norms."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from residual.probes.gradients import input_gradients
from residual.probes.visit import Loss, call, losses, network, noise_like


def attack(
    model: nn.Module,
    x: Float[Tensor, "b *size"],
    loss: Loss,
    radius: float,
    *,
    steps: int = 1,
    bounds: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
) -> Float[Tensor, "b *size"]:
    """Images within `radius` of `x`, by value, with a larger loss: one step is FGSM, several are PGD.

    FGSM adds radius times the sign of the gradient (Goodfellow et al. 2015, section 4). PGD starts at random, has
    steps of 2.5 · radius / steps, and returns to the radius and the bounds after each (Madry et al. 2018, section 2.1).
    Raises ValueError for images that exceed the bounds of pixel values.
    """
    low, high = bounds
    if not radius >= 0 or steps < 1 or not low < high:
        raise ValueError(f"radius={radius} must be at least 0, steps={steps} at least 1, and bounds={bounds} ascend")
    if x.numel() and (x.amin() < low or x.amax() > high):
        raise ValueError(f"x has values from {float(x.amin()):g} to {float(x.amax()):g}, outside of bounds={bounds}")
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * 2 - 1 if steps > 1 else 0.0
    size, found = radius if steps == 1 else 2.5 * radius / steps, (x + radius * start).clamp(low, high)
    for _ in range(steps):
        moved = found + size * input_gradients(model, found, loss).sign()
        found = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(low, high)
    return found


def attacked_outputs(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    loss: Loss,
    radii: Sequence[float],
    *,
    steps: int = 1,
    bounds: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
) -> Float[Tensor, "n b *_"]:
    """The model's outputs for images attacked within each radius: a curve of accuracy or loss over the radius."""
    if not radii:
        raise ValueError("radii=[]: give at least one radius")
    attacked = [attack(model, x, loss, radius, steps=steps, bounds=bounds, seed=seed) for radius in radii]
    with torch.no_grad():
        return torch.stack([call(model, images) for images in attacked])


def filter_directions(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A random direction of the weights in which each filter has the norm of the model's (Li et al. 2018, section 4).

    A filter is a row of a weight's first axis. The direction of biases, scales and shifts is zero.
    """
    network(model)
    found = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        found[name] = torch.zeros_like(p)
        if p.dim() > 1:
            noise = noise_like(p.detach(), seed + i).flatten(1)
            found[name] += (noise * (p.detach().flatten(1).norm(dim=1) / noise.norm(dim=1))[:, None]).view_as(p)
    return found


def loss_landscape(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    loss: Loss,
    steps: Sequence[float],
    *,
    axes: int = 1,
    seed: int = 0,
) -> Float[Tensor, "n *_"]:
    """The mean loss at the weights plus `steps` times one or two filter-normalised directions: (n,) or (n, n).

    Zero is the model itself. Statistics of batch norms stay those of the model.
    """
    if axes not in (1, 2) or not steps:
        raise ValueError(f"axes={axes} must be 1 or 2, and steps={list(steps)} at least one number")
    state = {name: p.detach() for name, p in model.named_parameters()}
    directions = [filter_directions(model, seed + 1_000_003 * axis) for axis in range(axes)]
    grid = torch.cartesian_prod(*[torch.tensor(steps, dtype=torch.float64)] * axes).view(-1, axes).tolist()

    def mean_loss(point: Sequence[float]) -> Tensor:
        moved = {n: w + sum(a * d[n] for a, d in zip(point, directions, strict=True)) for n, w in state.items()}
        return losses(loss, call(lambda x: functional_call(model, moved, (x,)), x)).mean()

    with torch.no_grad():
        return torch.stack([mean_loss(point) for point in grid]).view([len(steps)] * axes)


def batch_norm_statistics(model: nn.Module, batches: Iterable[Float[Tensor, "b *_"]]) -> dict[str, Tensor]:
    """Running means and variances of all batch norms as averages over batches (Wu and Johnson 2021, section 3.1).

    The model normalises by each batch's statistics meanwhile, and is not changed: load the result with
    `model.load_state_dict(result, strict=False)`. Batches should have equal sizes.
    Raises ValueError for a model without batch norms and for no batches.
    """
    modules = network(model).named_modules()
    norms = {name: m for name, m in modules if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not norms:
        raise ValueError(f"{type(network(model)).__name__} has no batch norms with running statistics")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    before = [(norm, norm.momentum, [getattr(norm, name) for name in buffers]) for norm in norms.values()]
    count = 0
    try:
        for norm, _, tensors in before:
            norm.train().momentum = None  # the running statistics are those of all batches, with equal weights
            for name, tensor in zip(buffers, tensors, strict=True):
                setattr(norm, name, torch.zeros_like(tensor))
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                call(model, batch)
        if not count:
            raise ValueError("batches has no batch: give at least one")
        return {f"{place}.{name}": getattr(norm, name) for place, norm in norms.items() for name in buffers[:2]}
    finally:
        for norm, momentum, tensors in before:
            norm.eval().momentum = momentum
            for name, tensor in zip(buffers, tensors, strict=True):
                setattr(norm, name, tensor)
