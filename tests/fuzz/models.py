"""Inputs that training writes and others publish: weights, model folders, logs, checkpoints."""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from safetensors.torch import save

import resnet
import unet
from diffusion import DDPM
from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from residual.weights.read import read_folder_weights, read_weights
from tasks.init import init_config, read_init
from tests.fuzz.boundary import Case, Kind
from tests.fuzz.mutate import damaged_bytes, damaged_safetensors, damaged_tree, dumped, json_bytes, odd_entries
from training import checkpoint, log
from training.checkpoint import CheckpointMetadata

UNET = unet.UNetConfig(
    in_channels=1,
    out_channels=1,
    size=(4, 4),
    base_channels=4,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    blocks_per_level=1,
    groups=2,
    classes=2,
)
RESNET = resnet.ResNetConfig(in_channels=1, num_classes=2, stem="conv3", blocks_per_stage=(1, 1), widths=(4, 8))
PLAIN = {"one": torch.arange(6.0).reshape(2, 3), "two.weight": torch.ones(4), "two.count": torch.tensor(3)}


def files(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `write` writes into a folder."""
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        torch.manual_seed(0)
        write(Path(name))
        return {
            str(path.relative_to(name)): path.read_bytes() for path in sorted(Path(name).rglob("*")) if path.is_file()
        }


@cache
def diffusion_folder() -> dict[str, bytes]:
    """A model folder of a diffusion model."""
    return files(lambda folder: DiffusionModel(unet.build(UNET).eval(), DDPM(), ("cat", "dog"), True).save(folder))


@cache
def classifier_folder() -> dict[str, bytes]:
    """A model folder of a classifier."""
    preprocessing = Preprocessing(size=(8, 8), channels=1)
    return files(
        lambda folder: ImageClassifier(resnet.build(RESNET).eval(), ("cat", "dog"), preprocessing, PixelFormat()).save(
            folder
        )
    )


@cache
def diffusers_folder() -> dict[str, bytes]:
    """A pipeline folder of diffusers."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    def write(folder: Path) -> None:
        model = UNet2DModel(
            sample_size=4,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
        DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)

    return files(write)


@cache
def checkpoints_folder() -> dict[str, bytes]:
    """A folder with two checkpoints."""

    def write(root: Path) -> None:
        for images in (8, 16):
            metadata = CheckpointMetadata(
                images=images,
                update=images // 8,
                batch=8,
                micro_batch=None,
                processes=1,
                data="0",
                config={},
                machine={},
            )
            checkpoint.publish(checkpoint.stage(root, {"model": PLAIN}, metadata))

    return files(write)


def damage_of(name: str, data: bytes) -> SearchStrategy[bytes]:
    """How a file is damaged, by its suffix."""
    if name.endswith(".json"):
        return json_bytes(json.loads(data))
    if name.endswith(".safetensors"):
        return damaged_safetensors(data)
    return damaged_bytes(data)


def damaged_folder(tree: Mapping[str, bytes]) -> SearchStrategy[Case]:
    """The folder, of which some files are damaged."""

    @st.composite
    def cases(draw: DrawFn) -> Case:
        return Case(draw(damaged_tree(tree, {name: damage_of(name, data) for name, data in tree.items()})))

    return cases()


def is_small(*sizes: int) -> bool:
    """Whether a network of a changed config runs in a moment."""
    return all(size <= 64 for size in sizes)


def use_diffusion(folder: Path, options: Mapping[str, Any]) -> None:
    """Opens a model folder in each way, starts a run from it, and draws an image."""
    init = init_config(str(folder))
    model = load_model(folder)
    net = unet.from_pretrained(folder)
    assert net.config == init == model.net.config
    assert read_init(net, str(folder), None, model.formulation)[0].keys() == net.state_dict().keys()
    if is_small(*model.shape):
        labels = None if model.classes is None else [0]
        image = model.draw([0], labels, steps=1)
        assert image.shape == (1, *model.shape)


def use_pipeline(folder: Path, options: Mapping[str, Any]) -> None:
    """Opens a folder of diffusers, and runs the network."""
    config = init_config(str(folder))
    net = unet.from_pretrained(folder)
    assert net.config == config
    assert isinstance(net, unet.UNet)
    if is_small(net.config.in_channels, *net.config.size):
        label = None if net.config.classes is None else torch.zeros(1, dtype=torch.int64)
        y = net(torch.zeros(1, net.config.in_channels, *net.config.size), torch.zeros(1), label)
        assert y.shape == (1, net.config.out_channels, *net.config.size)


def use_classifier(folder: Path, options: Mapping[str, Any]) -> None:
    """Opens a model folder, and classifies an image."""
    model = load_classifier(folder)
    assert resnet.from_pretrained(folder).config == model.net.config
    if is_small(*model.shape):
        assert model.probabilities(torch.zeros(1, *model.shape)).shape == (1, len(model.classes))


def use_weights(folder: Path, options: Mapping[str, Any]) -> None:
    """Reads the tensors of a file and of a folder."""
    for state in (read_folder_weights(folder, "model"), read_weights(folder / "model.safetensors")):
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
        assert all(tensor.isfinite().all() for tensor in state.values())


def use_log(folder: Path, options: Mapping[str, Any]) -> None:
    """Reads a log, and shortens it as a resumed run does."""
    path = folder / "log.jsonl"
    rows = list(log.read(path))
    assert all(isinstance(row, dict) for row in rows)
    log.evaluated(path, 64)


def use_checkpoints(folder: Path, options: Mapping[str, Any]) -> None:
    """Finds the newest checkpoint that is intact, and reads it."""
    found, damaged = checkpoint.newest(folder)
    assert all(damaged.values())
    if found is not None:
        assert found.images in (8, 16)
        assert set(checkpoint.read_tensors(found)) == {"model"}


@st.composite
def weights(draw: DrawFn) -> Case:
    """A file of weights, or several with an index, damaged."""
    parts = {name: save({name: tensor}) for name, tensor in PLAIN.items()}
    if draw(st.booleans()):
        whole = save(PLAIN)
        tree = {"model.safetensors": whole}
    else:
        shards = {f"model-{i}-of-3.safetensors": part for i, part in enumerate(parts.values())}
        index = {"metadata": {"total_size": 0}, "weight_map": dict(zip(parts, shards, strict=True))}
        tree = {"model.safetensors.index.json": dumped(index), **shards}
    return Case(draw(damaged_tree(tree, {name: damage_of(name, data) for name, data in tree.items()}, share=8)))


@st.composite
def logs(draw: DrawFn) -> Case:
    """A log of which lines are damaged."""
    rows = [{"images": 8 * k, "update": k, "time": "2026-11-27T00:00:00+00:00", "loss": 1 / k} for k in range(1, 5)]
    lines = [dumped(row | {"evaluated": True}) for row in rows]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, 3))
        lines[place] = draw(json_bytes(rows[place]))
    text = b"\n".join(lines)
    return Case({"log.jsonl": draw(st.one_of(st.just(text), st.just(text), damaged_bytes(text), odd_entries()))})


def kinds() -> dict[str, Callable[[], Kind]]:
    """Makes the kinds of this file, by name."""
    return {
        "weights": lambda: Kind(weights(), use_weights, 60),
        "diffusion models": lambda: Kind(damaged_folder(diffusion_folder()), use_diffusion, 40),
        "classifiers": lambda: Kind(damaged_folder(classifier_folder()), use_classifier, 40),
        "folders of diffusers": lambda: Kind(damaged_folder(diffusers_folder()), use_pipeline, 25),
        "logs": lambda: Kind(logs(), use_log, 80),
        "checkpoints": lambda: Kind(damaged_folder(checkpoints_folder()), use_checkpoints, 60),
    }
