"""Trained models that enlarge pictures: of any size, by tiles. The folder of one holds its network."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffusion import Condition, Denoiser, generators, sample
from diffusion.denoiser import Denoised
from diffusion.noise import Images, Times
from diffusion.options import STEPS
from pictures.decode import decode
from pictures.files import to_uint8
from pictures.formats import MAX_PIXELS
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pictures.tiles import Pausing, Tiles, finish
from pipelines.diffusion import DESCRIPTION_FILE as DIFFUSION
from pipelines.diffusion import GUIDANCE, DiffusionModel, Network
from pipelines.diffusion_folder import load_model, read_scale
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

    def check(self) -> None:
        """Raises ValueError for tiles and options that do not suit the model."""
        return

    @abstractmethod
    def with_tiles(self, tiles: Tiles) -> "Upscaler":
        """The model with other tiles."""

    def enlarge(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        """One picture, enlarged, on the device of the network. Its random numbers, if any, are those of its number."""
        return finish(self.enlarging(low, number))

    @abstractmethod
    def enlarging(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Pausing[Float[Tensor, "1 c h2 w2"]]:
        """As `enlarge`, with a pause after each group of tiles, or after each step of a diffusion model."""

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
        self.check()
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

    def enlarging(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Pausing[Float[Tensor, "1 c h2 w2"]]:
        weight = next(self.net.parameters())
        levels = (127.5 * (low.to(weight.device) + 1)).to(weight.dtype)
        made = yield from self.tiles.applying(self._tiles, levels, self.scale)
        return made.float() / 127.5 - 1

    @torch.no_grad()  # around each call, because a generator would leave it to other code during its pauses
    def _tiles(self, levels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        enlarged: Tensor = self.net(levels)
        return enlarged

    def with_network(self, net: nn.Module) -> "EDSRUpscaler":
        """The model with the network `net`, such as a copy with other weights."""
        assert isinstance(net, EDSR), "the averaged model is a copy of the trained one"
        return replace(self, net=net)

    def save(self, folder: Path) -> None:
        """Writes the model folder, which is that of the network."""
        self.net.save_pretrained(folder)


@dataclass(frozen=True)
class DiffusionUpscaler(Upscaler):
    """Enlarges by a diffusion model: noise becomes the large picture, beside the small one that is enlarged bilinearly.

    The two are concatenated (Saharia et al. 2021, SR3; Dhariwal and Nichol 2021, appendix E, whose enlargement this
    is). At each noise level the picture is denoised tile by tile, so that tiles fit together.
    """

    model: DiffusionModel
    tiles: Tiles
    """in pixels of the small picture"""
    label: int | None = None
    """of all pictures; None: without labels"""
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """as in `DiffusionModel.check`: sampler, steps, guidance and others"""

    def check(self) -> None:
        model, side = self.model, self.scale * self.tiles.px
        if model.pixel_format != BYTES:
            raise ValueError(f"this model was trained on {model.pixel_format.dtype}, not on 8-bit pictures")
        if model.net.config.size_error(side, side):
            raise ValueError(
                f"tile={self.tiles.px} makes {side} px, no multiple of the network's stride of {self.stride} px; "
                f"give a multiple of {self.stride // math.gcd(self.stride, self.scale)}"
            )
        if side < self.least:
            raise ValueError(
                f"tile={self.tiles.px} makes {side} px, but the network's padding mirrors images of {self.least} px or "
                f"more; give at least {-(-self.least // self.scale)}"
            )
        if self.label is None and model.classes is not None and model.null is None:
            raise ValueError(
                "this model was not trained without labels; give a label, or train one with diffusion.label_dropout=0.1"
            )
        model.check(**self.options)
        if (guidance := self.options.get("guidance", 1.0)) != 1 and self.label in (None, model.null):
            raise ValueError(f"guidance={guidance:g} strengthens a label, but label is none; leave one of them out")

    @property
    def net(self) -> nn.Module:  # type: ignore[override]
        return self.model.net

    @property
    def scale(self) -> int:  # type: ignore[override]
        assert self.model.upscale is not None, "see `diffusion_upscaler`"
        return self.model.upscale

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.model.shape[0]

    @property
    def images_seen(self) -> int | None:  # type: ignore[override]
        return self.model.images_seen

    @property
    def stride(self) -> int:
        """Pixels of the large picture to one of the network's lowest level."""
        return self.model.net.config.skeleton.stride

    @property
    def least(self) -> int:
        """Pixels of the smallest side that the network takes: mirroring needs two on its lowest level."""
        mirrors = getattr(self.model.net.config, "padding", "zeros") in ("reflect", "periodic_width")
        return (2 if mirrors else 1) * self.stride

    def with_network(self, net: nn.Module) -> "DiffusionUpscaler":
        """The model with the network `net`, such as a copy with other weights."""
        assert isinstance(net, Network), "the averaged model is a copy of the trained one"
        return replace(self, model=replace(self.model, net=net))

    def with_tiles(self, tiles: Tiles) -> "DiffusionUpscaler":
        return replace(self, tiles=tiles)

    def enlarging(self, low: Float[Tensor, "1 c h w"], number: int = 0) -> Pausing[Float[Tensor, "1 c h2 w2"]]:
        model, device = self.model, next(self.model.net.parameters()).device
        image = blurred(low.to(device), self.scale)
        height, width = image.shape[2:]
        right, below = (max(-side % self.stride, self.least - side) for side in (width, height))
        image = F.pad(image, (0, right, 0, below), mode="replicate")
        chosen = model.check(**self.options)
        guiding = {name: value for name, value in self.options.items() if name in GUIDANCE}
        denoise = in_tiles(
            model.denoiser(**guiding, learned_variance=chosen.learned_variance),
            replace(self.tiles, px=self.scale * self.tiles.px, overlap_px=self.scale * self.tiles.overlap_px),
        )
        label = self.label if self.label is not None else model.null
        condition = Condition(None if label is None else torch.tensor([label], device=device), image)
        steps, sources = self.options.get("steps", STEPS), generators(self.seed, [number])
        shape = (self.channels, *image.shape[2:])
        drawn = sample(denoise, model.formulation, chosen, sources, shape, condition, steps=steps, device=device)
        for step, x in enumerate(drawn):  # noqa: B007  the last one is the picture
            yield step / steps
        return x[:, :, :height, :width].clamp(-1, 1)


def in_tiles(denoise: Denoiser, tiles: Tiles) -> Denoiser:
    """A denoiser of one image of any size, which is denoised tile by tile together with the image of its condition."""

    def denoise_tiles(x: Images, time: Times, condition: Condition) -> Denoised:
        assert condition.image is not None, "an image is enlarged"
        channels = x.shape[1]

        def denoise_parts(both: Float[Tensor, "n c h w"]) -> Denoised:
            label = None if condition.label is None else condition.label.expand(len(both))
            beside = replace(condition, label=label, image=both[:, channels:])
            return denoise(both[:, :channels], time.expand(len(both)), beside)

        return tiles.apply(denoise_parts, torch.cat([x, condition.image], dim=1))

    return denoise_tiles


def load_upscaler(path: str | Path, weights: Mapping[str, Tensor] | None = None) -> EDSRUpscaler | DiffusionUpscaler:
    """The model of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    It is an EDSR or a diffusion model. The tiles of the latter have the size of the images that it was trained on.

    `weights` replace those of the network, such as by another average of its run. Raises ValueError, with the reason,
    if there is none, if it is of another kind, and for weights that do not fit.
    """
    folder, images_seen = find_model(path, NETWORK_FILE)
    if is_regular(folder / DIFFUSION):
        return diffusion_upscaler(load_model(path, weights))
    net = from_pretrained(folder).float()
    if not isinstance(net, EDSR):
        raise ValueError(f"{folder} holds a {type(net).__name__}, which does not enlarge pictures; give an EDSR")
    if weights is not None:
        replace_weights(net, weights)
    check_finite(net, folder)
    return EDSRUpscaler(net, images_seen)


def diffusion_upscaler(model: DiffusionModel, **fields: Any) -> DiffusionUpscaler:
    """The model with tiles of the size of the images that it was trained on, a quarter of which overlaps.

    Raises ValueError for a model that draws images and enlarges none.
    """
    if model.upscale is None:
        raise ValueError("this model draws images and enlarges none; give one that was trained with diffusion.upscale")
    side = min(model.shape[1:]) // model.upscale
    return DiffusionUpscaler(model, **{"tiles": Tiles(side, side // 4), **fields})


def is_upscaler(path: str | Path) -> bool:
    """Whether the model of a run folder or of a model folder on this machine enlarges pictures."""
    folder = Path(path, "model") if is_regular(Path(path, "config.yaml")) else Path(path)
    return is_edsr(folder) or (is_regular(folder / DIFFUSION) and read_scale(folder) is not None)


def is_edsr(folder: str | Path) -> bool:
    """Whether the network of a model folder is an EDSR."""
    file = Path(folder, NETWORK_FILE)
    return is_regular(file) and read_json(file).get("model") == f"resnet.{EDSR.__name__}"


def shrunk(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h2 w2"]:
    """Images in [-1, 1] at 1/scale of their size, by the bicubic filter, with the levels of 8-bit pictures.

    Raises ValueError for a size that the scale does not divide.
    """
    height, width = image.shape[2:]
    if height % scale or width % scale:
        raise ValueError(f"{height} x {width} px cannot be divided by scale={scale}; crop the images")
    return as_bytes(bicubic(image, (height // scale, width // scale)))


def blurred(low: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h2 w2"]:
    """Small images at the large size, by linear interpolation: what diffusion models are conditioned on."""
    return F.interpolate(low, scale_factor=float(scale), mode="bilinear", align_corners=False)


def middles(low: Float[Tensor, "1 c h w"], *images: Float[Tensor, "1 c h2 w2"]) -> UInt8[np.ndarray, "n h3 w3 c"]:
    """The middle of a picture to be shown: first as it is small (with larger pixels), then in each enlarged form."""
    scale = images[0].shape[-1] // low.shape[-1]
    small = low.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    place = [slice((side - min(side, SHOWN_PX)) // 2, (side + min(side, SHOWN_PX)) // 2) for side in small.shape[2:]]
    return to_uint8(torch.cat([each[:, :, place[0], place[1]] for each in (small, *images)]))


def as_bytes(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Images in [-1, 1], rounded to the levels of 8-bit pictures."""
    return (127.5 * (image.clamp(-1, 1) + 1)).round() / 127.5 - 1
