"""Normalisation nodes: group norm with scale, shift and activation; frozen batch norm. And dropout."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residual import native
from residual.kernel_choice import KERNEL_DEVICES, compiled_kernels, hooked, kernel_for


def group_count(channels: int, groups: int = 32, group_channels: int = 1) -> int:
    """The largest divisor of `channels` up to `groups` that leaves at least `group_channels` channels per group.

    Multiples of 32 get 32 groups, as in DDPM and ADM; 48 gets 24, 80 gets 20. `group_channels=4` is EDM's rule,
    min(32, channels / 4). Raises ValueError if a number is not positive.
    """
    if min(channels, groups, group_channels) < 1:
        raise ValueError(f"channels={channels}, groups={groups} and group_channels={group_channels} must be at least 1")
    largest = max(1, min(groups, channels // group_channels))
    return next(count for count in range(largest, 0, -1) if channels % count == 0)


class NormAct(nn.GroupNorm):
    """Group normalisation, then `h · (1 + scale) + shift` with an embedding, then an activation.

    With `emb_channels`, scale and shift are one linear map of the embedding: the first half of its rows is the scale,
    the second half the shift (Dhariwal and Nichol 2021, AdaGN). For `groups` and `group_channels` see `group_count`.
    `act=None` leaves the activation out. As in `nn.GroupNorm`, the weights are called `weight` and `bias`.

    On the CPU, a channels-last input that needs no gradient (all layers before the norm are frozen) is copied to
    contiguous layout: PyTorch 2.13's backward pass of GroupNorm crashes the process there. After `native.load()`,
    channels-last inputs in float32 and bf16 on the CPU are normalised and activated by one compiled function.

    On CUDA, where Triton is installed, norm, scale, shift and SiLU are one kernel, which keeps the layout and the type
    of the input (`residual/norm_triton.py`; when: `residual/kernel_choice.py`).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int | None = None,
        *,
        groups: int = 32,
        group_channels: int = 1,
        eps: float = 1e-5,
        act: type[nn.Module] | None = nn.SiLU,
    ) -> None:
        super().__init__(group_count(channels, groups, group_channels), channels, eps=eps)
        self.project = None if emb_channels is None else nn.Linear(emb_channels, 2 * channels)
        self.act = None if act is None else act()
        self.takes_emb = emb_channels is not None

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"] | None = None) -> Float[Tensor, "b c h w"]:
        if torch.compiler.is_compiling() and x.device.type in compiled_kernels and x.dtype is not torch.float64:
            return self._fused(compiled_kernels[x.device.type], x, emb)
        if native.library is not None and native.fits(x):
            return self._fused(_norm_act, x, emb)
        if x.device.type == "cpu" and not x.requires_grad and torch.is_grad_enabled():
            x = x.contiguous()
        if x.device.type in KERNEL_DEVICES and (kernel := kernel_for(x)) is not None:
            return self._fused(kernel, x, emb)
        h = super().forward(x)
        if self.project is not None:
            scale, shift = self.project(emb)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return h if self.act is None else self.act(h)

    def _fused(self, kernel: Callable[..., Tensor], x: Tensor, emb: Tensor | None) -> Tensor:
        scale, shift = (None, None) if self.project is None else self.project(emb).chunk(2, dim=1)
        silu = type(self.act) is nn.SiLU and (torch.compiler.is_compiling() or not hooked(self.act))
        h = kernel(x, self.weight, self.bias, scale, shift, self.num_groups, self.eps, silu)
        return h if self.act is None or silu else self.act(h)


def _norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """`NormAct` without its linear map, by the kernels of the CPU. The output has the type and the layout of `x`."""
    gain, offset = weight.float(), bias.float()
    if scale is not None and shift is not None:
        factor = 1 + scale.float()
        gain, offset = (gain * factor).contiguous(), torch.addcmul(shift.float(), offset, factor).contiguous()
    if not torch.is_grad_enabled():
        return _normalise(x, gain, offset, groups, eps, silu)[0]
    return _NormAct.apply(x, gain.expand(x.shape[:2]), offset.expand(x.shape[:2]), groups, eps, silu)


def _normalise(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, ...]:
    """The output, mean and reciprocal deviation. `gain` and `offset` have one row per image, or are one for all."""
    y = torch.empty_like(x)
    mean, rstd = gain.new_empty(2, len(x), groups)
    tensors = (x, y, gain, offset, mean, rstd)
    native.call("norm_act", tensors, _sizes(x, gain, groups), eps, silu, x.dtype is torch.bfloat16)
    return y, mean, rstd


class _NormAct(torch.autograd.Function):
    """Group norm with one gain and offset per image and channel, and SiLU, by the kernels of the CPU.

    Only the input is stored for the backward pass. Everything is computed in float32 and rounded once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        y, mean, rstd = _normalise(x, gain, offset, groups, eps, silu)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        ctx.save_for_backward(x, gain, offset, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is wanted, which the kernels do not make
            x, gain, offset = (tensor.view_as(tensor) for tensor in (x, gain, offset))  # apart from what made them
            h = F.group_norm(x.float().contiguous(), ctx.groups, eps=ctx.eps)
            z = torch.addcmul(offset[:, :, None, None], h, gain[:, :, None, None])
            wanted = [tensor for tensor in (x, gain, offset) if tensor.requires_grad]
            y = (F.silu(z) if ctx.silu else z).to(x.dtype)
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None
        x, dy = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy.resolve_neg()))
        dx = torch.empty_like(x)
        dgain, doffset = gain.new_empty(2, *gain.shape)
        scratch = gain.new_empty(torch.get_num_threads(), *x.shape[1:])
        tensors = (x, dy, dx, gain, offset, mean, rstd, dgain, doffset, scratch)
        native.call("norm_act_backward", tensors, _sizes(x, gain, ctx.groups), ctx.silu, x.dtype is torch.bfloat16)
        return dx, dgain, doffset, None, None, None


def _sizes(x: Tensor, gain: Tensor, groups: int) -> tuple[int, ...]:
    """Images, pixels, channels, groups, and the distance of the rows of gain and offset."""
    images, channels, height, width = x.shape
    return images, height * width, channels, groups, gain.stride(0) if gain.ndim == 2 else 0


class Dropout(nn.Dropout):
    """`nn.Dropout`. After `native.load()`, one compiled function on the CPU, for channels-last inputs in training.

    That function takes one number from PyTorch's generator, and computes the mask from it, a second time in the
    backward pass, instead of storing it. Its probabilities are multiples of 2^-32, and what is dropped becomes zero
    even if it is NaN.
    """

    def forward(self, x: Tensor) -> Tensor:
        if native.library is not None and self.training and 0 < self.p < 1 and not self.inplace and native.fits(x):
            return _Dropout.apply(x, self.p, int(torch.randint(2**63 - 1, (1,), device="cpu")))
        return super().forward(x)


class _Dropout(torch.autograd.Function):
    """Dropout with the mask of a key."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, key: int) -> Tensor:
        ctx.p, ctx.key, y = p, key, torch.empty_like(x)
        sizes = x.numel(), key, min(round(p * 2**32), 2**32 - 1)
        native.call("dropout", (x, y), sizes, 1 / (1 - p), x.dtype is torch.bfloat16)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        dy = dy.resolve_neg().contiguous(memory_format=torch.channels_last)
        return _Dropout.apply(dy, ctx.p, ctx.key), None, None


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with constant statistics, scale and shift, which are buffers.

    It is for fine-tuning with few images per device, as in detection. The buffers have the names of `nn.BatchNorm2d`;
    only the counter `num_batches_tracked` is missing.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}"
