"""Small models with random weights, for the tests of the page."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

import resnet
from diffusion import DDPM, EDM
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.superresolution import EDSRUpscaler
from resnet import EDSR, EDSRConfig
from tests.tasks.small import CLASSES, SMALL
from training.yaml_file import FORMAT_VERSION
from unet import UNet


def shaken(net: nn.Module) -> nn.Module:
    """The network with other weights than the initial ones, with which every output is zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return net.eval()


def save_drawing(folder: Path) -> str:
    """A model that draws grey images of 8x8 px, by class or without."""
    net = UNet(replace(SMALL, in_channels=1, out_channels=1, classes=len(CLASSES), null_label=True))
    model = DiffusionModel(shaken(net), DDPM(), CLASSES, null_label=True)
    model.save(folder)
    return str(folder)


def save_pipeline(folder: Path) -> str:
    """A pipeline of diffusers for colour pictures of 16x16 px, as its save_pretrained writes it."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    net = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        **blocks,
    )
    DDPMPipeline(shaken(net), DDPMScheduler()).save_pretrained(folder)
    return str(folder)


def save_diffusion_upscaler(folder: Path) -> str:
    """A diffusion model that enlarges colour pictures 2 times."""
    config = replace(SMALL, in_channels=6, out_channels=3, base_channels=8, groups=4, attention_levels=())
    DiffusionModel(shaken(UNet(config)), EDM(), upscale=2).save(folder)
    return str(folder)


def save_classifier(folder: Path) -> str:
    """A classifier of colour pictures of 32x32 px."""
    net = resnet.create_model("resnet20", mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    ImageClassifier(net, CLASSES, Preprocessing(size=(32, 32), channels=3), BYTES).save(folder)
    return str(folder)


def save_upscaler(folder: Path) -> str:
    """A model that enlarges 2 times."""
    EDSRUpscaler(EDSR(EDSRConfig(scale=2, channels=8, blocks=1)).eval()).save(folder)
    return str(folder)


def save_run(folder: Path) -> str:
    """A run in progress that has saved no model yet."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"format_version: {FORMAT_VERSION}\ntrain:\n  images: 1000\n  batch: 64\n")
    (folder / "log.jsonl").write_text(
        '{"images": 64, "update": 1, "time": "2026-11-28T05:22:27+00:00", "loss": 0.5, "images_per_second": 96.0}\n'
        '{"images": 128, "update": 2, "time": "2026-11-28T05:22:28+00:00", "evaluated": true, "sample_mean": 0.25}\n'
        '{"images": 192, "upda'
    )
    return str(folder)
