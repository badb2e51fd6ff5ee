"""Probes: closed forms on small networks, the kinds of models that they work on, no side effects, bad input."""

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import resnet
import unet
from residual import Add, Chain, Concat, FrozenBatchNorm2d, Residual, ZeroPad
from residual.probes import features, gradients, jacobians, lesions, robustness
from residual.probes.visit import FixedInputs, record, select

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "in_channels": 1,
    "stem": "conv3",
    "stem_channels": 4,
    "widths": (4, 8),
    "blocks_per_stage": (2, 1),
}
LABEL = torch.tensor([0, 1, 2, 1])
cross_entropy = partial(F.cross_entropy, target=LABEL, reduction="none")


def total(output: Tensor) -> Tensor:
    return output.flatten(1).sum(dim=1)


def classifier(**changes: Any) -> nn.Module:
    return resnet.ResNet(resnet.ResNetConfig(**(SMALL | changes)))


def diffusion_network(**changes: Any) -> nn.Module:
    small: dict[str, Any] = {"size": (8, 8), "in_channels": 1, "out_channels": 1, "base_channels": 8, "groups": 4}
    config = unet.UNetConfig(
        **small, channel_multipliers=(1, 1), blocks_per_level=1, attention_levels=(1,), classes=3, **changes
    )
    return FixedInputs(unet.UNet(config), 300.0, LABEL)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": classifier,
    "preact": partial(classifier, block="preact_basic", recompute_stages=(1,)),
    "unet": diffusion_network,
}


def built(kind: str) -> nn.Module:
    """The model with random weights, also where weights start at zero, and some of its weights frozen."""
    model = MODELS[kind]().eval()
    for i, p in enumerate(model.parameters()):
        nn.init.normal_(p, mean=0.5 if p.dim() == 1 else 0.0, std=0.5 / p[0].numel() ** 0.5)
        p.requires_grad_(i % 3 != 1)
    return model


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def same_shape(model: nn.Module) -> list[str]:
    """A block of each model."""
    return [next(iter(select(model)))]


Probe = Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], Any]
# every probe is a row of docs/probes.md
PROBES: dict[str, Probe] = {
    "input_gradients": gradients.input_gradients,
    "gradient_norms": gradients.gradient_norms,
    "utilisation": gradients.utilisation,
    "alignment": gradients.alignment,
    "path_gradients": partial(gradients.path_gradients, samples=1, lengths=[0, 2]),
    "gradient_autocorrelation": lambda model, x, loss: gradients.gradient_autocorrelation(
        model, x[0], x[1], total, points=4, lags=2
    ),
    "lesions": lesions.lesions,
    "truncations": lesions.truncations,
    "reorderings": partial(lesions.reorderings, swaps=(1, 2)),
    "jacobian_norms": lambda model, x, loss: jacobians.jacobian_norms(model, x, iterations=3),
    "lipschitz_samples": lambda model, x, loss: jacobians.lipschitz_samples(model, x, samples=2),
    "lipschitz_bounds": lambda model, x, loss: jacobians.lipschitz_bounds(model, ["levels.1.0", "levels.1.1"]),
    "eigenvalues": lambda model, x, loss: jacobians.eigenvalues(model, x[:, :, ::2, ::2], same_shape(model)),
    "fixed_points": lambda model, x, loss: jacobians.fixed_points(model, x, same_shape(model), tol=0.5),
    "spreads": lambda model, x, loss: features.spreads(model, x),
    "decodability": lambda model, x, loss: features.decodability(model, x),
    "total_variations": lambda model, x, loss: features.total_variations(model, x[0], x[1], points=4),
    "attack": lambda model, x, loss: robustness.attack(model, x, loss, 0.1, steps=2, bounds=(-9, 9)),
    "attacked_outputs": lambda model, x, loss: robustness.attacked_outputs(model, x, loss, [0, 0.1], bounds=(-9, 9)),
    "loss_landscape": lambda model, x, loss: robustness.loss_landscape(model, x, loss, [0, 0.5], axes=2),
    "batch_norm_statistics": lambda model, x, loss: robustness.batch_norm_statistics(model, [x, x]),
}


REFUSED = {("lipschitz_bounds", "unet"), ("batch_norm_statistics", "unet")}
"""probes of norms by batch, which a diffusion U-Net has not: see `BAD`"""


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors and numbers of a probe's result."""
    if isinstance(result, float):
        return [torch.tensor(result)]
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result if isinstance(result, (tuple, list)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def everything(model: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """What a probe might change: modules and their attributes, weights, buffers, gradients, random states."""
    modules = dict(model.named_modules())
    attributes = [(name, id(m), list(m.__dict__), m.training, list(m._forward_hooks)) for name, m in modules.items()]
    weights = [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]
    plain = [attributes, weights, str(np.random.get_state()), torch.is_grad_enabled()]
    return plain, [torch.get_rng_state(), *(tensor.clone() for tensor in model.state_dict().values())]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", PROBES)
def test_probes_run_on_every_kind_of_model_and_change_nothing(name: str, kind: str) -> None:
    if (name, kind) in REFUSED:
        return
    model, x = built(kind), images()
    loss = cross_entropy if kind != "unet" else lambda output: (output - x).square().flatten(1).mean(dim=1)
    plain, tensors = everything(model)
    result = PROBES[name](model, x, loss)
    after = everything(model)
    assert after[0] == plain
    assert_close(after[1], tensors, rtol=0, atol=0)
    assert_close(x, images(), rtol=0, atol=0)
    found = tensors_of(result)
    assert found
    assert all(tensor.isfinite().all() and not tensor.requires_grad for tensor in found)
    if isinstance(result, dict) and len(result) > 2 and name != "batch_norm_statistics":
        assert list(result) == list(select(model))
    if kind != "resnet":
        return
    with torch.no_grad():  # under any setting of the caller, the same result
        again = PROBES[name](model, x, loss)
    assert_close(tensors_of(again), found, rtol=0, atol=0)


def linear_net(*matrices: Tensor) -> Chain:
    """Blocks x + A x of vectors."""
    blocks = {}
    for i, matrix in enumerate(matrices):
        blocks[f"b{i}"] = Residual(nn.Linear(*matrix.shape, bias=False, dtype=torch.float64))
        blocks[f"b{i}"].branch.weight = nn.Parameter(matrix)
    return Chain(**blocks).eval()


A, B = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
C = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


def test_gradients_of_a_linear_network() -> None:
    net, loss = linear_net(A, B), lambda y: y @ C
    g1 = C @ (EYE + B)
    g0 = g1 @ (EYE + A)
    assert_close(gradients.input_gradients(net, X, loss), g0.expand(5, 3))
    norms = gradients.gradient_norms(net, X, loss)
    assert_close(norms, {"b0": g0.norm().expand(5), "b1": g1.norm().expand(5)})
    shares = gradients.utilisation(net, X, loss)
    expected = [(g @ m).norm() / ((g @ m).norm() + g.norm()) for g, m in ((g1, A), (C, B))]
    assert_close(shares, {f"b{i}": share.expand(5) for i, share in enumerate(expected)})
    x1 = X @ (EYE + A).T
    cosines = [F.cosine_similarity(x @ m.T, -g.expand(5, 3)) for x, m, g in ((X, A, g0), (x1, B, g1))]
    assert_close(gradients.alignment(net, X, loss), dict(zip(("b0", "b1"), cosines, strict=True)))


def test_a_plain_module_is_a_branch_alone() -> None:
    net = Chain(a=nn.Linear(3, 3), b=nn.ReLU()).eval()
    shares = gradients.utilisation(net, X.float(), total, ["a"])
    assert_close(shares["a"], torch.ones(5))
    assert gradients.gradient_norms(net, X.float(), total, ["b", "a"]).keys() == {"a", "b"}


def test_gradients_by_path_length_are_those_of_the_binomial_theorem() -> None:
    a = torch.full((1, 1), 0.5, dtype=torch.float64)
    found = gradients.path_gradients(linear_net(a, a, a), X[:, :1], total, samples=2)
    assert found.length.tolist() == [0, 1, 2, 3]
    assert_close(found.norm, torch.tensor([1, 0.5, 0.25, 0.125]))
    assert_close(found.share, torch.tensor([1, 1.5, 0.75, 0.125]) / 1.5**3)


def test_gradients_of_all_paths_sum_to_the_gradient() -> None:
    net = linear_net(A.abs(), B.abs())
    found = gradients.path_gradients(net, X, lambda y: y @ C.abs(), lengths=[1], samples=100)
    paths = [C.abs() @ A.abs(), C.abs() @ B.abs()]
    assert min(map(torch.norm, paths)) < found.norm < max(map(torch.norm, paths))
    assert_close(found.norm[0].double(), torch.stack(paths).norm(dim=1).mean(), rtol=0.1, atol=0)


def test_autocorrelation_of_gradients_by_hand() -> None:
    net = Chain(cube=nn.Linear(2, 2), act=nn.Tanh(), block=Residual(nn.Linear(2, 2))).eval()
    start, end = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 0.0])
    found = gradients.gradient_autocorrelation(net, start, end, total, points=7, lags=3)
    rows = []
    for i in range(7):
        x = (start + (end - start) * i / 6).requires_grad_()
        net(x).sum().backward()
        rows.append(x.grad)
    g = torch.stack([row for row in rows if row is not None])
    g = g - g.mean(dim=0)
    expected = [sum(g[i] @ g[i + k] for i in range(7 - k)) / (g * g).sum() for k in range(4)]
    assert_close(found, torch.stack(expected))


def test_lesions_are_networks_without_the_block() -> None:
    net, loss = linear_net(A, B), lambda y: y @ C
    intact = loss(net(X))
    expected = {"b0": loss(linear_net(B)(X)), "b1": loss(linear_net(A)(X))}
    assert_close(lesions.lesions(net, X, loss), {name: (value - intact).detach() for name, value in expected.items()})
    assert_close(lesions.truncations(net, X, loss), {"b0": expected["b1"].detach(), "b1": intact.detach()})
    with lesions.removed(net, ["b0", "b1"]):
        assert_close(net(X), X, rtol=0, atol=0)
        assert_close(lesions.lesions(net, X, loss)["b0"], torch.zeros_like(X[:, 0]))
        assert_close(gradients.input_gradients(net, X, loss), C.expand(5, 3))
    assert_close(net(X) @ C, intact, rtol=0, atol=0)


def test_a_plain_layer_is_removed_as_a_whole() -> None:
    net = classifier(shortcut="none").eval()
    found = lesions.lesions(net, images(), cross_entropy, ["levels.1.0", "levels.1.1"])
    intact = cross_entropy(net(images()))
    net.levels[1] = Chain(**{"1": net.levels[1].get_submodule("1")})
    assert_close(found["levels.1.0"], (cross_entropy(net(images())) - intact).detach())


def test_reordered_blocks() -> None:
    net, loss = linear_net(A, B), lambda y: y @ C
    with lesions.reordered(net, {"b0": "b1", "b1": "b0"}):
        assert_close(net(X), linear_net(B, A)(X), rtol=0, atol=0)
    same, swapped = lesions.reorderings(net, X, loss, swaps=(0, 1))
    assert (same.tau, swapped.tau) == (1, -1)
    assert_close(same.increase, torch.zeros_like(same.increase), rtol=0, atol=0)
    assert_close(swapped.increase, (loss(linear_net(B, A)(X)) - loss(net(X))).detach())


def test_kendall_tau_counts_pairs() -> None:
    assert lesions.kendall_tau([0, 1, 2, 3]) == 1
    assert lesions.kendall_tau([3, 2, 1, 0]) == -1
    assert lesions.kendall_tau([1, 0, 2]) == pytest.approx(1 / 3)


def test_margin_is_the_distance_to_the_best_other_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 4.0]])
    assert_close(lesions.margin(logits, torch.tensor([0, 1])), torch.tensor([1.0, -5.0]))


class Twice(nn.Module):
    """One block, called twice; and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.idle = Residual(nn.Linear(3, 3)), Residual(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_a_block_that_is_called_twice_is_recorded_twice() -> None:
    run = record(Twice().eval(), X.float(), ["block"])
    assert [visit.name for visit in run.visits] == ["block", "block, call 2"]
    assert_close(run.visits[1].x, run.visits[0].y, rtol=0, atol=0)
    assert_close(run.visits[1].call(run.visits[1].x), run.output)


def test_parts_are_restored_after_an_error() -> None:
    net = linear_net(A, B)
    with pytest.raises(RuntimeError, match="broken"), lesions.removed(net, ["b0"]):
        raise RuntimeError("broken")
    assert_close(net(X), linear_net(A, B)(X), rtol=0, atol=0)


def test_jacobian_norms_of_a_linear_network() -> None:
    found = jacobians.jacobian_norms(linear_net(A, B), X, iterations=1000)
    a, b, both = (torch.linalg.matrix_norm(m, ord=2) for m in (EYE + A, EYE + B, (EYE + B) @ (EYE + A)))
    assert_close(found.blocks, {"b0": a.expand(5), "b1": b.expand(5)}, rtol=1e-5, atol=0)
    assert_close(found.product, (a * b).expand(5), rtol=1e-5, atol=0)
    assert_close(found.end_to_end, both.expand(5), rtol=1e-5, atol=0)
    assert both < a * b


@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_jacobian_norms_equal_those_of_the_whole_matrix(kind: str) -> None:
    model = built(kind).double()
    visit = record(model, images()[:, :, ::2, ::2].double()).visits[-1]
    whole = torch.autograd.functional.jacobian(visit.call, visit.x.detach())
    matrices = torch.stack([whole[i, :, :, :, i].flatten(3).flatten(0, 2) for i in range(4)])
    expected = torch.linalg.matrix_norm(matrices, ord=2)
    found = jacobians.jacobian_norms(model, images()[:, :, ::2, ::2].double(), [visit.name], iterations=2000)
    assert_close(found.blocks[visit.name], expected, rtol=1e-4, atol=0)


def test_lipschitz_bounds_are_above_norms_and_samples() -> None:
    for model in (built("resnet"), built("preact")):
        x = images()[:1]
        bounds, norms = jacobians.lipschitz_bounds(model), jacobians.jacobian_norms(model, x, iterations=10).blocks
        samples = jacobians.lipschitz_samples(model, x, radius=1.0, samples=4)
        assert bounds.keys() == norms.keys() == samples.keys()
        for name, bound in bounds.items():
            assert 0 < float(samples[name].max()) <= bound
            assert 0 < float(norms[name].max()) <= bound


def test_lipschitz_bounds_of_single_modules() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    scaled, norm = nn.Linear(3, 3, bias=False), FrozenBatchNorm2d(2, eps=0.0)
    scaled.weight = nn.Parameter(2 * torch.eye(3))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    matrix = torch.stack([conv(unit).detach().flatten() for unit in torch.eye(4 * 36).view(-1, 1, 4, 6, 6)])
    net = Chain(
        sum=Residual(scaled, merge=Add(scale=0.5, branch_scale=-3.0)),
        cat=Residual(scaled, merge=Concat()),
        chain=Chain(a=scaled, pool=nn.MaxPool2d(3, 2), act=nn.SiLU(), b=scaled),
        windows=nn.AvgPool2d((4, 2), (1, 2)),
        norm=norm,
        pad=ZeroPad(1, 3, 2),
        conv=conv,
    ).eval()
    found = jacobians.lipschitz_bounds(net, [name for name, _ in net.named_children()])
    expected = {"sum": 0.5 + 3 * 2, "cat": 5**0.5, "chain": 2 * 2 * 1.1 * 2, "windows": 2.0, "norm": 2.0, "pad": 1.0}
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert exact <= found.pop("conv") < 3 * exact
    assert found == pytest.approx(expected)


def test_samples_of_a_linear_map_are_below_its_norm() -> None:
    found = jacobians.lipschitz_samples(linear_net(A), X, samples=200)["b0"]
    norm = torch.linalg.matrix_norm(EYE + A, ord=2)
    assert found.shape == (200, 5)
    assert 0.9 * norm < found.max() <= norm * (1 + 1e-12)


def test_eigenvalues_are_one_plus_those_of_the_branch() -> None:
    found = jacobians.eigenvalues(linear_net(A), X)["b0"]
    expected = 1 + torch.linalg.eigvals(A)
    assert found.shape == (5, 3)
    for row in found:
        assert_close(row[row.imag.argsort()], expected[expected.imag.argsort()])


def test_the_fixed_point_of_an_affine_block() -> None:
    net = linear_net(A)
    net.b0.branch.bias = nn.Parameter(C.clone())
    found = jacobians.fixed_points(net, X)["b0"]
    assert_close(found, torch.linalg.solve(A, -C).expand(5, 3), rtol=1e-6, atol=1e-6)


def test_spread_of_known_features() -> None:
    net = Chain(a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False)).eval()
    net.a.weight = nn.Parameter(torch.eye(4))
    net.b.weight = nn.Parameter(torch.zeros(4, 4))
    found = features.spreads(net, torch.cat([torch.eye(4), -torch.eye(4)]), ["a", "b"])
    distance = (4 * 2 + 24 * 2**0.5) / 28
    assert found["a"] == pytest.approx((4.0, 4.0, distance))
    assert found["b"] == (0.0, 0.0, 0.0)


def test_what_a_linear_map_decodes() -> None:
    x = torch.randn(60, 3, dtype=torch.float64)
    net = linear_net(A, torch.diag(torch.tensor([0.0, -1.0, -1.0], dtype=torch.float64)))
    found = features.decodability(net, x, ridge=1e-9)
    assert found["b0"] == pytest.approx(1.0, abs=1e-6)
    h = x @ (EYE + A).T @ torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    train, test = slice(0, 30), slice(30, 60)
    h, y = h - h[train].mean(dim=0), x - x[train].mean(dim=0)
    weights = torch.linalg.lstsq(h[train, :1], y[train]).solution
    expected = 1 - (y[test] - h[test, :1] @ weights).square().sum() / y[test].square().sum()
    assert found["b1"] == pytest.approx(float(expected), abs=1e-6)
    assert features.decodability(net, x, torch.ones(60, 2, dtype=torch.float64).cumsum(0), ["b0"])["b0"] < 0.5


def test_total_variation_of_a_curve_by_hand() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(2 * torch.pi * x)

    net = Chain(block=Residual(Sine()), back=Residual(nn.Linear(1, 1, bias=False))).eval()
    net.back.branch.weight = nn.Parameter(-torch.ones(1, 1))
    found = features.total_variations(net, torch.zeros(1), torch.ones(1), points=4001)
    assert found["block"].branch == pytest.approx(4.0, abs=1e-4)
    assert found["block"].shortcut == pytest.approx(1.0)
    assert 3.0 <= found["block"].output <= 5.0
    assert found["back"].output == pytest.approx(0.0, abs=1e-6)


def test_attacks_of_a_linear_model() -> None:
    net, loss, x = linear_net(A), lambda y: y @ C, X.clamp(-0.5, 0.5)
    sign = (C @ (EYE + A)).sign()
    assert_close(robustness.attack(net, x, loss, 0.1), x + 0.1 * sign)
    assert_close(robustness.attack(net, x, loss, 0.1, steps=5), x + 0.1 * sign)
    assert_close(robustness.attack(net, x, loss, 9.0), sign.expand(5, 3))
    outputs = robustness.attacked_outputs(net, x, loss, [0.0, 0.1])
    assert_close(outputs[0], net(x).detach())
    assert_close(outputs[1] @ C, (loss(net(x)) + 0.1 * (C @ (EYE + A)).abs().sum()).detach())


def test_the_landscape_by_hand() -> None:
    model, x = built("resnet"), images()
    direction = robustness.filter_directions(model, seed=3)
    for name, p in model.named_parameters():
        expected = p.flatten(1).norm(dim=1) if p.dim() > 1 else torch.zeros(len(p))
        found = direction[name].flatten(1).norm(dim=1) if p.dim() > 1 else direction[name]
        assert_close(found, expected.detach())
    found = robustness.loss_landscape(model, x, cross_entropy, [-0.5, 0.0, 1.0], seed=3)
    plane = robustness.loss_landscape(model, x, cross_entropy, [-0.5, 0.0, 1.0], axes=2, seed=3)
    assert_close(plane[:, 1], found)
    with torch.no_grad():
        assert_close(found[1], cross_entropy(model(x)).mean())
        for name, p in model.named_parameters():
            p += direction[name]
        assert_close(found[2], cross_entropy(model(x)).mean())


def test_batch_norm_statistics_are_averages_over_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval()
    batches = [torch.randn(4, 2, 3, 3) * scale for scale in (1, 2, 5)]
    found = robustness.batch_norm_statistics(net, batches)
    assert set(found) == {"0.running_mean", "0.running_var"}
    assert_close(found["0.running_mean"], torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0))
    assert_close(found["0.running_var"], torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0))
    assert net.load_state_dict(found, strict=False).unexpected_keys == []


def image_pair(model: nn.Module, x: Tensor, loss: Any, **options: Any) -> Tensor:
    return gradients.gradient_autocorrelation(model, x[0], x[1], loss, **options)


# name -> what is wrong, and the field and value that the error names
BAD: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "training mode": (
        lambda m, x: gradients.alignment(m.train(), x, cross_entropy),
        r"ResNet.*training mode.*eval\(\)",
    ),
    "a part in training mode": (
        lambda m, x: m.levels[1].train() and lesions.lesions(m, x, cross_entropy),
        r"levels\.1 is in training mode",
    ),
    "no residual blocks": (lambda m, x: lesions.lesions(m.fc, x, total), r"Linear has no residual blocks.*names="),
    "unknown name": (lambda m, x: lesions.lesions(m, x, total, ["levels.1.7"]), r"'levels\.1\.7'.*levels\.1\.1"),
    "no names": (lambda m, x: lesions.lesions(m, x, total, []), r"names=\[\]"),
    "not a block": (
        lambda m, x: gradients.path_gradients(m, x, total, names=["levels.0"]),
        r"levels\.0 is no residual",
    ),
    "mean loss": (lambda m, x: gradients.alignment(m, x, torch.mean), r"shape \(\).*4 images"),
    "loss not finite": (lambda m, x: lesions.lesions(m, x, lambda y: total(y) / 0), r"loss of image 0.*finite"),
    "no image": (lambda m, x: gradients.gradient_norms(m, x[:0], total), r"x .*\(0, 1, 8, 8\)"),
    "whole numbers": (lambda m, x: record(m, x.int()), r"x is torch\.int32"),
    "image not finite": (lambda m, x: lesions.lesions(m, x / 0, total), r"x .*finite"),
    "rows": (lambda m, x: record(Rows(m).eval(), x), r"returned \(2, 3\).*4 rows"),
    "tuple": (lambda m, x: record(Pair(m).eval(), x), r"returned tuple"),
    "idle block": (lambda m, x: record(Twice().eval(), X.float()), r"idle"),
    "length": (lambda m, x: gradients.path_gradients(m, x, total, lengths=[4]), r"lengths=\[4\].*3"),
    "samples": (lambda m, x: gradients.path_gradients(m, x, total, samples=0), r"samples=0"),
    "lags": (lambda m, x: image_pair(m, x, total, points=8, lags=8), r"lags=8.*points=8"),
    "points": (lambda m, x: image_pair(m, x, total, points=0, lags=0), r"lags=0"),
    "no equal parts": (lambda m, x: lesions.reorderings(m, x, total, names=["levels.2.0"]), r"0 pairs"),
    "swaps": (lambda m, x: lesions.reorderings(m, x, total, swaps=[-1]), r"swaps=\[-1\]"),
    "other parts": (
        lambda m, x: reorder(m, {"levels.1.0": "levels.2.0", "levels.2.0": "levels.1.0"}),
        r"levels\.2\.0.*at",
    ),
    "no permutation": (lambda m, x: reorder(m, {"levels.1.0": "levels.1.1"}), r"levels\.1\.1.*levels\.1\.0"),
    "shape": (lambda m, x: lesions.lesions(m, x, total, ["levels.0"]), r"levels\.0 .*\(4, 1, 8, 8\)"),
    "attention has no bound": (
        lambda m, x: jacobians.lipschitz_bounds(built("unet")),
        r"encoder.*no Lipschitz bound of",
    ),
    "gate has no bound": (
        lambda m, x: jacobians.lipschitz_bounds(resnet.create_model("highway19").eval()),
        r"levels\.1\.0: .*of Gate",
    ),
    "padding mode": (
        lambda m, x: jacobians.lipschitz_bounds(nn.Conv2d(1, 1, 3, padding_mode="reflect").eval(), [""]),
        r"padding_mode='reflect'",
    ),
    "dilated pool": (
        lambda m, x: jacobians.lipschitz_bounds(nn.MaxPool2d(2, dilation=2).eval(), [""]),
        r"no Lipschitz bound of MaxPool2d.*dilation=2",
    ),
    "iterations": (lambda m, x: jacobians.jacobian_norms(m, x, iterations=0), r"iterations=0"),
    "radius": (lambda m, x: jacobians.lipschitz_samples(m, x, radius=0.0), r"radius=0\.0"),
    "no square block": (lambda m, x: jacobians.eigenvalues(m, x, ["levels.2.0"]), r"levels\.2\.0 .*\(4, 4, 8, 8\)"),
    "too many values": (lambda m, x: jacobians.eigenvalues(m, x, max_values=9), r"levels\.1\.0 has 256 .*max_values=9"),
    "tolerance": (lambda m, x: jacobians.fixed_points(m, x, tol=0.0), r"tol=0 "),
    "too few iterations": (
        lambda m, x: jacobians.fixed_points(linear_net(A), X, max_iterations=2),
        r"fixed point of b0 .*residual .*after 2 iterations.*raise max_iterations",
    ),
    "no fixed point": (
        lambda m, x: jacobians.fixed_points(Shift().eval(), X),
        r"fixed point of block .*up to norm",
    ),
    "one image": (lambda m, x: features.spreads(m, x[:1]), r"1 image"),
    "no test images": (lambda m, x: features.decodability(m, x, train_share=1), r"train_share=1"),
    "targets": (lambda m, x: features.decodability(m, x, x[:2]), r"\(2\)"),
    "one point": (lambda m, x: features.total_variations(m, x[0], x[1], points=1), r"points=1"),
    "bounds": (lambda m, x: robustness.attack(m, 9 * x, total, 0.1), r"outside of bounds=\(-1\.0, 1\.0\)"),
    "negative radius": (lambda m, x: robustness.attack(m, x, total, -0.1), r"radius=-0\.1"),
    "no radii": (lambda m, x: robustness.attacked_outputs(m, x, total, []), r"radii=\[\]"),
    "axes": (lambda m, x: robustness.loss_landscape(m, x, total, [0.0], axes=3), r"axes=3"),
    "no batch norms": (lambda m, x: robustness.batch_norm_statistics(built("unet"), []), r"UNet has no batch norms"),
    "no batch": (lambda m, x: robustness.batch_norm_statistics(m, []), r"no batch"),
    "concatenation": (
        lambda m, x: gradients.alignment(resnet.create_model("densenet_40_12", in_channels=1).eval(), x, total),
        r"levels\.1\.0: .*\(4, 16, 8, 8\).*\(4, 12, 8, 8\)",
    ),
}


PLACES = ["levels.1.0", "levels.2.0"]


class Shift(nn.Module):
    """A block without fixed point: x + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(nn.Linear(3, 3, dtype=torch.float64))
        nn.init.zeros_(self.block.branch.weight)
        nn.init.ones_(self.block.branch.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Rows(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)[:2]


class Pair(Rows):
    def forward(self, x: Tensor) -> Any:
        return self.net(x), x


def reorder(model: nn.Module, source: dict[str, str]) -> None:
    with lesions.reordered(model, source):
        pytest.fail("accepted")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name: str) -> None:
    probe, message = BAD[name]
    model = classifier().eval()
    with pytest.raises(ValueError, match=message) as error:
        probe(model, images())
    assert "\n" not in str(error.value)


PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_every_probe_and_its_example_runs() -> None:
    rows = re.findall(r"^\| `(\w+)\.(\w+)", PAGE, re.MULTILINE)
    assert {name for _, name in rows} == set(PROBES)
    for module, name in rows:
        assert hasattr(import_module(f"residual.probes.{module}"), name)
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, {})
