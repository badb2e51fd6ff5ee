"""Gradients of the loss along the depth of a model: their norms, their paths, and their directions."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from residual.probes.visit import Loss, Record, call, edited, gradients, line, network, norms, record, select, vjp


def input_gradients(model: nn.Module, x: Float[Tensor, "b *size"], loss: Loss) -> Float[Tensor, "b *size"]:
    """The gradient of each image's loss by the image (Simonyan et al. 2014)."""
    network(model)
    with torch.enable_grad():
        x = x.detach().requires_grad_(x.is_floating_point())
        run = Record(x, call(model, x), [])
    return gradients(run, loss, [x])[0]


def gradient_norms(
    model: nn.Module, x: Float[Tensor, "b *_"], loss: Loss, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "b"]]:
    """The norm of the gradient of each image's loss at the input of each block.

    It vanishes or explodes towards the input where blocks shrink or enlarge gradients (Glorot and Bengio 2010).
    """
    run = record(model, x, names, grad=True)
    found = gradients(run, loss, [visit.x for visit in run.visits])
    return {visit.name: norms(gradient) for visit, gradient in zip(run.visits, found, strict=True)}


def utilisation(
    model: nn.Module, x: Float[Tensor, "b *_"], loss: Loss, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "b"]]:
    """The branch's share of the gradient at a block's input: |J_fᵀ g_f| / (|J_fᵀ g_f| + |J_sᵀ g_s|), from 0 to 1.

    J_f and J_s are the Jacobians of branch and shortcut, g_f and g_s the gradients at their outputs. NaN where no
    gradient arrives.
    """
    run = record(model, x, names, grad=True)
    found = gradients(run, loss, [part for visit in run.visits for part in (visit.f, visit.s)])
    shares = {}
    for visit, g_f, g_s in zip(run.visits, found[::2], found[1::2], strict=True):
        branch, shortcut = norms(vjp(visit.f, [visit.x], g_f)[0]), norms(vjp(visit.s, [visit.x], g_s)[0])
        shares[visit.name] = branch / (branch + shortcut)
    return shares


def alignment(
    model: nn.Module, x: Float[Tensor, "b *_"], loss: Loss, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "b"]]:
    """cos(f, -∂L/∂x): how far a block's branch moves its input down the loss (Jastrzębski et al. 2018, section 3).

    1 is steepest descent, 0 no relation. Where the branch changes the shape, the shortcut's output stands for `x`.
    Raises ValueError for a block whose branch and shortcut have different shapes, as in a DenseNet.
    """
    run = record(model, x, names, grad=True)
    points = [visit.x if visit.x.shape == visit.f.shape else visit.s for visit in run.visits]
    for visit, point in zip(run.visits, points, strict=True):
        if point.shape != visit.f.shape:
            shapes = f"shape {tuple(point.shape)} of the shortcut is not {tuple(visit.f.shape)} of the branch"
            raise ValueError(f"{visit.name}: {shapes}: leave the block out of names")
    found = gradients(run, loss, points)
    cosines = (F.cosine_similarity(v.f.flatten(1), -g.flatten(1)) for v, g in zip(run.visits, found, strict=True))
    return {visit.name: cosine.detach() for visit, cosine in zip(run.visits, cosines, strict=True)}


class PathGradients(NamedTuple):
    """Gradients at a model's input by the length of their paths: the number of blocks whose branch they pass.

    `norm` is the mean over drawn paths and images. `share` is norm times number of paths, divided by its sum.
    """

    length: Int[Tensor, "n"]
    norm: Float[Tensor, "n"]
    share: Float[Tensor, "n"]


def path_gradients(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    loss: Loss,
    *,
    names: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    samples: int = 8,
    seed: int = 0,
) -> PathGradients:
    """The gradient by path length: through the branch of k random blocks, through the shortcut of all others.

    Of n blocks there are n over k such paths (Veit et al. 2016, section 4.3). `samples` paths are drawn of each of the
    `lengths`, 0 to n by default. Gradients are blocked at the other part of each block; outputs do not change.
    """
    blocks = select(model, names, residual=True)
    lengths = list(range(len(blocks) + 1) if lengths is None else lengths)
    if not lengths or min(lengths) < 0 or max(lengths) > len(blocks) or samples < 1:
        raise ValueError(f"lengths={lengths} must be 0 to {len(blocks)}, and samples={samples} at least 1")
    generator, means = torch.Generator().manual_seed(seed), list[float]()
    for k in lengths:
        total = 0.0
        for _ in range(samples):
            chosen = torch.randperm(len(blocks), generator=generator)[:k].tolist()
            with edited(blocks, partial(_pass_branch, {list(blocks)[i] for i in chosen})):
                total += float(norms(input_gradients(model, x, loss)).mean())
        means.append(total / samples)
    length, norm, n = torch.tensor(lengths), torch.tensor(means), torch.tensor(float(len(blocks)))
    log_paths = torch.lgamma(n + 1) - torch.lgamma(length + 1) - torch.lgamma(n - length + 1)
    return PathGradients(length, norm, torch.softmax(log_paths + norm.log(), dim=0))


def _pass_branch(chosen: set[str], name: str, s: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Shortcut and branch; the gradient passes the branch of chosen blocks and the shortcut of others."""
    return (s.detach(), f) if name in chosen else (s, f.detach())


def gradient_autocorrelation(
    model: nn.Module,
    start: Float[Tensor, "*size"],
    end: Float[Tensor, "*size"],
    loss: Loss,
    *,
    points: int = 256,
    lags: int = 15,
) -> Float[Tensor, "n"]:
    """Correlation of input gradients along a line, by their distance: 1 at lag 0, then lags 1 to `lags`.

    The gradients at `points` from image `start` to image `end` are centred; lag k is Σ gᵢ·gᵢ₊ₖ / Σ gᵢ·gᵢ. In shattered
    gradients it falls to 0 at lag 1, as in white noise (Balduzzi et al. 2017, section 2). `loss` takes the outputs at
    the points, for example `lambda output: output.flatten(1).sum(dim=1)`.
    """
    if not 1 <= lags < points:
        raise ValueError(f"lags={lags} must be at least 1 and below points={points}")
    g = input_gradients(model, line(start, end, points), loss).flatten(1)
    g = g - g.mean(dim=0)
    return torch.stack([(g[: points - k] * g[k:]).sum() for k in range(lags + 1)]) / g.square().sum()
