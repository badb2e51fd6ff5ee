"""Folders of diffusers: what the network of a pipeline predicts, and the pipeline as a model of ours."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion import DDPM, EDM, Flow, Formulation
from diffusion.formulations import PREDICTIONS, SCHEDULES, VARIANCES
from residual.weights.config import read_json
from storage.show import printable

_DDPM_SCHEDULERS = {
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "IPNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "SASolverScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "RePaintScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
}
"""schedulers that draw with networks of DDPM"""
_EDM_SCHEDULERS = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
_FLOW_SCHEDULERS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
_DDPM_DEFAULTS = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "timestep_type": "discrete",
    "variance_type": "fixed_small",
}
"""diffusers' defaults for what scheduler_config.json leaves out"""
_EDM_DEFAULTS = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"}
MAX_NUMBER = 1e18
_LATENTS = ("vqvae", "vae", "text_encoder", "movq", "vqvae_encoder")
"""parts of pipelines whose network does not see images"""


def check_pipeline(folder: Path) -> None:
    """Raises ValueError for a pipeline of diffusers whose network works on latents, and for one without a `unet`."""
    if not (folder / "model_index.json").exists():
        return
    parts = {name: value for name, value in read_json(folder / "model_index.json").items() if _is_part(value)}
    if latent := [name for name in _LATENTS if name in parts]:
        raise ValueError(
            f"{folder} is a pipeline on latents (it has a {latent[0]}), but networks here take images; "
            f"{folder / 'unet'} alone is its network"
        )
    if "unet" not in parts:
        raise ValueError(f"{folder} is a pipeline without a unet, only {', '.join(map(printable, parts)) or 'nothing'}")


def average_beside(folder: Path) -> str | None:
    """A note about averaged weights beside the network that is read from a folder; None if there are none."""
    if not ((folder / "unet").is_dir() and (folder / "unet_ema").is_dir()):
        return None
    return (
        f"{folder / 'unet'} is read; the average of its weights is in {folder / 'unet_ema'}, which can be given instead"
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


def pipeline_folder(folder: Path) -> Path:
    """The folder of the pipeline or run that `folder` is, or whose `unet*/` or `checkpoint-*/` it is."""
    while folder.name.startswith(("unet", "checkpoint-")) and not (folder / "model_index.json").exists():
        folder = folder.parent
    return folder


def formulation_of(folder: Path) -> Formulation | None:
    """The formulation of a folder of diffusers, from its scheduler's config; None if it has no scheduler.

    The scheduler may be in the folder itself or in `scheduler/`, below the folder or that of its pipeline. Its class is
    that of the pipeline's model_index.json, as in diffusers, else the one in its config. Raises ValueError, with the
    field, for what no formulation of ours describes.
    """
    if (path := _scheduler_file(folder)) is None:
        return None
    try:
        return _of_scheduler(read_json(path) | _class_in_index(pipeline_folder(folder)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def has_learned_range(folder: Path) -> bool:
    """Whether a learned variance of the network of a folder, if there is one, is that of Nichol & Dhariwal 2021.

    Of the variances of diffusers' schedulers only `learned`, which is the variance itself, is another one.
    """
    path = _scheduler_file(folder)
    return path is None or read_json(path).get("variance_type") != "learned"


def _scheduler_file(folder: Path) -> Path | None:
    places = (folder, folder / "scheduler", pipeline_folder(folder) / "scheduler")
    return next((path for place in places if (path := place / "scheduler_config.json").exists()), None)


def _class_in_index(pipeline: Path) -> dict[str, str]:
    """The class of the scheduler that model_index.json names, as a field of its config; empty if it names none."""
    index = pipeline / "model_index.json"
    part: Any = read_json(index).get("scheduler") if index.exists() else None
    return {"_class_name": part[1]} if _is_part(part) else {}


def _of_scheduler(given: Mapping[str, Any]) -> Formulation:
    name = str(given.get("_class_name", "DDPMScheduler"))
    if name in _FLOW_SCHEDULERS:
        if given.get("use_dynamic_shifting"):
            raise ValueError("use_dynamic_shifting=true gives each image size other noise levels; only false is known")
        return Flow(time_scale=_number(given, "num_train_timesteps", 1000), shift=_number(given, "shift", 1.0))
    if name in _EDM_SCHEDULERS:
        given = _EDM_DEFAULTS | dict(given)
        if given["prediction_type"] != "epsilon":
            raise ValueError(f"prediction_type={given['prediction_type']!r} of {name} is not EDM's; only epsilon is")
        return EDM(**{key: _number(given, key) for key in ("sigma_data", "sigma_min", "sigma_max")})
    if name in _DDPM_SCHEDULERS:
        return _ddpm(_DDPM_DEFAULTS | dict(given))
    known = ", ".join(sorted(_DDPM_SCHEDULERS | _EDM_SCHEDULERS | _FLOW_SCHEDULERS))
    raise ValueError(f"the scheduler {name!r} belongs to another formulation; known are: {known}")


def _ddpm(given: Mapping[str, Any]) -> DDPM:
    prediction = next((name for name, row in PREDICTIONS.items() if row[1] == given["prediction_type"]), None)
    if prediction is None:
        raise ValueError(
            f"prediction_type={given['prediction_type']!r} is not one of "
            f"{', '.join(row[1] for row in PREDICTIONS.values())}"
        )
    if given["timestep_type"] != "discrete":
        raise ValueError(f"timestep_type={given['timestep_type']!r} changes the noise levels; only 'discrete' is known")
    rescaled = given["rescale_betas_zero_snr"]
    if not isinstance(rescaled, bool) or (rescaled and prediction == "epsilon"):
        raise ValueError(
            f"rescale_betas_zero_snr={rescaled!r} does not go with prediction_type={given['prediction_type']!r}"
        )
    timesteps = _number(given, "num_train_timesteps")
    for schedule in SCHEDULES if given["trained_betas"] is None else ():
        try:
            formulation = DDPM(
                schedule=schedule,  # type: ignore[arg-type]
                timesteps=int(timesteps),
                prediction=prediction,  # type: ignore[arg-type]
                zero_terminal_snr=rescaled,
                variance=given["variance_type"] if given["variance_type"] in VARIANCES else "fixed_large",
            )
        except ValueError:
            continue
        ours = formulation.scheduler_config()
        keys = [key for key in ("beta_schedule", "beta_start", "beta_end") if key in ours]
        if all(_same(ours[key], given[key]) for key in keys):
            return formulation
    betas = (
        "trained_betas, its own betas,"
        if given["trained_betas"] is not None
        else "{beta_schedule} betas from {beta_start} to {beta_end} (beta_schedule, beta_start, beta_end)"
    )
    raise ValueError(
        f"{betas.format(**given)} and num_train_timesteps={timesteps:g} are none of the published schedules: "
        f"{', '.join(SCHEDULES)}"
    )


def _number(given: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise ValueError(f"{key}={value!r:.40} is not a number up to {MAX_NUMBER:g}")
    return float(value)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)
