"""The optimizers against their equations, and through the loop."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.training.toy import BATCH, ToyTask, hashes, tensors, train
from training.muon import orthogonalize
from training.optimizer import OPTIMIZERS, SGD, AdamW, Muon
from training.settings import kind_of


def sgd_by_hand(config: SGD, weight: torch.Tensor, gradients: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Sutskever et al. 2013 as PyTorch has it: the gradient, decay included, joins the running sum first."""
    total = torch.zeros_like(weight)
    for gradient in gradients:
        gradient = gradient + decay * weight
        total = config.momentum * total + gradient
        weight = weight - config.learning_rate * (gradient + config.momentum * total if config.nesterov else total)
    return weight


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_vectors", [False, True])
def test_sgd_against_its_equations(momentum, nesterov, decay_vectors):
    if nesterov and not momentum:
        return
    config = SGD(
        learning_rate=0.1,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=0.3,
        decay_vectors=decay_vectors,
    )
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    matrix, vector = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = config.make(list(model.parameters()))
    gradients: list[list[torch.Tensor]] = [[], []]
    for _ in range(4):
        for weight, seen in zip(model.parameters(), gradients, strict=True):
            weight.grad = torch.randn_like(weight)
            seen.append(weight.grad)
        optimizer.step()
    assert_close(model.weight.detach(), sgd_by_hand(config, matrix, gradients[0], 0.3))
    assert_close(model.bias.detach(), sgd_by_hand(config, vector, gradients[1], 0.3 if decay_vectors else 0.0))


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_adamw_decays_what_is_chosen(decay_vectors):
    config = AdamW(learning_rate=0.1, weight_decay=0.5, decay_vectors=decay_vectors)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = config.make(list(model.parameters()))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for weight, old in zip(model.parameters(), before, strict=True):
        kept = 1 - 0.1 * 0.5 if decay_vectors or weight.ndim > 1 else 1.0
        assert_close(weight.detach(), kept * old)


def polynomial(values: torch.Tensor) -> torch.Tensor:
    """The five iterations of Muon on singular values (Jordan et al. 2024)."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize(("flags", "error"), [(set(), 1e-4), ({"amx_bf16"}, 5e-2)])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (5, 5), (1, 7)])
def test_orthogonalizing_keeps_singular_vectors_and_maps_singular_values(shape, flags, error, monkeypatch):
    monkeypatch.setattr("training.muon.cpu_flags", lambda: flags)
    monkeypatch.setattr("residual.native.library", object())
    matrices = torch.randn(3, *shape)
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    expected = left @ torch.diag_embed(polynomial(values / values.norm(dim=1, keepdim=True))) @ right
    assert_close(orthogonalize(matrices), expected.float(), rtol=0, atol=error)
    assert_close(orthogonalize(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_muon_steps_matrices_as_pytorch_and_vectors_by_adamw():
    config = Muon(learning_rate=0.1, weight_decay=0.3, momentum=0.8, betas=(0.7, 0.9))
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in [(8, 24), (24, 8), (8, 24), (24,)]]
    matrices, vector = [nn.Parameter(weight.detach().clone()) for weight in weights[:3]], weights[3].detach().clone()
    vector = nn.Parameter(vector)
    ours = config.make(weights)
    matched = torch.optim.Muon(matrices, 0.1, weight_decay=0.3, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([vector], 0.1, weight_decay=0.3, betas=(0.7, 0.9))
    for _ in range(3):
        for weight, same in zip(weights, [*matrices, vector], strict=True):
            weight.grad = torch.randn_like(weight)
            same.grad = weight.grad.clone()
        for optimizer in (ours, matched, adamw):
            optimizer.step()
    assert_close(weights[3], vector)
    for weight, same in zip(weights, matrices, strict=False):
        assert_close(weight, same, rtol=0, atol=1e-2)  # PyTorch computes in bfloat16; a step is 0.1 in size


@pytest.mark.parametrize("layouts", [(True, False), (False, True)])
def test_muon_takes_gradients_in_another_layout(layouts):
    first, gradient = torch.randn(6, 3, 3, 3), torch.randn(6, 3, 3, 3)
    formats = [torch.channels_last if last else torch.contiguous_format for last in layouts]
    mixed, plain = nn.Parameter(first.to(memory_format=formats[0])), nn.Parameter(first.clone())
    mixed.grad, plain.grad = gradient.to(memory_format=formats[1]), gradient.clone()
    odd = nn.Parameter(torch.randn(3, 3, 8, 4).permute(2, 3, 0, 1))
    odd.grad = torch.randn(8, 4, 3, 3)
    for parameter in (mixed, plain, odd):
        Muon(learning_rate=0.1).make([parameter]).step()
    assert_close(mixed.detach(), plain.detach())


def test_muon_takes_a_convolution_as_a_matrix_of_one_row_per_output_channel():
    config, gradient = Muon(learning_rate=0.1), torch.randn(6, 3, 3, 3)
    weight = nn.Parameter(torch.zeros(6, 3, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(torch.zeros(6, 27))
    weight.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    for parameter in (weight, matrix):
        config.make([parameter]).step()
    assert_close(weight.detach().flatten(1), matrix.detach())
    assert weight.is_contiguous(memory_format=torch.channels_last)


SETTINGS = [
    SGD(nesterov=True, weight_decay=0.1, decay_vectors=False),
    SGD(momentum=0.0),
    AdamW(decay_vectors=False, weight_decay=0.1),
    Muon(decay_vectors=False, weight_decay=0.1),
]
NAMES = ["nesterov", "plain", "adamw", "muon"]


@pytest.mark.parametrize("config", SETTINGS, ids=NAMES)
def test_the_new_state_has_the_shapes_of_the_state_after_a_step(config):
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = config.make([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    found, new = optimizer.state.get(weight, {}), config.new_state(weight)
    assert {name: value.shape for name, value in new.items()} == {name: value.shape for name, value in found.items()}
    assert sum(value.shape == weight.shape for value in new.values()) == config.slots


@pytest.mark.parametrize("config", SETTINGS, ids=NAMES)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, config):
    settings = {"optimizer": kind_of(OPTIMIZERS, config), **vars(config)}
    train(tmp_path / "straight", **settings)
    train(tmp_path / "halves", images=4 * BATCH, **settings)
    train(tmp_path / "halves", ToyTask(), **settings)
    assert len(hashes(tmp_path / "halves")) == 3
    assert hashes(tmp_path / "halves") == hashes(tmp_path / "straight")


def test_without_an_average_the_model_is_what_was_trained(tmp_path):
    train(tmp_path, halflife_images=None)
    trained, average = tensors(tmp_path), tensors(tmp_path, "ema")
    for name, value in trained.items():
        assert_close(average[name], value, rtol=0, atol=0)
