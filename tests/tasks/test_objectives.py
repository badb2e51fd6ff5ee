"""Every objective trains every network with every weighting."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion import DDPM, EDM, WEIGHTINGS, Flow, Formulation
from tasks.denoising import DiffusionConfig
from tests.tasks.small import digits, small_run
from training.random import GlobalRandom
from training.task import Batch
from unet import EDM2Config, UNetConfig

OBJECTIVES: dict[str, Formulation] = {
    "epsilon": DDPM(),
    "x0": DDPM(prediction="x0"),
    "v": DDPM(prediction="v", schedule="cosine"),
    "edm": EDM(),
    "flow": Flow(),
    "logit-normal flow": Flow(times_in_training="logit_normal"),
}
TINY = UNetConfig(base_channels=8, channel_multipliers=(1,), attention_levels=(), blocks_per_level=1, groups=4)
NETWORKS: dict[str, UNetConfig | EDM2Config] = {
    "ddpm": TINY,
    "adm": replace(TINY, conditioning="scale_shift", resample="block", time_embedding="adm", learned_variance=True),
    "uncertainty": replace(TINY, logvar_channels=8, time_embedding="adm"),
    "edm2": EDM2Config(
        base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_levels=(), head_channels=8
    ),
}
COUNT = 16


def check(network: str, objective: str, weighting: str, updates: int) -> None:
    """The loss over the same images, noise and times falls, and images can be drawn."""
    model, formulation = NETWORKS[network], OBJECTIVES[objective]
    if isinstance(model, UNetConfig) and not isinstance(formulation, DDPM):
        model = replace(model, learned_variance=False)
    weighted = DiffusionConfig(weighting=weighting)  # type: ignore[arg-type]
    images = digits()
    task = small_run(model=model, objective=formulation, diffusion=weighted).build(images)
    assert images.labels is not None
    image = images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(COUNT))))
    batch = Batch(image, torch.from_numpy(images.labels[:COUNT]))
    optimizer = torch.optim.Adam(task.model.parameters(), 0.01)
    losses = []
    for _ in range(updates + 1):
        random = GlobalRandom(0, 0, "task", COUNT, slice(0, COUNT), "cpu")
        loss = task.loss(task.model, task.prepare(batch, random), random).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_update(task.model)
    assert losses[-1] < losses[0]
    task.model.eval()
    sampler = "ddpm" if task.bound else None
    assert task.diffusion.draw(range(4), [3, 1, 4, 10], sampler=sampler, steps=2, guidance=2.0).isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_network_with_every_objective(network: str, objective: str) -> None:
    """The weightings in turn, so that each of them meets every network or nearly so."""
    turn = [*OBJECTIVES].index(objective) + 2 * [*NETWORKS].index(network)
    check(network, objective, [*WEIGHTINGS][turn % len(WEIGHTINGS)], updates=5)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_network_with_every_objective_and_weighting(network: str, objective: str, weighting: str) -> None:
    """With more updates: a learned variance lets the loss rise in the first ones."""
    check(network, objective, weighting, updates=40)
