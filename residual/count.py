"""Parameters and multiply-adds, counted rather than estimated."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward pass: convolutions, linear maps and attention, as published tables count.

    Counted on the meta device on a copy of the model, so it needs no memory for activations and leaves `model` alone.
    Elementwise work (norms, activations, sums) is not counted.
    """
    return multiply_adds_of_parts(model, *inputs)[""]


def multiply_adds_of_parts(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """The multiply-adds of each submodule by its name, and under the empty name those of all; see `multiply_adds`.

    Submodules without any are left out.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # The math backend decomposes attention into the two matrix products that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shadow(*(x.to("meta") for x in inputs))
    counts = {name.partition(".")[2]: sum(by_kind.values()) // 2 for name, by_kind in counter.flop_counts.items()}
    return counts | {"": counter.get_total_flops() // 2}


def check_weight_bytes(make: Callable[[], nn.Module], max_bytes: int) -> None:
    """Raises ValueError if the weights of the model returned by `make()` would take more than `max_bytes`.

    The model is built on the meta device, without memory.
    """
    try:
        with torch.device("meta"):
            needed = sum(t.numel() * t.element_size() for t in make().state_dict().values())
    except RuntimeError as error:
        if "overflow" not in str(error).lower():
            raise
        needed = 2**63
    if needed > max_bytes:
        raise ValueError(
            f"the weights would take {needed / 2**30:,.1f} GiB, more than max_bytes={max_bytes:,}: use fewer channels"
        )
