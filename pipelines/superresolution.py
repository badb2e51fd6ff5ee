"""Trained models that enlarge pictures: of any size, by tiles. The folder of one holds its network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pictures.decode import decode
from pictures.files import to_uint8
from pictures.formats import MAX_PIXELS
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pictures.tiles import Tiles
from pipelines.folder import check_finite, find_model, replace_weights
from residual.resample import bicubic
from resnet import EDSR, from_pretrained
from storage.read import is_regular, read_json

NETWORK_FILE = "config.json"
TILES = Tiles(px=192, overlap_px=32)
"""of convolutional networks"""
SHOWN_PX = 160
"""side of the part in the middle of a picture that is shown"""
Picture = str | Path | bytes | np.ndarray
"""the name of a file, the bytes of a file, or uint8 pixels (h, w) or (h, w, 3)"""


class Upscaler(ABC):
    """A model that makes pictures `scale` times as high and wide. Values are in [-1, 1]."""

    net: nn.Module
    scale: int
    channels: int
    images_seen: int | None
    tiles: Tiles

    @abstractmethod
    def with_tiles(self, tiles: Tiles) -> "Upscaler":
        """The model with other tiles. Raises ValueError for those that it cannot enlarge."""

    @abstractmethod
    def enlarge(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        """One picture, enlarged, on the device of the network. Its random numbers, if any, are those of its number."""

    def read(self, image: Picture, name: str | None = None) -> UInt8[np.ndarray, "c h w"]:
        """The pixels of a picture, in the channels of the model. `name` is that in messages.

        Raises ValueError if it cannot be read, or is too large when enlarged.
        """
        name = name or (str(image) if isinstance(image, str | Path) else type(image).__name__)
        try:
            pixels = decode(Path(image) if isinstance(image, str) else image, Preprocessing(channels=self.channels))
        except ValueError as error:
            raise ValueError(f"{name} cannot be read as a picture ({error}); give another, or leave it out") from None
        height, width = (self.scale * side for side in pixels.shape[1:])
        if height * width > MAX_PIXELS:
            raise ValueError(f"{name} would have {height} x {width} px, more than {MAX_PIXELS:,} pixels; cut it")
        return pixels

    def upscale(self, images: Sequence[Picture]) -> list[UInt8[np.ndarray, "h w c"]]:
        """The pictures, enlarged, as 8-bit pixels. Grey is read as three equal channels by a model of colours.

        All are read before the first one is enlarged. Raises ValueError for one that cannot be read, or is too large
        when enlarged.
        """
        if isinstance(images, str | bytes):
            raise ValueError(f"upscale takes a list of pictures; give [{str(images)[:60]!r}]")
        stored = [torch.from_numpy(self.read(image)) for image in images]
        made = (self.enlarge(BYTES.to_unit(pixels[None]), number) for number, pixels in enumerate(stored))
        return [to_uint8(image)[0] for image in made]


@dataclass(frozen=True)
class EDSRUpscaler(Upscaler):
    """Enlarges by EDSR, tile by tile."""

    net: EDSR
    images_seen: int | None = None
    """images seen in training, where that is known"""
    tiles: Tiles = TILES
    """in pixels of the small picture"""

    @property
    def scale(self) -> int:  # type: ignore[override]
        return self.net.config.scale

    @property
    def channels(self) -> int:  # type: ignore[override]
        return 3

    def with_tiles(self, tiles: Tiles) -> "EDSRUpscaler":
        return replace(self, tiles=tiles)

    @torch.no_grad()
    def enlarge(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        weight = next(self.net.parameters())
        levels = (127.5 * (low.to(weight.device) + 1)).to(weight.dtype)
        return self.tiles.apply(self.net, levels, self.scale).float() / 127.5 - 1

    def with_network(self, net: nn.Module) -> "EDSRUpscaler":
        """The model with the network `net`, such as a copy with other weights."""
        assert isinstance(net, EDSR), "the averaged model is a copy of the trained one"
        return replace(self, net=net)

    def save(self, folder: Path) -> None:
        """Writes the model folder, which is that of the network."""
        self.net.save_pretrained(folder)


def load_upscaler(path: str | Path, weights: Mapping[str, Tensor] | None = None) -> EDSRUpscaler:
    """The model of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    `weights` replace those of the network, such as by another average of its run. Raises ValueError, with the reason,
    if there is none, if it is of another kind, and for weights that do not fit.
    """
    folder, images_seen = find_model(path, NETWORK_FILE)
    net = from_pretrained(folder).float()
    if not isinstance(net, EDSR):
        raise ValueError(f"{folder} holds a {type(net).__name__}, which does not enlarge pictures; give an EDSR")
    if weights is not None:
        replace_weights(net, weights)
    check_finite(net, folder)
    return EDSRUpscaler(net, images_seen)


def is_upscaler(path: str | Path) -> bool:
    """Whether the network of a run folder or of a model folder on this machine enlarges pictures."""
    path = Path(path)
    file = (path / "model" if is_regular(path / "config.yaml") else path) / NETWORK_FILE
    return is_regular(file) and read_json(file).get("model") == f"resnet.{EDSR.__name__}"


def shrunk(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h2 w2"]:
    """Images in [-1, 1] at 1/scale of their size, by the bicubic filter, with the levels of 8-bit pictures.

    Raises ValueError for a size that the scale does not divide.
    """
    height, width = image.shape[2:]
    if height % scale or width % scale:
        raise ValueError(f"{height} x {width} px cannot be divided by scale={scale}; crop the images")
    return as_bytes(bicubic(image, (height // scale, width // scale)))


def middles(low: Float[Tensor, "1 c h w"], *images: Float[Tensor, "1 c h2 w2"]) -> UInt8[np.ndarray, "n h3 w3 c"]:
    """The middle of a picture to be shown: first as it is small (with larger pixels), then in each enlarged form."""
    scale = images[0].shape[-1] // low.shape[-1]
    small = low.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    place = [slice((side - min(side, SHOWN_PX)) // 2, (side + min(side, SHOWN_PX)) // 2) for side in small.shape[2:]]
    return to_uint8(torch.cat([each[:, :, place[0], place[1]] for each in (small, *images)]))


def as_bytes(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Images in [-1, 1], rounded to the levels of 8-bit pictures."""
    return (127.5 * (image.clamp(-1, 1) + 1)).round() / 127.5 - 1
