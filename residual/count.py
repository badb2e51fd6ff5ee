"""Exact counts of parameters and multiply-adds."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

N = TypeVar("N", bound=nn.Module)


def parameters(model: nn.Module) -> int:
    """Number of parameters, trainable and frozen. Buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward pass in convolutions, linear maps and attention, as in published tables.

    A copy of the model runs on the meta device, which needs no memory for activations. Elementwise operations (norms,
    activations, sums) are not counted.
    """
    return multiply_adds_of_parts(model, *inputs)[""]


def multiply_adds_of_parts(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Multiply-adds per submodule name, and their total under the empty name; see `multiply_adds`.

    Submodules without multiply-adds are left out.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # The math backend decomposes attention into two matrix products, which the counter supports.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shadow(*(x.to("meta") for x in inputs))
    counts = {name.partition(".")[2]: sum(by_kind.values()) // 2 for name, by_kind in counter.flop_counts.items()}
    return counts | {"": counter.get_total_flops() // 2}


def on_meta(make: Callable[[], N]) -> N:
    """The model returned by `make()`, on the meta device, without memory.

    Raises ValueError if the size of a tensor exceeds 64 bits.
    """
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ValueError("the network is too large for any memory: use fewer channels") from None


def check_weight_bytes(make: Callable[[], nn.Module], max_bytes: int) -> None:
    """Raises ValueError if the weights of the model returned by `make()` would take more than `max_bytes`.

    The model is built on the meta device, without memory.
    """
    needed = sum(t.numel() * t.element_size() for t in on_meta(make).state_dict().values())
    if needed > max_bytes:
        raise ValueError(
            f"the weights would take {needed / 2**30:,.1f} GiB, more than max_bytes={max_bytes:,}: use fewer channels"
        )
