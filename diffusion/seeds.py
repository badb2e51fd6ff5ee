"""Random numbers per image: image k of seed s is the same in every batch and on every process."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def image_seed(seed: int, image: int) -> int:
    """The seed of one image's generator, 32 bits (a CPU `torch.Generator` keeps no more). With seed 0 it is `image`."""
    return (seed * 1_000_003 + image) % 2**32


def generators(seed: int, images: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator per image number. A diffusers pipeline accepts the same list."""
    return [torch.Generator().manual_seed(image_seed(seed, image)) for image in images]


def standard_normal(
    generators: list[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c h w"]:
    """The next standard normal image (c, h, w) of each generator, drawn exactly as a diffusers pipeline draws it."""
    images = [torch.randn(1, *shape, generator=each, device=each.device, dtype=torch.float32) for each in generators]
    return torch.cat(images).to(device)
