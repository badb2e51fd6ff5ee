"""What a network predicts of a noisy image x = alpha x0 + sigma noise: the noise, the clean image, or their mixture v.

Each is a row of one table, `target = a x0 + b noise`; together with x it is two equations in x0 and noise. All algebra
about parameterisations is in this file. Names are those of diffusers ("sample" is the clean image).
"""

from jaxtyping import Float
from torch import Tensor

from residual.names import require_known

Images = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, "b 1 1 1"]

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def noised(x0: Images, noise: Images, alpha: PerImage, sigma: PerImage) -> Images:
    """The noisy image (Ho et al. 2020, eq. 4)."""
    return alpha * x0 + sigma * noise


def target(prediction: str, x0: Images, noise: Images, alpha: PerImage, sigma: PerImage) -> Images:
    """What a network with this prediction should answer. Raises ValueError for an unknown prediction."""
    a, b = _row(prediction, alpha, sigma)
    return a * x0 + b * noise


def clean_and_noise(
    prediction: str, answer: Images, x: Images, alpha: PerImage, sigma: PerImage
) -> tuple[Images, Images]:
    """(x0, noise) of which the noisy image `x` and the network's `answer` are made: the inverse of the two above."""
    a, b = _row(prediction, alpha, sigma)
    determinant = alpha * b - sigma * a
    return (b * x - sigma * answer) / determinant, (alpha * answer - a * x) / determinant


def _row(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
    require_known("prediction", prediction, PREDICTIONS)
    rows: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma, alpha),  # Salimans & Ho 2022, appendix D
    }
    return rows[prediction]
