"""Embeddings of timesteps and labels, and the node that adds an embedding to features."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


class AddEmbedding(nn.Module):
    """`x + P(emb)`, where P is a linear map to one number per channel (Ho et al. 2020)."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.takes_emb = True
        self.project = nn.Linear(emb_channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return x + self.project(emb)[:, :, None, None]


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the timestep at `channels / 2` frequencies from 1 to 1/10000, always in float32.

    Two conventions are in use, and weights trained under one are wrong under the other:

    - `"ddpm"` (Ho et al. 2020): sines first; the last frequency is exactly 1/10000.
    - `"adm"` (Nichol and Dhariwal 2021): cosines first; 1/10000 would follow the last frequency.

    Raises ValueError if `channels` is odd, or too small for the convention.
    """

    def __init__(self, channels: int, convention: Literal["ddpm", "adm"] = "ddpm") -> None:
        super().__init__()
        if channels % 2 or channels < 4:
            raise ValueError(f"a sinusoidal embedding has an even number of channels, at least 4, not {channels}")
        if convention not in ("ddpm", "adm"):
            raise ValueError(f"no timestep convention {convention!r}; one of: ddpm, adm")
        self.frequencies = channels // 2
        self.convention = convention

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b c"]:
        # Computed in float32 at each call: a buffer would be cast with the network, and a rounded frequency gives a
        # visible phase error at t = 999. The order of operations equals that of the published code to the last bit.
        exponent = -math.log(10000) * torch.arange(self.frequencies, dtype=torch.float32, device=t.device)
        ddpm = self.convention == "ddpm"
        angles = t.float()[:, None] * torch.exp(exponent / (self.frequencies - 1 if ddpm else self.frequencies))
        waves = (angles.sin(), angles.cos()) if ddpm else (angles.cos(), angles.sin())
        return torch.cat(waves, dim=-1)

    def extra_repr(self) -> str:
        return f"{2 * self.frequencies}, convention={self.convention!r}"


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of 2π f t at `channels / 2` random frequencies f ~ N(0, scale²), always in float32.

    The frequencies `freqs` are drawn once and stored with the weights, but not trained. With `log`, t is replaced by
    ln t. NCSN++ (Song et al. 2021) and the networks derived from it (Karras et al. 2022) use scale 16 and put the sines
    first; their buffer is called `W` or `freqs`. Raises ValueError if `channels` is odd or not positive.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0, log: bool = False) -> None:
        super().__init__()
        if channels % 2 or channels < 2:
            raise ValueError(f"a Fourier embedding has an even number of channels, at least 2, not {channels}")
        self.scale = scale
        self.log = log
        self.register_buffer("freqs", scale * torch.randn(channels // 2, dtype=torch.float32))

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b c"]:
        t = t.float().log() if self.log else t.float()
        angles = t[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Keeps `freqs` in float32 when the network is cast: in bfloat16, a frequency of 50 is off by up to 1/8."""
        before = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != torch.float32:
            self.freqs = before.to(self.freqs.device)
        return self

    def extra_repr(self) -> str:
        return f"{2 * len(self.freqs)}, scale={self.scale:g}"


class LabelEmbedding(nn.Embedding):
    """A learned vector per class. With `null`, row number `classes` is added, for “no label”.

    Classifier-free guidance trains this row on dropped labels (Ho and Salimans 2022).
    Raises ValueError for fewer than one class.
    """

    def __init__(self, classes: int, channels: int, null: bool = True) -> None:
        if classes < 1:
            raise ValueError(f"classes={classes}: a label embedding needs at least one class")
        super().__init__(classes + null, channels)
        self.classes = classes
        self.null = classes if null else None

    def forward(self, label: Int[Tensor, "b"]) -> Float[Tensor, "b c"]:
        return super().forward(label)


class LinearLabelEmbedding(nn.Linear):
    """A linear map of the one-hot label, times `scale`. Label number `classes` is “no label”: all zeros (EDM).

    Raises ValueError for fewer than one class.
    """

    def __init__(self, classes: int, channels: int, null: bool = True, bias: bool = False, scale: float = 1.0) -> None:
        if classes < 1:
            raise ValueError(f"classes={classes}: a label embedding needs at least one class")
        super().__init__(classes, channels, bias=bias)
        self.classes = classes
        self.null = classes if null else None
        self.scale = scale

    def forward(self, label: Int[Tensor, "b"]) -> Float[Tensor, "b c"]:
        one_hot = F.one_hot(label, self.classes + 1)[:, : self.classes]
        return super().forward(self.scale * one_hot.to(self.weight.dtype))
