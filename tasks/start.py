"""What a training run starts from: a network that was trained before, here or elsewhere.

A run folder or model folder of ours, a model or pipeline folder of diffusers, such a repository on the Hugging Face
hub, or a safetensors file with the names of another library.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion import PUBLISHED, Schedule
from pipelines.diffusion import DESCRIPTION_FILE, read_description
from residual.weights.config import read_json
from residual.weights.keymap import check_state
from residual.weights.pretrained import local_folder, read_weights
from unet import UNet, UNetConfig
from unet.adapt import adapt_weights
from unet.layouts import config_of_weights, import_weights, likely_layouts

WEIGHT_FILES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_SCHEDULER = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
}
"""diffusers' defaults, where scheduler_config.json leaves something out"""


def start_config(init: str) -> UNetConfig | None:
    """The config of the network that a run starts from, which gives the defaults of its section `model`.

    None for a plain file of weights, which has none. Raises ValueError for what cannot be opened.
    """
    if _is_file(init):
        return None
    try:
        return UNet.read_config(_folder(init))
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None


def read_start(
    net: UNet, init: str, layout: str | None, schedule: Schedule, prediction: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of `init`, adapted to the channels and labels of `net`, and what there is to say about it.

    Raises ValueError for what cannot be opened, for networks that differ in more than `adapt_weights` can bridge, and
    if the run would train another answer than the network has learned to give.
    """
    try:
        if _is_file(init):
            there, weights, note = _plain_file(Path(init), layout, net.config)
        elif layout is not None:
            raise ValueError(f"a folder tells its layout; leave out init_layout={layout}")
        else:
            there, weights, note = _model_folder(_folder(init), schedule, prediction)
        weights, told = _adapt_augmentation(weights, there, net)
        there = replace(there, augment_channels=net.config.augment_channels)
        adapted, adaptations = adapt_weights(weights, there, net.config)
        check_state(adapted, net.state_dict())
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None
    unknown = f"; it does not say for what it was trained, the run trains {prediction}, {schedule.name} noise"
    return adapted, [f"init: {init}{note or unknown}", *(f"init: {line}" for line in [*told, *adaptations])]


def _is_file(init: str) -> bool:
    return Path(init).is_file() or Path(init).suffix in WEIGHT_FILES


def _folder(init: str) -> Path:
    """The model folder: of a run, its averaged model."""
    if not (Path(init) / "config.yaml").is_file():
        return local_folder(init)
    if not (Path(init) / "model").is_dir():
        raise ValueError("this run has not saved a model yet")
    return Path(init) / "model"


def _plain_file(path: Path, layout: str | None, here: UNetConfig) -> tuple[UNetConfig, dict[str, Tensor], str]:
    theirs = read_weights(path)
    layout = layout or _layout_of(theirs)
    if layout == "edm":
        augment = (weight.shape[1] for name, weight in theirs.items() if name.endswith("map_augment.weight"))
        here = replace(here, augment_channels=next(augment, None))
    there = config_of_weights(here, theirs, layout)
    with torch.device("meta"):
        expected = UNet(there).state_dict()
    return there, import_weights(there, theirs, expected, layout), ""


def _adapt_augmentation(
    weights: dict[str, Tensor], there: UNetConfig, net: UNet
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights with or without the input for how an image was augmented, as `net` has it; and what to say of it.

    Of an image as it is that input is told zeros, so such images mean the same to both.
    """
    here = net.embedding.augment
    if there.augment_channels == net.config.augment_channels:
        return weights, []
    kept = {name: weight for name, weight in weights.items() if name != "embedding.augment.weight"}
    if here is None:
        return kept, ["augmentation: what the network is told of it is left out; augment.non_leaky keeps it"]
    kept["embedding.augment.weight"] = torch.zeros_like(here.weight)
    return kept, ["augmentation: the network was told nothing of it there; that starts at zero"]


def _layout_of(theirs: Mapping[str, Tensor]) -> str:
    """Raises ValueError if the names do not tell it."""
    likely = likely_layouts(theirs)
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise ValueError(
            f"its names fit {' and '.join(likely)}, which differ only in the order of rows; give --init_layout adm "
            "(improved-diffusion, and guided-diffusion but for its 64x64 model) or adm-new-order (that one)"
        )
    if "embedding.linear1.weight" in theirs:
        raise ValueError("its names are our own; give the folder that it lies in")
    raise ValueError(f"its names, such as {next(iter(theirs), 'none at all')!r}, are of no layout that is known here")


def _model_folder(folder: Path, schedule: Schedule, prediction: str) -> tuple[UNetConfig, dict[str, Tensor], str]:
    found = _trained_for(folder)
    asked = {"prediction": prediction, "schedule": schedule.name, "timesteps": schedule.timesteps}
    if found is not None and (wrong := [name for name in asked if found[name] != asked[name]]):
        values = "; ".join(f"diffusion.{name}={found[name]} there, {asked[name]} here" for name in wrong)
        flags = " ".join(f"--diffusion.{name} {found[name]}" for name in wrong)
        way_out = f"give {flags}" if found["schedule"] in PUBLISHED else "there is no such schedule here"
        raise ValueError(f"it was trained for another answer than this run would train ({values}); {way_out}")
    net = UNet.from_pretrained(folder).float()
    return net.config, net.state_dict(), "" if found is None else _shown(net.config)


def _shown(config: UNetConfig) -> str:
    height, width = config.size
    return f", {config.in_channels} x {height} x {width}, {config.classes or 'no'} classes"


def _trained_for(folder: Path) -> dict[str, Any] | None:
    """Prediction, schedule and timesteps, as far as the folder tells."""
    if (folder / DESCRIPTION_FILE).is_file():
        schedule, prediction, *_ = read_description(folder / DESCRIPTION_FILE)
        return {"prediction": prediction, "schedule": schedule.name, "timesteps": schedule.timesteps}
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            given = _SCHEDULER | read_json(path)
            return {
                "prediction": given["prediction_type"],
                "schedule": _schedule_of(given),
                "timesteps": given["num_train_timesteps"],
            }
    return None


def _schedule_of(given: Mapping[str, Any]) -> str:
    """Our name for a scheduler's betas, else their description."""
    betas = {name: given[name] for name in ("beta_schedule", "beta_start", "beta_end")}
    if given["trained_betas"] is not None:
        return "trained_betas"
    for name in PUBLISHED:
        try:
            expected = Schedule(name=name, timesteps=given["num_train_timesteps"]).scheduler_config("epsilon")
        except ValueError:
            continue
        ours = {key: expected[key] for key in betas if key in expected}
        if all(
            math.isclose(betas[k], v, rel_tol=1e-6) if isinstance(v, float) else betas[k] == v for k, v in ours.items()
        ):
            return name
    return "({beta_schedule} from {beta_start} to {beta_end})".format(**betas)
