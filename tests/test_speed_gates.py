"""What decides the speed of the U-Net and can be counted without a clock: products, operations, copies, memory.

`ddpm-cifar10` on the meta device, which does no arithmetic, beside diffusers' network of the same layers.
"""

import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import unet
from unet import UNet, UNetConfig

ROOT = Path(__file__).parent.parent
CIFAR = unet.preset("ddpm-cifar10")
OPERATIONS = 319
"""of a forward pass; fewer is better"""
PEAK_MB = 905
"""of a training step with 16 images, in float32, without the optimizer; less is better"""


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, lists layouts, and follows the bytes in use."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.relaid: list[str] = []
        """operations that only copy to another layout, and convolutions of inputs that are not channels last"""
        self.in_use = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.counts[name := func.overloadpacket.__name__] += 1
            copied = name in ("clone", "_to_copy", "copy_") and args[-1 if name == "copy_" else 0].ndim == 4
            if (copied and not is_last(result)) or (name == "convolution" and not is_last(args[0])):
                self.relaid.append(name)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.in_use += size
        self.peak = max(self.peak, self.in_use)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.in_use -= size


def is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {"ours": UNet(CIFAR), "theirs": UNet2DModel(**unet.diffusers_config(CIFAR))}


def run(net: nn.Module, batch: int) -> Tensor:
    """The network's output for images and a timestep for each."""
    x, t = torch.empty(batch, 3, 32, 32, device="meta"), torch.zeros(batch, device="meta")
    return net(x, t) if isinstance(net, UNet) else net(x, t, return_dict=False)[0]


def test_a_forward_pass_has_the_products_of_diffusers_and_fewer_operations(networks: dict[str, nn.Module]) -> None:
    products, operations = {}, {}
    for name, net in networks.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as products[name]:
            run(net.eval(), 1)
        with torch.no_grad(), Operations() as operations[name]:
            run(net, 1)
    flops = {name: counter.get_total_flops() for name, counter in products.items()}
    assert flops["ours"] == flops["theirs"]
    count = {name: counter.counts.total() for name, counter in operations.items()}
    assert count["ours"] <= OPERATIONS < count["theirs"]


def test_a_training_step_needs_no_more_memory_than_that_of_diffusers(networks: dict[str, nn.Module]) -> None:
    peaks = {}
    for name, net in networks.items():
        with Operations() as operations:
            run(net.train(), 16).square().mean().backward()
        net.zero_grad()
        peaks[name] = operations.peak / 1e6
    assert peaks["ours"] <= min(peaks["theirs"], PEAK_MB)


def test_channels_last_is_kept_from_the_image_to_the_gradients() -> None:
    config = UNetConfig(size=(8, 8), base_channels=32, channel_multipliers=(1, 2), attention_levels=(1,), dropout=0.1)
    net = UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with Operations() as operations:
        output = net(x, torch.tensor([1.0, 2.0]))
        output.square().mean().backward()
    assert is_last(output)
    assert operations.relaid == []
    assert all(is_last(weight.grad) for weight in net.parameters() if weight.ndim == 4 and weight.grad is not None)


RECOMPILE = """
import torch
from torch._dynamo.testing import CompileCounter
from unet import UNet, UNetConfig

counter = CompileCounter()
config = UNetConfig(size=(4, 4), base_channels=8, channel_multipliers=(1,), attention_levels=(), classes=2)
net = UNet(config)
net.compile(backend=counter, fullgraph=True)
for update in range(4):
    net(torch.randn(2, 3, 4, 4), torch.full((2,), float(update)), torch.full((2,), update % 2)).sum().backward()
print(counter.frame_count)
"""


@pytest.mark.slow
def test_a_network_is_compiled_once_for_all_updates() -> None:
    done = subprocess.run([sys.executable, "-c", RECOMPILE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr
