"""Reads the trained network from which a diffusion run starts (`--init`), and adapts its weights.

A run folder or model folder of this project, a model or pipeline folder of diffusers, such a repository on the Hugging
Face hub, or a safetensors file with the names of another library.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion import DDPM, FORMULATIONS, Formulation, differences
from diffusion.formulations import PREDICTIONS, SCHEDULES
from pipelines.diffusion import DESCRIPTION_FILE, Network, read_description
from residual.weights.config import read_json
from residual.weights.keymap import check_state
from residual.weights.pretrained import local_folder
from residual.weights.read import read_weights
from unet import EDM2Config, UNetConfig, from_pretrained
from unet.adapt import adapt_weights
from unet.layouts import likely_layouts
from unet.registry import network_class

WEIGHT_FILES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_SCHEDULER = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
}
"""diffusers' defaults for what scheduler_config.json leaves out"""


def init_config(init: str) -> UNetConfig | EDM2Config | None:
    """The config of the network `init`, which gives the defaults of the section `model`.

    None for a file of weights, which holds no config. Raises ValueError if `init` cannot be opened.
    """
    if _is_file(init):
        return None
    try:
        folder = _folder(init)
        return network_class(folder).read_config(folder)
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None


def read_init(
    net: Network, init: str, layout: str | None, formulation: Formulation
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of `init`, adapted to the channels and labels of `net`, and messages to print.

    Raises ValueError if `init` cannot be opened, if the networks differ in more than `adapt_weights` can bridge, or if
    the network was trained under another formulation than that of the run.
    """
    try:
        if layout is not None and not _is_file(init):
            raise ValueError(f"init_layout={layout} is for files of weights; leave it out for a folder")
        trained = None if _is_file(init) else _formulation_of(_folder(init))
        if trained is not None:
            _check_formulation(trained, formulation)
        weights, note, messages = _read(net, init, layout)
        check_state(weights, net.state_dict())
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None
    if trained is None:
        note += f"; its formulation is unknown, the run trains {formulation}"
    return weights, [f"init: {init}{note}", *(f"init: {line}" for line in messages)]


def _read(net: Network, init: str, layout: str | None) -> tuple[dict[str, Tensor], str, list[str]]:
    """The adapted weights, a note about their network, and messages."""
    if _is_file(init):
        state = read_weights(Path(init))
        weights, messages = net.convert_weights(state, layout or _layout_of(state))
        return weights, "", messages
    trained = from_pretrained(_folder(init)).float()
    weights, messages = adapt_weights(trained.state_dict(), trained.config, net.config)
    return weights, _shape(trained.config), messages


def _is_file(init: str) -> bool:
    return Path(init).is_file() or Path(init).suffix in WEIGHT_FILES


def _folder(init: str) -> Path:
    """The model folder; of a run, that of its averaged model."""
    if not (Path(init) / "config.yaml").is_file():
        return local_folder(init)
    if not (Path(init) / "model").is_dir():
        raise ValueError("this run has not saved a model yet")
    return Path(init) / "model"


def _layout_of(state: Mapping[str, Tensor]) -> str:
    """The layout that the names fit. Raises ValueError if there is none, or more than one."""
    likely = likely_layouts(state)
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise ValueError(
            f"its names fit {' and '.join(likely)}, which differ only in the order of rows; give --init_layout adm "
            "(improved-diffusion, and guided-diffusion but for its 64x64 model) or adm-new-order (that one)"
        )
    if "embedding.linear1.weight" in state or "embedding.noise.weight" in state:
        raise ValueError("its names are those of this project; give the model folder that holds the file")
    raise ValueError(f"its names, such as {next(iter(state), 'none at all')!r}, belong to no known layout")


def _check_formulation(trained: Formulation, formulation: Formulation) -> None:
    """Raises ValueError with the fields that differ, and the flags that make them equal."""
    if different := differences(trained, formulation, FORMULATIONS):
        rows = [
            f"objective.{name} is {pair[0]} in the source and {pair[1]} in this run" for name, pair in different.items()
        ]
        flags = " ".join(f"--objective.{name} {theirs}" for name, (theirs, _) in different.items())
        raise ValueError(f"it was trained under another formulation ({'; '.join(rows)}); give {flags}")


def _shape(config: UNetConfig | EDM2Config) -> str:
    height, width = config.size
    return f", {config.in_channels} x {height} x {width}, {config.classes or 'no'} classes"


def _formulation_of(folder: Path) -> Formulation | None:
    """The formulation of a model folder; None if it does not hold one."""
    if (folder / DESCRIPTION_FILE).is_file():
        return read_description(folder / DESCRIPTION_FILE)[0]
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return _ddpm_of_scheduler(_SCHEDULER | read_json(path))
    return None


def _ddpm_of_scheduler(given: Mapping[str, Any]) -> DDPM:
    """The formulation of a scheduler's config. Raises ValueError for betas and predictions that DDPM does not have."""
    prediction = next((name for name, row in PREDICTIONS.items() if row[1] == given["prediction_type"]), None)
    if prediction is None:
        raise ValueError(
            f"its scheduler has prediction_type={given['prediction_type']}; only "
            f"{', '.join(row[1] for row in PREDICTIONS.values())} can be trained further"
        )
    for schedule in SCHEDULES if given["trained_betas"] is None else ():
        try:
            formulation = DDPM(schedule=schedule, timesteps=given["num_train_timesteps"], prediction=prediction)  # type: ignore[arg-type]
        except ValueError:
            continue
        ours = formulation.scheduler_config()
        keys = [key for key in ("beta_schedule", "beta_start", "beta_end") if key in ours]
        if all(_same(ours[key], given[key]) for key in keys):
            return formulation
    betas = (
        "its own betas"
        if given["trained_betas"] is not None
        else "{beta_schedule} betas from {beta_start} to {beta_end}"
    )
    raise ValueError(
        f"its scheduler has {betas.format(**given)}; only the published schedules can be trained further: "
        f"{', '.join(SCHEDULES)}"
    )


def _same(ours: Any, theirs: Any) -> bool:
    return math.isclose(ours, theirs, rel_tol=1e-6) if isinstance(ours, float) else ours == theirs
