"""A trained diffusion model, as an object that draws images and as a folder that is enough to make it again.

The folder holds config.json and model.safetensors, which are the network's own, and diffusion.json.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion import PREDICTIONS, Denoiser, NetDenoiser, Schedule, denoising, generators, guided
from diffusion.sampler import check
from pipelines.folder import check_finite, find_model
from residual.names import require_known, shorten
from residual.weights.config import read_config
from training.data.pixel_format import BYTES, PixelFormat
from unet import UNet

FORMAT_VERSION = 2
DESCRIPTION_FILE = "diffusion.json"
NO_LABEL = "none"
_DROPOUT = "train one with diffusion.label_dropout=0.1"


@dataclass(frozen=True)
class DiffusionModel:
    """A denoising network with all that using it takes."""

    net: UNet
    schedule: Schedule
    prediction: str
    shape: tuple[int, int, int]
    """(c, h, w) of its images"""
    classes: tuple[str, ...] | None = None
    """the names of its classes; none: it takes no labels"""
    null: int | None = None
    """the label that means “no label”, if it has learned to do without"""
    pixels: PixelFormat = BYTES
    """what -1 and 1 stood for in the files of its training, and what kind of files they were"""
    images_seen: int | None = None
    """images seen in training, where that is known"""

    def check(self, *, sampler: str = "ddim", steps: int = 50, eta: float = 0.0, guidance: float = 1.0) -> None:
        """Raises ValueError for sampling options that do not go with this model."""
        check(sampler, steps, self.schedule, eta)
        if guidance == 1:
            return
        if not math.isfinite(guidance):
            raise ValueError(f"guidance={guidance:g} is not a number to multiply with; give 1 (as learned) or more")
        if self.classes is None:
            raise ValueError(
                f"guidance={guidance:g} needs a model with classes; this one has none, leave guidance at 1"
            )
        if self.null is None:
            raise ValueError(
                f"guidance={guidance:g} needs a model that also learned without labels; "
                f"leave guidance at 1, or {_DROPOUT}"
            )

    def cycle(self, images: Sequence[int]) -> list[int] | None:
        """A label for each image number, going through the classes in turn; None for a model without classes."""
        return None if self.classes is None else [k % len(self.classes) for k in images]

    def label(self, text: str) -> int:
        """The number of a class from its name or its number (the name counts first), or of “none”, the null label.

        Raises ValueError, with the nearest names, if there is no such class.
        """
        if self.classes is None:
            raise ValueError(f"label {text!r} is asked of a model that has no classes; leave the label out")
        if text in self.classes:
            return self.classes.index(text)
        if text == NO_LABEL:
            if self.null is None:
                raise ValueError(f"label {NO_LABEL!r} needs a model that also learned without labels; {_DROPOUT}")
            return self.null
        if text.removeprefix("-").isdecimal():
            if int(text) in range(len(self.classes)):
                return int(text)
            raise ValueError(
                f"label {text} is outside 0 … {len(self.classes) - 1}; the classes are: {shorten(self.classes)}"
            )
        return self.classes.index(require_known("class", text, self.classes))

    def names(self, labels: Sequence[int] | None) -> list[str] | None:
        """The names of labels, as `label` reads them."""
        if labels is None or self.classes is None:
            return None
        return [NO_LABEL if label == self.null else self.classes[label] for label in labels]

    def denoising(
        self,
        images: Sequence[int],
        labels: Sequence[int] | None,
        *,
        seed: int = 0,
        guidance: float = 1.0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Iterator[Float[Tensor, "b c h w"]]:
        """Draws the images with these numbers under `seed`: yields their noise, then each step, last the images.

        `labels` has one label per image; without them a model with classes draws the null label. `options` are those
        of `diffusion.denoising`: sampler, steps, eta. Raises ValueError as `check` does, and for labels unlike these.
        """
        self.check(guidance=guidance, **options)
        self._check_labels(images, labels)
        denoise: Denoiser = NetDenoiser(self.net, self.schedule, self.prediction)
        if self.null is not None:
            denoise = guided(denoise, guidance, self.null)
        label = None if labels is None else torch.tensor(labels, device=device)
        sources = generators(seed, images)
        return denoising(denoise, self.schedule, sources, self.shape, label, device=device, **options)

    def _check_labels(self, images: Sequence[int], labels: Sequence[int] | None) -> None:
        if not len(images):
            raise ValueError("no image is asked for; give at least one number of an image")
        if labels is None:
            if self.classes is not None and self.null is None:
                raise ValueError("this model has not learned to do without labels; give one for each image")
            return
        if self.classes is None:
            raise ValueError("this model has no classes; leave the labels out")
        if len(labels) != len(images):
            raise ValueError(f"{len(labels)} labels for {len(images)} images; give one for each")
        last = len(self.classes) - (self.null is None)
        if wrong := [label for label in labels if not 0 <= label <= last]:
            raise ValueError(f"label {wrong[0]} is outside 0 … {last}")

    def draw(self, images: Sequence[int], labels: Sequence[int] | None, **options: Any) -> Float[Tensor, "b c h w"]:
        """The images at the end of `denoising`, in [-1, 1]."""
        return deque(self.denoising(images, labels, **options), maxlen=1).pop().clamp(-1, 1)

    def save(self, folder: Path) -> None:
        """Writes the model folder: the network's files, and the rest as diffusion.json."""
        document = {
            "format_version": FORMAT_VERSION,
            "schedule": self.schedule.name,
            "timesteps": self.schedule.timesteps,
            "variance": self.schedule.variance,
            "prediction": self.prediction,
            "classes": self.classes,
            "pixels": asdict(self.pixels),
        }
        self.net.save_pretrained(folder)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2) + "\n")


def load_model(path: str | Path) -> DiffusionModel:
    """The model of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    Raises ValueError, with the reason, if there is none or it is not whole.
    """
    folder, images_seen = find_model(path, DESCRIPTION_FILE)
    schedule, prediction, classes, pixels = read_description(folder / DESCRIPTION_FILE)
    net = UNet.from_pretrained(folder).float()
    check_finite(net, folder)
    if net.config.learned_variance:
        raise ValueError(f"{folder}: a model with learned_variance cannot be sampled yet")
    if net.config.in_channels != net.config.out_channels:
        raise ValueError(
            f"{folder}: a model that takes {net.config.in_channels} channels and draws {net.config.out_channels} "
            "cannot be sampled here: it needs more than noise"
        )
    if net.config.classes != (None if classes is None else len(classes)):
        raise ValueError(
            f"{folder}: {DESCRIPTION_FILE} names {len(classes or ())} classes, config.json has {net.config.classes}"
        )
    return describe(net, schedule, prediction, classes, pixels, images_seen)


def describe(
    net: UNet,
    schedule: Schedule,
    prediction: str,
    classes: tuple[str, ...] | None,
    pixels: PixelFormat = BYTES,
    images_seen: int | None = None,
) -> DiffusionModel:
    """The model of a network, whose config tells the shape of the images and whether it knows a null label."""
    null = len(classes) if classes is not None and net.config.null_label else None
    shape = (net.config.out_channels, *net.config.size)
    return DiffusionModel(net, schedule, prediction, shape, classes, null, pixels, images_seen)


@dataclass(frozen=True)
class _Description:
    """What diffusion.json says, but for the pixels."""

    schedule: str
    timesteps: int
    variance: str
    prediction: str
    classes: tuple[str, ...] | None


def read_description(path: Path) -> tuple[Schedule, str, tuple[str, ...] | None, PixelFormat]:
    """The noise schedule, the prediction, the classes and the pixels. Raises ValueError for what is not whole.

    Version 1 did not tell the pixels, which were bytes.
    """
    try:
        document = json.loads(path.read_text())
        if document["format_version"] not in (1, FORMAT_VERSION):
            raise ValueError(
                f"format_version {document['format_version']!r}, this version reads 1 and {FORMAT_VERSION}"
            )
        fields = {name: document[name] for name in ("schedule", "timesteps", "variance", "prediction", "classes")}
        found = read_config(_Description, fields)
        require_known("prediction", found.prediction, PREDICTIONS)
        schedule = Schedule(name=found.schedule, timesteps=found.timesteps, variance=found.variance)
        pixels = BYTES if document["format_version"] == 1 else read_config(PixelFormat, document["pixels"])
        return schedule, found.prediction, found.classes, pixels
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}; it is not whole") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
