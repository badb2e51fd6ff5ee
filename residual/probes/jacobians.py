"""Jacobians of blocks: norms, Lipschitz bounds, eigenvalues and fixed points."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from residual.block import Add, Chain, Concat, DropPath, Identity, LearnedScale, Residual, ZeroPad
from residual.lipschitz import SLOPES, norm_bound
from residual.norm import Dropout, FrozenBatchNorm2d
from residual.ode import fixed_point
from residual.probes.visit import Visit, noise_like, norms, record, select, vjp


class JacobianNorms(NamedTuple):
    """Spectral norms of Jacobians per image: of each block, their product, and from the first block to the last.

    `end_to_end` is that of the last block's output by the first block's input. It is at most `product` if each block
    takes the output of the one before and nothing else; layers between blocks have norms of their own.
    """

    blocks: dict[str, Float[Tensor, "b"]]
    product: Float[Tensor, "b"]
    end_to_end: Float[Tensor, "b"]


def jacobian_norms(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    names: Sequence[str] | None = None,
    *,
    iterations: int = 100,
    seed: int = 0,
) -> JacobianNorms:
    """Largest singular values of the Jacobians of blocks at the inputs that they receive, by power iteration.

    Power iteration approaches a norm from below; `iterations` limits its steps, which end at a change below 1e-6.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    visits = record(model, x, names, grad=True).visits
    blocks = {visit.name: _norm(visit.y, visit.x, iterations, seed) for visit in visits}
    product = torch.stack(list(blocks.values())).prod(dim=0)
    return JacobianNorms(blocks, product, _norm(visits[-1].y, visits[0].x, iterations, seed))


def _norm(y: Tensor, x: Tensor, iterations: int, seed: int) -> Float[Tensor, "b"]:
    """The spectral norm of each image's Jacobian of `y` by `x`."""
    u = torch.zeros_like(y, requires_grad=True)
    (transposed,) = vjp(y, [x], u, graph=True)  # linear in u: its derivative along v is J v
    v, norm, tiny = noise_like(x, seed), torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.finfo(x.dtype).tiny
    for _ in range(iterations):
        v = v / norms(v).clamp_min(tiny).view(-1, *[1] * (v.dim() - 1))
        (jv,) = vjp(transposed, [u], v)
        last, norm = norm, norms(jv)
        if torch.all((norm - last).abs() <= 1e-6 * norm):
            break
        (v,) = vjp(y, [x], jv)
    return norm


def lipschitz_samples(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    names: Sequence[str] | None = None,
    *,
    radius: float = 0.1,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, Float[Tensor, "n b"]]:
    """|F(x + d) - F(x)| / |d| of each block for random d of norm `radius · |x|`, per sample and image.

    The largest value is a lower bound of the Lipschitz constant, which `lipschitz_bounds` bounds from above.
    """
    if samples < 1 or not 0 < radius < math.inf:
        raise ValueError(f"samples={samples} must be at least 1 and radius={radius} positive and finite")
    return {v.name: _ratios(v, radius, samples, seed) for v in record(model, x, names).visits}


@torch.no_grad()
def _ratios(visit: Visit, radius: float, samples: int, seed: int) -> Float[Tensor, "n b"]:
    ratios = []
    for i in range(samples):
        d = noise_like(visit.x, seed + i)
        d = d * (radius * norms(visit.x) / norms(d)).view(-1, *[1] * (d.dim() - 1))
        ratios.append(norms(visit.call(visit.x + d) - visit.y) / norms(d))
    return torch.stack(ratios)


def lipschitz_bounds(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, float]:
    """An upper bound of each block's Lipschitz constant over all inputs, from its weights alone.

    A sum is bounded by the sum of its parts' bounds, a chain by the product; a convolution as in `norm_bound`.
    Raises ValueError for a module without a bound, such as attention and group norm, whose norms grow with
    the input or with its inverse.
    """
    return {name: _bound(name, module) for name, module in select(model, names).items()}


def _bound(name: str, module: nn.Module) -> float:
    if isinstance(module, nn.Sequential | Chain):
        return math.prod(_bound(f"{name}.{key}", part) for key, part in module._modules.items() if part is not None)
    if isinstance(module, Residual) and isinstance(module.merge, Add | Concat):
        s, f, merge = _bound(f"{name}.shortcut", module.shortcut), _bound(f"{name}.branch", module.branch), module.merge
        if isinstance(merge, Concat):
            return math.hypot(s, f)
        act = 1.0 if merge.act is None else _bound(f"{name}.merge.act", merge.act)
        return act * (abs(merge.scale) * s + abs(merge.branch_scale) * f)
    for kind in type(module).__mro__:
        if kind in _BOUNDS:
            bound = _BOUNDS[kind]
            return float(bound(module) if callable(bound) else bound)
    kind = type(module.merge if isinstance(module, Residual) else module)
    raise ValueError(f"{name}: no Lipschitz bound of {kind.__name__} is known: use lipschitz_samples")


def _batch_norm_bound(norm: Any) -> Tensor:
    if norm.running_var is None:
        raise ValueError("no Lipschitz bound of batch norm without running statistics is known: use lipschitz_samples")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return (scale if norm.weight is None else scale * norm.weight.detach()).abs().amax()


def _window_bound(pool: Any) -> float:
    """The root of the largest number of windows that contain a pixel."""
    if getattr(pool, "divisor_override", None) or getattr(pool, "dilation", 1) not in (1, (1, 1)):
        raise ValueError(f"no Lipschitz bound of {pool} is known: use lipschitz_samples")
    return math.sqrt(
        math.prod(math.ceil(k / s) for k, s in zip(_pair(pool.kernel_size), _pair(pool.stride), strict=True))
    )


def _weight_bound(layer: Any) -> Tensor:
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"no Lipschitz bound of padding_mode={layer.padding_mode!r} is known: use lipschitz_samples")
    return norm_bound(layer.weight.detach())


_BOUNDS: dict[type, float | Callable[[Any], Tensor | float]] = {
    **dict.fromkeys((Identity, ZeroPad, DropPath, nn.Identity, nn.Dropout, Dropout), 1.0),
    **{kind: slope for kind, slope in SLOPES.items() if kind is not nn.ELU},  # whose slope is a parameter
    **dict.fromkeys((nn.Linear, nn.Conv2d), _weight_bound),
    **dict.fromkeys((nn.BatchNorm2d, FrozenBatchNorm2d), _batch_norm_bound),
    **dict.fromkeys((nn.AvgPool2d, nn.MaxPool2d), _window_bound),
    LearnedScale: lambda layer: layer.alpha.detach().abs(),
}


def _square(model: nn.Module, x: Tensor, names: Sequence[str] | None) -> list[Visit]:
    """The visits of the blocks that keep the shape of their input. Raises ValueError if a named one, or all, do not."""
    visits = record(model, x, names, grad=True).visits
    found = [visit for visit in visits if visit.x.shape == visit.y.shape]
    if not found or (names is not None and len(found) < len(visits)):
        wrong = next(visit for visit in visits if visit.x.shape != visit.y.shape)
        raise ValueError(f"{wrong.name} maps shape {tuple(wrong.x.shape)} to {tuple(wrong.y.shape)}: no fixed points")
    return found


def eigenvalues(
    model: nn.Module, x: Float[Tensor, "b *_"], names: Sequence[str] | None = None, *, max_values: int = 4096
) -> dict[str, Complex[Tensor, "b n"]]:
    """All eigenvalues of the Jacobian of each block that keeps its input's shape, at the inputs that they receive.

    They are 1 plus those of the branch for identity shortcut and plain sum. A fixed point with all absolute values
    below 1 is stable under repetition of the block. Blocks that change the shape have no entry.
    Raises ValueError for a block of more than `max_values` values per image, since the whole matrix is computed.
    """
    visits = _square(model, x, names)
    for visit in visits:
        if (size := visit.x[0].numel()) > max_values:
            raise ValueError(
                f"{visit.name} has {size} values per image, more than max_values={max_values}: use fewer px"
            )
    found = {}
    for visit in visits:
        units = torch.eye(visit.x[0].numel(), dtype=x.dtype, device=x.device).view(-1, 1, *visit.y.shape[1:])
        rows = [vjp(visit.y, [visit.x], unit.expand_as(visit.y))[0].flatten(1) for unit in units]
        found[visit.name] = torch.linalg.eigvals(torch.stack(rows, dim=1))
    return found


def fixed_points(
    model: nn.Module,
    x: Float[Tensor, "b *_"],
    names: Sequence[str] | None = None,
    *,
    tol: float | None = None,
    max_iterations: int = 100,
) -> dict[str, Float[Tensor, "b *_"]]:
    """Inputs that each block maps to themselves, found from the inputs that it receives. Blocks as in `eigenvalues`.

    `residual.ode.fixed_point` has the method and the numbers. Raises ValueError, with the block, if none
    is found within the iterations, or only at more than 1,000 times the norm of the block's input and branch.
    """
    found, advice = {}, "raise max_iterations or tol, or leave the block out"
    for v in _square(model, x, names):
        what, start = f"the fixed point of {v.name}", v.x.detach()
        z = fixed_point(v.call, start, tol=tol, max_iterations=max_iterations, what=what, advice=advice)
        if torch.any(norms(z) > 1e3 * (norms(v.x) + norms(v.f))):  # there, any change is small relative to z
            raise ValueError(
                f"the fixed point of {v.name} was sought up to norm {float(norms(z).amax()):.1e}: leave it out"
            )
        found[v.name] = z
    return found
