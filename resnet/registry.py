"""Models by name."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from residual.names import suggest
from resnet.config import ResNetConfig
from resnet.densenet import DenseNet, DenseNetConfig
from resnet.edsr import EDSR, EDSRConfig
from resnet.entry import Entry
from resnet.highway import HighwayConfig, HighwayNet
from resnet.layouts import CLASSIFIER, COUNTER, bodies
from resnet.model import ResNet
from resnet.relatives import RELATIVES
from resnet.summary import summarize
from resnet.table import RESNETS

ENTRIES: dict[str, Entry] = {**RESNETS, **RELATIVES}
NETWORKS: dict[type, type] = {
    ResNetConfig: ResNet,
    DenseNetConfig: DenseNet,
    HighwayConfig: HighwayNet,
    EDSRConfig: EDSR,
}
_BLOCK = re.compile(r"(?:layer|stages\.|features\.denseblock)(\d+)\.(?:blocks\.|denselayer)?(\d+)\.")


def create_model(name: str, num_classes: int | None = None, in_channels: int | None = None, **changes: Any) -> Any:
    """The network of that name with fresh weights, in training mode.

    `num_classes`, `in_channels` and the `changes` replace fields of its config. With another number of channels the
    published mean and deviation are left out. Raises ValueError for an unknown name or field (with the nearest) and for
    values that the config refuses.
    """
    config = model_config(name)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if in_channels is not None:
        changes["in_channels"] = in_channels
    known = [field.name for field in fields(config)]
    if wrong := [field for field in changes if field not in known]:
        fallback = f"its fields are {', '.join(known)}"
        raise ValueError(f"{name} has no {wrong[0]!r}; {suggest(wrong[0], known, fallback)}")
    if in_channels not in (None, getattr(config, "in_channels", None)):
        changes = {"mean": None, "std": None} | changes
    return build(replace(config, **changes))


def build(config: Any) -> Any:
    """The network that a config describes."""
    return NETWORKS[type(config)](config)


def model_config(name: str) -> Any:
    """The config of a name. Raises ValueError, with the nearest names, if there is none."""
    return entry(name).config


def entry(name: str) -> Entry:
    """What is known of a name: its config, counts and source. Raises ValueError as `model_config` does."""
    if name not in ENTRIES:
        raise ValueError(f"unknown model {name!r}; {suggest(name, ENTRIES, 'list_models() lists them')}")
    return ENTRIES[name]


def list_models(pattern: str = "*") -> list[str]:
    """The names that a pattern such as "res*50*" matches (`*`: anything, `?`: any character), in alphabetical order."""
    return sorted(name for name in ENTRIES if fnmatchcase(name, pattern))


def register_model(name: str, config: Any = None, network: type | None = None) -> Any:
    """Give a config a name; or, without one, decorate a function that returns the config.

    A config class of your own needs the `network` that is built from it, once. Raises ValueError if the name is taken,
    if no network is known for the config, or if another is.
    """
    if config is None:

        def decorate(function: Callable[[], Any]) -> Callable[[], Any]:
            register_model(name, function(), network)
            return function

        return decorate
    if name in ENTRIES:
        raise ValueError(f"there is a model {name!r} already: give yours another name")
    if network is None and type(config) not in NETWORKS:
        raise ValueError(f"{name}: no network is known for a {type(config).__name__}; give it as network=…")
    if network is not None and NETWORKS.setdefault(type(config), network) is not network:
        known = NETWORKS[type(config)].__name__
        raise ValueError(
            f"{name}: a {type(config).__name__} is built as {known} already: derive a config class of yours"
        )
    ENTRIES[name] = Entry(config)
    return config


def summary(name: str, size: int | None = None, **changes: Any) -> str:
    """What `create_model(name, **changes)` is made of, as `summarize` tells it for images of `size` px."""
    with torch.device("meta"):
        model = create_model(name, **changes)
    return summarize(model, entry(name).size if size is None else size)


def likely_models(theirs: Mapping[str, Tensor]) -> list[str]:
    """The models whose published names and shapes these are, whatever the classes and the channels of the images."""
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items() if not name.endswith(COUNTER)}
    counts = block_counts(theirs)
    others = 1 + len(CLASSIFIER)  # tensors that depend on the channels of the images or on the classes
    found = []
    for name, known in ENTRIES.items():
        if getattr(known.config, "blocks", None) != counts:
            continue
        with torch.device("meta"):
            net = build(known.config)
        fits = (
            names.items() <= shapes.items() and len(shapes) <= len(names) + others
            for names in bodies(net.layouts, net.config, net.state_dict())
        )
        if any(fits):
            found.append(name)
    return found


def block_counts(theirs: Iterable[str]) -> tuple[int, ...]:
    """Blocks per stage, as published names tell them: `layer2.3.conv1.weight` is of the fourth block of stage 2."""
    numbers = {match.groups() for name in theirs if (match := _BLOCK.match(name))}
    return tuple(len(list(blocks)) for _, blocks in groupby(sorted(int(stage) for stage, _ in numbers)))
