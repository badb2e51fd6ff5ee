"""Networks by kind, models by name."""

import re
from collections.abc import Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from residual.model_info import ModelInfo, refuse_pretrained
from residual.names import require_known
from residual.weights.config import change_config
from residual.weights.keymap import Difference
from residual.weights.layout import read_state
from residual.weights.pretrained import local_folder, model_class
from residual.weights.read import plain_names
from resnet.classifier import Classifier, load_weights
from resnet.config.classifier import ClassifierConfig
from resnet.config.densenet import DenseNetConfig
from resnet.config.edsr import EDSRConfig
from resnet.config.highway import HighwayConfig
from resnet.config.resnet import ResNetConfig
from resnet.densenet import DenseNet
from resnet.edsr import EDSR
from resnet.highway import HighwayNet
from resnet.layouts import CLASSIFIER, COUNTER, bodies
from resnet.model import ResNet
from resnet.table import MODELS, Config

Network = Classifier | EDSR
NETWORKS: dict[str, tuple[type[ClassifierConfig], type[Classifier]]] = {
    "resnet": (ResNetConfig, ResNet),
    "densenet": (DenseNetConfig, DenseNet),
    "highway": (HighwayConfig, HighwayNet),
}
"""classifiers by kind: the class of the config and that of the network"""
_BLOCK = re.compile(r"(layer|stages\.|features\.denseblock)\d+\.(blocks\.|denselayer)?\d+\.")
"""start of the published names of a block's weights, such as `layer2.3.conv1.weight`"""


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a pattern such as "res*50*" (`*`: anything, `?`: any character), in alphabetical order."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def model_info(name: str) -> ModelInfo[Config]:
    """Config, counts, published result and source of a model. Raises ValueError for an unknown name."""
    return MODELS[require_known("model", name, MODELS)]


def create_model(name: str, num_classes: int | None = None, in_channels: int | None = None, **changes: Any) -> Network:
    """The network of a name, freshly initialised, in training mode.

    `num_classes`, `in_channels` and `changes` replace fields of its config. With another number of channels, the
    published mean and deviation are dropped. Raises ValueError for an unknown name or field, with the closest ones, and
    for invalid values.
    """
    config = model_info(name).config
    refuse_pretrained(name, changes)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if in_channels is not None:
        changes["in_channels"] = in_channels
    for field in changes:
        require_known(f"field of {name}", field, [field.name for field in fields(config)])
    if in_channels not in (None, getattr(config, "in_channels", None)):
        changes = {"mean": None, "std": None} | changes
    return build(change_config(config, changes))


@overload
def build(config: ClassifierConfig) -> Classifier: ...
@overload
def build(config: EDSRConfig) -> EDSR: ...
def build(config: Config) -> Network:
    """The network of a config, freshly initialised. Raises ValueError for a class of config that is not registered."""
    if isinstance(config, EDSRConfig):
        return EDSR(config)
    for config_class, network in NETWORKS.values():
        if type(config) is config_class:
            return network(config)
    raise ValueError(f"no network is registered for a {type(config).__name__}: add it to resnet.NETWORKS")


def from_pretrained(folder_or_hub_id: str | Path) -> Network:
    """The network of a model folder, of the class named in its config.json, on the CPU and in eval mode.

    Raises ValueError for a folder of another package's model, and as `Pretrained.from_pretrained` does.
    """
    folder = local_folder(folder_or_hub_id)
    classes: list[type[Network]] = [*(network for _, network in NETWORKS.values()), EDSR]
    return model_class(folder, classes).from_pretrained(folder)


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
    state_dict, _ = plain_names(state_dict)
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items() if not name.endswith(COUNTER)}
    blocks = {match[0] for name in shapes if (match := _BLOCK.match(name))}
    others = 1 + len(CLASSIFIER)  # tensors that depend on the image channels or on the classes
    found = []
    for name, info in MODELS.items():
        if not isinstance(info.config, ResNetConfig | DenseNetConfig) or sum(info.config.blocks_per_stage) != len(
            blocks
        ):
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
