"""LoRA: low-rank additions to the convolutions of a frozen network, by PEFT (extra [lora])."""

import copy
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from residual.block import PaddedConv2d, Residual
from residual.names import require_known
from storage.extra import require_extra
from storage.write import replace_file, write_text

M = TypeVar("M", bound=nn.Module)
NAME = "default"
"""PEFT's name of the additions"""


def add_lora(model: nn.Module, rank: int = 4, alpha: float | None = None, also: Sequence[str] = ()) -> list[str]:
    """Freezes a model, and adds a map of low rank to every convolution in the branches of its residual blocks.

    The convolution's weights W become W + (alpha / rank) B A (Hu et al. 2022, eq. 3), where A maps to `rank` channels,
    with the kernel of W, and B is a 1×1 convolution. These include the 1×1 convolutions of attention. Without `alpha`
    the factor is 1. B starts at zero, so the output does not change at first. Only A and B require gradients, and the
    weights of the layers named in `also`. Convolutions in groups, those with gaps in the kernel, and those that
    continue images other than with zeros, are left out.

    Returns the names of the layers, which PEFT replaces by its own. Raises ValueError, before anything is changed, for
    a rank below 1 or above that of a layer's weights, for a model that has LoRA already or has no such layer, for a
    name in `also` that is none of a layer, and if PEFT is missing.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} of LoRA must be at least 1")
    if lora_state(model):
        raise ValueError(f"{type(model).__name__} has LoRA already: merge it first (merge_lora)")
    blocks = [part for part in model.modules() if isinstance(part, Residual)]
    within = {part for block in blocks for part in block.branch.modules()}
    layers = [name for name, layer in model.named_modules() if layer in within and _is_plain(layer)]
    if not layers:
        raise ValueError(f"no branch of a residual block of {type(model).__name__} has a convolution for LoRA")
    limits = {name: _full_rank(model.get_submodule(name)) for name in layers}
    if rank > (limit := min(limits.values())):
        smallest = min(layers, key=limits.__getitem__)
        raise ValueError(
            f"rank={rank} of LoRA is more than the {limit} of the weights of {smallest}; give at most {limit}"
        )
    others = {name: layer for name, layer in model.named_modules() if _is_whole(layer) and name not in layers}
    for name in also:
        require_known("also", name, others)
    require_extra("peft", "lora", "LoRA")
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=layers)
    inject_adapter_in_model(config, model, NAME)
    config.modules_to_save = list(also) or None  # given before, PEFT would put a copy beside each of these layers
    for name in also:
        others[name].requires_grad_(True)
    return layers


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name, which has to be stored. `load_state_dict(state, strict=False)` reads it. Empty for a
    model without LoRA."""
    if (configs := vars(model).get("peft_config")) is None:
        return {}
    also = tuple(f"{name}." for name in configs[NAME].modules_to_save or ())
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name or name.startswith(also)}


def merge_lora(model: nn.Module) -> None:
    """Adds the products B A to the weights, and puts the model's own layers back. All parameters require gradients.

    Raises ValueError for a model without LoRA.
    """
    if not lora_state(model):
        raise ValueError(f"{type(model).__name__} has no LoRA to merge: call add_lora first")
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    model.requires_grad_(True)


def merged(model: M) -> M:
    """A copy of the model with its LoRA merged; the model itself if it has none."""
    if not lora_state(model):
        return model
    model = copy.deepcopy(model)
    merge_lora(model)
    return model


def save_lora(model: nn.Module, folder: Path) -> None:
    """Writes the LoRA of a model into an existing folder, in PEFT's format: `PeftModel.from_pretrained(net, folder)`
    adds it to a network like the one before `add_lora`.

    Raises ValueError for a model without LoRA.
    """
    if not (state := lora_state(model)):
        raise ValueError(f"{type(model).__name__} has no LoRA to save: call add_lora first")
    from safetensors.torch import save_file

    layers = sorted({name.partition(".lora_")[0] for name in state if ".lora_" in name})  # those of PEFT are a set
    config: Any = vars(model)["peft_config"][NAME]
    values = config.to_dict() | {"target_modules": layers, "inference_mode": True}
    write_text(folder / "adapter_config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    replace_file(folder / "adapter_model.safetensors", partial(save_file, tensors, metadata={"format": "pt"}))


def _is_whole(layer: nn.Module) -> bool:
    """Whether it is a layer with weights that consists of no others."""
    return next(layer.children(), None) is None and next(layer.parameters(), None) is not None


def _full_rank(layer: nn.Module) -> int:
    """The largest rank of the weights of a convolution, as a matrix with a row per output channel."""
    assert isinstance(layer, nn.Conv2d)
    return min(layer.weight.flatten(1).shape)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution that PEFT's additions fit."""
    if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, PaddedConv2d):  # others compute otherwise
        return False
    if layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    if any(step != 1 for step in layer.dilation):
        return False
    return not isinstance(layer, PaddedConv2d) or getattr(layer, "borders", "zeros") == "zeros"
