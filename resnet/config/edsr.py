"""Config of an EDSR network."""

from dataclasses import dataclass

from residual.weights.config import MAX_BLOCKS, check_counts

_UPSAMPLINGS = {2: (2,), 3: (3,), 4: (2, 2)}


@dataclass(frozen=True, kw_only=True)
class EDSRConfig:
    """Config of an EDSR network (Lim et al. 2017). Raises ValueError with the field, its value and the rule."""

    scale: int = 2
    """output size divided by input size: 2, 3 or 4"""
    channels: int = 64
    """channels between head and tail"""
    blocks: int = 16
    """number of residual blocks"""
    branch_scale: float = 1.0
    """factor of every branch before its sum; 0.1 keeps wide networks stable"""
    residual: bool = False
    """whether the output is added to the bicubic enlargement of the input, y = bicubic(x) + F(x), with F zero at first
    (Kim et al. 2016, VDSR); false: y = F(x), as published"""

    def __post_init__(self) -> None:
        if self.scale not in _UPSAMPLINGS:
            raise ValueError(f"scale={self.scale} must be 2, 3 or 4")
        check_counts(self, "channels", "blocks")
        if self.blocks > MAX_BLOCKS:
            raise ValueError(f"blocks={self.blocks} must be at most {MAX_BLOCKS}")

    @property
    def upsamplings(self) -> tuple[int, ...]:
        """Factor of each pixel shuffle, in order."""
        return _UPSAMPLINGS[self.scale]
