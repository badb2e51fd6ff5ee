"""Networks whose features metrics compare: classifiers trained with this project, and TorchScript files."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel
from residual.names import amount
from storage.read import require_regular
from training.data import Images
from training.memory import is_out_of_memory
from training.output_folder import weights_sha256
from training.processes import process_state

Input = Literal["unit", "signed", "bytes", "imagenet"]
SCRIPTS = (".pt", ".pth", ".ts", ".jit", ".torchscript")
"""usual suffixes of TorchScript files"""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""mean and standard deviation of ImageNet's red, green and blue, in [0, 1]"""


@dataclass(frozen=True)
class Judge:
    """A network, on the device of this process, whose features metrics compare."""

    num_features: int
    features: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b d"]]
    """of images in [-1, 1] on the device"""
    probabilities: Callable[[Float[Tensor, "b d"]], Float[Tensor, "b classes"]] | None
    """of the classes, from features; None if it has no classes"""
    classes: tuple[str, ...] | None
    fingerprint: str
    """SHA-256 (hexadecimal) of its weights and of how images are prepared for it"""


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for a TorchScript file."""

    input: Input
    size: int | None = None
    """side to which images are resized, in pixels; None: not resized"""
    rgb: bool = False
    """whether grey images are repeated to three channels"""

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Shaped[Tensor, "b d side side2"]:
        """Images in [-1, 1] as the file takes them."""
        x = (x.expand(-1, 3, -1, -1) if self.rgb else x).add(1).div(2)
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        match self.input:
            case "signed":
                return x * 2 - 1
            case "bytes":
                return x.mul(255).round().clamp(0, 255).to(torch.uint8)
            case "imagenet":
                mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in IMAGENET)
                return (x - mean) / std
            case _:
                return x


def open_judge(name: str, images: Images, input: Input | None, size: int | None, rgb: bool) -> Judge:
    """The judge of `quality.judge`, for images like these.

    Raises ValueError, before any image is drawn, for what is neither a classifier nor a TorchScript file, for a
    classifier of other images, for a file whose preparation is not stated, and for one that does not give one row of
    features per image.
    """
    path = Path(name)
    if path.suffix in SCRIPTS or (path.exists() and not path.is_dir()):
        require_regular(path)
        if input is None:
            raise ValueError(
                f"quality.judge={name} is a file of TorchScript, which is code: give one that you trust, and "
                "state its input with quality.judge_input=unit, signed, bytes or imagenet"
            )
        return _scripted(path, images, Preparation(input, size, rgb))
    if (input, size, rgb) != (None, None, False):
        raise ValueError(
            f"quality.judge={name} is a classifier of this project, which has its preprocessing; leave "
            "quality.judge_input, judge_size and judge_rgb out"
        )
    return _classifier(name, images)


def _classifier(name: str, images: Images) -> Judge:
    try:
        found = load_classifier(name)
    except ValueError as error:
        raise ValueError(f"quality.judge={name} is not a classifier of this project: {error}") from None
    if (given := pixels_of(images)) != (taken := pixels_of(found)):
        raise ValueError(f"quality.judge={name} takes {taken}, but the images of data.validation are {given}")
    net = found.net.to(process_state().device)
    facts = (weights_sha256(net), asdict(net.config), asdict(found.pixel_format))
    return Judge(
        net.num_features,
        found.features,
        lambda features: net.fc(features).softmax(dim=1),
        found.classes,
        _sha256(facts),
    )


def _scripted(path: Path, images: Images, prepare: Preparation) -> Judge:
    channels = images.shape[0]
    if prepare.rgb and channels != 1:
        raise ValueError(f"quality.judge_rgb repeats grey images, but these have {channels} channels; leave it out")
    if prepare.input == "imagenet" and not (channels == 3 or prepare.rgb):
        raise ValueError(
            f"quality.judge_input=imagenet takes 3 channels, but the images have {channels}; give "
            "quality.judge_rgb=true for grey ones, or another input"
        )
    device = process_state().device
    try:
        net = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, AttributeError, EOFError, IndexError) as error:
        raise ValueError(
            f"quality.judge={path} is not a TorchScript file ({_reason(error)}); write one with "
            "torch.jit.script(NET).save(FILE)"
        ) from None

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        taken = prepare(x)
        try:
            found: Any = net(taken)
        except Exception as error:  # whatever the code in the file raises
            if is_out_of_memory(error):
                raise
            shown = f"{tuple(taken.shape)} of {str(taken.dtype).removeprefix('torch.')}"
            raise ValueError(
                f"quality.judge={path} fails on images of shape {shown} ({_reason(error)}); see quality.judge_input, "
                "judge_size and judge_rgb"
            ) from None
        is_tensor = isinstance(found, Tensor)
        if not (is_tensor and found.is_floating_point() and found.ndim == 2 and len(found) == len(x) and found.numel()):
            dtype = str(found.dtype).removeprefix("torch.") if is_tensor else ""
            kind = f"a tensor of {dtype} with shape {tuple(found.shape)}" if is_tensor else f"a {type(found).__name__}"
            count = amount(len(x), "image")
            raise ValueError(
                f"quality.judge={path} gives {kind} for {count}; it should give floats of shape ({len(x)}, features)"
            )
        if not (found := found.float()).isfinite().all():
            raise ValueError(
                f"quality.judge={path} gives features that are not finite in float32; see quality.judge_input"
            )
        return found

    trial = (torch.rand(2, *images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    width = features(trial).shape[1]
    if (alone := features(trial[:1]).shape[1]) != width:
        raise ValueError(
            f"quality.judge={path} gives {amount(width, 'feature')} of each of 2 images, but {alone} of one alone; "
            "their number should not depend on the number of images"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Judge(width, features, None, None, _sha256((digest, asdict(prepare))))


def pixels_of(images: Images | ImageClassifier | DiffusionModel) -> str:
    """Shape and values of images, or of those that a model takes or draws; equal texts mean that they go together."""
    if isinstance(images, DiffusionModel):
        return f"{images.output_shape} (channels, height, width) of {images.output_format.about}"
    return f"{images.shape} (channels, height, width) of {images.pixel_format.about}"


def _sha256(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """The last line of an error of TorchScript, which names the cause; those before it are its call stack."""
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)[:200]
