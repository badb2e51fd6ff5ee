"""A trained classifier: names the classes of images, and is saved as a folder that is enough to classify.

The folder holds config.json and model.safetensors, which are the network's own, and classification.json.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion import Formulation
from pictures.decode import decode
from pictures.preprocessing import Preprocessing
from pictures.units import AnyFormat
from pipelines.folder import check_counts, check_finite, find_model, read_counts, read_format, replace_weights
from pipelines.formulation import describe_formulation, read_formulation
from residual.names import amount
from residual.weights.config import read_config, read_json, require_version
from residual.weights.pretrained import upload
from resnet import Classifier, from_pretrained
from storage.show import markdown

FORMAT_VERSION, NOISY_FORMAT_VERSION = 3, 4
"""without and with noise; classifiers of noisy images before 4 were trained without the factor of `noisy_logits`"""
DESCRIPTION_FILE = "classification.json"
PREDICT_BATCH = 64
"""images per forward pass of `predict`"""
CLEAN = 0.01
"""noise level (sigma / alpha) at which classifiers of noisy images receive clean ones"""
Description = tuple[tuple[str, ...], Preprocessing, AnyFormat, tuple[int, ...] | None, Formulation | None]
"""classes, preprocessing, pixel format, training images of each class, formulation of the noise"""


@dataclass(frozen=True)
class ImageClassifier:
    """A classification network with everything needed to use it."""

    net: Classifier
    classes: tuple[str, ...]
    """names of the classes"""
    preprocessing: Preprocessing
    """how pictures are decoded, without random crops; its size and channels are set"""
    pixel_format: AnyFormat
    """how the values of the training data's files become those of the network"""
    images_seen: int | None = None
    """images seen in training, where that is known"""
    class_counts: tuple[int, ...] | None = None
    """training images of each class, where that is known"""
    formulation: Formulation | None = None
    """of the noise in the images on which it was trained; None: they had none"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        size, channels = self.preprocessing.size, self.preprocessing.channels
        assert size is not None, "a trained classifier has a fixed size"
        assert channels is not None, "and a fixed number of channels"
        return (channels, *size)

    def normalise(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] as the network takes them: minus its mean, divided by its deviation, both for [0, 1]."""
        config, unknown = self.net.config, (0.5,) * x.shape[1]
        mean, std = (channel_values(values or unknown, x.device) for values in (config.mean, config.std))
        return ((x + 1) / 2 - mean) / std

    def noisy_inputs(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b"]]:
        """The network's inputs for noisy images with these times, if it was trained on noisy images."""
        assert self.formulation is not None, "it was trained on images without noise"
        level = self.formulation.level(time)
        return self.normalise(level.c_in * x), level.c_noise

    def noisy_logits(
        self, net: Callable[..., Tensor], x: Float[Tensor, "b c h w"], time: Float[Tensor, "b"]
    ) -> Float[Tensor, "b classes"]:
        """The logits of the classes for noisy images with these times, float32, by the network or a wrapper of it.

        Its outputs are multiplied by `alpha / sqrt(alpha² + sigma²)`. So the gradient with respect to the image falls
        with the noise as that of exact logits does, `alpha mean · x / sigma²` for classes around their means, and
        vanishes for pure noise.
        """
        assert self.formulation is not None, "it was trained on images without noise"
        share = (1 + self.formulation.level(time).ratio.square()).rsqrt().flatten(1)
        return share * net(*self.noisy_inputs(x, time)).float()

    def inputs(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor | None]:
        """The network's inputs for images in [-1, 1] without noise: normalised images, and timesteps or None."""
        if self.formulation is None:
            return self.normalise(x), None
        return self.noisy_inputs(x, self.formulation.time_at(torch.full((len(x),), CLEAN, device=x.device)))

    def logits(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The logits of the classes for images in [-1, 1] on the network's device, float32."""
        return self.net(*self.inputs(x)).float()

    def log_probability(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], label: Int[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """The logarithm of the probability of each label, given a noisy image and its time, with gradients."""
        return self.noisy_logits(self.net, x, time).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    @torch.no_grad()
    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The input of the network's last layer for images in [-1, 1] on its device, float32."""
        image, time = self.inputs(x)
        return self.net.forward_features(image, t=time).float().mean(dim=(2, 3))

    @torch.no_grad()
    def probabilities(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The probability of each class for images in [-1, 1] on the network's device, float32."""
        return self.logits(x).softmax(dim=1)

    def predict(self, images: Sequence[str | Path | bytes | np.ndarray]) -> list[tuple[str, float]]:
        """The most likely class of each picture, by name, and its probability: the first of `rank`."""
        return [ranked[0] for ranked in self.rank(images, 1)]

    def rank(self, images: Sequence[str | Path | bytes | np.ndarray], top: int = 5) -> list[list[tuple[str, float]]]:
        """The `top` most likely classes of each picture, by name, and their probabilities, the highest first.

        A picture is the name of a file, the bytes of a file, or uint8 pixels (h, w) or (h, w, 3). All are scaled and
        cropped as in evaluations. Raises ValueError for a picture that cannot be read, for probabilities that are not
        finite, and for a network that was trained on arrays, for which `probabilities` is meant.
        """
        if isinstance(images, str | bytes):
            raise ValueError(f"rank and predict take a list of pictures; give [{str(images)[:60]!r}]")
        if self.pixel_format.file != "png":
            raise ValueError(
                "this model was trained on arrays; scale yours by `pixel_format.to_unit` and call `probabilities`"
            )
        device = next(self.net.parameters()).device
        found: list[list[tuple[str, float]]] = []
        top = min(top, len(self.classes))
        for start in range(0, len(images), PREDICT_BATCH):
            stored = np.stack([self._read(image) for image in images[start : start + PREDICT_BATCH]])
            best = self.probabilities(self.pixel_format.to_unit(torch.from_numpy(stored).to(device))).topk(top)
            if not (finite := best.values.isfinite().all(dim=1)).all():
                number = start + finite.tolist().index(False)
                raise ValueError(f"picture {number} has probabilities that are not finite; the weights are damaged")
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                found.append([(self.classes[index], share) for index, share in zip(indices, values, strict=True)])
        return found

    def _read(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        try:
            return decode(Path(image) if isinstance(image, str) else image, self.preprocessing)
        except ValueError as error:
            name = image if isinstance(image, str | Path) else type(image).__name__
            raise ValueError(
                f"{name} cannot be read as a picture ({error}); give a file, its bytes or pixels"
            ) from None

    def save(self, folder: Path) -> None:
        """Writes the model folder: the network's files, and the rest as classification.json."""
        document = {
            "format_version": FORMAT_VERSION if self.formulation is None else NOISY_FORMAT_VERSION,
            "classes": self.classes,
            "class_counts": self.class_counts,
            "preprocessing": asdict(self.preprocessing),
            "pixel_format": asdict(self.pixel_format),
            "noise": None if self.formulation is None else describe_formulation(self.formulation),
        }
        self.net.save_pretrained(folder)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload model") -> str:
        """Uploads the model folder, with a model card, to the Hugging Face hub. Returns the URL.

        `load_classifier` and `train.py --init` open it by its name, `repo_id`. Arguments and errors are those of
        `Pretrained.push_to_hub`.
        """
        card = self.model_card(repo_id)
        return upload(repo_id, self.save, card, private=private, commit_message=commit_message)

    def model_card(self, repo_id: str) -> str:
        """The README.md of the model folder in a repository: what the model classifies, and code that does it."""
        channels, height, width = self.shape
        pictures = self.pixel_format.file == "png"
        return CARD.format(
            title=markdown(repo_id.rpartition("/")[2]),
            name=type(self.net).__name__,
            images=f"images of {height}x{width} px with {channels} channel{'s' if channels > 1 else ''}",
            seen="" if self.images_seen is None else f" after {self.images_seen:,} training images",
            classes="\n".join(f"- {number}: {markdown(name)}" for number, name in enumerate(self.classes)),
            code=(PICTURES if pictures else ARRAYS).format(repo_id=json.dumps(repo_id), shape=(1, *self.shape)),
        )


@lru_cache(maxsize=16)
def channel_values(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """One number per channel on the device. Cached, since each copy to a device waits for it."""
    return torch.tensor(values, device=device)[:, None, None]


def load_classifier(path: str | Path, weights: Mapping[str, Tensor] | None = None) -> ImageClassifier:
    """The classifier of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    `weights` replace those of the network, such as by another average of its run. Raises ValueError, with the reason,
    if there is none, if it is incomplete, and for weights that do not fit.
    """
    folder, images_seen = find_model(path, DESCRIPTION_FILE)
    classes, preprocessing, pixel_format, counts, noise = read_description(folder / DESCRIPTION_FILE)
    net = from_pretrained(folder).float()
    if not isinstance(net, Classifier):
        raise ValueError(f"{folder} holds a {type(net).__name__}, which is not a classifier; give the folder of one")
    if weights is not None:
        replace_weights(net, weights)
    check_finite(net, folder)
    if net.config.num_classes != len(classes):
        raise ValueError(
            f"{folder}: {DESCRIPTION_FILE} names {amount(len(classes), 'class')}, "
            f"config.json has {net.config.num_classes}"
        )
    if getattr(net.config, "noise", False) != (noise is not None):
        raise ValueError(f"{folder}: only one of {DESCRIPTION_FILE} and config.json is of noisy images; train again")
    check_counts(counts, len(classes), folder)
    return ImageClassifier(net, classes, preprocessing, pixel_format, images_seen, counts, noise)


@dataclass(frozen=True)
class _Labels:
    classes: tuple[str, ...]


def read_description(path: Path) -> Description:
    """The content of a file classification.json.

    Raises ValueError for what is incomplete, unknown, or of another type.
    """
    document = read_json(path)
    try:
        noise = document.get("noise")  # files from before lack it
        require_version(document["format_version"], FORMAT_VERSION if noise is None else NOISY_FORMAT_VERSION)
        preprocessing = read_config(Preprocessing, document["preprocessing"])
        if preprocessing.size is None or preprocessing.channels is None:
            raise ValueError("preprocessing has no size or channels; save the model again")
        pixel_format = read_format(document)
        labels = read_config(_Labels, {"classes": document["classes"]})
        formulation = None if noise is None else read_formulation(noise)
        return labels.classes, preprocessing, pixel_format, read_counts(document), formulation
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; it is incomplete") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


CARD = """---
library_name: residual-diffusion
tags:
- residual-diffusion
- image-classification
# license: name yours here, such as apache-2.0
---

# {title}

A classifier ({name}) of {images}{seen}.

Classes:

{classes}

```python
{code}```
"""

PICTURES = """from pipelines.classification import load_classifier

model = load_classifier({repo_id})
found = model.predict(["picture.png"])  # the class and its probability, for each picture
"""

ARRAYS = """import torch
from pipelines.classification import load_classifier

model = load_classifier({repo_id})
stored = torch.zeros({shape})  # yours, in the range of the training data
found = model.probabilities(model.pixel_format.to_unit(stored))
"""
