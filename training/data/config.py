"""Data settings: the source of images, their labels and preprocessing, the cache and streaming."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pictures.pixel_format import is_range
from pictures.preprocessing import Preprocessing
from pictures.units import TRANSFORMS, Units
from training.settings import setting

MAX_SIDE_PX = 8192
HUB = "hub:"
"""prefix of a `source` on the Hugging Face hub"""


def split_hub(source: str) -> tuple[str, str, str]:
    """Repository, configuration and revision of a `source` on the hub; the latter two are empty if not given."""
    name, _, revision = source.removeprefix(HUB).partition("@")
    repository, colon, config = name.rpartition(":")
    if not colon or "/" in config or "\\" in config:  # a colon of a path, as in C:/sets
        return name, "", revision
    return repository, config, revision


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run. Raises ValueError for values out of range and for fields that contradict each other.

    Fields that state where images and labels are may change when a run is resumed: the fingerprint decides.
    """

    source: str = setting("digits", may_change=True)
    """digits (embedded: 1,797 grey 8x8 images), photographs (embedded: the left halves of two; split test: the right
    ones), a folder of images or of arrays (.npy, channels x height x width), a parquet or arrow file, a folder of such
    files, a glob for any of these, a .npy or .npz file with many images, a netCDF file (.nc) or zarr store (.zarr), or
    hub:OWNER/NAME[:CONFIGURATION][@REVISION] for a data set of the Hugging Face hub"""
    split: str = setting("train", may_change=True)
    """split to train on, where the source has splits (files or sub-folders named train, validation, test; splits of the
    hub)"""
    validation: str | float | None = None
    """images for evaluations: another split, such as test, or a share of this one, such as 0.2, which is excluded from
    training (the same images for every seed); null: none"""
    size: int | tuple[int, int] | None = None
    """height and width in pixels, or one number for both; null keeps the images as they are, if all have one size"""
    channels: int | None = None
    """1 (grey) or 3 (RGB); null is as found: 1 if every image is grey, else 3. Arrays: how many they must have"""
    bits: Literal[8, 16] = 8
    """8 scales pictures of 16 bits to 8; 16 keeps them and scales those of 8 bits up"""
    variables: tuple[str, ...] = setting((), may_change=True)
    """variables of a netCDF file or zarr store that become the channels, such as [t2m, u10]; [] finds the only one"""
    condition: str | tuple[int, ...] | tuple[str, ...] | None = setting(None, may_change=True)
    """input of which data.source is the output: a folder with the same relative names without suffix (or, for a .npy
    file, another one), a column of the same table, an array of the same .npz file, further variables of the same netCDF
    file, such as [t2m_coarse], or the numbers of those channels of an array, such as [3, 4]. Conditions of lower
    resolution are brought to the size of their targets"""
    static: Path | None = setting(None, may_change=True)
    """.npy file (channels, height, width) or (height, width) with fields that are a condition of every image, such as
    an elevation; their size is that of the images"""
    vector_columns: tuple[str, ...] = ()
    """columns of numbers that are a condition of each image, such as [strain, porosity]: of the table, of
    data.label_file or the metadata beside a folder, arrays of an .npz file, or variables of a netCDF file with one
    number per image"""
    range: tuple[float, float] | None = None
    """values of arrays that become -1 and 1; null is the full range of uint8 and uint16, other dtypes require it"""
    normalisation: Literal["range", "mean_std"] = "range"
    """how values of arrays become those of the network: range maps data.range to -1 to 1, and values outside are
    errors; mean_std subtracts the mean of each channel and divides by its standard deviation, without any limit"""
    mean: tuple[float, ...] | None = None
    """mean of each channel for mean_std, after data.transform; null: computed from the training images"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel for mean_std, after data.transform; null: computed from the training images"""
    transform: tuple[str, ...] = ("none",)
    """function of the values before mean_std: none, or for heavy tails log1p or arcsinh; one for all channels, or one
    for each. Samples have its inverse"""
    missing: bool = False
    """true: NaN in arrays is a missing value, which has no loss, and the network receives the mask of the known ones;
    false: an array with NaN is unreadable"""
    axes: Literal["chw", "hwc"] | None = None
    """order of channels, height and width in arrays; null is chw, but an error if the shape looks like hwc"""
    background: tuple[int, int, int] = (255, 255, 255)
    """colour (red, green, blue; 0 to 255) behind transparent images"""
    crop: Literal["center", "stretch", "random", "cut"] = "center"
    """how an image is brought to size: center scales its short side and crops the rest evenly, stretch ignores its
    aspect ratio, random crops another part each time (8 to 100 % of the area, 3:4 to 4:3) and requires stream; cut does
    not scale: it takes the center, or with stream another part each time. Validation images are cropped in the
    center"""
    center_share: float = 1.0
    """share of each side that crop center keeps; classifiers are often evaluated at 0.875"""
    image_column: str | None = setting(None, may_change=True)
    """column with the images of a table, or array of an .npz file; null finds it by its type, else by usual names"""
    label_column: str | None = setting(None, may_change=True)
    """column with the labels of a table or label file, or array of an .npz file; null finds it by its type, else by
    usual names"""
    allow_outside: bool = setting(False, may_change=True)
    """true allows tables to name image files that are not below their own folder"""
    label_file: Path | None = setting(None, may_change=True)
    """labels for a folder, and its data.vector_columns: CSV, JSON, lines such as {"file_name": "a/b.png", "label":
    "cat"}, or a table; names are relative to data.source or to the file. null: metadata.csv, metadata.jsonl,
    metadata.parquet or EDM's dataset.json beside the images, else sub-folders"""
    labels: bool | None = setting(None, may_change=True)
    """true requires labels, false ignores them, null uses them if there are any"""
    autoencoder: str | None = setting(None, may_change=True)
    """train on latents of the pictures: folder with an AutoencoderKL of diffusers, or OWNER/NAME[@REVISION] of the
    Hugging Face hub. Each picture is encoded once, into the cache; requires size and channels. null: train on pixels"""
    cache: Path | None = setting(None, may_change=True)
    """folder for the decoded images; null is residual-diffusion in $XDG_CACHE_HOME or ~/.cache, or a temporary folder
    if nothing can be written there"""
    stream: bool = False
    """true decodes images when they are needed and keeps no cache, for sets too large for one; requires size and
    channels"""
    stream_shards: int = 16
    """number of row groups of tables whose images are shuffled together while streaming; twice as many are held in
    memory, encoded"""
    stream_parts: int = 1
    """number of parts into which the shards of a streamed set are divided. Each slice of the batch has a part of its
    own: of as many processes, or a divisor of it, each reads only its own shards"""
    max_bad: int = setting(10, may_change=True)
    """number of unreadable images that may be skipped before that is an error"""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("data.source is empty; give digits, a folder, a file, a glob or hub:OWNER/NAME")
        try:
            preprocessing = self.preprocessing
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        if any(side > MAX_SIDE_PX for side in preprocessing.size or ()):
            raise ValueError(f"data.size {self.size} is too large; give at most {MAX_SIDE_PX} pixels a side")
        if self.range is not None and not is_range(*self.range):
            raise ValueError(f"data.range {self.range} must be two numbers of float32, the lower one first")
        self._check_normalisation()
        if self.max_bad < 0:
            raise ValueError(f"data.max_bad {self.max_bad} must be 0 or more")
        if self.stream_shards < 1:
            raise ValueError(f"data.stream_shards {self.stream_shards} must be positive")
        if self.stream_parts < 1 or (self.stream_parts > 1 and not self.stream):
            raise ValueError(
                f"data.stream_parts {self.stream_parts} must be positive, and 1 unless data.stream is true"
            )
        if self.autoencoder is not None:
            self._check_autoencoder(self.autoencoder)
        if self.stream:
            self._check_stream()
        elif preprocessing.crop == "random":
            raise ValueError(
                "data.crop is random, but the cache would hold one part of each image; set data.stream to true"
            )
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"data.validation {self.validation} must be a share between 0 and 1, or name a split")
        if self.condition in ("", ()):
            raise ValueError("data.condition is empty; give a folder, a column or channels, or leave it out")
        if len(set(self.vector_columns)) < len(self.vector_columns):
            raise ValueError(f"data.vector_columns {list(self.vector_columns)} has a column twice; name each once")
        for name, value in (("label_column", self.label_column), ("label_file", self.label_file)):
            if value is not None and self.labels is False and not (name == "label_file" and self.vector_columns):
                raise ValueError(f"data.{name} is {str(value)!r} but data.labels is false; drop one of them")

    def _check_normalisation(self) -> None:
        if unknown := [name for name in self.transform if name not in TRANSFORMS]:
            raise ValueError(f"data.transform {unknown[0]!r} is unknown; give one of {', '.join(TRANSFORMS)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"data.mean is {self.mean} and data.std is {self.std}; give both, or leave both out")
        if self.normalisation == "range":
            for name in ("mean", "std", "transform"):
                if (value := getattr(self, name)) != getattr(DataConfig, name):
                    raise ValueError(
                        f"data.{name} is {value} but data.normalisation is range; set it to mean_std, or leave it out"
                    )
            return
        if self.range is not None:
            raise ValueError(f"data.range is {self.range} but data.normalisation is mean_std; drop one of them")
        if self.stream and self.mean is None:
            raise ValueError(
                "data.normalisation is mean_std and data.stream is true, so statistics are not computed before "
                "training: set data.mean and data.std"
            )
        if self.mean is not None and self.std is not None:
            try:
                transform = self.transform * len(self.mean) if len(self.transform) == 1 else self.transform
                Units(mean=self.mean, std=self.std, transform=transform)
            except ValueError as error:
                raise ValueError(f"data.{error}") from None

    def _check_autoencoder(self, autoencoder: str) -> None:
        encodes = f"data.autoencoder {autoencoder!r} encodes"
        if self.stream:
            raise ValueError(f"{encodes} each picture once, into the cache, but data.stream is true; set it to false")
        if self.size is None or self.channels is None:
            name = "size" if self.size is None else "channels"
            raise ValueError(
                f"{encodes} pictures as they are decoded, but data.{name} is null; set data.size and data.channels, "
                "such as --data.size 64 --data.channels 3"
            )
        if self.bits != 8:
            raise ValueError(f"{encodes} pictures of 8 bits, but data.bits is {self.bits}; leave it out")
        for name in ("condition", "static", "missing"):
            if (value := getattr(self, name)) not in (None, False):
                raise ValueError(f"{encodes} pictures alone, but data.{name} is {str(value)!r}; leave one of them out")

    def _check_stream(self) -> None:
        if self.cache is not None:
            raise ValueError(f"data.cache is {str(self.cache)!r} but data.stream is true, which keeps none; drop one")
        if isinstance(self.validation, float):
            raise ValueError(
                f"data.validation {self.validation} is a share, but data.stream is true; name a split, such as test"
            )
        if self.source.startswith(HUB):
            name, _, revision = split_hub(self.source)
            at = f" --revision {revision}" if revision else ""
            raise ValueError(
                f"data.source {self.source!r} cannot be streamed from the hub; download its files by"
                f" `hf download {name}{at} --repo-type dataset --local-dir FOLDER` and give that folder, or set"
                " data.stream to false"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """The fields that decoding of pictures depends on."""
        return Preprocessing(
            size=(self.size, self.size) if isinstance(self.size, int) else self.size,
            channels=self.channels,
            bits=self.bits,
            background=self.background,
            crop=self.crop,
            center_share=self.center_share,
        )
