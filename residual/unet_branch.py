"""Branches and shortcuts of diffusion U-Nets."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from residual.block import Chain, Identity, PaddedConv2d, Project, ZeroConv2d
from residual.embedding import AddEmbedding
from residual.norm import Dropout, NormAct

Conditioning = Literal["add", "scale_shift"]


def unet_branch(
    c_in: int,
    c_out: int,
    emb_channels: int | None = None,
    *,
    conditioning: Conditioning = "scale_shift",
    norm: Callable[..., nn.Module] = NormAct,
    resample: nn.Module | None = None,
    dropout: float = 0.0,
) -> Chain:
    """The branch of a diffusion U-Net: norm, resample, 3×3 convolution, embedding, norm, dropout, 3×3 convolution.

    `conditioning` is `"add"`, before the second norm (Ho et al. 2020), or `"scale_shift"`, after it (Dhariwal and
    Nichol 2021). Without `emb_channels` the branch takes no embedding. The embedding must already be activated:
    published blocks each apply SiLU to the same vector, which a network can do once. `norm(channels, emb_channels)`
    builds the norm-and-activation nodes. `resample` halves or doubles the size before the first convolution;
    the shortcut needs the same resampling. The last convolution starts at zero.

    Raises ValueError for an unknown conditioning.
    """
    if conditioning not in ("add", "scale_shift"):
        raise ValueError(f"no conditioning {conditioning!r}; one of: add, scale_shift")
    add = emb_channels if conditioning == "add" else None
    modulate = emb_channels if conditioning == "scale_shift" else None
    return Chain(
        norm1=norm(c_in),
        resample=resample,
        conv1=PaddedConv2d(c_in, c_out, kernel_size=3, padding=1),
        emb=None if add is None else AddEmbedding(c_out, add),
        norm2=norm(c_out, modulate),
        dropout=Dropout(dropout),
        conv2=ZeroConv2d(c_out, c_out, kernel_size=3, padding=1),
    )


def unet_shortcut(c_in: int, c_out: int, resample: nn.Module | None = None, project: bool = False) -> nn.Module:
    """The identity if widths and sizes agree, otherwise resampling and a 1×1 convolution as needed.

    `project` adds the 1×1 convolution even if the widths agree, as DDPM++ does after resampling.
    """
    projection = Project(c_in, c_out) if project or c_in != c_out else None
    if resample is None:
        return Identity() if projection is None else projection
    return Chain(resample=resample, project=projection)


def attention_branch(channels: int, attention: nn.Module, norm: Callable[..., nn.Module] = NormAct) -> Chain:
    """A norm without activation, then attention: `Residual(attention_branch(c, SelfAttention(c)))`."""
    return Chain(norm=norm(channels, act=None), attention=attention)
