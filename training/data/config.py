"""What a run says about its images."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.settings import setting

CACHE = Path("~/.cache/residual-diffusion")
MAX_SIDE_PX = 8192


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run. Raises ValueError for values that cannot be meant."""

    source: str = "digits"
    """digits (embedded: 1,797 grey 8x8 images), a folder of images or of arrays (.npy, channels x height x width), a
    parquet or arrow file, a glob or folder of such files, or hub:OWNER/NAME[@REVISION] for a data set of the Hugging
    Face hub"""
    split: str = "train"
    """which part, where the source has parts (files or sub-folders named train, validation, test; splits of the hub)"""
    validation: str | float | None = None
    """what evaluations look at: another part, such as test, or a share of this one, such as 0.2, which is then not
    trained on (the same images for every seed); null: nothing"""
    size: int | tuple[int, int] | None = None
    """height and width in pixels, or one number for both; null keeps the images as they are, if all have one size"""
    channels: int | None = None
    """1 (grey) or 3 (RGB); null is as found: 1 if every image is grey, else 3. Arrays: how many they must have"""
    bits: Literal[8, 16] = 8
    """8 scales pictures of 16 bits to 8, 16 keeps them, and scales those of 8 bits up"""
    range: tuple[float, float] | None = None
    """values of arrays that become -1 and 1; null is all that there is for uint8 and uint16, others need it"""
    background: tuple[int, int, int] = (255, 255, 255)
    """colour (red, green, blue; 0 to 255) that transparent images are laid on"""
    crop: Literal["center", "stretch", "random"] = "center"
    """how an image comes to size: center scales its short side and cuts the rest evenly, stretch ignores its shape,
    random takes another part each time (8 to 100 % of the area, 3:4 to 4:3) and needs stream; validation: the center"""
    center_share: float = 1.0
    """how much of the side crop center keeps, more being cut off evenly; classifiers are often evaluated at 0.875"""
    image_column: str | None = None
    """column that holds the images of a table; null finds it by its type, else by usual names"""
    label_column: str | None = None
    """column that holds the labels of a table; null finds it by its type, else by usual names"""
    label_file: Path | None = None
    """labels for a folder: lines such as {"file_name": "a/b.png", "label": "cat"}, names relative to data.source"""
    labels: bool | None = None
    """true demands labels, false ignores them, null takes them where there are some"""
    cache: Path | None = setting(None, may_change=True)
    """folder for the decoded images; null is ~/.cache/residual-diffusion"""
    stream: bool = False
    """true decodes images as they are needed and keeps no cache, for sets too large for one; needs size and channels"""
    stream_shards: int = 16
    """row groups of tables whose images are mixed while streaming; twice as many are held in memory, encoded"""
    max_bad: int = 10
    """how many images that cannot be read may be skipped before that is an error"""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("data.source is empty; give digits, a folder, a file, a glob or hub:OWNER/NAME")
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(isinstance(side, bool) or side < 1 for side in sides):
            raise ValueError(f"data.size {self.size} must be a positive number of pixels, or two: (height, width)")
        if any(side > MAX_SIDE_PX for side in sides):
            raise ValueError(f"data.size {self.size} is too large; give at most {MAX_SIDE_PX} pixels a side")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"data.channels {self.channels} must be positive, or null (as found)")
        if self.bits not in (8, 16):
            raise ValueError(f"data.bits {self.bits} must be 8 or 16")
        if self.range is not None and not (all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            raise ValueError(f"data.range {self.range} must be two numbers, the lower one first")
        if not all(0 <= level <= 255 for level in self.background):
            raise ValueError(f"data.background {self.background} must be three numbers of 0 to 255: red, green, blue")
        if self.crop not in ("center", "stretch", "random"):
            raise ValueError(f"data.crop {self.crop!r} must be center, stretch or random")
        if not 0 < self.center_share <= 1:
            raise ValueError(f"data.center_share {self.center_share} must be a share, above 0 and at most 1")
        if self.center_share < 1 and (self.crop == "stretch" or self.size is None):
            raise ValueError(f"data.center_share {self.center_share} is for data.crop center and a data.size; set both")
        if self.max_bad < 0:
            raise ValueError(f"data.max_bad {self.max_bad} must be 0 or more")
        if self.stream and self.cache is not None:
            raise ValueError(f"data.cache is {str(self.cache)!r} but data.stream is true, which keeps none; drop one")
        if self.crop == "random" and not self.stream:
            raise ValueError(
                "data.crop is random, but the cache would hold one part of each image; set data.stream to true"
            )
        if self.stream and isinstance(self.validation, float):
            raise ValueError(
                f"data.validation {self.validation} is a share, but data.stream is true; name a part, such as test"
            )
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"data.validation {self.validation} must be a share between 0 and 1, or name a part")
        if self.stream_shards < 1:
            raise ValueError(f"data.stream_shards {self.stream_shards} must be positive")
        for name, value in (("label_column", self.label_column), ("label_file", self.label_file)):
            if value is not None and self.labels is False:
                raise ValueError(f"data.{name} is {str(value)!r} but data.labels is false; drop one of them")

    @property
    def hw(self) -> tuple[int, int] | None:
        """`size` as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def cache_folder(self) -> Path:
        """`cache`, or its default."""
        return (self.cache or CACHE).expanduser()
