"""FIR resampling and the Fourier embedding."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.embeddings import GaussianFourierProjection
from diffusers.models.upsampling import FirUpsample2D
from torch import nn
from torch.testing import assert_close

from residual import AveragePool, FIRDown, FIRDownConv, FIRUp, FourierEmbedding, Nearest
from residual.count import parameters

TAPS = [(1, 1), (1, 3, 3, 1), (-1, 3, 7, 7, 3, -1)]


@pytest.mark.parametrize("taps", TAPS)
def test_fir_filters_equal_diffusers(taps) -> None:
    x = torch.randn(2, 5, 8, 6)
    assert_close(FIRDown(taps)(x), FirDownsample2D(5, fir_kernel=taps)(x), rtol=1e-5, atol=1e-6)
    assert_close(FIRUp(taps)(x), FirUpsample2D(5, fir_kernel=taps)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_folded_convolution_equals_diffusers(taps) -> None:
    x, theirs = torch.randn(2, 3, 8, 6), FirDownsample2D(3, 5, use_conv=True, fir_kernel=taps)
    ours = FIRDownConv(3, 5, taps)
    ours.load_state_dict(theirs.Conv2d_0.state_dict())
    assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_two_equal_taps_equal_pooling_and_nearest() -> None:
    x = torch.randn(2, 3, 8, 6)
    assert_close(FIRUp((1, 1))(x), Nearest()(x), rtol=0, atol=0)
    whole = torch.randint(-99, 100, (2, 3, 8, 6)).float()  # sums of whole numbers do not depend on their order
    assert_close(FIRDown((1, 1))(whole), AveragePool()(whole), rtol=0, atol=0)
    assert_close(FIRDown((1, 1))(x), AveragePool()(x), rtol=0, atol=1e-6)


def test_constant_images_stay_constant_inside_and_darken_at_the_border() -> None:
    x = torch.full((1, 2, 8, 8), 3.0)
    down, up = FIRDown()(x), FIRUp()(x)
    assert (down.shape, up.shape) == ((1, 2, 4, 4), (1, 2, 16, 16))
    assert_close(down[:, :, 1:-1, 1:-1], x[:, :, :2, :2], rtol=0, atol=0)
    assert_close(up[:, :, 1:-1, 1:-1], x.new_full((1, 2, 14, 14), 3.0), rtol=0, atol=0)
    assert_close(down[0, 0, 0, :2], torch.tensor([3 * 49 / 64, 3 * 7 / 8]))
    assert_close(up[0, 0, 0, :2], torch.tensor([3 * 9 / 16, 3 * 3 / 4]))


@pytest.mark.parametrize("taps", TAPS)
def test_up_is_four_times_the_adjoint_of_down(taps) -> None:
    small, large = torch.randn(2, 3, 4, 3, dtype=torch.float64), torch.randn(2, 3, 8, 6, dtype=torch.float64)
    assert_close((FIRUp(taps)(small) * large).sum(), 4 * (small * FIRDown(taps)(large)).sum())


def test_folded_convolution_equals_convolution_then_filter_inside_the_image() -> None:
    x, node = torch.randn(2, 3, 8, 6, dtype=torch.float64), FIRDownConv(3, 5).double()
    wide = F.pad(F.conv2d(x, node.weight, padding=2), (1, 1, 1, 1))
    filtered = FIRDown()(wide)[:, :, 1:-1, 1:-1]  # all that does not touch the ring of zeros
    assert_close(node(x), filtered + node.bias[:, None, None])
    unfolded = FIRDown()(F.conv2d(x, node.weight, padding=1)) + node.bias[:, None, None]
    assert_close(node(x)[:, :, 1:-1, 1:-1], unfolded[:, :, 1:-1, 1:-1])
    assert (node(x) - unfolded).abs()[:, :, 0].min() > 0


@pytest.mark.parametrize("node", [FIRDown(), FIRUp(), FIRDownConv(4, 6)], ids=lambda node: type(node).__name__)
def test_memory_format_dtype_and_gradient_are_kept(node: nn.Module) -> None:
    x = torch.randn(2, 4, 8, 6).to(memory_format=torch.channels_last).requires_grad_()
    assert node(x).is_contiguous(memory_format=torch.channels_last)
    assert copy.deepcopy(node).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert node(x).dtype == torch.bfloat16
    node(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert "taps=(1, 3, 3, 1)" in repr(node)


def test_filters_are_not_in_the_state_dict_and_survive_the_meta_device() -> None:
    with torch.device("meta"):
        node = FIRDownConv(3, 5)
    assert set(node.state_dict()) == {"weight", "bias"}
    assert parameters(FIRDown()) == parameters(FIRUp()) == 0
    real = FIRDownConv(3, 5)
    node.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(1, 3, 4, 4)
    assert_close(node(x), real(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [FIRDown, FIRUp, lambda: FIRDownConv(3, 5)])
def test_filters_are_restored_after_to_empty(make) -> None:
    with torch.device("meta"):
        on_cpu = make()
    for node in (on_cpu, make().to("meta")):
        real, node = make(), node.to_empty(device="cpu")
        node.load_state_dict(real.state_dict())
        x = torch.randn(1, 3, 4, 4)
        assert_close(node(x), real(x), rtol=0, atol=0)


@pytest.mark.parametrize("taps", [(), (1, 2, 1), (1, 2, 3, 4), (1, -1, -1, 1)])
def test_asymmetric_odd_and_zero_sum_taps_are_refused(taps) -> None:
    for build in (FIRDown, FIRUp, lambda taps: FIRDownConv(3, 5, taps)):
        with pytest.raises(ValueError, match="should be a symmetric row of even length"):
            build(taps)


def test_fourier_features_equal_the_published_formula() -> None:
    node, theirs = FourierEmbedding(32), GaussianFourierProjection(16, scale=16, log=False)
    assert set(node.state_dict()) == {"freqs"}
    assert parameters(node) == 0
    node.freqs.copy_(theirs.weight)
    t = torch.tensor([-0.8, 0.0, 0.3])
    assert_close(node(t), theirs(t), rtol=0, atol=1e-4)  # phases near 100, formed in another order
    angles = t.double()[:, None] * 2 * math.pi * node.freqs.double()
    assert_close(node(t).double(), torch.cat([angles.sin(), angles.cos()], dim=1), rtol=0, atol=2e-5)
    assert "32, scale=16" in repr(node)


def test_fourier_frequencies_have_the_published_spread() -> None:
    assert FourierEmbedding(20_000).freqs.std().item() == pytest.approx(16, rel=0.03)
    assert FourierEmbedding(20_000, scale=1).freqs.std().item() == pytest.approx(1, rel=0.03)


def test_fourier_features_stay_float32_in_a_half_precision_network() -> None:
    node, t = FourierEmbedding(64), torch.tensor([0.7])
    expected = node(t)
    assert_close(node.bfloat16()(t.double()), expected, rtol=0, atol=0)
    assert node.double().freqs.dtype == torch.float32
    assert node.to("meta").freqs.device.type == "meta"


@pytest.mark.parametrize("channels", [5, 0])
def test_odd_or_zero_fourier_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"even number of channels, at least 2, not {channels}"):
        FourierEmbedding(channels)
