"""Group norm, scale and shift, and SiLU as one Triton kernel per direction. Imported only where Triton is installed.

For one image and one group with m values (its channels times the pixels), channel c and pixel p:

    forward      x̂ = (x - mean) · rstd         mean, variance over the group; rstd = 1 / √(variance + eps)
                 z = gain_c · x̂ + offset_c     gain = weight · (1 + scale), offset = bias · (1 + scale) + shift
                 y = z · σ(z)                  or y = z, without SiLU
    backward     dz = dy · (σ(z) + z · σ(z) · (1 - σ(z)))
                 dgain_c = Σ_p dz · x̂          doffset_c = Σ_p dz
                 dx = rstd · (gain_c · dz - Σ_c gain_c · doffset_c / m - x̂ · Σ_c gain_c · dgain_c / m)

`gain` and `offset` have one row per image, so weight, bias, scale and shift receive their gradients from autograd.

A program owns one image and a few whole groups. It sums over all pixels, then reads them again, most of them from the
cache, and writes. No sum crosses programs, so results do not depend on their order. Sums have the type ACC: float32, or
float64 for float64. The variance is computed from differences to the channel's first pixel and combined over the
channels of a group (Chan et al. 1983), which keeps its digits where the mean is large against the deviation. Images are
NHWC or NCHW; the output has the layout of the input, and is rounded once.
"""

from typing import Any, no_type_check

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(f"Triton {triton.__version__} is too old, 3.6 or newer is needed")

_TILE = 4096  # values that a program holds at a time
_BLOCK = 64  # channels of a program, if whole groups fit: 128 bytes of a bf16 pixel
_WARPS = 8
_PROGRAMS = 256  # fewer channels per program until there are this many, so that small batches occupy the GPU


def norm_act(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "c"],
    bias: Float[Tensor, "c"],
    scale: Float[Tensor, "b c"] | None,
    shift: Float[Tensor, "b c"] | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Float[Tensor, "b c h w"]:
    """`NormAct` without its linear map, for `x` with at least one value. The output has its type and layout."""
    return _NormAct.apply(*_arguments(x, weight, bias, scale, shift), groups, eps, silu)


def norm_act_compiled(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "c"],
    bias: Float[Tensor, "c"],
    scale: Float[Tensor, "b c"] | None,
    shift: Float[Tensor, "b c"] | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Float[Tensor, "b c h w"]:
    """`norm_act` for torch.compile, which takes the kernels as operators. Not for float64."""
    x, gain, offset = _arguments(x, weight, bias, scale, shift)
    return _operator(x, gain.contiguous(), offset.contiguous(), groups, eps, silu)[0]


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The images in a layout of the kernels, and the gain and offset of each image and channel in the type of sums."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain, offset = weight.to(acc), bias.to(acc)
    if scale is not None and shift is not None:
        factor = 1 + scale.to(acc)
        gain, offset = gain * factor, torch.addcmul(shift.to(acc), offset, factor)
    if not x.is_contiguous():
        x = x.contiguous(memory_format=torch.channels_last)
    return x, gain.expand(x.shape[:2]), offset.expand(x.shape[:2])


def _normalise(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the mean and the reciprocal deviation."""
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(gain.shape, dtype=gain.dtype, device=x.device) for _ in range(2))
    _launch(_forward, x, groups, silu, (x, gain, offset, y, mean, rstd), EPS=eps)
    return y, mean, rstd


def _backpropagate(
    x: Tensor, gain: Tensor, offset: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the images, the gain and the offset."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    dy, dx = dy.contiguous(memory_format=layout), torch.empty_like(x)
    dgain, doffset = torch.empty_like(mean), torch.empty_like(mean)
    _launch(_backward, x, groups, silu, (x, gain, offset, dy, mean, rstd, dx, dgain, doffset))
    return dx, dgain, doffset


_operator = torch.library.custom_op("residual::norm_act", _normalise, mutates_args=())
_backward_operator = torch.library.custom_op("residual::norm_act_backward", _backpropagate, mutates_args=())


@_operator.register_fake
def _(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)


@_backward_operator.register_fake
def _(
    x: Tensor, gain: Tensor, offset: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gain, offset, ctx.groups, _, ctx.silu = inputs
    ctx.save_for_backward(x, gain, offset, *output[1:])


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, gain, offset, mean, rstd = ctx.saved_tensors
    return *_backward_operator(x, gain, offset, dy, mean, rstd, ctx.groups, ctx.silu), None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        y, mean, rstd = _normalise(x, gain, offset, groups, eps, silu)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        ctx.save_for_backward(x, gain, offset, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is wanted, for which the kernels have no formula
            y = reference(x, gain, offset, ctx.groups, ctx.eps, ctx.silu)
            wanted = [tensor for tensor in (x, gain, offset) if tensor.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None
        return *_backpropagate(x, gain, offset, dy, mean, rstd, ctx.groups, ctx.silu), None, None, None


def reference(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """What the kernels compute, in plain operations."""
    z = F.group_norm(x.to(gain.dtype), groups, eps=eps) * gain[:, :, None, None] + offset[:, :, None, None]
    return (F.silu(z) if silu else z).to(x.dtype)


def _launch(kernel: Any, x: Tensor, groups: int, silu: bool, tensors: tuple[Tensor, ...], **constants: Any) -> None:
    images, channels, height, width = x.shape
    pixels, group_channels = height * width, channels // groups
    block_groups = max(1, min(groups, _BLOCK // group_channels))
    while block_groups > 1 and images * triton.cdiv(groups, block_groups) < _PROGRAMS:
        block_groups //= 2
    block_channels = triton.next_power_of_2(block_groups * group_channels)
    block_pixels = max(1, _TILE // block_channels)
    whole = block_groups * group_channels == block_channels and channels % block_channels == 0
    pixel_stride, channel_stride = (1, pixels) if x.is_contiguous() else (channels, 1)
    with torch.cuda.device_of(x):
        kernel[images, triton.cdiv(groups, block_groups)](
            *tensors,
            tensors[1].stride(0),
            pixels,
            channels,
            pixel_stride,
            channel_stride,
            GROUPS=block_groups,
            GROUP_CHANNELS=group_channels,
            BLOCK_C=block_channels,
            BLOCK_P=block_pixels,
            WHOLE=whole and pixels % block_pixels == 0,
            SILU=silu,
            FAST=not triton.knobs.runtime.interpret and tensors[1].dtype == torch.float32,
            ACC=tl.float64 if tensors[1].dtype == torch.float64 else tl.float32,
            num_warps=_WARPS,
            **constants,
        )


@triton.jit
@no_type_check
def _forward(
    x, gain, offset, y, mean, rstd, gain_stride, pixels, channels, pixel_stride, channel_stride,
    GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    WHOLE: tl.constexpr, SILU: tl.constexpr, FAST: tl.constexpr, ACC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    image, c, inside = _place(channels, GROUPS, GROUP_CHANNELS, BLOCK_C, WHOLE)
    at = image * pixels * channels + c * channel_stride
    first = tl.load(x + at, inside, other=0).to(ACC)
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    squares = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for start in range(0, pixels, BLOCK_P):
        to, mask = _tile(at, inside, start, pixels, pixel_stride, BLOCK_P, BLOCK_C, WHOLE)
        difference = tl.where(mask, tl.load(x + to, mask, other=0).to(ACC) - first, 0)
        total += difference
        squares += difference * difference
    sums = tl.sum(total, axis=0)
    channel_mean = first + sums / pixels
    mu = _group_sum(channel_mean, inside, GROUPS, GROUP_CHANNELS, BLOCK_C) / GROUP_CHANNELS
    deviation = channel_mean - mu
    spread = tl.sum(squares, axis=0) - sums * sums / pixels + pixels * deviation * deviation
    variance = _group_sum(spread, inside, GROUPS, GROUP_CHANNELS, BLOCK_C) / (pixels * GROUP_CHANNELS)
    r = 1 / tl.sqrt(tl.maximum(variance, 0) + EPS)
    tl.store(mean + image * channels + c, mu, inside)
    tl.store(rstd + image * channels + c, r, inside)

    a = r * tl.load(gain + image * gain_stride + c, inside, other=0)
    b = tl.load(offset + image * gain_stride + c, inside, other=0)
    for start in range(0, pixels, BLOCK_P):
        to, mask = _tile(at, inside, start, pixels, pixel_stride, BLOCK_P, BLOCK_C, WHOLE)
        z = (tl.load(x + to, mask, other=0).to(ACC) - mu) * a + b
        if SILU:
            z = z * _sigmoid(z, FAST)
        tl.store(y + to, z.to(y.dtype.element_ty), mask)


@triton.jit
@no_type_check
def _backward(
    x, gain, offset, dy, mean, rstd, dx, dgain, doffset, gain_stride, pixels, channels, pixel_stride, channel_stride,
    GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    WHOLE: tl.constexpr, SILU: tl.constexpr, FAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    image, c, inside = _place(channels, GROUPS, GROUP_CHANNELS, BLOCK_C, WHOLE)
    at = image * pixels * channels + c * channel_stride
    mu = tl.load(mean + image * channels + c, inside, other=0)
    r = tl.load(rstd + image * channels + c, inside, other=0)
    a = r * tl.load(gain + image * gain_stride + c, inside, other=0)
    b = tl.load(offset + image * gain_stride + c, inside, other=0)
    da = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    db = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for start in range(0, pixels, BLOCK_P):
        to, mask = _tile(at, inside, start, pixels, pixel_stride, BLOCK_P, BLOCK_C, WHOLE)
        difference, dz = _gradient(x + to, dy + to, mask, mu, a, b, SILU, FAST, ACC)
        da += dz * difference
        db += dz
    sum_a, sum_b = r * tl.sum(da, axis=0), tl.sum(db, axis=0)
    tl.store(dgain + image * channels + c, sum_a, inside)
    tl.store(doffset + image * channels + c, sum_b, inside)

    values = pixels * GROUP_CHANNELS
    slope = r * _group_sum(a * sum_a, inside, GROUPS, GROUP_CHANNELS, BLOCK_C) / values
    level = _group_sum(a * sum_b, inside, GROUPS, GROUP_CHANNELS, BLOCK_C) / values
    for start in range(0, pixels, BLOCK_P):
        to, mask = _tile(at, inside, start, pixels, pixel_stride, BLOCK_P, BLOCK_C, WHOLE)
        difference, dz = _gradient(x + to, dy + to, mask, mu, a, b, SILU, FAST, ACC)
        tl.store(dx + to, (a * dz - (difference * slope + level)).to(dx.dtype.element_ty), mask)


@triton.jit
@no_type_check
def _place(channels, GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr):
    """The image and the channels of this program, and which of them exist. BLOCK_C is a power of two."""
    block = tl.arange(0, BLOCK_C)
    c = tl.program_id(1) * (GROUPS * GROUP_CHANNELS) + block
    inside = tl.full([BLOCK_C], True, tl.int1) if WHOLE else (block < GROUPS * GROUP_CHANNELS) & (c < channels)
    return tl.program_id(0).to(tl.int64), c, inside


@triton.jit
@no_type_check
def _tile(at, inside, start, pixels, pixel_stride, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr):
    """Offsets of a tile of pixels and channels, and which of its values exist: all of them if WHOLE."""
    p = start + tl.arange(0, BLOCK_P)
    mask = tl.full([BLOCK_P, BLOCK_C], True, tl.int1) if WHOLE else (p < pixels)[:, None] & inside[None, :]
    return p[:, None] * pixel_stride + at[None, :], mask


@triton.jit
@no_type_check
def _gradient(x, dy, mask, mu, a, b, SILU: tl.constexpr, FAST: tl.constexpr, ACC: tl.constexpr):
    """The differences to the mean and the gradient of z, which is zero outside the image."""
    difference = tl.load(x, mask, other=0).to(ACC) - mu
    dz = tl.load(dy, mask, other=0).to(ACC)
    if SILU:
        z = difference * a + b
        sigmoid = _sigmoid(z, FAST)
        dz *= sigmoid + z * sigmoid * (1 - sigmoid)
    return difference, dz


@triton.jit
@no_type_check
def _sigmoid(z, FAST: tl.constexpr):
    """σ(z) = 1 / (1 + 2^(-z · log2 e)). FAST: four instructions of the GPU, whose error bounds add up to 3e-7."""
    if FAST:
        result = tl.inline_asm_elementwise(
            "{ .reg .f32 t; mul.ftz.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t;"
            " add.ftz.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
            "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        result = tl.sigmoid(z)
    return result


@triton.jit
@no_type_check
def _group_sum(value, inside, GROUPS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """For each channel of the block, the sum of `value` over the channels of its group."""
    value = tl.where(inside, value, 0)
    if GROUPS == 1:
        total = tl.sum(value, axis=0) + tl.zeros_like(value)
    else:
        group = tl.arange(0, BLOCK_C) // GROUP_CHANNELS
        total = tl.sum(tl.where(group[:, None] == group[None, :], value[None, :], 0), axis=1)
    return total
