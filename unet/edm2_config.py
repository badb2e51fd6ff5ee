"""Config of EDM2's U-Net (Karras et al. 2024), and the published ones."""

from dataclasses import dataclass
from functools import cached_property

from residual.weights.config import check_counts
from unet.config import Skeleton, check_shared


@dataclass(frozen=True, kw_only=True)
class EDM2Config:
    """Config of EDM2's U-Net. Level 0 works at full size, each further level at half the size.

    Fields that `UNetConfig` also has mean the same. Raises ValueError with the field, its value and the rule.
    """

    in_channels: int = 3
    """channels of the input: the noisy image, and a conditioning image if there is one"""
    out_channels: int = 3
    """channels of the denoised image"""
    size: tuple[int, int] = (64, 64)
    """height and width of the images, in pixels; the network runs on any size that the levels can halve"""
    classes: int | None = None
    """number of classes; null: the network takes no labels. Label number `classes` always stands for “no label”"""
    base_channels: int = 192
    """base width, which `channel_multipliers` multiply; the embedding is as wide as the widest level"""
    channel_multipliers: tuple[float, ...] = (1, 2, 3, 4)
    """width of each level as a multiple of `base_channels`; one level per entry"""
    blocks_per_level: int | tuple[int, ...] = 3
    """residual blocks of the encoder, per level (the decoder has one more)"""
    attention_levels: tuple[int, ...] = (2, 3)
    """levels with self-attention after each block, counted from 0; the middle always has attention"""
    head_channels: int | tuple[int, ...] = 64
    """channels of each attention head, per level"""
    dropout: float = 0.0
    """share of features dropped before the last convolution of each block, in training"""
    logvar_channels: int = 128
    """Fourier features of the head that estimates the log-variance of the loss from the noise level, for training"""
    recompute_levels: tuple[int, ...] = ()
    """levels whose activations are recomputed in the backward pass: less memory, about a third more time there"""

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "out_channels", "logvar_channels")
        check_shared(self)
        _ = self.skeleton

    @cached_property
    def skeleton(self) -> Skeleton:
        """Levels, encoder and decoder."""
        return Skeleton(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            head_channels=self.head_channels,
            recompute_levels=self.recompute_levels,
        )

    def size_error(self, height: int, width: int) -> str | None:
        """The reason why images of this height and width in pixels cannot be halved at every level, or None."""
        return self.skeleton.size_error(height, width)

    @property
    def null_label(self) -> bool:
        """Whether label number `classes` stands for “no label”: always, if there are labels."""
        return self.classes is not None

    @property
    def learned_variance(self) -> bool:
        """Whether the output has a second half that interpolates the variance: never."""
        return False

    @property
    def emb_channels(self) -> int:
        """Width of the embedding of noise level and label."""
        return max(level.channels for level in self.skeleton.levels)
