"""Solvers on a closed form, and against the schedulers of diffusers."""

import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from diffusion import DDPM, EDM, Condition, DPMSolverPP2M, Euler, EulerAncestral, Flow, Formulation, Heun, generators
from diffusion.noise import Images
from diffusion.solvers import Solver, steps_of
from tests.diffusion.closed_form import ideal, spread

FORMULATIONS = {"ddpm": DDPM(), "cosine": DDPM(schedule="cosine", prediction="v"), "edm": EDM(), "flow": Flow()}
STD = 0.3


def solve(solver: Solver, formulation: Formulation, times: torch.Tensor, x: Images, denoise=None, sources=()) -> Images:
    denoise = denoise or ideal(formulation, STD)
    *_, last = solver(lambda x, t: denoise(x, t.expand(len(x)), Condition()), formulation, x, times, list(sources))
    return last


def error(solver: Solver, formulation: Formulation, times: torch.Tensor) -> float:
    """Relative error for N(0, STD²) data: the exact solution keeps `x / spread` constant."""
    first, last = (spread(formulation.level(time[None]), STD) for time in (times[0], times[-1]))
    return (solve(solver, formulation, times, first) / last - 1).abs().item()


@pytest.mark.parametrize("formulation", FORMULATIONS.values(), ids=FORMULATIONS)
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)])
def test_solvers_have_their_order(solver: Solver, order: int, formulation: Formulation) -> None:
    """Fitted on the logarithms of steps and errors, over noise levels from 10 to 0.01."""
    steps = torch.tensor([48, 96, 192, 384])
    errors = [
        error(solver, formulation, formulation.time_at(torch.logspace(1, -2, n + 1, dtype=torch.float64)))
        for n in steps.tolist()
    ]
    log_steps, log_errors = steps.double().log(), torch.tensor(errors).double().log()
    centred = log_steps - log_steps.mean()
    slope = (centred * log_errors).sum() / centred.square().sum()
    assert -slope.item() == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)])
def test_the_order_holds_from_pure_noise_on(solver: Solver, order: int) -> None:
    """Flow matching starts where alpha = 0 and the noise level is infinite."""
    errors = [error(solver, Flow(), torch.linspace(1, 0.05, n + 1, dtype=torch.float64)) for n in (64, 512)]
    assert math.log(errors[0] / errors[1], 8) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("formulation", FORMULATIONS.values(), ids=FORMULATIONS)
@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolverPP2M(), Heun(churn=20.0), EulerAncestral()])
def test_chains_end_with_the_spread_of_the_data(solver: Solver, formulation: Formulation) -> None:
    generator = torch.Generator().manual_seed(0)
    times = formulation.times(400, "leading")
    x = formulation.level(times[:1]).scale() * torch.randn(40, 1, 16, 16, generator=generator)
    last = solve(solver, formulation, times, x, sources=generators(1, range(40)))
    assert last.std().item() == pytest.approx(STD, rel=0.05)


def smooth(x: Images, time: torch.Tensor, condition: Condition) -> Images:
    """An arbitrary smooth denoiser."""
    return torch.tanh(x.roll(1, dims=-1) * 0.5)


@pytest.mark.parametrize(
    ("kind", "solver"), [(EDMEulerScheduler, Euler()), (EDMDPMSolverMultistepScheduler, DPMSolverPP2M())]
)
@pytest.mark.parametrize("steps", [1, 2, 7, 18])
def test_edm_solvers_are_those_of_diffusers(kind: type, solver: Solver, steps: int) -> None:
    formulation, scheduler = EDM(), kind()
    scheduler.set_timesteps(steps)
    times = formulation.times(steps, "leading")
    assert_close(times, scheduler.sigmas, rtol=1e-5, atol=0)
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    assert_close(formulation.level(times[:1]).scale().item(), float(scheduler.init_noise_sigma))
    theirs = start
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        seen = scheduler.scale_model_input(theirs, t)
        # their schedulers receive the network's output; this is the one that gives the denoised image of `smooth`
        level, x0 = formulation.level(sigma[None]), smooth(theirs, sigma, Condition())
        assert_close(seen, level.c_in * theirs)
        theirs = scheduler.step(level.target(x0, level.noise_in(theirs, x0)), t, theirs, return_dict=False)[0]
    assert_close(solve(solver, formulation, times, start, smooth), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_euler_for_flow_matching_is_that_of_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = start
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        level, x0 = Flow().level(sigma[None]), smooth(theirs, sigma, Condition())
        assert_close(level.c_noise.item(), t.item())
        velocity = level.target(x0, level.noise_in(theirs, x0))
        theirs = scheduler.step(velocity, t, theirs, return_dict=False)[0]
    assert_close(solve(Euler(), Flow(), scheduler.sigmas, start, smooth), theirs, rtol=0, atol=1e-5)


def test_churn_raises_the_noise_level_within_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Karras et al. 2022, algorithm 2, by hand: a step from sigma 2 to 1, raised by min(churn, √2 - 1)."""
    x, added, times = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 0.7), torch.tensor([2.0, 1.0])
    monkeypatch.setattr("diffusion.solvers.standard_normal", lambda *_: added)

    def step(solver: Heun) -> Images:
        chain = solver(lambda x, t: 0.5 * x, EDM(), x, times, [])
        return next(iter(chain))

    def by_hand(churn: float, noise_scale: float) -> Images:
        raised = 2.0 * (1 + min(churn, math.sqrt(2) - 1))
        start = x + noise_scale * math.sqrt(raised**2 - 4) * added
        slope = 0.5 * start / raised
        end = start + (1 - raised) * slope
        return start + (1 - raised) * (slope + 0.5 * end / 1.0) / 2

    assert_close(step(Heun()), by_hand(0.0, 1.0))
    assert_close(step(Heun(churn=0.2)), by_hand(0.2, 1.0))
    assert_close(step(Heun(churn=40.0)), by_hand(40.0, 1.0))
    assert_close(step(Heun(churn=0.2, noise_scale=1.1)), by_hand(0.2, 1.1))
    assert_close(step(Heun(churn=0.2, churn_interval=(0.05, 1.5))), by_hand(0.0, 1.0))
    assert_close(step(Heun(churn=0.2, churn_interval=(0.05, 50.0))), by_hand(0.2, 1.0))


def test_ancestral_steps_split_the_noise_as_k_diffusion_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """sigma_up² = r'² (r² - r'²) / r² and sigma_down² = r'² - sigma_up², from 2 to 1."""
    x, added, times = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 0.7), torch.tensor([2.0, 1.0])
    monkeypatch.setattr("diffusion.solvers.standard_normal", lambda *_: added)
    up = math.sqrt(1 * (4 - 1) / 4)
    slope = (x - 0.5 * x) / 2
    expected = x + slope * (math.sqrt(1 - up**2) - 2) + up * added
    chain = EulerAncestral()(lambda x, t: 0.5 * x, EDM(), x, times, [])
    assert_close(next(iter(chain)), expected)


def test_steps_know_their_ends() -> None:
    first, last = steps_of(EDM(), torch.tensor([4.0, 2.0, 0.0]))
    assert (first.ratio, first.ratio_after, last.ratio, last.ratio_after) == (4.0, 2.0, 2.0, 0.0)
    assert (first.time, first.time_after, last.time_after) == (4.0, 2.0, 0.0)
    assert_close(first.after.sigma, last.now.sigma)


@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolverPP2M(), EulerAncestral()])
def test_steps_cannot_start_at_the_clean_image(solver: Solver) -> None:
    with pytest.raises(ValueError, match="clean image"):
        next(iter(solver(lambda x, t: x, EDM(), torch.ones(1, 1, 2, 2), torch.tensor([0.0, 1.0]), [])))
