"""A trained classifier, as an object that names images and as a folder that is enough to make it again.

The folder holds config.json and model.safetensors, which are the network's own, and classification.json.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.folder import check_finite, find_model
from residual.weights.config import read_config, read_json
from resnet import ResNet
from training.data.decode import decode
from training.data.pixel_format import PixelFormat
from training.data.preprocessing import Preprocessing

FORMAT_VERSION = 2
DESCRIPTION_FILE = "classification.json"
AT_A_TIME = 64
"""images of one forward pass of `predict`"""


@dataclass(frozen=True)
class ImageClassifier:
    """A network that tells classes apart, with all that using it takes."""

    net: ResNet
    classes: tuple[str, ...]
    """their names"""
    preprocessing: Preprocessing
    """of pictures in training, without random crops; its size and channels are set"""
    pixels: PixelFormat
    """what -1 and 1 stood for in the files of its training"""
    images_seen: int | None = None
    """images seen in training, where that is known"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        size, channels = self.preprocessing.size, self.preprocessing.channels
        assert size is not None, "a trained classifier has a fixed size"
        assert channels is not None, "and a fixed number of channels"
        return (channels, *size)

    def normalise(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] as the network takes them: less its mean, divided by its deviation, both of [0, 1]."""
        config = self.net.config
        mean, std = (channel_values(values, x.device) for values in (config.mean, config.std))
        return ((x + 1) / 2 - mean) / std

    @torch.no_grad()
    def probabilities(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The probability of each class for images in [-1, 1] on the network's device, float32."""
        return self.net(self.normalise(x)).float().softmax(dim=1)

    def predict(self, images: Sequence[str | Path | bytes | np.ndarray]) -> list[tuple[str, float]]:
        """The likeliest class of each picture, by name, and its probability.

        A picture is a file's name, the bytes of a file, or uint8 pixels (h, w) or (h, w, 3); all are scaled and cut as
        the images of the evaluations were. Raises ValueError for a picture that cannot be read, and for a network that
        was trained on arrays, of which `probabilities` asks.
        """
        if isinstance(images, str | bytes):
            raise ValueError(f"predict takes a list of pictures; give [{str(images)[:60]!r}]")
        if self.pixels.file != "png":
            raise ValueError("this model was trained on arrays; scale yours by `pixels.to_unit`, for `probabilities`")
        device = next(self.net.parameters()).device
        found: list[tuple[int, float]] = []
        for start in range(0, len(images), AT_A_TIME):
            stored = np.stack([self._read(image) for image in images[start : start + AT_A_TIME]])
            best = self.probabilities(self.pixels.to_unit(torch.from_numpy(stored).to(device))).max(dim=1)
            found += zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.classes[index], probability) for index, probability in found]

    def _read(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        try:
            return decode(Path(image) if isinstance(image, str) else image, self.preprocessing)
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            name = image if isinstance(image, str | Path) else type(image).__name__
            raise ValueError(
                f"{name} cannot be read as a picture ({error}); give a file, its bytes or pixels"
            ) from None

    def save(self, folder: Path) -> None:
        """Writes the model folder: the network's files, and the rest as classification.json."""
        document = {
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "preprocessing": asdict(self.preprocessing),
            "pixels": asdict(self.pixels),
        }
        self.net.save_pretrained(folder)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=16)
def channel_values(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """One number per channel, copied to the device once: a copy waits for it."""
    return torch.tensor(values, device=device)[:, None, None]


def load_classifier(path: str | Path) -> ImageClassifier:
    """The classifier of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    Raises ValueError, with the reason, if there is none or it is not whole.
    """
    folder, images_seen = find_model(path, DESCRIPTION_FILE)
    classes, preprocessing, pixels = _read_description(folder / DESCRIPTION_FILE)
    net = ResNet.from_pretrained(folder).float()
    check_finite(net, folder)
    if net.config.num_classes != len(classes):
        raise ValueError(
            f"{folder}: {DESCRIPTION_FILE} names {len(classes)} classes, config.json has {net.config.num_classes}"
        )
    return ImageClassifier(net, classes, preprocessing, pixels, images_seen)


def _read_description(path: Path) -> tuple[tuple[str, ...], Preprocessing, PixelFormat]:
    document = read_json(path)
    try:
        if (version := document["format_version"]) != FORMAT_VERSION:
            raise ValueError(
                f"format_version {version!r} is of another version of this project, which reads {FORMAT_VERSION}; "
                "save the model again with this version"
            )
        preprocessing = read_config(Preprocessing, document["preprocessing"])
        if preprocessing.size is None or preprocessing.channels is None:
            raise ValueError("preprocessing has no size or channels; save the model again")
        return tuple(document["classes"]), preprocessing, read_config(PixelFormat, document["pixels"])
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}; it is not whole") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
