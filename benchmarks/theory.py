"""The pictures of docs/theory.md, from closed forms: no network is trained.

    python -m benchmarks.theory --out docs

theory-levels.png: noise level and weight of the loss over a chain. theory-denoised.png: a digit at rising noise
levels, and the mean of all digits that it may have been. theory-paths.png: chains of samplers with an exact denoiser.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion import DDPM, EDM, WEIGHTINGS, Condition, Flow, choose_sampler, generators, sample
from diffusion.denoiser import Denoiser
from diffusion.noise import Formulation
from training.script import ScriptParser, command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMULATIONS: dict[str, Formulation] = {
    "DDPM, linear": DDPM(),
    "DDPM, cosine": DDPM(schedule="cosine", prediction="v"),
    "EDM": EDM(),
    "flow matching": Flow(),
}
RATIOS = 0.1, 0.3, 1.0, 3.0, 10.0
CHAINS = 32


def finite_set(formulation: Formulation, images: Float[Tensor, "n c h w"]) -> Denoiser:
    """The exact denoiser of a finite set of images: their mean under the posterior, which is a softmax of distances.

    The noisy image is `alpha x0 + sigma noise`, so the probability of each image is proportional to
    `exp(-|x - alpha x0|² / (2 sigma²))`.
    """

    def denoise(x: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], condition: Condition) -> Tensor:
        level = formulation.level(time)
        distance = torch.cdist((x / level.alpha).flatten(1).double(), images.flatten(1).double())
        share = (-(distance**2) / (2 * level.ratio.double().flatten()[:, None] ** 2)).softmax(dim=1)
        return (share.float() @ images.flatten(1)).view_as(x)

    return denoise


def paths(
    formulation: Formulation, points: Float[Tensor, "n 1 1 1"], steps: int, sampler: str
) -> Float[np.ndarray, "steps chains"]:
    """Chains from noise to points on a line, all scaled to about unit variance."""
    chosen = choose_sampler(sampler, formulation, steps)
    frames = sample(
        finite_set(formulation, points), formulation, chosen, generators(0, range(CHAINS)), (1, 1, 1), steps=steps
    )
    return torch.stack(list(frames)).flatten(1).numpy()


def levels() -> "Figure":
    """Noise levels over a chain, and weights of the error of x0 over noise levels."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, formulation in FORMULATIONS.items():
        times = formulation.times(100, "trailing")[:-1]
        left.semilogy(np.linspace(1, 0, len(times)), formulation.level(times).ratio.flatten(), label=name)
    left.set(xlabel="remaining share of the chain", ylabel="noise level sigma / alpha", ylim=(1e-3, 200))
    sigma = torch.logspace(-2, 2, 200)
    for name, weighting in WEIGHTINGS.items():
        if weighting is not None:
            level = EDM().level(sigma)
            right.loglog(sigma, weighting(level).flatten(), label=name)
    right.set(xlabel="noise level sigma / alpha", ylabel="weight of |x0 error|²", ylim=(1e-5, 1e4))
    for axes in (left, right):
        axes.legend(fontsize="small", frameon=False)
    return figure


def denoised() -> "Figure":
    """A digit at rising noise levels, above the mean of the digits that it may have been."""
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    formulation = EDM()
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    figure, axes = plt.subplots(2, 1 + len(RATIOS), figsize=(9, 3.2), layout="constrained")
    for column, ratio in enumerate((0.0, *RATIOS)):
        noisy = digits[13:14] + ratio * noise
        mean = finite_set(formulation, digits)(noisy, torch.tensor([max(ratio, 1e-3)]), Condition())
        for row, image in enumerate((noisy / max(1, ratio), mean)):
            axes[row, column].imshow(image[0, 0], cmap="gray", vmin=-1, vmax=1)
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
        axes[0, column].set_title(f"σ = {ratio:g}")
    axes[0, 0].set_ylabel("noisy")
    axes[1, 0].set_ylabel("denoised")
    return figure


def chains() -> "Figure":
    """Chains to three points on a line: deterministic, with few steps, and with noise added in each step."""
    import matplotlib.pyplot as plt

    points = torch.tensor([-0.9, 0.2, 0.8]).view(-1, 1, 1, 1)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
    for plot, (sampler, steps) in zip(axes, (("euler", 100), ("euler", 5), ("euler_ancestral", 100)), strict=True):
        found = paths(FORMULATIONS["DDPM, cosine"], points, steps, sampler)
        nearest = np.abs(found[-1][:, None] - points.flatten().numpy()).argmin(axis=1)
        for chain in range(CHAINS):
            plot.plot(np.linspace(0, 1, len(found)), found[:, chain], lw=0.7, color=f"C{nearest[chain]}")
        plot.set(title=f"{sampler}, {steps} steps", xlabel="share of the chain")
    return figure


@command
def main(argv: Sequence[str]) -> None:
    """Writes the pictures."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("levels", levels), ("denoised", denoised), ("paths", chains)):
        draw().savefig(out / f"theory-{name}.png", dpi=100, metadata={"Software": None})
        print(out / f"theory-{name}.png")


if __name__ == "__main__":
    main()
