"""One derivation: every formulation is a row of the table `x = alpha x0 + sigma noise`, target `a x0 + b noise`."""

import math
from dataclasses import fields, replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from diffusion import (
    DDPM,
    EDM,
    FORMULATIONS,
    WEIGHTINGS,
    Condition,
    Flow,
    NetworkDenoiser,
    Stratified,
    denoising_loss,
    differences,
)
from diffusion.formulations import SCHEDULES
from diffusion.noise import Formulation
from tests.diffusion.closed_form import ALL, interior_times

COUNT = 5


def images(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(COUNT, 3, 4, 2, generator=g, dtype=dtype) * 2 - 1, torch.randn(
        COUNT, 3, 4, 2, generator=g, dtype=dtype
    )


@pytest.mark.parametrize("name", ALL)
def test_image_and_noise_come_back_from_every_target(name: str) -> None:
    (x0, noise), level = images(), ALL[name].level(interior_times(ALL[name], COUNT))
    got = level.split(level.noisy(x0, noise), level.target(x0, noise))
    assert_close(got, (x0, noise), rtol=0, atol=1e-12)
    assert_close(level.noise_in(level.noisy(x0, noise), x0), noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", [name for name, weight in WEIGHTINGS.items() if weight])
def test_one_weighting_gives_one_loss_whatever_the_network_predicts(weighting: str) -> None:
    """The same error of x0 is one number under every formulation, once it is carried to the network's output."""
    (x0, noise), wrong = images(), images()[1].flip(0)
    ratio = torch.tensor([0.05, 0.3, 1.0, 4.0, 20.0], dtype=torch.float64)
    losses = []
    for formulation in ALL.values():
        time = formulation.time_at(ratio)
        level = formulation.level(time)

        def net(x, c_noise, label, level=level):
            x = x / level.c_in
            return level.target(x0 + wrong, level.noise_in(x, x0 + wrong))

        losses.append(denoising_loss(net, formulation, x0, noise, time, weighting=WEIGHTINGS[weighting]))
    expected = {
        "noise": ratio**-2,
        "x0": torch.ones_like(ratio),
        "v": 1 + ratio**-2,
        "min_snr": torch.tensor([5.0, 5.0, 1.0, 1 / 16, 1 / 400], dtype=torch.float64),
        "sigmoid": (2 + 2 * ratio.log()).sigmoid() * ratio**-2,
        "edm": (ratio**2 + 0.5**2) / (ratio * 0.5) ** 2,
    }[weighting]
    error = wrong.square().mean(dim=(1, 2, 3))
    for loss in losses:
        assert_close(loss, expected * error, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("prediction", "weighting"), [("epsilon", "noise"), ("x0", "x0"), ("v", "v")])
def test_the_weighting_of_a_networks_own_output_changes_nothing(prediction: str, weighting: str) -> None:
    (x0, noise), formulation = images(), DDPM(prediction=prediction)
    time = torch.tensor([0.0, 10, 300, 700, 999], dtype=torch.float64)
    plain, weighted = (
        denoising_loss(lambda x, t, label: x.sin(), formulation, x0, noise, time, weighting=WEIGHTINGS[name])
        for name in ("output", weighting)
    )
    assert_close(weighted, plain, rtol=1e-9, atol=0)


def test_edms_loss_is_its_equation_8() -> None:
    """E[lambda(sigma) |D(x0 + n; sigma) - x0|²] with lambda = (sigma² + sigma_data²) / (sigma sigma_data)²."""
    (x0, noise), formulation = images(), EDM(sigma_data=0.7)
    sigma = torch.tensor([0.002, 0.1, 0.7, 5, 80], dtype=torch.float64)

    def net(x, c_noise, label):
        return (3 * x).sin() + c_noise.view(-1, 1, 1, 1)

    denoised = NetworkDenoiser(net, formulation)(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, Condition())
    weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2
    expected = weight * (denoised - x0).square().mean(dim=(1, 2, 3))
    assert_close(denoising_loss(net, formulation, x0, noise, sigma), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.1])
def test_edms_preconditioning_is_table_1(sigma_data: float) -> None:
    s = torch.tensor([0.002, 0.35, 1.0, 4.2, 80.0], dtype=torch.float64)
    level, spread = EDM(sigma_data=sigma_data).level(s), (s**2 + sigma_data**2).sqrt()
    c_skip, c_out = sigma_data**2 / spread**2, s * sigma_data / spread
    assert_close(level.c_in.flatten(), 1 / spread)
    assert_close(level.c_noise, s.log() / 4)
    assert_close(level.a.flatten(), (1 - c_skip) / c_out, rtol=1e-6, atol=0)
    assert_close(level.b.flatten(), -c_skip * s / c_out)
    (x0, _), output = images(), images()[1].cos()
    x = x0 * 3
    denoised = NetworkDenoiser(lambda x, t, label: output, EDM(sigma_data=sigma_data))(x, s, Condition())
    assert_close(denoised, c_skip.view(-1, 1, 1, 1) * x + c_out.view(-1, 1, 1, 1) * output, rtol=1e-9, atol=1e-12)
    # input and target of the network have unit variance at every level
    assert_close((level.c_in * spread.view(-1, 1, 1, 1)).flatten(), torch.ones_like(s))
    assert_close((level.a**2 * sigma_data**2 + level.b**2).flatten(), torch.ones_like(s))


def test_flow_is_a_straight_line_with_constant_velocity() -> None:
    (x0, noise), t = images(), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    level, share = Flow().level(t), t.view(-1, 1, 1, 1)
    assert_close(level.noisy(x0, noise), (1 - share) * x0 + share * noise)
    assert_close(level.target(x0, noise), noise - x0)
    assert_close(level.c_noise, 1000 * t)
    assert_close(Flow(time_scale=1.0).level(t).c_noise, t)


def test_v_is_salimans_and_hos() -> None:
    (x0, noise), level = images(), DDPM(prediction="v").level(torch.tensor([0.0, 1, 300, 500, 999]))
    assert_close(level.target(x0, noise), level.alpha * noise - level.sigma * x0)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_is_diffusers(prediction: str, schedule: str) -> None:
    """Noising, and the denoised image of an output."""
    formulation = DDPM(schedule=schedule, prediction=prediction)
    scheduler = DDPMScheduler(**formulation.scheduler_config() | {"clip_sample": False})
    x0, noise = images(torch.float32)
    t = torch.tensor([0, 10, 500, 700, 900])
    level, output = formulation.level(t.float()), noise.flip(0)
    x = level.noisy(x0, noise)
    assert_close(x, scheduler.add_noise(x0, noise, t), rtol=0, atol=1e-6)
    for row, timestep in enumerate(t.tolist()):
        one = slice(row, row + 1)
        theirs = scheduler.step(output[one], timestep, x[one]).pred_original_sample
        ours = formulation.level(t[one].float()).split(x[one], output[one])[0]
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_linear_is_ho_et_al_at_its_ends() -> None:
    alpha = DDPM().level(torch.tensor([0.0, 999], dtype=torch.float64)).alpha
    assert_close(alpha[0].square().item(), 1 - 1e-4, rtol=0, atol=1e-7)
    expected = math.prod(1 - (1e-4 + (0.02 - 1e-4) * t / 999) for t in range(1000))
    assert_close(alpha[1].square().item(), expected, rtol=1e-3, atol=0)


def test_cosine_is_nichol_and_dhariwal() -> None:
    t = torch.tensor([0.0, 100, 500, 900], dtype=torch.float64)
    alpha = DDPM(schedule="cosine").level(t).alpha.flatten()
    angle = ((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2
    expected = angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)
    assert_close(alpha, expected, rtol=1e-4, atol=0)


def test_scaled_linear_is_linear_in_the_root_of_beta() -> None:
    t = torch.arange(1000, dtype=torch.float64)
    alpha2 = DDPM(schedule="scaled_linear").level(t).alpha.flatten().square()
    root = (1 - alpha2[1:] / alpha2[:-1]).sqrt()
    slope = (0.012**0.5 - 0.00085**0.5) / 999
    assert_close(root.diff(), torch.full((998,), slope, dtype=torch.float64), rtol=0.05, atol=0)
    assert_close(root[-1].item(), 0.012**0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [30, 100, 1000, 4000])
def test_noise_grows_to_nearly_all_whatever_the_number_of_timesteps(schedule: str, timesteps: int) -> None:
    level = DDPM(schedule=schedule, timesteps=timesteps).level(torch.arange(timesteps, dtype=torch.float64))
    assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha))
    assert (level.sigma.flatten().diff() > 0).all()
    assert level.alpha[-1] < 0.08


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_between_timesteps_the_level_lies_between_theirs(schedule: str) -> None:
    formulation = DDPM(schedule=schedule)
    between = torch.arange(0, 999, 3, dtype=torch.float64) + 0.5
    low, level, high = (formulation.level(time) for time in (between - 0.5, between, between + 0.5))
    assert (low.ratio < level.ratio).all()
    assert (level.ratio < high.ratio).all()
    assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_times_and_ratios_are_inverse(name: str) -> None:
    formulation = ALL[name]
    times = interior_times(formulation, 50)
    assert_close(formulation.time_at(formulation.level(times).ratio.flatten()), times, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_chain_starts_at_pure_noise_and_ends_at_the_clean_image(name: str) -> None:
    times = ALL[name].times(10, "trailing")
    level = ALL[name].level(times)
    assert len(times) == 11
    assert (level.ratio.flatten().diff() < 0).all()
    assert level.ratio[0] > 50
    assert_close(level.alpha[-1].item(), 1.0)
    assert_close(level.sigma[-1].item(), 0.0)


def test_pure_noise_and_the_clean_image_are_times() -> None:
    infinite = torch.tensor([0.0, 1.0, math.inf])
    assert Flow().time_at(infinite).tolist() == [0, 0.5, 1]
    assert DDPM().time_at(infinite)[[0, 2]].tolist() == [-1, 999]


class Numbers:
    """Random numbers that count how they are drawn."""

    def __init__(self, count: int = 4000) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(0)

    def uniform(self) -> torch.Tensor:
        return torch.rand(self.count, generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)

    def integers(self, high: int) -> torch.Tensor:
        return torch.randint(high, (self.count,), generator=self.generator)


def test_training_times_have_their_distribution() -> None:
    timesteps = DDPM(timesteps=500).draw_time(Numbers())
    assert set(timesteps.tolist()) <= set(range(500))
    assert timesteps.mean().item() == pytest.approx(249.5, abs=10)
    log = EDM(p_mean=-0.4, p_std=1.0).draw_time(Numbers()).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-0.4, 1.0), abs=0.06)
    t = Flow().draw_time(Numbers())
    assert (t.min() > 0, t.max() <= 1) == (True, True)
    assert t.mean().item() == pytest.approx(0.5, abs=0.02)
    logit = Flow(times_in_training="logit_normal", logit_mean=0.3, logit_std=0.8).draw_time(Numbers()).logit()
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0.3, 0.8), abs=0.05)


def test_a_shift_of_flow_multiplies_the_ratio_of_noise_to_image() -> None:
    plain, shifted = Flow(), Flow(shift=3.0)
    for ours, theirs in (
        (shifted.draw_time(Numbers()), plain.draw_time(Numbers())),
        (shifted.times(10), plain.times(10)),
    ):
        inside = theirs < 0.9  # float32 is too coarse for the ratio near pure noise
        assert_close(shifted.level(ours[inside]).ratio, 3 * plain.level(theirs[inside]).ratio, rtol=1e-5, atol=0)
    assert (shifted.times(10)[0], shifted.times(10)[-1]) == (1, 0)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_ends_in_pure_noise_as_in_diffusers(schedule: str, prediction: str) -> None:
    formulation = DDPM(schedule=schedule, prediction=prediction, zero_terminal_snr=True)
    level = formulation.level(torch.tensor([0.0, 500.0, 998.0, 999.0]))
    betas = {name: value for name, value in formulation.scheduler_config().items() if name.startswith("beta")}
    scheduler = DDPMScheduler(**betas, rescale_betas_zero_snr=True)
    assert_close(level.alpha.square().flatten(), scheduler.alphas_cumprod[[0, 500, 998, 999]], rtol=1e-4, atol=1e-7)
    assert (level.alpha[-1].item(), level.sigma[-1].item()) == (0, 1)
    assert_close(formulation.time_at(torch.tensor([1e30, math.inf])), torch.tensor([999.0, 999.0]))


def test_zero_terminal_snr_is_refused_for_epsilon() -> None:
    with pytest.raises(ValueError, match=r"zero_terminal_snr=true.*epsilon"):
        DDPM(zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("formulation", "quantile"),
    [
        (DDPM(timesteps=500), lambda u: (500 * u).floor()),
        (EDM(p_mean=-0.4, p_std=1.0), lambda u: (-0.4 + torch.special.ndtri(u)).exp()),
        (Flow(), lambda u: 1 - u),
        (Flow(times_in_training="logit_normal"), lambda u: torch.special.ndtri(u).sigmoid()),
    ],
)
def test_stratified_times_are_the_quantiles_of_their_distribution(formulation: Formulation, quantile) -> None:
    uniform = torch.tensor([0.9, 0.1, 0.4999, 0.2, 0.001])
    assert_close(formulation.draw_time(Stratified(lambda: uniform)), quantile(uniform))
    ends = formulation.draw_time(Stratified(lambda: torch.tensor([0.0, 1 - 2**-24])))
    assert formulation.level(ends).ratio.isfinite().any()
    assert ends.isfinite().all()


class Lowest(Numbers):
    """The smallest numbers that can be drawn."""

    def uniform(self) -> torch.Tensor:
        return torch.zeros(self.count)

    def integers(self, high: int) -> torch.Tensor:
        return torch.zeros(self.count, dtype=torch.long)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_finite_at_the_lowest_training_time(name: str, weighting: str) -> None:
    (x0, noise), time = images(torch.float32), ALL[name].draw_time(Lowest(COUNT))
    loss = denoising_loss(lambda x, t, label: x, ALL[name], x0, noise, time, weighting=WEIGHTINGS[weighting])
    assert loss.isfinite().all()


CHANGES = [
    (
        DDPM(prediction="x0"),
        {
            "schedule": "cosine",
            "timesteps": 500,
            "prediction": "v",
            "variance": "fixed_small",
            "zero_terminal_snr": True,
        },
    ),
    (EDM(), {"sigma_data": 1.0, "sigma_min": 0.01, "sigma_max": 50.0, "p_mean": -0.4, "p_std": 1.0}),
    (
        Flow(),
        {"time_scale": 1.0, "times_in_training": "logit_normal", "logit_mean": 1.0, "logit_std": 0.5, "shift": 3.0},
    ),
]


@pytest.mark.parametrize(("formulation", "changes"), CHANGES)
def test_differences_name_the_fields_on_which_weights_depend(formulation: Formulation, changes: dict) -> None:
    assert set(changes) == {field.name for field in fields(formulation)}
    for name, value in changes.items():
        other = replace(formulation, **{name: value})
        expected = {name: (getattr(formulation, name), value)} if name in formulation.network_fields else {}
        assert differences(formulation, other, FORMULATIONS) == expected
    assert differences(formulation, formulation, FORMULATIONS) == {}


def test_formulations_of_two_kinds_differ_in_their_kind() -> None:
    assert differences(DDPM(), Flow(), FORMULATIONS) == {"kind": ("ddpm", "flow")}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_every_formulation_fulfils_the_protocol(name: str) -> None:
    assert isinstance(FORMULATIONS[name](), Formulation)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (DDPM, {"timesteps": 20}, "timesteps=20 .*linear.*21"),
        (DDPM, {"timesteps": 10**12}, "timesteps=1000000000000 .*1000000"),
        (DDPM, {"schedule": "cosine", "timesteps": 0}, "timesteps=0 .*cosine.*2"),
        (EDM, {"sigma_data": 0.0}, "sigma_data=0"),
        (EDM, {"p_std": -1.0}, "p_std=-1"),
        (EDM, {"sigma_max": math.inf}, "sigma_max=inf"),
        (EDM, {"p_mean": math.nan}, "p_mean=nan"),
        (EDM, {"p_mean": 1000.0}, "p_mean=1000"),
        (Flow, {"time_scale": 1e300}, "time_scale=1e"),
        (EDM, {"sigma_min": 90.0}, "sigma_min=90.*sigma_max=80"),
        (Flow, {"time_scale": 0.0}, "time_scale=0"),
    ],
)
def test_bad_fields_are_named(kind: type, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_least_timesteps_work(schedule: str) -> None:
    with pytest.raises(ValueError, match="timesteps=1 ") as error:
        DDPM(schedule=schedule, timesteps=1)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert DDPM(schedule=schedule, timesteps=least).level(torch.tensor([least - 1.0])).alpha.item() > 0
