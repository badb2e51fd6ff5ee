"""Trained networks for experiments: each is trained once by the loop's step, and kept in one cache folder.

The images are the digits of the project, 8×8 px; the held-out half is the same for every seed.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.run import Settings
from residual import Identity, Residual
from resnet.config.resnet import ResNetConfig
from storage.write import replace_file
from tasks.classification import ClassificationRun
from tasks.diffusion import DiffusionRun
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import DataConfig, Images, ImageSet, open_images, open_validation
from training.ema import EmaConfig
from training.optimizer import AdamW
from training.random import seeded
from training.run import Run
from training.schedule import Cosine
from training.step import Step
from training.task import Task
from unet import UNetConfig

ROOT = Path(__file__).parent.parent
TRAINING = ("residual", "resnet", "unet", "diffusion", "pictures", "pipelines", "training", "tasks")
"""packages whose code decides the weights"""
BATCH = 64
Edit = Callable[[nn.Module], object]
"""changes a fresh network, for example its shortcuts; a function or a `partial` of one"""


@dataclass(frozen=True)
class Trained:
    """A network after training."""

    net: nn.Module
    """in eval mode, without gradients of weights"""
    task: Task[Any]
    losses: Float[Tensor, "updates"]
    """training loss of each update"""


def classifier(updates: int, seed: int = 0, **model: Any) -> ClassificationRun:
    """The run of a small ResNet: `model` changes its config, by default 8 layers of 16 channels in one stage."""
    small: dict[str, Any] = {"blocks_per_stage": (3,), "widths": (16,), "stem": "conv3", "stem_channels": 16}
    return ClassificationRun(
        data=DataConfig(source="digits", validation=0.5),
        model=ResNetConfig(**small | {"shortcut": "A"} | model),
        **recipe(updates, seed),
    )


def denoiser(updates: int, seed: int = 0, **model: Any) -> DiffusionRun:
    """The run of a small diffusion U-Net on the digits without labels; `model` changes its config."""
    small: dict[str, Any] = {
        "base_channels": 16,
        "channel_multipliers": (1, 2),
        "blocks_per_level": 2,
        "attention_levels": (1,),
        "groups": 4,
    }
    data = DataConfig(source="digits", validation=0.5, labels=False)
    return DiffusionRun(data=data, model=UNetConfig(**small | model), **recipe(updates, seed))


def recipe(updates: int, seed: int, learning_rate: float = 3e-3) -> dict[str, Any]:
    """The sections of a run of so many updates: AdamW, a warm-up of a tenth, half a cosine, no averaged weights."""
    images = max(updates, 1) * BATCH
    return {
        "train": TrainConfig(images=images, batch=BATCH, seed=seed, precision="float32", trackers=()),
        "optimizer": AdamW(learning_rate=learning_rate, weight_decay=0.01, decay_vectors=False),
        "schedule": Cosine(warmup_images=images // 10),
        "ema": EmaConfig(halflife_images=None),
    }


def resnet(
    depth: int, seed: int, settings: Settings, edit: Edit | None = None, updates: int | None = None, **model: Any
) -> Trained:
    """The trained ResNet of so many layers: blocks of 16 channels in one stage. `model` changes its config."""
    updates = settings.pick(200, 4) if updates is None else updates
    blocks = {"blocks_per_stage": ((depth - 2) // 2,)}
    return trained(classifier(updates, seed, **blocks | model), updates, settings, edit)


def unet(seed: int, settings: Settings) -> Trained:
    """The trained diffusion U-Net of the experiments."""
    updates = settings.pick(300, 4)
    return trained(denoiser(updates, seed), updates, settings)


def block_names(net: nn.Module) -> list[str]:
    """The names of the blocks of a network of `resnet`, with or without shortcuts."""
    return [f"levels.1.{name}" for name in net.get_submodule("levels.1")._modules if name.isdigit()]


def cross_entropy(label: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of logits, one value per image."""
    return partial(F.cross_entropy, target=label, reduction="none")


def trained(
    run: Run[Any], updates: int, settings: Settings, edit: Edit | None = None, images: ImageSet | None = None
) -> Trained:
    """The network of a run after so many updates: from the cache, or trained by `Step`. `edit` changes it before.

    The key is a hash of the settings, the images, the edit, torch's version and the code of all packages that training
    uses. `images` replace those of the run. With 0 updates it is the fresh network.
    """
    images = training_images(run.data, settings) if images is None else images
    run = replace(run, data=replace(run.data, cache=settings.out / "cache" / "data"))
    task = run.build(images)
    if edit is not None:
        with seeded(run.train.seed, "edit"):
            edit(task.model)
    file = settings.out / "cache" / "nets" / f"{_key(run, updates, images, edit)}.safetensors"
    if updates and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda new: save_file(_train(run, task, images, updates), new), flush=False)
    found = load_file(file) if updates else {"losses": torch.zeros(0)}
    losses = found.pop("losses")
    if updates:
        task.model.load_state_dict(found)
    net = task.model.to(memory_format=torch.contiguous_format)
    return Trained(net.eval().requires_grad_(False), task, losses)


def _train(run: Run[Any], task: Task[Any], images: ImageSet, updates: int) -> dict[str, Tensor]:
    """Trains the network of the task; returns copies of its weights, with the losses."""
    accelerator = _accelerator()
    with torch.enable_grad(), closing(Step(task, images, run, accelerator)) as step:
        losses = [step.update().loss for _ in range(updates)]
        state = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in step.ema.model.state_dict().items()
        }
    accelerator.free_memory()
    return state | {"losses": torch.stack(losses)}


@cache
def _accelerator() -> Accelerator:
    return make_accelerator(TrainConfig(batch=BATCH, precision="float32", trackers=()))


def training_images(data: DataConfig, settings: Settings) -> ImageSet:
    """The images that a run is trained on."""
    return open_images(replace(data, cache=settings.out / "cache" / "data"))


def digits(settings: Settings, held_out: bool, count: int | None = None) -> tuple[Float[Tensor, "b 1 8 8"], Tensor]:
    """The first `count` digits of a half, all by default, in [-1, 1], and their labels."""
    data = DataConfig(source="digits", validation=0.5, cache=settings.out / "cache" / "data")
    images = open_validation(data) if held_out else open_images(data)
    assert isinstance(images, Images)
    assert images.labels is not None
    numbers = torch.arange(len(images) if count is None else min(count, len(images)))
    label: Int[Tensor, b] = torch.from_numpy(images.labels)[numbers]
    return images.pixel_format.to_unit(torch.from_numpy(images.read(numbers.numpy()))), label


def error_rate(net: nn.Module, x: Tensor, label: Tensor) -> float:
    """The share of images, in percent, whose largest logit is not that of the label."""
    with torch.no_grad():
        return 100 * float((net(x).argmax(dim=1) != label).float().mean())


def _key(run: Run[Any], updates: int, images: ImageSet, edit: Edit | None) -> str:
    settings = asdict(replace(run, data=DataConfig()))  # the fingerprint stands for the images
    parts = [type(run).__qualname__, settings, updates, images.fingerprint, _describe(edit), torch.__version__, _code()]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]


def _describe(edit: Edit | None) -> str:
    """An edit as text: its source, and the values that a `partial` gives it."""
    if edit is None:
        return ""
    function = edit.func if isinstance(edit, partial) else edit
    given = (edit.args, sorted(edit.keywords.items())) if isinstance(edit, partial) else ""
    return f"{inspect.getsource(function)} {given}"


@cache
def _code() -> str:
    """A hash of the code that training uses."""
    files = (file for package in TRAINING for file in sorted((ROOT / package).rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def replace_parts(net: nn.Module, make: Callable[[int], nn.Module], part: Literal["shortcut", "merge"]) -> None:
    """Replaces the shortcuts, or the merges, of all blocks with identity shortcuts by `make(channels)`."""
    for block in net.modules():
        if isinstance(block, Residual) and isinstance(block.shortcut, Identity):
            convolutions = [module for module in block.branch.modules() if isinstance(module, nn.Conv2d)]
            setattr(block, part, make(convolutions[-1].out_channels))
