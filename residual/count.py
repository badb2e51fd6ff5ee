"""Parameters and multiply-adds, counted rather than estimated."""

import copy

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
