"""Reads the trained classifier from which a classification run starts (`--init`), and adapts its weights.

A run folder or model folder of this project, a repository of such on the Hugging Face hub, or a safetensors file with
the names of another library.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from pipelines.classification import DESCRIPTION_FILE, read_description
from pipelines.folder import model_folder
from residual.names import rows_by_name
from residual.weights.adapt import adapt_inputs
from resnet import Classifier, ClassifierConfig, from_pretrained, import_weights
from resnet.layouts import CLASSIFIER, STEM
from tasks.init import by_number, is_weights_file

FREE = {"in_channels", "num_classes", "mean", "std", "dropout", "zero_init", "recompute_stages"}
"""fields that may differ: adapted below, or without an effect on the meaning of the weights"""


def init_config(init: str) -> ClassifierConfig | None:
    """The config of the network `init`, which gives the defaults of the section `model`.

    None for a file of weights, which holds no config. Raises ValueError if `init` cannot be opened.
    """
    if is_weights_file(init):
        return None
    try:
        return _open(model_folder(init)).config
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None


def load_init(net: Classifier, init: str, classes: Sequence[str] | None) -> list[str]:
    """Loads the weights of `init` into `net`, whose classes have these names; returns messages to print.

    Classes keep their rows of the last layer by name, or by number if one of the networks has no names; others start
    fresh. A first convolution for other channels is adapted. Raises ValueError, with the difference, if the networks
    differ in anything else, or if `init` cannot be opened.
    """
    try:
        messages = import_weights(net, init) if is_weights_file(init) else _load_folder(net, init, classes)
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None
    return [f"init: {init}", *(f"init: {line}" for line in messages)]


def _open(folder: Path) -> Classifier:
    network = from_pretrained(folder)
    if not isinstance(network, Classifier):
        raise ValueError(f"{folder} holds a {type(network).__name__}, which is not a classifier")
    return network


def _load_folder(net: Classifier, init: str, classes: Sequence[str] | None) -> list[str]:
    folder = model_folder(init)
    source = _open(folder)
    if type(source) is not type(net):
        raise ValueError(f"it is a {type(source).__name__}, and this run trains a {type(net).__name__}")
    names = [field.name for field in fields(net.config) if field.name not in FREE]
    pairs = [(name, getattr(source.config, name), getattr(net.config, name)) for name in names]
    if different := [f"{name}={a!r} in the source, {b!r} here" for name, a, b in pairs if a != b]:
        raise ValueError(f"the networks differ in {'; '.join(different)}; leave these settings out")
    weights, own, messages = source.state_dict(), net.state_dict(), list[str]()
    if (old := source.config.in_channels) != (new := net.config.in_channels):
        weights[STEM] = adapt_inputs(weights[STEM], new)
        messages.append(f"input: {old} channels in the source, {new} here")
    description = folder / DESCRIPTION_FILE
    known = read_description(description)[0] if description.is_file() else None
    if known is not None and len(known) != source.config.num_classes:
        raise ValueError(f"{description} names {len(known)} classes, config.json has {source.config.num_classes}")
    rows = rows_by_name(known, classes)
    if rows is None:
        messages += by_number(known, classes)
        same = source.config.num_classes == net.config.num_classes
        rows = [number if same else None for number in range(net.config.num_classes)]
    for name in CLASSIFIER if not net.fc.weight.is_meta else ():
        fresh, trained = own[name], weights[name]
        weights[name] = torch.stack([fresh[i] if row is None else trained[row] for i, row in enumerate(rows)])
    if rows != list(range(source.config.num_classes)):
        kept = sum(row is not None for row in rows)
        messages.append(f"classes: {kept} of {len(rows)} keep the row of the source, the others start fresh")
    if not net.fc.weight.is_meta:
        net.load_state_dict(weights)
    return messages
