"""Parameters and multiply-adds, counted rather than estimated."""

import copy
import os
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
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # The math backend decomposes attention into the two matrix products that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shadow(*(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2


def check_memory(make: Callable[[], nn.Module]) -> None:
    """Raises ValueError if the weights of the model that `make()` makes are more than this machine has memory.

    It is made on the meta device, which takes none. Where the system does not tell its memory nothing is checked.
    """
    try:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    try:
        with torch.device("meta"):
            needed = sum(t.numel() * t.element_size() for t in make().state_dict().values())
    except RuntimeError:  # the size of a tensor does not fit into 64 bits
        needed = 2**63
    if needed > have:
        raise ValueError(
            f"the weights alone would take {needed / 2**30:,.1f} GiB, and this machine has {have / 2**30:,.1f}: "
            "take fewer channels, or smaller multipliers"
        )
