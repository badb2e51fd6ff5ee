"""Visits the blocks of a model during one call, and records or changes their shortcut and branch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from residual.block import Chain, Residual
from residual.names import require_known, shorten
from residual.recompute import Recomputed

Loss = Callable[[Tensor], Tensor]
"""maps the model's output to one value per image: `partial(F.cross_entropy, target=label, reduction="none")`"""


class FixedInputs(nn.Module):
    """A network as a function of `x` alone: `FixedInputs(unet, t, label)(x)` is `unet(x, t, label)`.

    Probes name its blocks as those of the network itself.
    """

    def __init__(self, net: nn.Module, *inputs: Any, **options: Any) -> None:
        super().__init__()
        self.net, self.inputs, self.options = net, inputs, options

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, *self.inputs, **self.options)


class Visit(NamedTuple):
    """One call of a block: input `x`, shortcut `s`, branch `f`, output `y`, and the block as a function of `x`.

    A module that is no residual block counts as its branch, with zeros as shortcut.
    """

    name: str
    x: Tensor
    s: Tensor
    f: Tensor
    y: Tensor
    call: Callable[[Tensor], Tensor]


class Record(NamedTuple):
    """One call of a model: its input, its output, and the visits of its blocks in the order in which they ended."""

    x: Tensor
    output: Tensor
    visits: list[Visit]


def network(model: nn.Module) -> nn.Module:
    """The network whose module names probes use. Raises ValueError if a module of it is in training mode."""
    net: nn.Module = model.net if isinstance(model, FixedInputs) else model
    for name, module in net.named_modules():
        if module.training:
            raise ValueError(f"{name or type(net).__name__} is in training mode: call model.eval() before a probe")
    return net


def select(model: nn.Module, names: Sequence[str] | None = None, residual: bool = False) -> dict[str, nn.Module]:
    """The residual blocks of a model, or the modules with the given names. `residual` admits residual blocks only.

    Raises ValueError if there are none, for an unknown name, for a module that is no residual block where one is
    needed, and for a model in training mode.
    """
    net = network(model)
    modules = dict(net.named_modules())
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, Residual)}
    if names is None and not blocks:
        raise ValueError(f"{type(net).__name__} has no residual blocks: give the modules to probe, names=[…]")
    if names is None:
        return dict(blocks)
    if not names:
        raise ValueError("names=[] selects no block: give at least one name, or None for all residual blocks")
    found = {require_known("module", name, modules): modules[name] for name in names}
    if residual and (others := found.keys() - blocks.keys()):
        raise ValueError(f"{min(others)} is no residual block, and this probe needs shortcut and branch")
    return found


@contextmanager
def overridden(
    modules: Mapping[str, nn.Module], method: str, make: Callable[[str, Any], Callable[..., Any]]
) -> Iterator[None]:
    """Replaces a method of each module by `make(name, module)`, and restores it at the end."""
    before = [(module, module.__dict__.get(method)) for module in modules.values()]
    try:
        for name, module in modules.items():
            setattr(module, method, make(name, module))
        yield
    finally:
        for module, replaced in before:
            module.__dict__.pop(method, None)
            if replaced is not None:
                setattr(module, method, replaced)


@contextmanager
def edited(
    blocks: Mapping[str, nn.Module], edit: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Replaces the outputs of shortcut and branch of residual blocks: `edit(name, s, f)` returns the new ones."""

    def make(name: str, block: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        parts = block.parts
        return lambda *inputs: edit(name, *parts(*inputs))

    with overridden(blocks, "parts", make):
        yield


def record(model: nn.Module, x: Tensor, names: Sequence[str] | None = None, grad: bool = False) -> Record:
    """Calls the model and records its residual blocks, or the modules with the given names.

    With `grad`, all tensors of the record are part of one graph that is twice differentiable. A further call of the
    same block is recorded as `name, call 2`.
    Raises ValueError as `select` and `call` do, and for blocks that the call does not reach.
    """
    blocks, visits = select(model, names), list[Visit]()

    def make(name: str, module: Any) -> Callable[..., Tensor]:
        forward, calls = module.forward, 0

        def visit(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if isinstance(module, Residual):
                # views, so that the gradient at an identity shortcut is not that at the block's input
                s, f = (part.view_as(part) for part in module.parts(x, *rest, **options))
                y = module.merge(s, f)
            else:
                y = f = forward(x, *rest, **options)
                s = torch.zeros_like(y).requires_grad_(grad)
            label = name if calls == 1 else f"{name}, call {calls}"
            visits.append(Visit(label, x, s, f, y, lambda x: module(x, *rest, **options)))
            return y

        return visit

    recomputed = {name: module for name, module in model.named_modules() if isinstance(module, Recomputed)}
    with (
        torch.set_grad_enabled(grad),
        overridden(recomputed, "forward", lambda _, chain: partial(Chain.forward, chain)),
        overridden(blocks, "forward", make),
        sdpa_kernel(SDPBackend.MATH),  # the other kernels of attention are differentiable once only
    ):
        x = x.detach().requires_grad_(grad and x.is_floating_point())
        output = call(model, x)
    if missed := [name for name in blocks if name not in {visit.name for visit in visits}]:
        raise ValueError(f"{shorten(missed)} took no part in this call: give the names of the blocks that do")
    return Record(x, output, visits)


def call(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The model's output. Raises ValueError unless images are finite and the output is one tensor with as many rows."""
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}: give at least one image, as finite floats (b, …)")
    output = model(x)
    if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the model returned {found}, not a tensor with {len(x)} rows, one for each image")
    return output


def losses(loss: Loss, output: Tensor) -> Float[Tensor, "b"]:
    """The loss of each image. Raises ValueError unless it has one finite value per image."""
    values = loss(output)
    if values.shape != output.shape[:1]:
        found, count = tuple(values.shape), len(output)
        raise ValueError(f"the loss has shape {found}, not one value for each of {count} images: leave out its mean")
    if not values.isfinite().all():
        raise ValueError(f"the loss of image {int((~values.isfinite()).nonzero()[0])} is not finite")
    return values


def evaluate(model: nn.Module, x: Tensor, loss: Loss) -> Float[Tensor, "b"]:
    """The loss of each image, without gradients."""
    with torch.no_grad():
        return losses(loss, call(model, x))


def gradients(run: Record, loss: Loss, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of each image's loss at tensors of a record, which stays usable."""
    with torch.enable_grad():
        total = losses(loss, run.output).sum()
    return vjp(total, tensors)


def vjp(y: Tensor, tensors: Sequence[Tensor], v: Tensor | None = None, graph: bool = False) -> tuple[Tensor, ...]:
    """The products of `v` with the Jacobians of `y` by `tensors`; zeros where `y` does not depend on one."""
    if not y.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)
    options = {"retain_graph": True, "create_graph": graph, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(y, tensors, v, **options)


def norms(x: Tensor) -> Float[Tensor, "b"]:
    """The Euclidean norm of each image's values."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def noise_like(x: Tensor, seed: int) -> Tensor:
    """Standard normal noise of the shape of `x`, the same on every device. Global random states are not used."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def line(start: Float[Tensor, "*size"], end: Float[Tensor, "*size"], points: int) -> Float[Tensor, "n *size"]:
    """Points at equal distances from one image to another. Raises ValueError for less than two points."""
    if points < 2:
        raise ValueError(f"points={points} of a line must be at least 2")
    share = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)
    return torch.lerp(start, end, share.view(-1, *[1] * start.dim()))
