"""Samplers: parity of their steps with diffusers' schedulers, closed forms, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import diffusers
import jaxtyping
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch.testing import assert_close

from diffusion import (
    DDPM,
    EDM,
    SAMPLERS,
    SCHEDULERS,
    Condition,
    Flow,
    NetworkDenoiser,
    choose_sampler,
    generators,
    image_seed,
    late_start,
    sample,
)
from diffusion.sampler import FromDiffusers
from diffusion.seeds import standard_normal
from tests.diffusion.closed_form import ALL, ideal

SHAPE = (1, 8, 8)
LARGE = (1, 24, 40)
"""ten of these have 9,600 pixels, in less time than many small ones: the noise of each image is drawn by itself"""
LINEAR, UNCONDITIONED = DDPM(), Condition()


def frames(denoise, formulation, sources, condition=UNCONDITIONED, *, sampler="ddim", steps=50, shape=SHAPE, **options):
    chosen = choose_sampler(sampler, formulation, steps, **options)
    return sample(denoise, formulation, chosen, sources, shape, condition, steps=steps)


def draw(*args, **options):
    """The samples, clipped to the range of images."""
    *_, last = frames(*args, **options)
    return last.clamp(-1, 1)


@contextmanager
def unchecked() -> Iterator[None]:
    """Long chains without the checks of shapes, which shorter chains of the same functions have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


def expected_spread(formulation, spread):
    """Standard deviation after all T steps of Ho et al. 2020, algorithm 2 and eq. 7, by hand for Gaussians."""
    level = formulation.level(torch.arange(formulation.timesteps, dtype=torch.float64))
    alpha2, variance = level.alpha.flatten().square().tolist(), 1.0
    for t in reversed(range(formulation.timesteps)):
        before = alpha2[t - 1] if t else 1.0
        beta = 1 - alpha2[t] / before
        x0 = alpha2[t] ** 0.5 * spread**2 / (alpha2[t] * spread**2 + 1 - alpha2[t])  # x0 of eq. 7, per x
        mean = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before)) / (1 - alpha2[t])
        noise = beta if formulation.variance == "fixed_large" else beta * (1 - before) / (1 - alpha2[t])
        variance = mean**2 * variance + (noise if t else 0)
    return variance**0.5


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_ddpm_lands_on_the_variance_of_gaussian_data(name, variance):
    formulation = DDPM(schedule=name, variance=variance)
    with unchecked():
        x = draw(ideal(formulation), formulation, generators(0, range(10)), shape=LARGE, sampler="ddpm", steps=1000)
    assert x.std().item() == pytest.approx(
        expected_spread(formulation, 0.2), rel=0.02
    )  # 9,600 pixels: 0.7 % is one error
    assert x.std().item() == pytest.approx(0.2, rel=0.05)  # the small variance is too small by a few per cent
    assert x.mean().item() == pytest.approx(0, abs=0.008)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_lands_on_the_variance_of_gaussian_data(eta):
    with unchecked():
        x = draw(ideal(DDPM()), DDPM(), generators(0, range(10)), shape=LARGE, steps=500, eta=eta)
    assert x.std().item() == pytest.approx(0.2, rel=0.05)


def gain(sampler, steps, spread=0.2, formulation=LINEAR):
    """For N(0, s²) a sampler without noise is linear, x_0 = gain x_T, and the exact gain is s (at pure noise)."""
    start, *_, end = frames(ideal(formulation, spread), formulation, generators(3, [0]), sampler=sampler, steps=steps)
    assert_close(end / start, (end / start).mean().expand_as(end), rtol=1e-4, atol=0)
    return (end / start).mean().item()


def test_ddim_without_noise_is_linear_in_the_noise_and_converges():
    errors = [abs(gain("ddim", steps) / 0.2 - 1) for steps in (125, 250, 500, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("euler", 0.08), ("heun", 0.021), ("dpmpp_2m", 0.021), ("unipc", 0.021)]
)
def test_chains_converge_to_the_exact_solution(sampler, tolerance):
    """The error that is left after 100 steps is that of the last step, from sigma_min to zero: half its sigma² / s²."""
    errors = [abs(gain(sampler, steps) / 0.2 - 1) for steps in (10, 25, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < tolerance


@pytest.mark.parametrize("formulation", [EDM(), Flow()])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_own_samplers_draw_from_every_formulation(sampler, formulation):
    x = draw(ideal(formulation), formulation, generators(0, range(10)), shape=LARGE, sampler=sampler, steps=200)
    assert x.std().item() == pytest.approx(0.2, rel=0.05)
    assert x.mean().item() == pytest.approx(0, abs=0.008)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral"])
def test_samplers_with_noise_land_on_the_variance_of_gaussian_data(sampler):
    x = draw(ideal(DDPM()), DDPM(), generators(0, range(10)), shape=LARGE, sampler=sampler, steps=500)
    assert x.std().item() == pytest.approx(0.2, rel=0.05)
    assert x.mean().item() == pytest.approx(0, abs=0.008)


def toy(x, t, label):
    """An arbitrary smooth network."""
    return torch.tanh(x.roll(1, dims=-1) * 0.7 + t.view(-1, 1, 1, 1) / 700)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7)])
def test_denoised_images_give_the_same_steps_as_the_networks_own_output(prediction, sampler, eta):
    formulation = DDPM(schedule="cosine", prediction=prediction)
    kind = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[sampler]
    reference = kind.from_config(formulation.scheduler_config())
    reference.set_timesteps(10)
    sources, options = generators(5, range(4)), {"eta": eta} if sampler == "ddim" else {}
    x = standard_normal(sources, SHAPE)
    for t in reference.timesteps:
        x = reference.step(toy(x, t.expand(4), None), t, x, generator=sources, **options).prev_sample
    denoise = NetworkDenoiser(toy, formulation)
    ours = draw(denoise, formulation, generators(5, range(4)), sampler=sampler, steps=10, eta=eta)
    assert_close(ours, x.clamp(-1, 1), rtol=0, atol=2e-5)


def test_the_variance_of_a_ddpm_step_follows_the_formulation():
    large, small = (
        draw(ideal(formulation), formulation, generators(0, range(2)), sampler="ddpm", steps=20)
        for formulation in (DDPM(variance="fixed_large"), DDPM(variance="fixed_small"))
    )
    assert (large - small).abs().max() > 0.01


@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_options_change_the_images(sampler):
    option = {"heun": "churn", "ddim": "eta"}[sampler]
    plain, changed = (
        draw(NetworkDenoiser(toy, DDPM()), DDPM(), generators(0, range(2)), sampler=sampler, steps=9, **{option: value})
        for value in (0.0, 0.8)
    )
    assert (plain - changed).abs().max() > 0.01


def test_noise_of_an_image_depends_on_its_number_and_the_seed_alone():
    whole = standard_normal(generators(7, range(64)), SHAPE)
    one_by_one = torch.cat([standard_normal(generators(7, [k]), SHAPE) for k in range(64)])
    sevens = torch.cat([standard_normal(generators(7, range(k, min(k + 7, 64))), SHAPE) for k in range(0, 64, 7)])
    for other in (one_by_one, sevens):
        torch.testing.assert_close(other, whole, rtol=0, atol=0)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 64
    assert not torch.equal(standard_normal(generators(8, [0]), SHAPE), whole[:1])


@pytest.mark.parametrize("count", [1, 3])
def test_noise_is_that_of_a_pipeline_of_diffusers(count: int) -> None:
    theirs = randn_tensor((count, *SHAPE), generators(7, range(count)))
    assert_close(standard_normal(generators(7, range(count)), SHAPE), theirs, rtol=0, atol=0)


def test_seed_0_is_the_numbers_of_the_images_and_seeds_stay_in_32_bits():
    assert [image_seed(0, k) for k in range(3)] == [0, 1, 2]
    assert image_seed(1, 0) == 1_000_003
    assert 0 <= image_seed(10**12, 10**12) < 2**32
    assert 0 <= image_seed(-1, 0) < 2**32


@pytest.mark.parametrize(
    "options", [*({"sampler": name} for name in SAMPLERS), {"eta": 1.0}, {"sampler": "heun", "churn": 3.0}], ids=str
)
def test_images_do_not_depend_on_their_batch(options):
    denoise = NetworkDenoiser(toy, DDPM())
    whole = draw(denoise, DDPM(), generators(0, range(9)), steps=5, **options)
    parts = [draw(denoise, DDPM(), generators(0, part), steps=5, **options) for part in (range(4), range(4, 9))]
    assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)


TIMES = {"ddim": [750, 500, 250, 0], "ddpm": [750, 500, 250, 0], "heun": [750, 500, 500, 250, 250, 0, 0]}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_yielded_from_the_noise_on(sampler):
    seen, conditions = [], []

    def denoise(x, time, condition):
        seen.append(time.tolist())
        conditions.append(condition)
        return 0 * x

    condition = Condition(torch.tensor([4, 2]))
    yielded = list(frames(denoise, DDPM(), generators(0, range(2)), condition, sampler=sampler, steps=4))
    assert len(yielded) == 5
    expected = TIMES.get(sampler, [999, 749, 499, 249] if "euler" in sampler else [999, 749, 500, 250])
    assert seen == [[t] * 2 for t in expected]
    assert all(each is condition for each in conditions)
    assert_close(yielded[0], standard_normal(generators(0, range(2)), SHAPE), rtol=1e-4, atol=0)
    assert_close(yielded[-1], torch.zeros(2, *SHAPE), rtol=0, atol=1e-4)


# The larger variance of ddpm is exact in small steps only.
@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {"ddpm"}))
def test_what_the_network_receives_has_unit_variance(sampler):
    """A denoiser that always returns x0 = 0 receives noise of the standard deviation that belongs to its time."""
    seen = []

    def denoise(x, time, condition):
        seen.append(x.std().item() / DDPM().level(time).sigma.mean().item())
        return 0 * x

    *_, last = frames(denoise, DDPM(), generators(0, range(64)), sampler=sampler, steps=6)
    assert seen == pytest.approx([1.0] * len(seen), rel=0.03)
    assert last.abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["x0", "v", "zero_terminal"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_longest_chain_of_the_other_kinds_of_ddpm_ends_in_images(sampler: str, kind: str) -> None:
    if (sampler, kind) == ("dpmpp_2m_sde", "zero_terminal"):
        pytest.skip("refused, see below")
    sources, denoise = generators(0, [0]), NetworkDenoiser(toy, ALL[kind])
    with unchecked():
        assert draw(denoise, ALL[kind], sources, sampler=sampler, steps=999).isfinite().all()


@pytest.mark.parametrize("formulation", [*ALL.values(), DDPM(schedule="cosine", timesteps=20)], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_ends_in_images(sampler, formulation):
    if isinstance(SAMPLERS[sampler].solver, FromDiffusers) and not isinstance(formulation, DDPM):
        with pytest.raises(ValueError, match=f"sampler={sampler}.*ddpm.*euler, heun"):
            choose_sampler(sampler, formulation, 5)
        return
    if sampler == "dpmpp_2m_sde" and isinstance(formulation, DDPM) and formulation.zero_terminal_snr:
        with pytest.raises(ValueError, match=r"dpmpp_2m_sde.*zero_terminal_snr"):
            choose_sampler(sampler, formulation, 5)
        return
    denoise = NetworkDenoiser(toy, formulation)
    for steps in (1, 2, 3, 14, 16):
        assert draw(denoise, formulation, generators(0, [0]), sampler=sampler, steps=steps).isfinite().all()
    if isinstance(formulation, DDPM) and formulation != DDPM():  # one chain of 999 steps for each sampler
        formulation = replace(formulation, timesteps=min(formulation.timesteps, 100))
    last = formulation.timesteps - 1 if isinstance(formulation, DDPM) else 99
    denoise = NetworkDenoiser(toy, formulation)
    with unchecked():
        assert draw(denoise, formulation, generators(0, [0]), sampler=sampler, steps=last).isfinite().all()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "dpmpp_2m_sde"])
def test_steps_that_use_a_timestep_twice_are_refused(sampler):
    with pytest.raises(ValueError, match=rf"steps=1000 .*{sampler}.*999"):
        choose_sampler(sampler, DDPM(), 1000)
    assert choose_sampler(sampler, DDPM(), 999) == SAMPLERS[sampler]


def test_drawing_keeps_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    for x in frames(lambda x, time, condition: weight * x, DDPM(), generators(0, [0]), steps=2):
        assert not x.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_denoised_images_are_clipped_where_diffusers_does(sampler):
    *_, last = frames(lambda x, time, condition: 0 * x + 5, DDPM(), generators(0, [0]), sampler=sampler, steps=3)
    assert_close(last, torch.ones(1, *SHAPE))
    if sampler != "ddim":
        *_, last = frames(lambda x, time, condition: 0 * x + 5, EDM(), generators(0, [0]), sampler=sampler, steps=3)
        assert_close(last, torch.full((1, *SHAPE), 5.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dddim", "steps": 5}, "sampler 'dddim'.*ddim"),
        ({"name": "ddim", "steps": 0}, "steps=0 .*1 to 1000"),
        ({"name": "ddim", "steps": 1001}, "steps=1001 .*1 to 1000"),
        ({"name": "ddpm", "steps": 5, "eta": 0.5}, "eta=0.5 .*ddpm.*ddim"),
        ({"name": "ddim", "steps": 5, "churn": 3.0}, "churn=3 .*ddim.*heun"),
        ({"name": "ddim", "steps": 5, "eta": 1.5}, "eta=1.5 .*0"),
        ({"name": "heun", "steps": 5, "churn": -1.0}, "churn=-1 "),
        ({"name": "heun", "steps": 5, "churn": float("nan")}, "churn=nan "),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        choose_sampler(formulation=DDPM(), **options)


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 600, 999])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_timesteps_are_those_of_the_scheduler(sampler, steps):
    name, settings = SCHEDULERS[sampler]
    kind = getattr(diffusers, name)
    names = kind.__init__.__code__.co_varnames
    scheduler = kind(**{k: v for k, v in DDPM().scheduler_config().items() if k in names}, **settings)
    scheduler.set_timesteps(steps)
    theirs = list(dict.fromkeys(scheduler.timesteps.tolist()))  # Heun's method uses a timestep twice
    assert DDPM().times(steps, SAMPLERS[sampler].spacing).tolist() == [*theirs, -1]


@pytest.mark.parametrize(
    ("steps", "nearest"), [(1, 10), (9, 10), (10, None), (50, None), (499, None), (501, 500), (800, 901), (999, None)]
)
def test_a_late_start_is_reported_with_the_nearest_number_of_steps_without_one(steps, nearest):
    warning = late_start("ddim", DDPM(), steps)
    assert (warning is None) == (nearest is None)
    assert nearest is None or f"; {nearest} steps start higher" in warning
    assert late_start("unipc", DDPM(), steps) is None
    assert late_start("heun", EDM(), steps) is None


def test_changed_images_equal_a_chain_of_diffusers_from_the_same_timestep() -> None:
    sources, steps, origin = generators(0, range(3)), 10, torch.rand(3, *SHAPE) * 2 - 1
    denoise, chosen = ideal(LINEAR), choose_sampler("ddim", LINEAR, steps)
    found = list(sample(denoise, LINEAR, chosen, sources, SHAPE, steps=steps, origin=origin, strength=0.4))
    assert len(found) == 1 + 4
    scheduler = DDIMScheduler.from_config(LINEAR.scheduler_config(), prediction_type="sample", **SCHEDULERS["ddim"][1])
    scheduler.set_timesteps(steps)
    noise = standard_normal(generators(0, range(3)), SHAPE, "cpu")
    x = scheduler.add_noise(origin, noise, scheduler.timesteps[6:7].repeat(3))
    for timestep in scheduler.timesteps[6:]:
        x = scheduler.step(denoise(x, timestep.float().repeat(3), UNCONDITIONED), timestep, x).prev_sample
    assert_close(found[-1], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "formulation"),
    [
        pytest.param(sampler, formulation, id=f"{sampler}-{name}")
        for sampler, row in SAMPLERS.items()
        for name, formulation in ALL.items()
        if isinstance(formulation, DDPM) or not isinstance(row.solver, FromDiffusers)
        if (sampler, name) != ("dpmpp_2m_sde", "zero_terminal")
    ],
)
def test_more_strength_moves_images_further(sampler, formulation) -> None:
    origin, chosen, steps = torch.full((8, *SHAPE), 0.9), choose_sampler(sampler, formulation, 100), 100

    def moved(strength: float) -> float:
        *found, last = sample(
            ideal(formulation), formulation, chosen, generators(0, range(8)), SHAPE,
            steps=steps, origin=origin, strength=strength,
        )  # fmt: skip
        assert len(found) == max(1, strength * steps)
        return (last - origin).abs().mean().item()

    assert moved(0.004) < 0.5 * moved(1.0)
