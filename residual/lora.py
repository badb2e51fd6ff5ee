"""LoRA: low-rank additions to the convolutions of a frozen network, by PEFT (extra [lora])."""

from torch import Tensor, nn

from residual.block import PaddedConv2d, Residual

NAME = "default"
"""PEFT's name of the additions"""


def add_lora(model: nn.Module, rank: int = 4) -> list[str]:
    """Freezes a model, and adds a map of low rank to every convolution in the branches of its residual blocks.

    The convolution's weights W become W + B A (Hu et al. 2022, eq. 3), where A maps to `rank` channels, with the kernel
    of W, and B is a 1×1 convolution. These include the 1×1 convolutions of attention. B starts at zero, so the output
    does not change at first. Only A and B require gradients. Convolutions in groups, and those that continue images
    other than with zeros, are left out.

    Returns the names of the layers, which PEFT replaces by its own. Raises ValueError, before anything is changed, for
    a rank below 1, for a model that has LoRA already or has no such layer, and if PEFT is missing.
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
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"LoRA needs PEFT ({error}); pip install 'residual-diffusion[lora]'") from error
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    inject_adapter_in_model(config, model, NAME)
    return layers


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of LoRA alone, by name: what has to be stored. `load_state_dict(state, strict=False)` reads it."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


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
    model.requires_grad_(True)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution that PEFT's additions fit."""
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    return not isinstance(layer, PaddedConv2d) or getattr(layer, "borders", "zeros") == "zeros"
