"""Resampling nodes: they halve or double the height and width of an image."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residual.block import PaddedConv2d, extend


def bicubic(image: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Images of another height and width, by the bicubic filter of Pillow and MATLAB (Keys 1981, a = -1/2).

    Its support grows when an image shrinks, so that nothing aliases. Computed in float32, and rounded nowhere.
    """
    return F.interpolate(image.float(), size, mode="bicubic", antialias=True, align_corners=False)


class AveragePool(nn.Module):
    """Halves the size: each pixel is the mean of a 2×2 square. No parameters."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.avg_pool2d(x, kernel_size=2)


class Nearest(nn.Module):
    """Doubles the size: each pixel becomes a 2×2 square. No parameters."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class StridedConv(PaddedConv2d):
    """Halves the size: a 3×3 convolution with stride 2.

    Two conventions are in use, and weights trained under one are wrong under the other. `padding="both"` pads all four
    sides by one (PyTorch ports, ADM). `padding="end"` pads right and bottom only (TensorFlow's SAME: the original DDPM
    and the `google/ddpm-*` checkpoints).
    """

    def __init__(self, c_in: int, c_out: int, padding: Literal["both", "end"] = "both") -> None:
        if padding not in ("both", "end"):
            raise ValueError(f"no padding {padding!r}; one of: both, end")
        super().__init__(c_in, c_out, kernel_size=3, stride=2, padding=1 if padding == "both" else 0)
        self.pad_end = padding == "end"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return super().forward(extend(x, (0, 1, 0, 1), self.borders) if self.pad_end else x)


class NearestConv(PaddedConv2d):
    """Doubles the size: nearest-neighbour, then a 3×3 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Filter(nn.Module):
    """Holds a FIR filter. The filter is computed from its taps and is not part of the state dict."""

    kernel: Tensor
    gain = 1.0

    def __init__(self, taps: tuple[float, ...] = (1, 3, 3, 1), *args: Any, **kwargs: Any) -> None:
        if not taps or len(taps) % 2 or taps != taps[::-1] or sum(taps) == 0:
            raise ValueError(
                f"taps={taps} should be a symmetric row of even length with a sum other than 0, such as (1, 3, 3, 1)"
            )
        super().__init__(*args, **kwargs)
        self.taps = taps
        self.register_buffer("kernel", self._outer_product(), persistent=False)

    def _outer_product(self) -> Float[Tensor, "k k"]:
        # On the CPU even if the default device is meta: no state dict would fill it later.
        row = torch.tensor(self.taps, dtype=torch.float32, device="cpu") / sum(self.taps)
        return self.gain * torch.outer(row, row)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Computes the filter again after a move, because `to_empty` leaves it uninitialised."""
        super()._apply(fn, recurse)
        if not self.kernel.is_meta:
            self.kernel = self._outer_product().to(self.kernel)
        return self

    def per_channel(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "c 1 k k"]:
        """The weight of a convolution in one group per channel of `x`."""
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"taps={self.taps}")))


class FIRDown(_Filter):
    """Halves the size: filters each channel with a separable FIR filter, then keeps every second pixel. No parameters.

    `taps` are scaled to a sum of one. NCSN++ uses (1, 3, 3, 1) (Song et al. 2021); (1, 1) equals `AveragePool`. The
    image is padded with zeros, which darkens its border slightly.
    Raises ValueError unless the taps are a symmetric row of even length, since other taps would shift the image.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.conv2d(x, self.per_channel(x), stride=2, padding=len(self.taps) // 2 - 1, groups=x.shape[1])


class FIRUp(_Filter):
    """Doubles the size: inserts zeros between pixels, filters as `FIRDown`, multiplies by 4. No parameters.

    The factor 4 keeps the brightness. Taps (1, 1) equal `Nearest`. It is four times the adjoint of `FIRDown`.
    """

    gain = 4.0

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        padding = len(self.taps) // 2 - 1
        return F.conv_transpose2d(x, self.per_channel(x), stride=2, padding=padding, groups=x.shape[1])


class FIRDownConv(_Filter, nn.Conv2d):
    """Halves the size: a 3×3 convolution, then the filter and stride of `FIRDown`, as one map of the zero-padded image.

    NCSN++ downsamples the image with it in its residual encoder (Song et al. 2021). At the border it differs from a
    padded convolution followed by `FIRDown`, because the convolution is not cropped before the filter. The two
    commute, and the filter is applied first, so that the convolution works on a quarter of the pixels.
    """

    def __init__(self, c_in: int, c_out: int, taps: tuple[float, ...] = (1, 3, 3, 1)) -> None:
        super().__init__(taps, c_in, c_out, kernel_size=3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        filtered = F.conv2d(x, self.per_channel(x), padding=len(self.taps) // 2, groups=x.shape[1])
        return super().forward(filtered)
