"""Training steps and forward passes of ours and of diffusers with the same weights, as calls without arguments.

A step adds noise to images at random timesteps of the linear schedule, predicts the noise, and changes the weights by
AdamW and their average: what diffusers' `train_unconditional.py` does with its default settings. Ours is
`training.step.Step`, images read from memory included. diffusers is imported only where its network is asked for.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import unet
from benchmarks.paired import CONTROL, Call
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import Images
from training.optimizer import AdamW
from training.random import GlobalRandom
from training.step import Step, TrainingSettings
from training.task import Batch, Task
from unet import UNet, UNetConfig

TIMESTEPS = 1000
RATE, BETAS, DECAY = 1e-4, (0.95, 0.999), 1e-6
"""of AdamW, as in diffusers' script"""
PRODUCTS = "convolutions and matrix products alone"


class NoisePrediction(Task[Batch]):
    """The mean squared error of the predicted noise on the linear schedule (Ho et al. 2020, eq. 14)."""

    def __init__(self, model: UNet) -> None:
        super().__init__(model)
        self.kept = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS)).cumprod(0)
        """alpha² of each timestep"""

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """The loss of each image at a random timestep."""
        self.kept = self.kept.to(batch.image.device)
        timestep, noise = random.integers(TIMESTEPS), random.normal(*batch.image.shape[1:])
        kept = self.kept[timestep][:, None, None, None]
        noisy = kept.sqrt() * batch.image + (1 - kept).sqrt() * noise
        return (model(noisy, timestep).float() - noise).square().mean(dim=(1, 2, 3))


def build(config: UNetConfig, weights: Mapping[str, Tensor] | None = None) -> UNet:
    """A network of ours, with the weights of another one, or random ones.

    Layers that start at zero are random, too, so that outputs and gradients depend on all weights.
    """
    net = UNet(config)
    if weights is not None:
        net.load_state_dict(weights)
        return net
    for weight in net.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    return net


def build_theirs(net: UNet) -> Any:
    """diffusers' network with the weights of one of ours."""
    from diffusers import UNet2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of every change of dtype
    theirs = UNet2DModel(**unet.diffusers_config(net.config))
    theirs.load_state_dict(net.export_weights("diffusers"))
    return theirs


def our_step(net: UNet, batch: int, precision: str, device: torch.device, **settings: Any) -> Call:
    """A training step of ours; `settings` are fields of `TrainConfig`, such as compile."""
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, net.config.in_channels, *net.config.size), np.uint8)
    train: Any = TrainConfig(batch=batch, precision=precision, trackers=(), **settings)  # type: ignore[arg-type]
    optimizer = AdamW(learning_rate=RATE, betas=BETAS, weight_decay=DECAY)
    run = TrainingSettings(train=train, optimizer=optimizer)
    return Step(NoisePrediction(net), Images(pixels), run, make_accelerator(train)).update


class TheirStep:
    """A training step of diffusers' script: `step()`.

    Tuned, it has a fused AdamW, gradient clipping and `EMAModel` in one call for all weights, and never waits for the
    device; the script reads the loss after each step.
    """

    def __init__(
        self,
        net: Any,
        batch: int,
        device: torch.device,
        *,
        bf16: bool = False,
        channels_last: bool = False,
        tuned: bool = False,
        compile: str | None = None,
    ) -> None:
        """`compile` is a mode of torch.compile, such as "default"."""
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(device, memory_format=layout).train()
        self.weights, self.tuned, self.autocast = list(self.net.parameters()), tuned, autocast(device, bf16)
        self.scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS)
        self.optimizer = torch.optim.AdamW(self.weights, RATE, BETAS, weight_decay=DECAY, fused=True if tuned else None)
        self.average = EMAModel(self.weights, decay=0.9999, use_ema_warmup=True, power=3 / 4, foreach=tuned)
        self.average.to(device)
        shape = (batch, net.config.in_channels, *_sides(net.config.sample_size))
        self.images = torch.randn(shape, device=device).contiguous(memory_format=layout)
        if compile is not None:
            self.net.compile(mode=compile)

    def __call__(self) -> None:
        noise = torch.randn_like(self.images)
        timesteps = torch.randint(0, TIMESTEPS, (len(noise),), device=noise.device)
        noisy = self.scheduler.add_noise(self.images, noise, timesteps)
        with self.autocast:
            predicted = self.net(noisy, timesteps, return_dict=False)[0]
        loss = nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True if self.tuned else None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.weights)
        if not self.tuned:
            loss.item()


def train_calls(
    net: UNet, batch: int, device: torch.device, bf16: bool, compiled: bool, theirs: bool = True
) -> dict[str, Call]:
    """Training steps of ours, of diffusers' network unless not `theirs`, and `Products`.

    Ours compiled are replayed as CUDA graphs on a GPU.
    """
    weights, precision = net.state_dict(), "bf16" if bf16 else "float32"

    def ours(compile: bool = False) -> Call:
        graphs = compile and device.type == "cuda"
        return our_step(build(net.config, weights), batch, precision, device, compile=compile, cuda_graphs=graphs)

    calls = {"ours": ours(), CONTROL: ours()}
    if compiled:
        calls["ours compiled"] = ours(compile=True)
    if theirs:
        calls["UNet2DModel as in the script"] = TheirStep(build_theirs(net), batch, device)
    for mode in ([None, "default"] if compiled else [None]) if theirs else []:
        for layout in ("", ", channels last"):
            calls[f"UNet2DModel {'tuned' if mode is None else 'compiled'}{layout}"] = TheirStep(
                build_theirs(net), batch, device, bf16=bf16, channels_last=bool(layout), tuned=True, compile=mode
            )
    dtype = torch.bfloat16 if bf16 else torch.float32
    calls[PRODUCTS] = Products(net.config, batch, device, dtype)
    return calls


def forward(net: nn.Module, batch: int, device: torch.device, dtype: torch.dtype, channels_last: bool) -> Call:
    """A forward pass, as in sampling: without gradients, all numbers in `dtype`."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device, dtype, memory_format=layout).eval()  # type: ignore[call-overload]
    config: Any = net.config
    size = config.size if isinstance(net, UNet) else _sides(config.sample_size)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.in_channels, *size, generator=random).to(device, dtype, memory_format=layout)
    t = torch.randint(0, TIMESTEPS, (batch,), generator=random).to(device)
    options: dict[str, Any] = {} if isinstance(net, UNet) else {"return_dict": False}

    @torch.inference_mode()
    def call() -> Tensor:
        output = net(x, t, **options)
        return output if isinstance(output, Tensor) else output[0]

    return call


class Products:
    """The convolutions and matrix products of a network alone: what a step takes at least.

    Weights and inputs are random, in channels last, and in the precision of the products beforehand. With `backward`
    their gradients are computed, too.
    """

    def __init__(
        self, config: UNetConfig, batch: int, device: torch.device, dtype: torch.dtype, backward: bool = True
    ) -> None:
        with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Recorder() as recorder:
            UNet(config).eval()(torch.empty(batch, config.in_channels, *config.size), torch.empty(batch))

        def random(found: Any) -> Any:
            if not isinstance(found, Tensor):
                return found
            made = torch.randn(found.shape, device=device, dtype=dtype)
            made = made.to(memory_format=torch.channels_last) if made.ndim == 4 else made
            return made.requires_grad_(backward)

        with torch.no_grad():
            inputs = [(product, [random(each) for each in found]) for product, found in recorder.products]
            self.parts = [(product, given, torch.randn_like(product(*given))) for product, given in inputs]

    def __call__(self) -> None:
        for product, given, gradient in self.parts:
            output = product(*given)
            if output.requires_grad:
                torch.autograd.grad(output, [each for each in given if isinstance(each, Tensor)], gradient)


class Recorder(TorchDispatchMode):
    """Records convolutions and matrix products with their arguments."""

    KINDS: ClassVar = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.KINDS:
            self.products.append((func, args))
        return func(*args, **(kwargs or {}))


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """bf16 for the operations for which torch chooses it; nothing without `bf16`."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _sides(sample_size: int | tuple[int, int]) -> tuple[int, int]:
    return (sample_size, sample_size) if isinstance(sample_size, int) else (sample_size[0], sample_size[1])
