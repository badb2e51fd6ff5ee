"""The Triton kernel of NormAct against PyTorch's operations: by Triton's interpreter on the CPU, compiled on CUDA.

Without CUDA: pip install --no-deps triton, then python -m pytest tests/residual/test_norm_triton.py.
The interpreter accepts more than the compiler does, so a slow test compiles the kernels for a GPU that is not there.
"""

import importlib
import os
import subprocess
import sys

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from residual import NormAct, kernel_choice

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")
OLDEST = "3.6" if torch.cuda.is_available() else "3.7"  # 3.7 interprets with NumPy 2.4
reason = f"Triton {OLDEST} or newer is not installed: pip install --no-deps 'triton>={OLDEST}'"
triton = pytest.importorskip("triton", minversion=OLDEST, reason=reason)
norm_triton = importlib.import_module("residual.norm_triton")
norm_tiles = importlib.import_module("benchmarks.norm_tiles")
interpreted = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1 is not set")
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's: σ is 0 there
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)]
COMPILE = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from residual.norm_triton import _backward, _forward
SIZES = dict(BLOCK_C=64, BLOCK_P=64, ACC=tl.float32, channel_stride=1)
for kernel in (_forward, _backward):
    for groups, channels, silu in ((16, 4, True), (21, 3, False), (1, 50, True)):
        whole = groups * channels == 64
        constants = SIZES | dict(GROUPS=groups, GROUP_CHANNELS=channels, SILU=silu, WHOLE=whole, FAST=whole)
        constants |= dict(EPS=1e-5) if kernel is _forward else {}
        types = {name: "constexpr" for name in constants} | dict.fromkeys(("x", "y", "dy", "dx"), "*bf16")
        types |= dict.fromkeys(("gain_stride", "pixels", "channels", "pixel_stride"), "i32")
        signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): constants[name] for name in constants})
        print(len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""
SHAPES = {
    "groups of 3": (2, 12, 4, 3, 5),
    "two blocks of channels": (1, 72, 6, 2, 3),
    "one group of 160, two tiles of pixels": (1, 160, 1, 5, 5),
    "one channel per group": (2, 5, 5, 2, 2),
    "one pixel": (3, 6, 2, 1, 1),
    "one value per group": (2, 1, 1, 1, 1),
    "whole tiles": (1, 64, 16, 8, 4),
}


def exact(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups, silu) -> Tensor:
    h = F.group_norm(x, groups, weight, bias, 1e-5)
    if scale is not None and shift is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(h) if silu else h


def draw(shape: tuple[int, ...], device: str, dtype: torch.dtype, scaled: bool, layout=torch.channels_last):
    """Images, weight, bias, scale and shift (None if not scaled), and the gradient of the output."""
    images, channels, _, height, width = shape
    x, dy = (torch.randn(images, channels, height, width).contiguous(memory_format=layout) for _ in range(2))
    vectors = [torch.randn(*size) for size in ((channels,), (channels,), (images, channels), (images, channels))]
    leaves = [t.to(device, dtype).requires_grad_() for t in (x + 2, *(vectors if scaled else vectors[:2]))]
    return leaves, dy.to(device, dtype)


def padded(leaves: list[Tensor]) -> list[Tensor | None]:
    return [*leaves, *[None] * (5 - len(leaves))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("programs", [1, 256], ids=["many groups per program", "one group per program"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients_equal_plain_operations(monkeypatch, shape, programs, device) -> None:
    """In float64, so that a wrong formula cannot hide behind rounding."""
    monkeypatch.setattr(norm_triton, "_PROGRAMS", programs)
    monkeypatch.setattr(norm_triton, "_TILE", 1024)
    leaves, dy = draw(shape, device, torch.float64, scaled=True)
    groups = shape[2]
    y = norm_triton.norm_act(*padded(leaves), groups, 1e-5, True)
    expected = exact(*padded(leaves), groups, True)
    assert_close(y, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(out, leaves, dy) for out in (y, expected))
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("layout", "scaled", "silu"),
    [
        (torch.channels_last, True, True),
        (torch.channels_last, False, True),
        (torch.channels_last, False, False),
        (torch.contiguous_format, True, True),
    ],
    ids=["NHWC", "without scale", "without scale and SiLU", "NCHW"],
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["float32", "bf16"])
def test_types_and_layouts_are_kept_within_one_rounding(dtype, close, scaled, silu, layout, device) -> None:
    leaves, dy = draw((2, 12, 4, 3, 5), device, dtype, scaled, layout)
    y = norm_triton.norm_act(*padded(leaves), 4, 1e-5, silu)
    gradients = torch.autograd.grad(y, leaves, dy)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    assert gradients[0].is_contiguous(memory_format=layout)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = exact(*padded(wide), 4, silu)
    assert_close(y.double(), expected, rtol=close, atol=close)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        assert_close(ours.double(), theirs, rtol=close, atol=close * theirs.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_float32_weights_serve_bf16_images(device) -> None:
    leaves, dy = draw((2, 12, 4, 3, 5), device, torch.bfloat16, scaled=False)
    weight, bias = (leaf.detach().float().requires_grad_() for leaf in leaves[1:])
    y = norm_triton.norm_act(leaves[0], weight, bias, None, None, 4, 1e-5, True)
    y.backward(dy)
    assert (y.dtype, weight.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_a_large_mean_leaves_the_variance_exact(device) -> None:
    x = 1e4 + torch.randn(1, 4, 6, 6, device=device)
    one, zero = torch.ones(4, device=device), torch.zeros(4, device=device)
    y = norm_triton.norm_act(x, one, zero, None, None, 2, 1e-5, False)
    assert_close(y, F.group_norm(x.double(), 2).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_gradients_equal_plain_operations(device) -> None:
    leaves, dy = draw((1, 4, 2, 2, 1), device, torch.float64, scaled=True)

    def penalty(y: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(y, leaves[0], dy, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves[:4])

    ours = penalty(norm_triton.norm_act(*padded(leaves), 2, 1e-5, True))
    assert_close(ours, penalty(exact(*padded(leaves), 2, True)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_norm_act_calls_the_kernel(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """The probe compiles, and the node with its linear map and activation equals the node without the kernel."""
    node = NormAct(12, 5, groups=4, act=nn.SiLU).to(device)
    x, emb = torch.randn(2, 3, 5, 12, device=device).permute(0, 3, 1, 2), torch.randn(2, 5, device=device)
    leaves = [x.requires_grad_(), *node.parameters()]
    monkeypatch.setattr("residual.norm.KERNEL_DEVICES", set())
    plain = torch.autograd.grad(node(x, emb).square().mean(), leaves)
    monkeypatch.setattr("residual.norm.KERNEL_DEVICES", {device})
    kernel_choice._triton_kernel.cache_clear()
    with torch.inference_mode():
        assert kernel_choice.kernel_for(x.detach()) is norm_triton.norm_act
    y = node(x, emb)
    assert "_NormAct" in type(y.grad_fn).__name__
    assert_close(torch.autograd.grad(y.square().mean(), leaves), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("emb_channels", [5, None])
def test_a_compiled_network_has_the_kernel(monkeypatch, emb_channels, device) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    node = NormAct(12, emb_channels, groups=4).to(device)
    x = torch.randn(2, 3, 5, 12, device=device).permute(0, 3, 1, 2).requires_grad_()
    emb = () if emb_channels is None else (torch.randn(2, 5, device=device),)
    expected = node(x, *emb)
    gradients = torch.autograd.grad(expected.square().mean(), (x, *node.parameters()))
    monkeypatch.setitem(kernel_choice.compiled_kernels, device, norm_triton.norm_act_compiled)
    called, launch = [], norm_triton._launch
    monkeypatch.setattr(
        norm_triton, "_launch", lambda kernel, *given, **more: called.append(launch(kernel, *given, **more))
    )
    compiled = torch.compile(node, backend="aot_eager", fullgraph=True)(x, *emb)
    assert_close(compiled, expected)
    ours = torch.autograd.grad(compiled.square().mean(), (x, *node.parameters()))
    assert_close(ours, gradients, rtol=1e-4, atol=1e-5)
    assert len(called) == 2


@interpreted
def test_the_tiles_are_compared_and_then_as_before(monkeypatch, capsys) -> None:
    before = norm_triton._BLOCK, norm_triton._TILE, norm_triton._WARPS
    for name, sizes in (("CHANNELS", (16,)), ("VALUES", (2048,)), ("WARPS", (4,))):
        monkeypatch.setattr(norm_tiles, name, sizes)
    norm_tiles.main(["--device", "cpu", "--repeats", "1", "--shapes", "1x64x4"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1x64x4")]
    assert [f"channels={channels}" in row for row, channels in zip(rows, (before[0], 16), strict=True)] == [True, True]
    assert before == (norm_triton._BLOCK, norm_triton._TILE, norm_triton._WARPS)


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == 6
    assert min(sizes) > 0
