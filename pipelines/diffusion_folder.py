"""Reads diffusion models: model folders, run folders, and folders of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion import DDPM, Formulation
from pictures.autoencoder import Autoencoder, load_autoencoder
from pictures.coordinates import Coordinates
from pictures.units import AnyFormat, Units
from pipelines.diffusion import (
    AUTOENCODER,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    MAX_SCALE,
    REGRESSION,
    DiffusionModel,
    Network,
)
from pipelines.folder import check_counts, check_finite, find_model, read_counts, read_format, replace_weights
from pipelines.formulation import read_formulation
from pipelines.from_diffusers import (
    average_beside,
    check_pipeline,
    formulation_of,
    has_learned_range,
    pipeline_folder,
)
from pipelines.inputs import Inputs, read_inputs
from pipelines.regression import Base, load_regression
from residual.names import amount
from residual.weights.config import read_config, read_json, require_version
from residual.weights.note import note
from residual.weights.pretrained import local_folder
from unet import EDM2UNet, UNet, UNetConfig, from_pretrained
from unet.adapt import adapt_weights
from unet.layouts.diffusers import find_network

VQVAE = "vqvae"
"""folder of the autoencoder in an exported `LDMPipeline` of diffusers"""
Description = tuple[Formulation, tuple[str, ...] | None, bool, AnyFormat, tuple[int, ...] | None]
"""formulation, names of the classes, whether there is a null label, pixel format, training images of each class"""


def load_model(path: str | Path, weights: Mapping[str, Tensor] | None = None) -> DiffusionModel:
    """The model of a run folder (its newest) or of a model folder, on the CPU, in float32 and in eval mode.

    A folder of diffusers is one, too: a pipeline around a `UNet2DModel`, or such a network, whose scheduler has what
    it predicts. `path` may also be "owner/name" on the Hugging Face hub. `weights` replace those of the network, such
    as by another average of its run. Raises ValueError, with the reason, if there is no model, if it is incomplete,
    and for weights that do not fit.
    """
    folder, images_seen = local_folder(path), None
    if description_file(folder) is None:
        check_pipeline(folder)
    if find_network(folder) is None:
        folder, images_seen = find_model(folder, DESCRIPTION_FILE)
    elif description_file(folder) is None:
        return _from_diffusers(folder, weights)
    net, description = read_network(folder)
    assert description is not None
    if weights is not None:
        replace_weights(net, weights)
    formulation, classes, null_label, pixel_format, counts = description
    check_finite(net, folder)
    scale = read_scale(folder)
    file = description_file(folder)
    assert file is not None, "read_network has read it"
    document = read_json(file)
    try:
        inputs, base = read_inputs(document, file.parent), read_base(document, file.parent)
        places, autoencoder = read_coordinates(document), read_autoencoder(document, file.parent)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from None
    _check_channels(net, folder, scale, inputs)
    check_counts(counts, len(classes or ()), folder)
    model = DiffusionModel(
        net,
        formulation,
        classes,
        null_label,
        pixel_format,
        images_seen,
        counts,
        upscale=scale,
        inputs=inputs,
        base=base,
        coordinates=places,
        autoencoder=autoencoder,
    )
    _check_parts(model, folder)
    return model


def description_file(folder: Path) -> Path | None:
    """The file diffusion.json of a model folder, or of the exported pipeline to which it belongs; None without one."""
    places = (folder, pipeline_folder(folder) if find_network(folder) else folder)
    return next((path for place in places if (path := place / DESCRIPTION_FILE).is_file()), None)


def read_network(folder: Path) -> tuple[Network, Description | None]:
    """The network of a model folder, in float32 and in eval mode, and the content of its diffusion.json, if it has one.

    diffusers counts “no label” among the classes; with a description that row is the null label again. Raises
    ValueError as `unet.from_pretrained` and `read_description` do, and if they have other classes.
    """
    net = from_pretrained(folder).float()
    if (path := description_file(folder)) is None:
        return net, None
    description = read_description(path)
    _, classes, null_label, *_ = description
    count = None if classes is None else len(classes)
    if isinstance(net, UNet) and null_label and not net.config.null_label and count is not None:
        if net.config.classes != count + 1:
            raise ValueError(f"{path} has a null label, but the network has no row for it, only {net.config.classes}")
        net = _rebuilt(replace(net.config, classes=count, null_label=True), net.state_dict())
    if net.config.classes != count:
        raise ValueError(f"{path} names {amount(count or 0, 'class')}, config.json has {net.config.classes}")
    return net, description


def _rebuilt(config: UNetConfig, weights: Mapping[str, Tensor]) -> UNet:
    """The network of another config with weights that fit it."""
    with torch.device("meta"):
        net = UNet(config)
    net.load_state_dict(weights, assign=True)
    return net.requires_grad_(True).eval()


def _from_diffusers(folder: Path, weights: Mapping[str, Tensor] | None) -> DiffusionModel:
    network = find_network(folder)
    assert network is not None
    UNet.read_config(folder)  # names another class first
    if read_json(network / "config.json").get("sample_size") is None:
        raise ValueError(
            f"{network / 'config.json'} has no sample_size, the side of the images in pixels; add the one of training"
        )
    if (text := average_beside(folder)) is not None:
        note(text)
    if (formulation := formulation_of(folder)) is None:
        formulation = DDPM()
        note(f"{folder} has no scheduler; its network is taken for one of {formulation}")
    net = from_pretrained(folder).float()
    if weights is not None:
        replace_weights(net, weights)
    if not has_learned_range(folder):
        net = _without_variance(net, folder)
    _check_channels(net, folder)
    classes = None if net.config.classes is None else tuple(map(str, range(net.config.classes)))
    return DiffusionModel(net, formulation, classes)


def _without_variance(net: Network, folder: Path) -> Network:
    """The network without a learned variance."""
    if isinstance(net, EDM2UNet) or not net.config.learned_variance:
        return net
    config = replace(net.config, learned_variance=False)
    weights, messages = adapt_weights(net.state_dict(), net.config, config)
    for text in messages:
        note(f"{folder}: {text}")
    return _rebuilt(config, weights)


def _check_channels(net: Network, folder: Path, scale: int | None = None, inputs: Inputs | None = None) -> None:
    channels = net.config.out_channels
    more = 0 if inputs is None else inputs.count(channels)
    if net.config.in_channels != channels * (1 if scale is None else 2) + more:
        raise ValueError(
            f"{folder}: a model that takes {net.config.in_channels} channels and draws {net.config.out_channels} "
            "cannot be sampled here: it needs more than noise; if it enlarges images, save it as a DiffusionModel with "
            "upscale"
        )


def _check_parts(model: DiffusionModel, folder: Path) -> None:
    """Raises ValueError for the units of other channels, the numbers of another network and another regression."""
    config, inputs, base = model.net.config, model.inputs, model.base
    if isinstance(units := model.pixel_format, Units) and len(units.mean) != config.out_channels:
        raise ValueError(
            f"{folder}: pixel_format has {amount(len(units.mean), 'channel')}, but the network draws "
            f"{config.out_channels}; copy the model again"
        )
    numbers, width = None if inputs is None else inputs.numbers, getattr(config, "augment_channels", None)
    if numbers is not None and numbers.width != width:
        raise ValueError(
            f"{folder}: numbers={numbers.names} take {numbers.width} inputs, but the network has {width}; copy the "
            "model again"
        )
    if base is not None and (base.model.pixel_format, base.model.shape) != (model.pixel_format, model.shape):
        raise ValueError(f"{folder}: its {REGRESSION} predicts images of other units or sizes; copy the model again")
    if model.autoencoder is not None and len(model.autoencoder.units.mean) != config.out_channels:
        raise ValueError(f"{folder}: its {AUTOENCODER} has latents of other channels; copy the model again")


def read_scale(folder: Path) -> int | None:
    """`DiffusionModel.upscale` of a model folder; None where its diffusion.json has none, or there is none.

    Raises ValueError for what is no scale.
    """
    if (path := description_file(folder)) is None:
        return None
    scale = read_json(path).get("upscale")
    if scale is not None and not (type(scale) is int and 2 <= scale <= MAX_SCALE):
        raise ValueError(f"{path}: upscale={scale!r} is no scale; give a whole number from 2 to {MAX_SCALE}")
    return scale


def read_coordinates(document: Mapping[str, Any]) -> Coordinates | None:
    """The coordinates in a diffusion.json; None if it has none. Raises ValueError for anything else."""
    found = document.get("coordinates")
    return None if found is None else read_config(Coordinates, found)


def read_base(document: Mapping[str, Any], folder: Path) -> Base | None:
    """The regression of a diffusion.json in its folder; None if it has none. Raises ValueError if it is damaged."""
    std = document.get("residual_std")
    if std is None:
        if (folder / REGRESSION).exists():
            raise ValueError(f"residual_std is missing, but {folder / REGRESSION} is there; copy the model again")
        return None
    model = load_regression(folder / REGRESSION)
    if not (isinstance(std, list) and len(std) == model.shape[0] and all(type(x) is float and x > 0 for x in std)):
        raise ValueError(f"residual_std={std!r} should be {amount(model.shape[0], 'positive number')}")
    return Base(model, tuple(std))


def read_autoencoder(document: Mapping[str, Any], folder: Path) -> Autoencoder | None:
    """The autoencoder of a diffusion.json in its folder, a model folder or an exported pipeline; None if it has none.

    Raises ValueError if it is damaged, and for another one than that of the training.
    """
    if (sha256 := document.get("autoencoder_sha256")) is None:
        return None
    place = folder / (AUTOENCODER if (folder / "config.json").is_file() else VQVAE)
    autoencoder = load_autoencoder(place)
    if autoencoder.fingerprint != sha256:
        raise ValueError(f"{place} is not the autoencoder of its training; copy the model again")
    return autoencoder


@dataclass(frozen=True)
class _Labels:
    classes: tuple[str, ...] | None
    null_label: bool


def read_description(path: Path) -> Description:
    """The content of a file diffusion.json.

    Raises ValueError for what is incomplete, unknown, or of another type.
    """
    document = read_json(path)
    try:
        require_version(document["format_version"], FORMAT_VERSION)
        formulation = read_formulation(document["formulation"])
        labels = read_config(_Labels, {name: document[name] for name in ("classes", "null_label")})
        pixel_format = read_format(document)
        return formulation, labels.classes, labels.null_label, pixel_format, read_counts(document)
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; it is incomplete") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
