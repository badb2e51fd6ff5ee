"""Denoising diffusion: noise schedules, predictions, the loss, denoisers, guidance, samplers. Knows no network."""

from diffusion.denoiser import Denoiser, NetDenoiser, SigmaDenoiser
from diffusion.guidance import guided
from diffusion.objective import drop_labels, squared_error
from diffusion.precondition import PRECONDITIONINGS, Preconditioned, Preconditioning, edm, iddpm, ve, vp
from diffusion.prediction import PREDICTIONS, clean_and_noise, noised, target
from diffusion.sampler import SAMPLERS, denoising, draw
from diffusion.schedule import PUBLISHED, VARIANCES, Schedule
from diffusion.seeds import generators, image_seed

__all__ = [
    "PRECONDITIONINGS",
    "PREDICTIONS",
    "PUBLISHED",
    "SAMPLERS",
    "VARIANCES",
    "Denoiser",
    "NetDenoiser",
    "Preconditioned",
    "Preconditioning",
    "Schedule",
    "SigmaDenoiser",
    "clean_and_noise",
    "denoising",
    "draw",
    "drop_labels",
    "edm",
    "generators",
    "guided",
    "iddpm",
    "image_seed",
    "noised",
    "squared_error",
    "target",
    "ve",
    "vp",
]
