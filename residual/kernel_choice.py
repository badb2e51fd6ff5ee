"""Decides whether the kernel of `residual/norm_triton.py` replaces PyTorch's operations.

It does in ordinary calls on CUDA where Triton is installed, and after `use_when_compiled` in compiled networks.
Networks that are exported or traced, and `torch.func`, keep PyTorch's operations, which they can transform; so does
everything with RESIDUAL_TRITON=0 in the environment.
"""

import functools
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

KERNEL_DEVICES = {"cuda"}
"""types of device that have the kernel"""
compiled_kernels: dict[str, Callable[..., Tensor]] = {}
"""by type of device: the kernel in networks that torch.compile compiles, after `use_when_compiled`"""


def kernel_for(x: Tensor) -> Callable[..., Tensor] | None:
    """The kernel for an input on CUDA; None where PyTorch's operations are to be recorded, transformed or missing.

    Warns once, with the reason, if Triton cannot be used. Raises ValueError if RESIDUAL_TRITON is neither 0 nor 1.
    """
    return _triton_kernel(x.device.type) if computed_now(x) else None


def has_kernel(device: torch.device) -> bool:
    """Whether the kernel can be used on this device. Warns and raises as `kernel_for` does."""
    return device.type in KERNEL_DEVICES and _triton_kernel(device.type) is not None


def use_when_compiled(device: torch.device) -> None:
    """Lets networks that are compiled in this process from now on use the kernel, if it can be used on this device.

    Without it they keep PyTorch's operations, which torch.compile fuses, but which are slower on a GPU.
    """
    if has_kernel(device):
        from residual.norm_triton import norm_act_compiled

        compiled_kernels[device.type] = norm_act_compiled


def computed_now(x: Tensor) -> bool:
    """Whether operations on this tensor are computed by this call, not recorded or transformed, and have any values."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor or not x.numel():
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


@functools.cache
def _triton_kernel(device: str) -> Callable[..., Tensor] | None:
    wanted = os.environ.get("RESIDUAL_TRITON", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"RESIDUAL_TRITON={wanted!r} in the environment: give 1, or 0 for PyTorch's operations")
    if wanted == "0":
        return None
    try:
        from residual.norm_triton import norm_act

        with torch.inference_mode(False), torch.enable_grad():  # finds out whether kernels can be compiled here
            one = torch.ones(2, device=device, requires_grad=True)
            norm_act(one.expand(1, 2, 1, 2), one, one, None, None, 1, 1e-5, True).sum().backward()
    except Exception as error:  # a missing compiler, a cache that cannot be written, a GPU that is too old, ...
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"NormAct uses PyTorch's operations, which are slower: {reason}", stacklevel=2)
        return None
    return norm_act


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or those of all modules."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or bool(nn.modules.module._has_any_global_hook())
