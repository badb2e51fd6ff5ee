"""ODE blocks: integrators against closed forms, conversions, implicit gradients, and what is refused."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

import resnet
import unet
from residual import Add, Chain, DropPath, Gate, Identity, Project, Residual, basic_branch, unet_branch
from residual.ode import STEPS, NotConverged, ODEBlock, backward_euler, fixed_point
from tests.residual.test_block import filled

SMALL = unet.UNetConfig(
    base_channels=16, channel_multipliers=(1, 2), attention_levels=(1,), blocks_per_level=1, groups=8
)

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "backward_euler": 1}
INSTALL = 'pip install -e ".[ode]"'
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


class Growth(nn.Module):
    """dx/dt = rate x"""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        return self.rate * x


class Logistic(nn.Module):
    """dx/dt = x (1 - x), whose solution from x = 1/10 is 1 / (1 + 9 exp(-t))"""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - x)


class Shifted(nn.Module):
    """dx/dt = tanh(W x + emb)"""

    takes_emb = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return (self.linear(x) + emb).tanh()


def column(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.double)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("euler", 225), ("midpoint", 264.0625), ("heun", 264.0625), ("rk4", 271.734619140625), ("backward_euler", 400)],
)
def test_two_steps_of_exponential_growth(method: str, expected: float) -> None:
    block = ODEBlock(Growth(0.5), method, steps=2, time=2)
    assert_close(block(column(100)), column(expected), rtol=1e-12, atol=0)
    assert_close(ODEBlock(Growth(0.5), "euler", steps=1)(column(100)), column(150), rtol=0, atol=0)


@pytest.mark.parametrize("method", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(method: str) -> None:
    steps, exact = torch.tensor([16, 32, 64, 128]), 1 / (1 + 9 * math.exp(-4))
    ends = [ODEBlock(Logistic(), method, steps=n, time=4)(column(0.1)).item() for n in steps.tolist()]
    x, y = steps.log(), (torch.tensor(ends, dtype=torch.double) - exact).abs().log()
    x = x.double() - x.double().mean()
    assert -(x @ y / (x @ x)).item() == pytest.approx(ORDERS[method], abs=0.12)


@pytest.mark.parametrize("method", EVALUATIONS)
def test_evaluations_of_the_branch_are_counted(method: str) -> None:
    block = ODEBlock(Logistic(), method, steps=5)
    block(column(0.1))
    block(column(0.2))
    assert block.evaluations == 5 * EVALUATIONS[method]


@pytest.mark.parametrize(
    ("rate", "method", "limits"),
    [
        (-1.9, "euler", (0, 0.01)),
        (-2.1, "euler", (117, 118)),
        (-1.9, "backward_euler", (0, 1e-20)),
        (-2.1, "backward_euler", (0, 1e-20)),
        (-1.9, "midpoint", (0, 0.1)),
        (-2.1, "heun", (100, math.inf)),
        (-2.7, "rk4", (0, 0.01)),
        (-2.9, "rk4", (100, math.inf)),
    ],
)
def test_limits_of_stability(rate: float, method: str, limits: tuple[float, float]) -> None:
    grown = ODEBlock(Growth(rate), method, steps=50, time=50)(column(1)).abs().item()
    assert limits[0] < grown < limits[1]


def test_a_negative_time_integrates_backwards() -> None:
    branch, x = Logistic(), column(0.1)
    end = ODEBlock(branch, "rk4", steps=64, time=2)(x)
    assert_close(ODEBlock(branch, "rk4", steps=64, time=-2)(end), x, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("steps", "time"), [(1, 1.0), (3, 0.3), (7, -2.0)])
def test_euler_is_a_chain_of_residual_blocks_to_the_last_bit(steps: int, time: float) -> None:
    branch = filled(unet_branch(8, 8, 4))
    block = ODEBlock(branch, "euler", steps=steps, time=time)
    chain = Chain(**{f"r{i}": Residual(branch, merge=Add(branch_scale=time / steps)) for i in range(steps)})
    x, emb = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 4)
    found, expected = block(x, emb), chain(x, emb)
    assert_close(found, expected, rtol=0, atol=0)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *branch.parameters()]) for y in (found, expected))
    assert_close(ours, theirs, rtol=0, atol=0)
    assert_close(block.to_residuals()(x, emb), expected, rtol=0, atol=0)
    assert_close(ODEBlock.from_residuals(chain)(x, emb), expected, rtol=0, atol=0)


def test_conversion_keeps_step_and_branch() -> None:
    block = Residual(nn.Tanh(), merge=Add(branch_scale=0.1))
    ode = ODEBlock.from_residuals(nn.Sequential(block, block, block))  # 3 · 0.1 / 3 is not 0.1
    assert ode.branch is block.branch
    assert (ode.steps, ode.step_size, ode.time) == (3, 0.1, pytest.approx(0.3))
    assert [step.merge.branch_scale for step in ode.to_residuals().children()] == [0.1, 0.1, 0.1]
    assert ODEBlock.from_residuals(block).steps == 1
    assert repr(ODEBlock(nn.Tanh(), "heun", steps=3)).startswith("ODEBlock(\n  heun, time=1, steps=3")


def test_other_methods_are_discretised_by_euler() -> None:
    ode, x = ODEBlock(Logistic(), "rk4", steps=32, time=4), column(0.1)
    errors = [(ode.to_residuals(n)(x) - ode(x)).abs().item() for n in (32, 64, 128)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    finer = ODEBlock.from_residuals(ode.to_residuals(), "rk4", steps=32)
    assert_close(finer(x), ode(x), rtol=1e-14, atol=0)


def test_a_step_may_be_a_function() -> None:
    x = torch.randn(3, 5)
    block = ODEBlock(nn.Tanh(), lambda f, x, h: x + h * f(x + h), steps=1, time=0.5)
    assert_close(block(x), x + 0.5 * (x + 0.5).tanh())
    loose, tight = (ODEBlock(Growth(-1.5), partial(backward_euler, tol=t), steps=3) for t in (1e-2, 1e-12))
    y = torch.randn(4, 6, dtype=torch.double)
    assert loose(y).shape == y.shape
    assert_close(tight(y), y / 1.5**3)
    assert loose.evaluations <= tight.evaluations


def test_gradients_of_backward_euler_by_finite_differences() -> None:
    block = ODEBlock(Shifted(3), "backward_euler", steps=2).double()
    x, emb = torch.randn(2, 2, 3, dtype=torch.double, requires_grad=True)
    weight = block.branch.linear.weight.detach().mul(2).requires_grad_()

    def run(x: Tensor, emb: Tensor, weight: Tensor) -> Tensor:
        return functional_call(block, {"branch.linear.weight": weight}, (x, emb))

    assert torch.autograd.gradcheck(run, (x, emb, weight))


def test_the_implicit_gradient_equals_that_of_an_unrolled_solver() -> None:
    block = ODEBlock(
        filled(basic_branch(4, 4, norm=nn.Identity, act=nn.Tanh)), "backward_euler", steps=1, time=0.3
    ).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.double, requires_grad=True)
    z = x
    for _ in range(300):
        z = x + 0.3 * block.branch(z)
    inputs = [x, *block.parameters()]
    ours, theirs = (torch.autograd.grad(y.sin().sum(), inputs) for y in (block(x), z))
    assert_close(ours, theirs, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert_close(block(x), z, rtol=0, atol=1e-9)


def test_half_precision_and_autocast() -> None:
    block, x = ODEBlock(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), "backward_euler", steps=2), torch.randn(3, 6)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    assert_close(found, expected, rtol=0, atol=0.05)
    found.sum().backward()
    found = block.bfloat16()(x.bfloat16())
    assert_close(found.float(), expected, rtol=0, atol=0.1)
    found.sum().backward()


def test_gradients_without_dependence_on_the_state() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.slope.expand_as(x)

    block, x = ODEBlock(Constant(), "backward_euler", steps=4), torch.zeros(2, 3)
    block(x).sum().backward()
    assert_close(block(x), torch.ones(2, 3))
    assert_close(block.branch.slope.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("memory", [0, 1, 12])
def test_fixed_points_of_each_sample(memory: int) -> None:
    rates = torch.tensor([0.0, 0.1, 0.5, -0.8], dtype=torch.double)[:, None]
    calls = 0

    def g(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 1 + rates * z

    start = torch.randn(4, 7, dtype=torch.double)
    assert_close(fixed_point(g, start, memory=memory, max_iterations=200), (1 / (1 - rates)).expand(4, 7))
    assert calls < (10 if memory else 200)
    assert_close(
        fixed_point(lambda z: 1 + z / 2, torch.zeros(3), memory=memory), torch.full((3,), 2.0), rtol=0, atol=1e-4
    )


def test_acceleration_solves_what_plain_iteration_does_not() -> None:
    torch.manual_seed(0)
    a = torch.randn(8, 8, dtype=torch.double)
    a = -3 * a @ a.T / torch.linalg.matrix_norm(a @ a.T, 2)
    b = torch.randn(5, 8, dtype=torch.double)
    with pytest.raises(NotConverged, match=r"residual .* 100 iterations, tol=3\.7e-11"):
        fixed_point(lambda z: b + z @ a, b, memory=0)
    assert_close(fixed_point(lambda z: b + z @ a, b), torch.linalg.solve(torch.eye(8).double() - a, b, left=False))


def test_solvers_that_fail_name_the_residual_and_the_way_out() -> None:
    doubling = ODEBlock(Growth(1.0), "backward_euler", steps=1)  # z = x + z has no solution
    with pytest.raises(NotConverged, match=r"h=1 .*residual .*iterations.*more steps.*max_iterations"):
        doubling(column(1))
    with pytest.raises(NotConverged, match=r"residual (nan|inf) after 1 iterations"):
        fixed_point(lambda z: z / 0, column(1))
    with pytest.raises(NotConverged, match=r"residual 5\.0e-01 after 40 iterations"):
        fixed_point(lambda z: z + 1, torch.ones(1, 1, dtype=torch.bfloat16), max_iterations=40)

    class OnlyForward(nn.Module):
        """The solution is x = 0 for every slope; that of the gradient's equation w = v + w does not exist."""

        def forward(self, x: Tensor) -> Tensor:
            return x * (x.detach() != 0) + (x - x.detach())

    flat = ODEBlock(OnlyForward(), "backward_euler", steps=1)
    with pytest.raises(NotConverged, match="gradient of a step of backward Euler"):
        flat(column(0).requires_grad_()).sum().backward()


@pytest.mark.parametrize("options", [{"method": "backward_euler", "steps": 2}, {"method": "dopri5", "rtol": 1e-3}])
def test_second_derivatives_are_refused(options: dict) -> None:
    if "rtol" in options:
        pytest.importorskip("torchdiffeq", reason=INSTALL)
    x = column(0.3).requires_grad_()
    with pytest.raises(ValueError, match="create_graph"):
        torch.autograd.grad(ODEBlock(Logistic(), **options)(x), x, create_graph=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "rk5", "steps": 1}, "unknown method 'rk5'.*rk4"),
        ({"method": "euler"}, r"steps=None, rtol=None"),
        ({"method": "euler", "steps": 2, "rtol": 1e-3}, r"steps=2, rtol=0\.001"),
        ({"method": "dopri5", "steps": 2}, r"steps=2, rtol=None"),
        ({"method": "rk4", "steps": 0}, "steps=0 .*at least 1"),
        ({"method": "dopri5", "rtol": 0.0}, "rtol=0 .*above 0"),
        ({"method": "dopri5", "rtol": 1.0}, "rtol=1 .*below 1"),
        ({"method": "dopri5", "rtol": float("nan")}, "rtol=nan"),
        ({"steps": 2, "time": 0.0}, "time=0 .*finite"),
        ({"steps": 2, "time": float("inf")}, "time=inf .*finite"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ODEBlock(nn.Tanh(), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tol": 1e-9}, r"tol=1e-09 .*1\.2e-07.*float32"),
        ({"tol": 1.0}, "tol=1 must be below 1"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"memory": -1}, "memory=-1"),
    ],
)
def test_options_of_fixed_points_out_of_range_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fixed_point(torch.tanh, torch.ones(1, 1), **options)


@pytest.mark.parametrize("method", STEPS)
def test_a_branch_that_changes_the_shape_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) to \(2, 1\).*shape of x"):
        ODEBlock(nn.Linear(4, 1), method, steps=2)(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("net", "converted"),
    [
        (partial(resnet.create_model, "preact_resnet110", blocks_per_stage=(3, 3, 3)), 7),
        (partial(unet.UNet, SMALL), 7),
    ],  # others change the width
)
def test_blocks_of_published_networks_are_integrated(net: Callable[[], nn.Module], converted: int) -> None:
    blocks = [block.eval() for block in net().modules() if isinstance(block, Residual)]
    for block in blocks:
        if not isinstance(block.shortcut, Identity):
            with pytest.raises(ValueError, match="shortcut"):
                ODEBlock.from_residuals(block)
            continue
        converted -= 1
        ode, channels = ODEBlock.from_residuals(block, "rk4", steps=3), next(block.parameters()).shape[0]
        x = torch.randn(1, channels, 4, 4), torch.randn(1, SMALL.emb_channels)
        inputs = x if block.takes_emb else x[:1]
        with torch.no_grad():
            assert_close(ode.to_residuals(1)(*inputs), block(*inputs), rtol=0, atol=0)
            assert ode(*inputs).isfinite().all()
        assert ode.evaluations == 12
    assert converted == 0


SUM = Residual(nn.Tanh())


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        (nn.Sequential(), "Sequential has no residual blocks"),
        (nn.Tanh(), "Tanh has no residual blocks"),
        (nn.Sequential(SUM, nn.ReLU()), "1 is a ReLU"),
        (Chain(first=Residual(nn.Conv2d(4, 8, 1), Project(4, 8))), "first has the shortcut Project.*width"),
        (Residual(basic_branch(4, 4), merge=Add(nn.ReLU())), "block has the merge .*ReLU"),
        (Residual(nn.Tanh(), merge=Add(scale=0.5)), r"merge .*scale=0\.5"),
        (Residual(nn.Tanh(), merge=Gate(4)), "merge Gate"),
        (Chain(a=SUM, b=Residual(nn.Tanh())), "b has another branch than a"),
        (Chain(a=SUM, b=Residual(SUM.branch, merge=Add(branch_scale=0.5))), r"b has step 0\.5 instead of 1"),
    ],
)
def test_blocks_that_are_no_steps_of_one_ode_are_refused(blocks: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ODEBlock.from_residuals(blocks)


@pytest.mark.parametrize("random", [nn.Dropout(0.5), DropPath(0.1)])
def test_random_branches_are_refused_where_they_would_give_wrong_gradients(random: nn.Module) -> None:
    branch, x = Chain(act=nn.Tanh(), last=random), torch.randn(2, 3, 4, 4)
    block = ODEBlock(branch, partial(backward_euler, tol=1e-3), steps=2)
    with pytest.raises(ValueError, match=f"last is a {type(random).__name__}.*training"):
        block(x)
    assert block.eval()(x).shape == x.shape
    assert ODEBlock(branch, "heun", steps=2).train()(x).shape == x.shape
    assert ODEBlock(Chain(act=nn.Tanh(), last=nn.Dropout(0.0)), "backward_euler", steps=2)(x).shape == x.shape


def test_euler_of_dopri5_needs_a_number_of_steps(adaptive: None) -> None:
    with pytest.raises(ValueError, match="steps=None"):
        ODEBlock(nn.Tanh(), "dopri5", rtol=1e-3).to_residuals()


@pytest.fixture
def adaptive() -> None:
    pytest.importorskip("torchdiffeq", reason=INSTALL)


def test_dopri5_equals_the_closed_form_within_its_tolerance(adaptive: None) -> None:
    exact, counts = 1 / (1 + 9 * math.exp(-4)), []
    for rtol in (1e-4, 1e-6, 1e-8):
        block = ODEBlock(Logistic(), "dopri5", rtol=rtol, time=4)
        assert block(column(0.1)).item() == pytest.approx(exact, rel=20 * rtol)
        counts.append(block.evaluations)
    assert counts == sorted(set(counts))
    assert ODEBlock(Growth(0.5), "dopri5", rtol=1e-8, time=2)(column(100)).item() == pytest.approx(
        100 * math.e, rel=1e-7
    )


def test_gradients_of_the_adjoint_equal_those_of_the_steps(adaptive: None) -> None:
    branch = Shifted(4).double()
    x, emb = torch.randn(2, 3, 4, dtype=torch.double)
    gradients = []
    for adjoint in (True, False):
        block = ODEBlock(branch, "dopri5", rtol=1e-8, adjoint=adjoint)
        inputs = [x.clone().requires_grad_(), emb.clone().requires_grad_()]
        y = block(inputs[0], inputs[1] * 2).sin().sum()  # the embedding is not a leaf, as in a network
        before = block.evaluations
        gradients.append(torch.autograd.grad(y, [*inputs, *branch.parameters()]))
        assert (block.evaluations > before) == adjoint
    assert_close(*gradients, rtol=0, atol=1e-4)
    assert all(gradient.abs().max() > 0.01 for gradient in gradients[0])


class Explosion(nn.Module):
    """dx/dt = x², whose solution from x = 1 is infinite at t = 1"""

    def forward(self, x: Tensor) -> Tensor:
        return x**2


@pytest.mark.parametrize(
    ("branch", "named"),
    [
        (Explosion(), r"t=0\.9\d+ .*length \S+e-1\d; .*rtol"),
        (Growth(float("nan")), "t=0 after 1 steps.*rtol"),
        (Growth(-1e5), r"t=0\.\d+ after 51 steps.*rtol"),
    ],
)
def test_dopri5_stops_with_time_and_step_in_one_line(
    branch: nn.Module, named: str, adaptive: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(branch, Growth):
        monkeypatch.setattr("residual.ode.adaptive.MAX_STEPS", 50)
    with pytest.raises(NotConverged, match=named):
        ODEBlock(branch, "dopri5", rtol=1e-3, time=2)(column(1))


def test_dopri5_stops_in_the_backward_pass_as_well(adaptive: None) -> None:
    class Unstable(nn.Module):
        """dx/dt = -40 x³, whose backward solution from a slightly larger end is infinite before t = 0"""

        def forward(self, x: Tensor) -> Tensor:
            return -40 * x**3

    x = column(3).requires_grad_()
    y = ODEBlock(Unstable(), "dopri5", rtol=1e-3, time=5)(x)
    with pytest.raises(NotConverged, match="dopri5 stopped"):
        y.sum().backward()


def test_dopri5_refuses_a_tolerance_below_the_precision(adaptive: None) -> None:
    with pytest.raises(ValueError, match=r"rtol=1e-10.*1\.2e-07.*float32"):
        ODEBlock(nn.Tanh(), "dopri5", rtol=1e-10)(torch.ones(1, 1))
