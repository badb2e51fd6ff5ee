"""Every sampler draws what diffusers' own pipeline draws with the same scheduler, by nets that have learned digits."""

from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, LDMPipeline

from diffusion import SAMPLERS, SCHEDULERS, generators
from exporting.diffusers_folder import save_diffusers
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model


class Identity(torch.nn.Module):
    """An autoencoder whose latents are the images."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.device = SimpleNamespace(scaling_factor=1.0), torch.device("cpu")

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


def pipeline_images(folder: Path, sampler: str, steps: int, count: int) -> torch.Tensor:
    """The images of an exported folder, drawn by the unconditional pipeline that supports every scheduler.

    The pipeline does not pass its generators to the steps, some of which draw noise, and reads `init_noise_sigma`
    before it sets the number of steps, on which that value depends for Heun's method. Both are done here.
    """
    (name, settings), exported = SCHEDULERS[sampler], DDPMPipeline.from_pretrained(folder)
    kind = getattr(diffusers, name)
    scheduler = kind.from_config(exported.scheduler.config, **settings)
    sources = generators(3, range(count))
    scheduler.set_timesteps(steps)
    if "generator" in signature(kind.step).parameters:
        scheduler.step = partial(scheduler.step, generator=sources)
    pipeline = LDMPipeline(vqvae=Identity(), unet=exported.unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=count, generator=sources, num_inference_steps=steps, output_type="np").images
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def difference(folder: Path, model: DiffusionModel, labels: list[int] | None, sampler: str, steps: int) -> float:
    """The largest, as a share of the range of images."""
    ours = model.draw(range(6), labels, sampler=sampler, steps=steps, seed=3) / 2 + 0.5
    assert ours.std() > 0.1  # a picture, not a constant
    return (ours - pipeline_images(folder, sampler, steps, 6)).abs().max().item()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_prediction_and_linear_schedule(conditional: Path, tmp_path: Path, sampler: str) -> None:
    model = load_model(conditional)
    save_diffusers(model, tmp_path, label=3)
    assert difference(tmp_path, model, [3] * 6, sampler, steps=10) < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_v_prediction_and_cosine_schedule(unconditional: Path, tmp_path: Path, sampler: str) -> None:
    model = load_model(unconditional)
    save_diffusers(model, tmp_path)
    assert difference(tmp_path, model, None, sampler, steps=25) < 1e-4
