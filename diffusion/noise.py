"""Noise levels: the one vocabulary in which every formulation of diffusion is written.

A noisy image is `x = alpha x0 + sigma noise`. The network receives `c_in x` and the number `c_noise`, and predicts
`a x0 + b noise`. Predictions of the noise, of the clean image and of v, EDM's preconditioning and flow matching are
rows of this one table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, "b 1 1 1"]
Times = Float[Tensor, "b"]


@dataclass(frozen=True)
class NoiseLevel:
    """One noise level per image (or one for all of them, with b = 1), shaped to multiply images."""

    alpha: PerImage
    """scale of the clean image in the noisy one"""
    sigma: PerImage
    """standard deviation of the noise in the noisy image"""
    c_in: PerImage
    """scale of the network's input"""
    c_noise: Times
    """number by which the network receives the noise level, in place of a timestep"""
    a: PerImage
    """weight of the clean image in the network's target"""
    b: PerImage
    """weight of the noise in the network's target"""

    @property
    def ratio(self) -> PerImage:
        """`sigma / alpha`: the noise level in units of the clean image (EDM's sigma). Infinite for pure noise."""
        return self.sigma / self.alpha

    @property
    def determinant(self) -> PerImage:
        """Determinant of the map from (x0, noise) to (x, target)."""
        return self.alpha * self.b - self.sigma * self.a

    def noisy(self, x0: Images, noise: Images) -> Images:
        """The noisy image."""
        return self.alpha * x0 + self.sigma * noise

    def target(self, x0: Images, noise: Images) -> Images:
        """What the network should predict."""
        return self.a * x0 + self.b * noise

    def split(self, x: Images, output: Images) -> tuple[Images, Images]:
        """(x0, noise) that a noisy image and the network's output imply: the inverse of `noisy` and `target`."""
        det = self.determinant
        return (self.b * x - self.sigma * output) / det, (self.alpha * output - self.a * x) / det

    def noise_in(self, x: Images, x0: Images) -> Images:
        """The noise that is left in `x` if `x0` is the clean image. The noise level must not be zero."""
        return (x - self.alpha * x0) / self.sigma

    def scale(self) -> PerImage:
        """Standard deviation of noisy images whose clean images have unit variance."""
        return self.alpha.hypot(self.sigma)


@runtime_checkable
class Random(Protocol):
    """A source of random numbers, one per image of a batch."""

    def uniform(self) -> Times:
        """Uniform in [0, 1)."""
        ...

    def normal(self) -> Times:
        """Standard normal."""
        ...

    def integers(self, high: int) -> Int[Tensor, "b"]:
        """Uniform integers in [0, high)."""
        ...


@dataclass(frozen=True)
class Stratified:
    """Random numbers for noise levels: one per equal part of the distribution in each global batch, in random order.

    The losses of an update then differ less by the noise levels that it draws (Kingma et al. 2021, appendix I.1).
    Every number that it returns comes from one uniform number per image, so one number may be drawn per update.
    """

    uniform: Callable[[], Times]
    """one number in [0, 1) per image, each in another of as many equal parts as the global batch has images"""

    def normal(self) -> Times:
        """Standard normal: the quantiles of the uniform numbers."""
        return torch.special.ndtri(self.uniform().clamp(1e-7, 1 - 1e-7))

    def integers(self, high: int) -> Int[Tensor, "b"]:
        """Integers in [0, high)."""
        return (self.uniform() * high).long().clamp(max=high - 1)


@runtime_checkable
class Formulation(Protocol):
    """How images are noised over time, and what the network predicts: a frozen dataclass of plain numbers.

    `time` is a float per image in the formulation's own unit: timesteps for DDPM, sigma for EDM, 0 … 1 for flows.
    """

    network_fields: ClassVar[tuple[str, ...]]
    """fields on which the meaning of trained weights depends; the others may differ when training continues"""
    later_fields: ClassVar[frozenset[str]]
    """fields that saved models may lack: their defaults describe all models from before"""
    clips_x0: ClassVar[bool]
    """whether samplers may clip denoised images to [-1, 1], as published for this formulation"""

    def level(self, time: Times) -> NoiseLevel:
        """The noise level at these times, on their device and in their dtype."""
        ...

    def draw_time(self, random: Random) -> Times:
        """Times for training, one per image, float32."""
        ...

    def time_at(self, ratio: Times) -> Times:
        """The times at which `sigma / alpha` has these values: the inverse of `level(time).ratio`."""
        ...

    def times(self, steps: int, spacing: str) -> Float[Tensor, "times"]:
        """Falling times of a sampler with this number of steps, on the CPU: from pure noise to the clean image.

        `spacing` (leading, trailing or linspace) places whole timesteps; continuous formulations have one grid.
        """
        ...


def differences(ours: Formulation, theirs: Formulation, kinds: Mapping[str, type]) -> dict[str, tuple[Any, Any]]:
    """Fields in which two formulations give the network's weights another meaning: name -> (our value, their value).

    `kinds` names the classes; two classes differ in the field `kind` alone.
    """
    if type(ours) is not type(theirs):
        name = {kind: name for name, kind in kinds.items()}
        return {"kind": (name[type(ours)], name[type(theirs)])}
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ours.network_fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
