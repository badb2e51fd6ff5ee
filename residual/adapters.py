"""Residual adapters: small additions to a frozen network, which learn a new task and leave the old one as it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from residual import count
from residual.block import Residual, ZeroConv2d
from residual.names import amount, require_known
from residual.weights.keymap import check_state
from residual.weights.read import read_weights
from storage.write import replace_file

_KINDS = ("parallel", "series")


class Adapter(nn.Module):
    """What is added to the output of a layer: a linear map of the layer's input (parallel) or of its output (series).

    The map is the submodule called `parallel` or `series`. `on`: whether it is added.
    """

    def __init__(self, kind: str, linear: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.add_module(kind, linear)
        self.on = True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.get_submodule(self.kind)(x if self.kind == "parallel" else y) if self.on else y


class Adapters:
    """The adapters of a model, or of a copy of it, to which `add_adapters` gave them.

    Raises ValueError if the model has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.by_layer: Mapping[str, Adapter] = {
            name.removesuffix(".adapter"): part for name, part in model.named_modules() if isinstance(part, Adapter)
        }
        """the adapter of each layer, by the name of the layer"""
        if not self.by_layer:
            raise ValueError(f"{type(model).__name__} has no adapters: call add_adapters first")
        self._total = count.parameters(model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the adapters alone, for an optimizer."""
        for adapter in self.by_layer.values():
            yield from adapter.parameters()

    @property
    def share(self) -> float:
        """The parameters of the adapters, as a share of those that the model had before."""
        added = sum(parameter.numel() for parameter in self.parameters())
        return added / (self._total - added)

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which the model computes what it computed before it had adapters, bit for bit."""
        before = [(adapter, adapter.on) for adapter in self.by_layer.values()]
        try:
            for adapter, _ in before:
                adapter.on = False
            yield
        finally:
            for adapter, on in before:
                adapter.on = on

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters of the adapters alone, under their names in the model's state dict."""
        return {
            f"{layer}.adapter.{name}": tensor
            for layer, adapter in self.by_layer.items()
            for name, tensor in adapter.state_dict().items()
        }

    def save(self, path: str | Path) -> None:
        """Writes the parameters of the adapters alone to a safetensors file, whose folder is created if needed."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        replace_file(path, lambda new: save_file(state, new, metadata={"format": "pt"}))

    def load(self, path: str | Path) -> None:
        """Reads the parameters of adapters of the same kind at the same layers from a file that `save` wrote.

        Raises ValueError, before anything is changed, if the file is no safetensors file, or if names or shapes are
        those of other adapters.
        """
        found, own = read_weights(Path(path)), self.state_dict()
        try:
            check_state(found, own)
        except ValueError as error:
            raise ValueError(f"{path} is not of these adapters: {error}") from None
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(found[name])

    def __str__(self) -> str:
        parts = " and ".join(
            f"{number} {kind}"
            for kind in _KINDS
            if (number := sum(adapter.kind == kind for adapter in self.by_layer.values()))
        )
        added = amount(sum(parameter.numel() for parameter in self.parameters()), "parameter")
        return f"adapters: {parts}, {added}, {100 * self.share:.1f} % of those of the model"


def add_adapters(model: nn.Module, kind: str = "parallel", also: Sequence[str] = ()) -> Adapters:
    """Freezes a model, and adds a 1×1 convolution to every larger convolution in the branches of its residual blocks.

    `parallel` adds it to a convolution's output as a second path from its input (Rebuffi et al. 2018, eq. 3), `series`
    as a residual map of the output itself (Rebuffi et al. 2017, eq. 1). Both have the stride or groups of the
    convolution, and start at zero, so the output does not change at first. Norms are not adapted, other than in the
    papers: their statistics, too, stay as they are, also in training mode.

    `also` names layers that get parallel weights of their own shape, such as the classifier `fc` of a classifier or the
    table of labels `embedding.label` of a U-Net: each linear map or table is then that of the new task.

    Only the adapters' parameters require gradients. They are part of the model, so they move, are copied and are
    trained with it; `Adapters(copy)` finds those of a copy.

    Raises ValueError, before anything is changed, for an unknown kind or layer, for a model that already has adapters,
    that has no residual blocks or none with such a convolution, and for convolutions whose output has another size
    than that of a 1×1 convolution, where only `series` is possible.
    """
    require_known("kind of adapter", kind, _KINDS)
    if any(isinstance(part, Adapter) for part in model.modules()):
        raise ValueError(f"{type(model).__name__} already has adapters: load others into them, or adapt a fresh model")
    blocks = [part for part in model.modules() if isinstance(part, Residual)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no residual blocks, to whose branches adapters could be added")
    within = {part for block in blocks for part in block.branch.modules()}
    layers = dict(model.named_modules())
    adapters: dict[str, Adapter] = {
        name: Adapter(kind, _pointwise(name, layer, kind))
        for name, layer in layers.items()
        if layer in within and isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
    }
    if not adapters:
        raise ValueError(f"no branch of {type(model).__name__} has a convolution larger than 1×1 that could be adapted")
    for name in also:
        layer = layers[require_known("layer", name, layers)]
        if name in adapters or not isinstance(layer, nn.Linear | nn.Embedding | nn.Conv2d):
            what = "already adapted" if name in adapters else f"a {type(layer).__name__}"
            raise ValueError(f"also={name!r} is {what}: give other linear maps, tables or convolutions")
        adapters[name] = Adapter("parallel", _of_zeros(layer))
    model.requires_grad_(False)
    for part in layers.values():
        if isinstance(part, _NormBase):
            part.register_forward_pre_hook(_use_fixed_statistics)
    for name, adapter in adapters.items():
        layers[name].adapter = adapter
        layers[name].register_forward_hook(_adapt)
    return Adapters(model)


def _pointwise(name: str, conv: nn.Conv2d, kind: str) -> ZeroConv2d:
    """A 1×1 convolution from the input or the output of `conv` to its output."""
    parallel = kind == "parallel"
    added = ZeroConv2d(
        conv.in_channels if parallel else conv.out_channels,
        conv.out_channels,
        kernel_size=1,
        stride=conv.stride if parallel else 1,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if parallel:
        x = torch.empty(1, conv.in_channels, 64, 65, device="meta", dtype=conv.weight.dtype)
        ours, theirs = (deepcopy(layer).to("meta")(x).shape[2:] for layer in (added, conv))
        if ours != theirs:
            raise ValueError(
                f"{name} maps 64×65 pixels to {_size(theirs)}, a 1×1 convolution to {_size(ours)}: use kind='series'"
            )
    return added


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _of_zeros(layer: nn.Module) -> nn.Module:
    """A copy of a layer that maps every input to zeros."""
    copied = deepcopy(layer).requires_grad_(True)
    for parameter in copied.parameters():
        nn.init.zeros_(parameter)
    return copied


def _adapt(layer: Any, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
    """The forward hook of an adapted layer."""
    return layer.adapter(inputs[0], y)


def _use_fixed_statistics(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Before each call, a norm with running statistics is set to use them instead of updating them."""
    norm.eval()
