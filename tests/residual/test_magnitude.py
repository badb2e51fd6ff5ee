"""Magnitude-preserving modules: formulas and magnitudes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from residual import Residual
from residual.magnitude import (
    AppendOnes,
    MPConv2d,
    MPFourier,
    MPLinear,
    MPModulate,
    MPSelfAttention,
    MPSiLU,
    MPSum,
    PixelNorm,
    mp_branch,
    mp_cat,
    normalize,
    normalize_weights,
    unit_weight,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_normalize_divides_by_the_magnitude() -> None:
    x = torch.randn(3, 5, 4, 4)
    assert_close(normalize(x, (1, 3)), x / (1e-4 + x.square().mean(dim=(1, 3), keepdim=True).sqrt()))
    assert_close(normalize(x, 1), x / (1e-4 + x.square().mean(dim=1, keepdim=True).sqrt()))
    assert_close(normalize(torch.full((2, 4), 1e-4), 1), torch.full((2, 4), 0.5))


def test_magnitude_is_computed_in_float32() -> None:
    x = (100 * torch.randn(2, 4096)).half()  # the sum of squares is far beyond float16
    assert normalize(x, 1).dtype == torch.float16
    assert_close(normalize(x, 1).float(), normalize(x.float(), 1), rtol=2e-3, atol=1e-3)


def test_zeros_stay_zero_with_finite_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    normalize(x, 1).sum().backward()
    assert torch.equal(normalize(x, 1), x)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_pixel_norm_gives_each_pixel_unit_magnitude() -> None:
    x = 7 * torch.randn(2, 8, 3, 5) * torch.rand(2, 1, 3, 5)
    assert_close(PixelNorm()(x).square().mean(dim=1), torch.ones(2, 3, 5), rtol=0.02, atol=0)


def test_mp_silu() -> None:
    x = torch.randn(1_000_000)
    assert_close(MPSiLU()(x), x * x.sigmoid() / 0.596)
    assert rms(MPSiLU()(x)) == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum(t: float) -> None:
    s, f = torch.randn(2, 1_000_000)
    expected = ((1 - t) * s + t * f) / math.sqrt((1 - t) ** 2 + t**2)
    assert_close(MPSum(t)(s, f), expected)
    assert rms(expected) == pytest.approx(1, abs=5e-3)


def test_weight_of_a_sum_is_from_0_to_1() -> None:
    assert MPSum().t == 0.3
    assert repr(MPSum(0.5)) == "MPSum(t=0.5)"
    with pytest.raises(ValueError, match=r"t=1.5 "):
        MPSum(1.5)


def test_mp_cat() -> None:
    a, b = torch.randn(4, 3, 100, 100), torch.randn(4, 12, 100, 100)
    found = mp_cat(a, b)
    c = math.sqrt(15 / 2)
    assert_close(found, torch.cat([c / math.sqrt(3) * a, c / math.sqrt(12) * b], dim=1))
    assert rms(found) == pytest.approx(1, abs=0.01)
    power_a, power_b = (part.square().sum().sqrt() for part in found.split([3, 12], dim=1))
    assert (power_b / power_a).item() == pytest.approx(1, rel=0.01)


def test_convolution_uses_weights_of_unit_magnitude() -> None:
    conv, x = MPConv2d(6, 10), torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        conv.weight *= 3
    w = conv.weight
    unit = w / (1e-4 + w.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()) / math.sqrt(6 * 9)
    assert_close(unit_weight(w), unit)
    assert_close(conv(x), F.conv2d(x, unit, padding=1))
    assert conv.bias is None
    assert_close(unit_weight(w).square().sum(dim=(1, 2, 3)), torch.ones(10), rtol=1e-3, atol=0)


def test_linear_map_uses_weights_of_unit_magnitude() -> None:
    linear, x = MPLinear(6, 10), torch.randn(3, 6)
    w = linear.weight
    assert_close(linear(x), x @ (w / (1e-4 + w.square().mean(dim=1, keepdim=True).sqrt()) / math.sqrt(6)).T)
    assert linear.bias is None


def test_initial_weights_are_standard_normal() -> None:
    for part in (MPConv2d(32, 64), MPLinear(300, 100)):
        assert part.weight.mean().item() == pytest.approx(0, abs=0.02)
        assert part.weight.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolutions_keep_size_and_magnitude(kernel_size: int) -> None:
    x = torch.randn(4, 64, 32, 32)
    y = MPConv2d(64, 96, kernel_size)(x)
    assert y.shape == (4, 96, 32, 32)
    assert rms(y[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.02)


def test_linear_maps_keep_the_magnitude() -> None:
    assert rms(MPLinear(128, 256)(torch.randn(500, 128))) == pytest.approx(1, abs=0.02)


def test_forward_does_not_change_stored_weights() -> None:
    for part, x in ((MPConv2d(3, 4), torch.randn(1, 3, 4, 4)), (MPLinear(3, 4), torch.randn(2, 3))):
        before = part.train().weight.clone()
        part(x)
        assert torch.equal(part.weight, before)


def test_the_gradient_is_orthogonal_to_the_weight() -> None:
    """Optimizer steps then change a weight's direction, and its magnitude only grows."""
    part = MPLinear(32, 8).double()
    part(torch.randn(4, 32, dtype=torch.double)).pow(3).sum().backward()
    w, g = part.weight.detach(), part.weight.grad
    assert g is not None
    assert ((w * g).sum(dim=1).abs() / (w.norm(dim=1) * g.norm(dim=1)) < 1e-3).all()


def test_normalize_weights_restores_unit_magnitude_and_keeps_the_output() -> None:
    net = nn.Sequential(MPConv2d(3, 8), nn.Conv2d(8, 8, 1), MPModulate(8, 4), MPSelfAttention(8, 2))
    x, emb = torch.randn(2, 3, 4, 4), torch.randn(2, 4)

    def call() -> torch.Tensor:
        return net[3](net[2](net[1](net[0](x)), emb))

    with torch.no_grad():
        net[2].emb_gain.fill_(0.7)
        for p in net.parameters():
            if p.dim() > 1:
                p *= torch.rand(p.shape[0], *[1] * (p.dim() - 1)) * 3 + 1
    before, plain = call(), net[1].weight.clone()
    normalize_weights(net)
    for part in (net[0], net[2].project, net[3].qkv, net[3].out):
        assert_close(part.weight.square().flatten(1).mean(dim=1), torch.ones(len(part.weight)), rtol=1e-3, atol=0)
        assert part.weight.requires_grad
    assert torch.equal(net[1].weight, plain)
    assert net[2].emb_gain.item() == pytest.approx(0.7)
    assert_close(call(), before, rtol=1e-3, atol=1e-3)  # up to the epsilon of the normalisation, 1e-4
    again = call()
    normalize_weights(net)
    assert_close(call(), again, rtol=1e-5, atol=1e-6)


def test_fourier_features() -> None:
    part = MPFourier(20_000)
    t = torch.tensor([-0.7, 0.0, 1.3])
    assert_close(part(t), math.sqrt(2) * torch.cos(t[:, None] * part.freqs + part.phases))
    assert rms(part(t)) == pytest.approx(1, abs=0.01)
    assert part.freqs.std().item() == pytest.approx(2 * math.pi, rel=0.02)
    assert 0 <= part.phases.min() < 0.01
    assert 2 * math.pi - 0.01 < part.phases.max() <= 2 * math.pi
    assert set(part.state_dict()) == {"freqs", "phases"}
    assert not list(part.parameters())
    assert part(t.half()).dtype == torch.float32


def test_append_ones_adds_a_channel() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert_close(AppendOnes()(x), torch.cat([x, torch.ones(2, 1, 4, 4)], dim=1), rtol=0, atol=0)


def test_modulation_starts_as_the_identity() -> None:
    part, x, emb = MPModulate(3, 4), torch.randn(2, 3, 2, 2), torch.randn(2, 4)
    assert_close(part(x, emb), x, rtol=0, atol=0)
    nn.init.constant_(part.emb_gain, 0.5)
    assert_close(part(x, emb), x * (1 + 0.5 * part.project(emb))[:, :, None, None])


def test_branch_equals_the_published_formula() -> None:
    branch, x, emb = mp_branch(6, 8, 4), torch.randn(2, 6, 4, 4), torch.randn(2, 4)
    nn.init.constant_(branch.modulate.emb_gain, 0.5)
    h = branch.conv1(F.silu(x) / 0.596)
    h = h * (1 + 0.5 * branch.modulate.project(emb))[:, :, None, None]
    assert branch.takes_emb
    assert_close(branch(x, emb), branch.conv2(F.silu(h) / 0.596))


def test_dropout_drops_in_training_only() -> None:
    branch, x, emb = mp_branch(6, 8, 4, dropout=0.5), torch.randn(2, 6, 4, 4), torch.randn(2, 4)
    assert not torch.equal(branch(x, emb), branch(x, emb))
    branch.eval()
    assert_close(branch(x, emb), branch(x, emb), rtol=0, atol=0)


def test_block_keeps_the_magnitude() -> None:
    x, emb = torch.randn(2, 64, 32, 32), torch.randn(2, 8)
    y = Residual(mp_branch(64, 64, 8), merge=MPSum(0.3))(x, emb)
    assert rms(y[..., 2:-2, 2:-2]) == pytest.approx(1, abs=0.03)  # the border lacks neighbours


def test_attention_equals_the_published_formula() -> None:
    part, x = MPSelfAttention(12, heads=3), torch.randn(2, 12, 2, 3)
    q, k, v = part.qkv(x).flatten(2).reshape(2, 3, 3, 4, 6).unbind(dim=1)  # image, head, channel, pixel
    q, k, v = (y / (1e-4 + y.square().mean(dim=2, keepdim=True).sqrt()) for y in (q, k, v))
    weights = torch.softmax(torch.einsum("bncq,bnck->bnqk", q, k) / 2, dim=-1)
    y = torch.einsum("bnqk,bnck->bncq", weights, v).reshape(2, 12, 2, 3)
    assert_close(part(x), part.out(y), rtol=1e-5, atol=1e-5)
    assert "heads=3" in repr(part)


def test_attention_is_independent_of_input_magnitude() -> None:
    part, x = MPSelfAttention(16, head_channels=8), torch.randn(1, 16, 4, 4)
    assert part.heads == 2
    assert_close(part(100 * x), part(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="heads=3 does not divide 16 channels"):
        MPSelfAttention(16, heads=3)


def test_autocast_and_half_precision_stay_close() -> None:
    block = Residual(mp_branch(16, 16, 4), merge=MPSum())
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 4)
    expected = block(x, emb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(block(x, emb).float(), expected, rtol=0, atol=0.06)
    assert_close(block.bfloat16()(x.bfloat16(), emb.bfloat16()).float(), expected, rtol=0, atol=0.06)
