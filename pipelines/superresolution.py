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
Picture = str | Path | bytes | np.ndarray
"""the name of a file, the bytes of a file, or uint8 pixels (h, w) or (h, w, 3)"""


class Upscaler(ABC):
    """A model that makes pictures `scale` times as high and wide. Values are in [-1, 1]."""

    scale: int
    channels: int
    images_seen: int | None

    @abstractmethod
    def check(self, height: int, width: int) -> None:
        """Raises ValueError for pictures of this size in pixels that the model cannot enlarge."""

    @abstractmethod
    def enlarge(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        """One picture, enlarged, on the device of the network. Its random numbers, if any, are those of its number."""

    def read(self, image: Picture) -> UInt8[np.ndarray, "c h w"]:
        """The pixels of a picture, in the channels of the model. Raises ValueError if it cannot be read or enlarged."""
        name = str(image) if isinstance(image, str | Path) else type(image).__name__
        try:
            pixels = decode(Path(image) if isinstance(image, str) else image, Preprocessing(channels=self.channels))
            self.check(*pixels.shape[1:])
        except ValueError as error:
            raise ValueError(f"{name} cannot be enlarged ({error}); give a file, its bytes or pixels") from None
        return pixels

    def upscale(self, images: Sequence[Picture]) -> list[UInt8[np.ndarray, "h w c"]]:
        """The pictures, enlarged, as 8-bit pixels. Grey is read as three equal channels by a model of colours.

        All are read before the first one is enlarged. Raises ValueError for one that cannot be read or enlarged.
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

    def check(self, height: int, width: int) -> None:
        """Accepts every size."""

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


def is_upscaler(folder: Path) -> bool:
    """Whether the network in a model folder enlarges pictures."""
    if not is_regular(folder / NETWORK_FILE):
        return False
    return read_json(folder / NETWORK_FILE).get("model") == f"resnet.{EDSR.__name__}"


def shrunk(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h2 w2"]:
    """Images in [-1, 1] at 1/scale of their size, by the bicubic filter, with the levels of 8-bit pictures.

    Raises ValueError for a size that the scale does not divide.
    """
    height, width = image.shape[2:]
    if height % scale or width % scale:
        raise ValueError(f"{height} x {width} px cannot be divided by scale={scale}; crop the images")
    return as_bytes(bicubic(image, (height // scale, width // scale)))


def as_bytes(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Images in [-1, 1], rounded to the levels of 8-bit pictures."""
    return (127.5 * (image.clamp(-1, 1) + 1)).round() / 127.5 - 1
