"""Denoising diffusion for any network: noise levels, formulations, the loss, denoisers, guidance, samplers."""

from typing import TYPE_CHECKING

from storage.lazy import import_when_used

if TYPE_CHECKING:
    from diffusion.denoiser import Condition, Denoiser, NetworkDenoiser, clipped
    from diffusion.formulations import DDPM, EDM, FORMULATIONS, Flow
    from diffusion.guidance import classifier_free, classifier_guided, guided
    from diffusion.loss import WEIGHTINGS, denoising_loss, drop_labels
    from diffusion.noise import Formulation, NoiseLevel, Stratified, differences
    from diffusion.posterior import Blur, Downsample, Observation, posterior
    from diffusion.sampler import SAMPLERS, SCHEDULERS, Sampler, choose_sampler, late_start, sample, unclipped
    from diffusion.seeds import generators, image_seed
    from diffusion.solvers import DPMSolverPP2M, Euler, EulerAncestral, Heun
    from diffusion.variance import VariationalBound

__all__ = [
    "DDPM",
    "EDM",
    "FORMULATIONS",
    "SAMPLERS",
    "SCHEDULERS",
    "WEIGHTINGS",
    "Blur",
    "Condition",
    "DPMSolverPP2M",
    "Denoiser",
    "Downsample",
    "Euler",
    "EulerAncestral",
    "Flow",
    "Formulation",
    "Heun",
    "NetworkDenoiser",
    "NoiseLevel",
    "Observation",
    "Sampler",
    "Stratified",
    "VariationalBound",
    "choose_sampler",
    "classifier_free",
    "classifier_guided",
    "clipped",
    "denoising_loss",
    "differences",
    "drop_labels",
    "generators",
    "guided",
    "image_seed",
    "late_start",
    "posterior",
    "sample",
    "unclipped",
]

import_when_used(__name__)
