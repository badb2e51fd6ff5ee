"""An autoencoder between pictures and latents: `AutoencoderKL` of diffusers, from a folder."""

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pictures.units import Units
from storage.read import read_json

CLASS = "AutoencoderKL"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
DECODED_PX = 512 * 512
"""pixels that are decoded at a time, but at least one picture"""


class Autoencoder:
    """An `AutoencoderKL` of diffusers, which is not trained here (Rombach et al. 2022, section 3.1).

    It works in float32, on the device of its input.
    """

    def __init__(self, net: Any) -> None:
        self.net = net.float().eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        return self.net.config.in_channels

    @property
    def factor(self) -> int:
        """How many times as high and wide the pictures are as the latents."""
        return 2 ** (len(self.net.config.block_out_channels) - 1)

    @property
    def units(self) -> Units:
        """The map from latents to the values of a diffusion network, as diffusers defines it.

        By `scaling_factor` and `shift_factor` of the config, or by its `latents_mean` and `latents_std` per channel.
        """
        config, channels = self.net.config, self.net.config.latent_channels
        mean = config.latents_mean or (config.shift_factor or 0.0,) * channels
        std = config.latents_std or (1.0,) * channels
        return Units(
            mean=tuple(map(float, mean)),
            std=tuple(each / config.scaling_factor for each in std),
            transform=("none",) * channels,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the config and of all weights."""
        config = {name: value for name, value in self.net.config.items() if not name.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def check(self, channels: int, height: int, width: int) -> None:
        """Raises ValueError for pictures with other channels, and for a size that cannot be halved so often."""
        if channels != self.channels:
            raise ValueError(f"it takes pictures with {self.channels} channels, not {channels}")
        if height % self.factor or width % self.factor:
            raise ValueError(f"it takes pictures whose sides are multiples of {self.factor} px, not {height} x {width}")

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """The latents of pictures in [-1, 1]: the mean of the posterior. Each picture is encoded alone, so that its
        latents do not depend on the others."""
        net = self.net.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([net.encode(each).latent_dist.mean for each in x.float().split(1)])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b d h2 w2"]) -> Float[Tensor, "b c h w"]:
        """The pictures of latents, in [-1, 1] but not clipped; as many at a time as `DECODED_PX` allows."""
        net, pixels = self.net.to(latents.device), latents.shape[2] * latents.shape[3] * self.factor**2
        with torch.autocast(latents.device.type, enabled=False):
            parts = latents.float().split(max(1, DECODED_PX // pixels))
            return torch.cat([net.decode(part).sample for part in parts])

    def save(self, folder: Path) -> None:
        """Writes the folder that `load_autoencoder` reads."""
        self.net.save_pretrained(folder)


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in a folder of diffusers, on the CPU.

    Raises ValueError, with the reason, if there is none, for a scale of the latents that is not a positive number, and
    for weights that are damaged, incomplete or not finite. Only safetensors are read, never a pickle.
    """
    if not (folder / CONFIG).is_file():
        inner = next((name for name in ("vae", "vqvae") if (folder / name / CONFIG).is_file()), None)
        whole = f"copy the whole model again, or give a folder that {CLASS}.save_pretrained of diffusers wrote"
        way_out = f"give {folder / inner}" if inner else whole
        raise ValueError(f"{folder} is no autoencoder: it has no {CONFIG}; {way_out}")
    config = read_json(folder / CONFIG)
    if (name := config.get("_class_name")) != CLASS:
        raise ValueError(f"{folder / CONFIG} has _class_name={name!r}; give the folder of an {CLASS} of diffusers")
    scale = config.get("scaling_factor", 1)  # diffusers has a default
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise ValueError(
            f"{folder / CONFIG}: scaling_factor={scale!r} should be a finite number above 0, such as 1 divided by the "
            "standard deviation of the latents"
        )
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; save its weights as safetensors")
    from diffusers import AutoencoderKL

    try:
        net, report = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
        )
        found = Autoencoder(net)
        found.units  # noqa: B018  raises for wrong factors
    except Exception as error:  # whatever a config or weights that do not fit raise, also inside of torch
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{folder} cannot be read as an autoencoder ({reason}); copy it again") from None
    if net.config.out_channels != found.channels:
        raise ValueError(
            f"{folder} encodes {found.channels} channels but decodes {net.config.out_channels}; give another"
        )
    if differing := [name for names in report.values() for name in names]:
        raise ValueError(f"{folder / WEIGHTS} does not fit its {CONFIG}, such as {differing[0]}; copy it again")
    if broken := next((name for name, weight in net.named_parameters() if not weight.isfinite().all()), None):
        raise ValueError(f"{folder}: the weight {broken} is not finite; give another autoencoder")
    return found
