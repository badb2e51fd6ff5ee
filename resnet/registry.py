"""Networks by kind, models by name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from residual.model_info import ModelInfo
from residual.names import require_known
from residual.weights.config import read_json
from residual.weights.keymap import Difference
from residual.weights.layout import read_state
from residual.weights.pretrained import local_folder, qualified_name
from resnet.classifier import Classifier, load_weights
from resnet.config.classifier import ClassifierConfig
from resnet.config.densenet import DenseNetConfig
from resnet.config.edsr import EDSRConfig
from resnet.config.highway import HighwayConfig
from resnet.config.resnet import ResNetConfig
from resnet.densenet import DenseNet
from resnet.edsr import EDSR
from resnet.highway import HighwayNet
from resnet.layouts import CLASSIFIER, COUNTER, bodies, without_prefix
from resnet.model import ResNet
from resnet.summary import summarize
from resnet.table import MODELS, Config

Network = Classifier | EDSR
NETWORKS: dict[str, tuple[type[ClassifierConfig], type[Classifier]]] = {
    "resnet": (ResNetConfig, ResNet),
    "densenet": (DenseNetConfig, DenseNet),
    "highway": (HighwayConfig, HighwayNet),
}
"""classifiers by kind: the class of the config and that of the network"""
_BLOCK = re.compile(r"(?:layer|stages\.|features\.denseblock)(\d+)\.(?:blocks\.|denselayer)?(\d+)\.")


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a pattern such as "res*50*" (`*`: anything, `?`: any character), in alphabetical order."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def model_info(name: str) -> ModelInfo[Config]:
    """Config, counts, published result and source of a model. Raises ValueError for an unknown name."""
    return MODELS[require_known("model", name, MODELS)]


def model_config(name: str) -> Config:
    """The config of a model. Raises ValueError for an unknown name."""
    return model_info(name).config


def create_model(name: str, num_classes: int | None = None, in_channels: int | None = None, **changes: Any) -> Network:
    """The network of a name, freshly initialised, in training mode.

    `num_classes`, `in_channels` and `changes` replace fields of its config. With another number of channels, the
    published mean and deviation are dropped. Raises ValueError for an unknown name or field, with the closest ones, and
    for invalid values.
    """
    config = model_config(name)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if in_channels is not None:
        changes["in_channels"] = in_channels
    for field in changes:
        require_known(f"field of {name}", field, [field.name for field in fields(config)])
    if in_channels not in (None, getattr(config, "in_channels", None)):
        changes = {"mean": None, "std": None} | changes
    return build(replace(config, **changes))


@overload
def build(config: ResNetConfig) -> ResNet: ...
@overload
def build(config: DenseNetConfig) -> DenseNet: ...
@overload
def build(config: HighwayConfig) -> HighwayNet: ...
@overload
def build(config: EDSRConfig) -> EDSR: ...
@overload
def build(config: ClassifierConfig) -> Classifier: ...
@overload
def build(config: Config) -> Network: ...
def build(config: Config) -> Network:
    """The network of a config, freshly initialised. Raises ValueError for a class of config that is not registered."""
    if isinstance(config, EDSRConfig):
        return EDSR(config)
    return _network_class(config)(config)


def from_pretrained(folder_or_hub_id: str | Path) -> Network:
    """The network of a model folder, of the class named in its config.json, on the CPU and in eval mode.

    Raises ValueError for a folder of another package's model, and as `Pretrained.from_pretrained` does.
    """
    folder = local_folder(folder_or_hub_id)
    path = folder / "config.json"
    found = read_json(path).get("model")
    networks: list[type[Network]] = [*(network for _, network in NETWORKS.values()), EDSR]
    for network in networks:
        if found == qualified_name(network):
            return network.from_pretrained(folder)
    names = ", ".join(qualified_name(network) for network in networks)
    raise ValueError(f"{path} describes model={found!r}, which is none of: {names}")


def register_model(name: str, config: Config) -> None:
    """Adds a config under a name. Raises ValueError if the name is taken, or if no network is registered for it.

    A network of your own is registered by a row in `NETWORKS`.
    """
    if not isinstance(config, EDSRConfig):
        _network_class(config)
    if name in MODELS:
        raise ValueError(f"the name {name!r} is taken: choose another one")
    MODELS[name] = ModelInfo(config)


def _network_class(config: ClassifierConfig) -> type[Classifier]:
    for config_class, network in NETWORKS.values():
        if type(config) is config_class:
            return network
    raise ValueError(f"no network is registered for a {type(config).__name__}: add it to resnet.NETWORKS")


def summary(name: str, size_px: int | None = None, **changes: Any) -> str:
    """The table of `summarize` for `create_model(name, **changes)`, by default for images of the published size."""
    if size_px is None:
        size_px = model_info(name).size_px or 224
    with torch.device("meta"):
        model = create_model(name, **changes)
    return summarize(model, size_px)


def import_weights(
    net: Classifier, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None
) -> list[str]:
    """As `net.import_weights`, but the error for names or shapes that do not fit also names a model that they fit."""
    state = read_state(state_dict)
    try:
        return load_weights(net, state, layout)
    except Difference as error:
        names = likely_models(state)
        raise ValueError(f"{error}; {names[0]!r} has such weights" if names else str(error)) from None


def likely_models(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The models whose published names and shapes these are, for any number of classes and image channels."""
    state_dict = without_prefix(state_dict)
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items() if not name.endswith(COUNTER)}
    counts = block_counts(state_dict)
    others = 1 + len(CLASSIFIER)  # tensors that depend on the image channels or on the classes
    found = []
    for name, info in MODELS.items():
        if not isinstance(info.config, ClassifierConfig) or getattr(info.config, "blocks_per_stage", None) != counts:
            continue
        with torch.device("meta"):
            net = build(info.config)
        fits = (
            names.items() <= shapes.items() and len(shapes) <= len(names) + others
            for names in bodies(net.layouts, net.config, net.state_dict())
        )
        if any(fits):
            found.append(name)
    return found


def block_counts(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks per stage, from published names: `layer2.3.conv1.weight` belongs to the fourth block of stage 2."""
    numbers = {match.groups() for name in names if (match := _BLOCK.match(name))}
    return tuple(len(list(blocks)) for _, blocks in groupby(sorted(int(stage) for stage, _ in numbers)))
