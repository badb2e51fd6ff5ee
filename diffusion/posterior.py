"""Posterior sampling: images of an unconditional denoiser that agree with noisy observations `y = A x0 + noise`.

The operators of `A` act on each channel alone and leave constant images constant (except a blur with zero borders), so
that they commute with a change of units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion.denoiser import Condition, Denoised, Denoiser
from diffusion.noise import Formulation, Images, PerImage, Times
from residual.block import Padding, extend

Observed = Float[Tensor, "b c h2 w2"]
ITERATIONS = 5
"""of the solver in each evaluation; each takes one more backward pass"""
BLUR_WIDTH = 4
"""standard deviations at which a blur is cut off"""
ROUND_OFF = 1e-5
"""share of a direction that is left by orthogonalisation; less is rounding error of float32"""


@runtime_checkable
class Operator(Protocol):
    """A linear map of images, the same for each channel; a frozen dataclass of plain numbers."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the observations of images of this size. Raises ValueError if they cannot be observed."""
        ...

    def __call__(self, x: Images) -> Observed:
        """The observations without noise. Raises ValueError as `size` does."""
        ...


@dataclass(frozen=True)
class Blur:
    """Convolution with a Gaussian, cut off at `BLUR_WIDTH` standard deviations and scaled to a sum of 1.

    Raises ValueError unless `sigma` is a positive number.
    """

    sigma: float
    """standard deviation in pixels"""
    borders: Padding = "reflect"
    """what lies beyond the image, as in `PaddedConv2d`"""

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"blur of sigma={self.sigma:g} pixels has no meaning; give a positive number, such as 1")

    @property
    def radius(self) -> int:
        """Pixels that the Gaussian reaches."""
        return math.ceil(BLUR_WIDTH * self.sigma)

    def size(self, height: int, width: int) -> tuple[int, int]:
        if self.radius >= min(height, width):
            most = (min(height, width) - 1) / BLUR_WIDTH
            raise ValueError(
                f"blur of sigma={self.sigma:g} reaches {self.radius} pixels, more than images of {height}x{width} have "
                f"beyond a border; give at most {most:g}"
            )
        return height, width

    def __call__(self, x: Images) -> Observed:
        self.size(*x.shape[2:])
        radius, channels = self.radius, x.shape[1]
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        row = (offsets / self.sigma).square().div(-2).softmax(dim=0).expand(channels, 1, 1, -1)
        x = extend(x, (radius,) * 4, self.borders)
        return F.conv2d(F.conv2d(x, row, groups=channels), row.mT, groups=channels)


@dataclass(frozen=True)
class Downsample:
    """The mean of each square of `factor` x `factor` pixels. Raises ValueError for a factor below 2."""

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"downsample by {self.factor} leaves images as they are; give 2 or more")

    def size(self, height: int, width: int) -> tuple[int, int]:
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"downsample by {self.factor} does not divide images of {height}x{width}; give a common divisor of both"
            )
        return height // self.factor, width // self.factor

    def __call__(self, x: Images) -> Observed:
        self.size(*x.shape[2:])
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Observation:
    """What is known of each image: `values = A x0 + noise`, in the units of images. NaN is a value that is not known.

    Without operators `A` is the identity: with NaN elsewhere, the values are those of a mask or of sparse points.
    """

    values: Observed
    noise: float | Float[Tensor, "c 1 1"]
    """standard deviation of the noise, of all channels or of each"""
    operators: tuple[Operator, ...] = ()
    """the parts of A, in the order in which they are applied"""

    def to(self, device: torch.device | str) -> "Observation":
        """The same on a device."""
        noise = self.noise.to(device) if isinstance(self.noise, Tensor) else self.noise
        return replace(self, values=self.values.to(device), noise=noise)

    def observe(self, x: Images) -> Observed:
        """`A x`: the observations without noise. Raises ValueError as the operators do."""
        for operator in self.operators:
            x = operator(x)
        return x

    def scaled(self, x: Images) -> Observed:
        """`A x` in units of the noise, and 0 where nothing is known."""
        return torch.where(self.values.isnan(), 0, self.observe(x) / self.noise)

    def error(self, x: Images) -> Observed:
        """`(y - A x) / noise`, and 0 where nothing is known: about standard normal for the true images."""
        return (self.values / self.noise).nan_to_num(nan=0.0) - self.scaled(x)


def posterior(
    denoise: Denoiser,
    observation: Observation,
    formulation: Formulation,
    limit: float = math.inf,
    iterations: int = ITERATIONS,
) -> Denoiser:
    """The expected clean images given the noisy ones and the observation, from a denoiser without it.

    `x0 + V Aᵀ (noise² + A V Aᵀ)⁻¹ (y - A x0)`, where `V = sigma² / alpha · dx0 / dx` is the covariance of the clean
    image given the noisy one (Rozet et al. 2024, moment matching posterior sampling). It is exact for Gaussian images
    with any covariance; for others the clean image given the noisy one is taken for Gaussian. With V = sigma² / alpha²
    times a number it is the guidance of Rozet & Louppe 2023; that of Chung et al. 2023 (DPS) leaves A V Aᵀ out.

    V is only multiplied by vectors, with one backward pass through the denoiser each. The equation is solved by
    `iterations` steps of generalised conjugate residuals (Eisenstat et al. 1983), which never raise the residual, even
    though the Jacobian of a network is not symmetric. More steps are nearer to the exact solution.

    Pure noise (alpha 0) does not depend on the clean image, so nothing is added there. The result is clipped to
    [-`limit`, `limit`]. A learned variance is unchanged; the gradient of a classifier counts as constant.
    """

    def denoise_posterior(x: Images, time: Times, condition: Condition) -> Denoised:
        level = formulation.level(time)
        factor = torch.where(level.alpha > 0, level.sigma.square() / level.alpha, 0)
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            given = denoise(noisy, time, condition)
            seen = observation.scaled(given[:, : x.shape[1]])
        given = given.detach()
        x0, variance = given[:, : x.shape[1]], given[:, x.shape[1] :]

        def covariance(v: Observed) -> Images:
            """The covariance of the clean image and `scaled` observations, times a vector."""
            return factor * torch.autograd.grad(seen, noisy, v, retain_graph=True)[0]

        moved = corrected(x0, covariance, observation.scaled, observation.error(x0), iterations)
        return torch.cat([moved.clamp(-limit, limit), variance], dim=1)

    return denoise_posterior


def corrected(
    x0: Images,
    covariance: Callable[[Observed], Images],
    observe: Callable[[Images], Observed],
    residual: Observed,
    iterations: int,
) -> Images:
    """`x0 + C (1 + B C)⁻¹ residual` for linear maps C, `covariance`, and B, `observe`, of each image alone.

    Generalised conjugate residuals: the images of the directions by 1 + B C are orthonormal, and each step removes its
    part from the residual.
    """
    directions = list[tuple[Images, Observed]]()
    for _ in range(iterations):
        update = covariance(residual)
        image = residual + observe(update)
        size = _dot(image, image)
        for other, its_image in directions:
            share = _dot(image, its_image)
            update, image = update - share * other, image - share * its_image
        left = _dot(image, image)
        scale = torch.where(left > ROUND_OFF**2 * size, left.rsqrt(), 0)
        update, image = scale * update, scale * image
        share = _dot(residual, image)
        x0, residual = x0 + share * update, residual - share * image
        directions.append((update, image))
    return x0


def _dot(a: Observed, b: Observed) -> PerImage:
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)
