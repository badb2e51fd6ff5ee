"""The autoencoder of a model of latents, in the units of diffusers' LDMPipeline."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float64
from torch import Tensor

from pictures.autoencoder import Autoencoder


def fold_units(autoencoder: Autoencoder) -> Autoencoder:
    """The autoencoder with `scaling_factor` as the only unit of its latents, as `LDMPipeline` requires.

    That pipeline decodes `x / scaling_factor` for the values x of a diffusion network. A shift (`shift_factor` or
    `latents_mean`) and a scale per channel (`latents_std`) therefore become part of the 1x1 convolutions after the
    encoder and before the decoder. Where there are none, they are added. The values x and the decoded pictures stay the
    same. An autoencoder without shift and scales is returned unchanged.
    """
    config, units = autoencoder.net.config, autoencoder.units
    if not (config.shift_factor or config.latents_mean or config.latents_std):
        return autoencoder
    mean = torch.tensor(units.mean, dtype=torch.float64)
    scale = config.scaling_factor * torch.tensor(units.std, dtype=torch.float64)
    state = autoencoder.net.state_dict()
    weight, bias = _conv(state, "quant_conv", 2 * len(mean))  # its output: mean and log-variance of each channel
    rows = torch.cat([1 / scale, torch.ones_like(scale)])
    state["quant_conv.weight"] = (rows[:, None] * weight)[..., None, None]
    state["quant_conv.bias"] = rows * bias - torch.cat([mean / scale, 2 * scale.log()])
    weight, bias = _conv(state, "post_quant_conv", len(mean))
    state["post_quant_conv.weight"] = (weight * scale)[..., None, None]
    state["post_quant_conv.bias"] = bias + weight @ mean
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    arguments |= dict.fromkeys(("shift_factor", "latents_mean", "latents_std"))
    net = AutoencoderKL(**arguments | {"use_quant_conv": True, "use_post_quant_conv": True})
    net.load_state_dict(state)
    return Autoencoder(net)


def _conv(state: Mapping[str, Tensor], name: str, channels: int) -> tuple[Float64[Tensor, "c c"], Float64[Tensor, "c"]]:
    """Matrix and bias of a 1x1 convolution; those of the identity where there is none."""
    if f"{name}.weight" not in state:
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return state[f"{name}.weight"].double()[..., 0, 0], state[f"{name}.bias"].double()
