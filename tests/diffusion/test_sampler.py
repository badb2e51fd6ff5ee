import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion import PREDICTIONS, SAMPLERS, NetDenoiser, Schedule, denoising, draw, generators, image_seed
from diffusion.sampler import check, first_timestep, late_start
from diffusion.seeds import normal

SHAPE = (1, 8, 8)


def gaussian(schedule, spread):
    """The best denoiser of images whose pixels are N(0, spread²): linear in x (the posterior mean)."""

    def denoise(x, t, label):
        alpha, sigma = schedule.at(t)
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x

    return denoise


def expected_spread(schedule, spread):
    """Standard deviation after all T steps of Ho et al. 2020, algorithm 2 and eq. 7, by hand for Gaussians."""
    alpha = schedule.at(torch.arange(schedule.timesteps), torch.float64)[0]
    alpha2, variance = alpha.flatten().square().tolist(), 1.0
    for t in reversed(range(schedule.timesteps)):
        before = alpha2[t - 1] if t else 1.0
        beta = 1 - alpha2[t] / before
        guess = alpha2[t] ** 0.5 * spread**2 / (alpha2[t] * spread**2 + 1 - alpha2[t])  # x0 of eq. 7, per x
        mean = (before**0.5 * beta * guess + (1 - beta) ** 0.5 * (1 - before)) / (1 - alpha2[t])
        noise = beta if schedule.variance == "fixed_large" else beta * (1 - before) / (1 - alpha2[t])
        variance = mean**2 * variance + (noise if t else 0)
    return variance**0.5


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_ddpm_lands_on_the_variance_of_gaussian_data(name, variance):
    schedule = Schedule(name=name, variance=variance)
    x = draw(gaussian(schedule, 0.2), schedule, generators(0, range(150)), SHAPE, sampler="ddpm", steps=1000)
    assert x.std().item() == pytest.approx(expected_spread(schedule, 0.2), rel=0.02)  # 9,600 pixels: 0.7 % is one error
    assert x.std().item() == pytest.approx(0.2, rel=0.05)  # the small variance is too small by a few per cent
    assert x.mean().item() == pytest.approx(0, abs=0.008)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_lands_on_the_variance_of_gaussian_data(eta):
    schedule = Schedule()
    x = draw(gaussian(schedule, 0.2), schedule, generators(0, range(150)), SHAPE, steps=500, eta=eta)
    assert x.std().item() == pytest.approx(0.2, rel=0.05)


def gain(sampler, steps, spread=0.2, schedule=None):
    """For N(0, s²) a sampler without noise is linear, x_0 = gain x_T, and the flow's own gain is s (at pure noise)."""
    schedule = schedule or Schedule()
    start, *_, end = denoising(
        gaussian(schedule, spread), schedule, generators(3, [0]), SHAPE, sampler=sampler, steps=steps
    )
    torch.testing.assert_close(end / start, (end / start).mean().expand_as(end), rtol=1e-4, atol=0)
    return (end / start).mean().item()


def test_ddim_without_noise_is_linear_in_the_noise_and_converges():
    errors = [abs(gain("ddim", steps) / 0.2 - 1) for steps in (125, 250, 500, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("euler", 0.08), ("heun", 0.021), ("dpmpp_2m", 0.021), ("unipc", 0.021)]
)
def test_solvers_converge_to_the_flow_at_their_order(sampler, tolerance):
    """With 100 steps those of second order are off by the last step alone, which is Euler's: half its sigma² / s²."""
    errors = [abs(gain(sampler, steps) / 0.2 - 1) for steps in (10, 25, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < tolerance


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral"])
def test_samplers_with_noise_land_on_the_variance_of_gaussian_data(sampler):
    schedule = Schedule()
    x = draw(gaussian(schedule, 0.2), schedule, generators(0, range(150)), SHAPE, sampler=sampler, steps=500)
    assert x.std().item() == pytest.approx(0.2, rel=0.05)
    assert x.mean().item() == pytest.approx(0, abs=0.008)


def toy(x, t, label):
    """An arbitrary smooth net that is no good at anything."""
    return torch.tanh(x.roll(1, dims=-1) * 0.7 + t.view(-1, 1, 1, 1) / 700)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7)])
def test_the_clean_image_guess_gives_the_images_of_the_networks_own_answer(prediction, sampler, eta):
    schedule = Schedule(name="cosine")
    kind = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[sampler]
    reference = kind.from_config(schedule.scheduler_config(prediction))
    reference.set_timesteps(10)
    sources, options = generators(5, range(4)), {"eta": eta} if sampler == "ddim" else {}
    x = normal(sources, SHAPE)
    for t in reference.timesteps:
        x = reference.step(toy(x, t.expand(4), None), t, x, generator=sources, **options).prev_sample
    ours = draw(
        NetDenoiser(toy, schedule, prediction), schedule, generators(5, range(4)), SHAPE,
        sampler=sampler, steps=10, eta=eta,
    )  # fmt: skip
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=0, atol=2e-5)


def test_the_variance_of_a_ddpm_step_follows_the_schedule():
    images = [
        draw(gaussian(schedule, 0.2), schedule, generators(0, range(2)), SHAPE, sampler="ddpm", steps=20)
        for schedule in (Schedule(variance="fixed_large"), Schedule(variance="fixed_small"))
    ]
    assert (images[0] - images[1]).abs().max() > 0.01


def test_noise_of_an_image_depends_on_its_number_and_the_seed_alone():
    whole = normal(generators(7, range(64)), SHAPE)
    one_by_one = torch.cat([normal(generators(7, [k]), SHAPE) for k in range(64)])
    sevens = torch.cat([normal(generators(7, range(k, min(k + 7, 64))), SHAPE) for k in range(0, 64, 7)])
    for other in (one_by_one, sevens):
        torch.testing.assert_close(other, whole, rtol=0, atol=0)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 64
    assert not torch.equal(normal(generators(8, [0]), SHAPE), whole[:1])


def test_seed_0_is_the_numbers_of_the_images_and_seeds_stay_in_32_bits():
    assert [image_seed(0, k) for k in range(3)] == [0, 1, 2]
    assert image_seed(1, 0) == 1_000_003
    assert 0 <= image_seed(10**12, 10**12) < 2**32
    assert 0 <= image_seed(-1, 0) < 2**32


@pytest.mark.parametrize("options", [*({"sampler": name} for name in SAMPLERS), {"eta": 1.0}], ids=str)
def test_images_do_not_depend_on_their_batch(options):
    schedule = Schedule()
    denoise = NetDenoiser(toy, schedule)
    whole = draw(denoise, schedule, generators(0, range(9)), SHAPE, steps=5, **options)
    parts = [
        draw(denoise, schedule, generators(0, part), SHAPE, steps=5, **options) for part in (range(4), range(4, 9))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)


STARTS = {"ddim": [750, 500, 250, 0], "ddpm": [750, 500, 250, 0], "heun": [750, 500, 500, 250, 250, 0, 0]}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_shown_from_the_noise_on(sampler):
    seen, labels = [], []

    def denoise(x, t, label):
        seen.append(t.tolist())
        labels.append(label)
        return 0 * x

    label = torch.tensor([4, 2])
    frames = list(denoising(denoise, Schedule(), generators(0, range(2)), SHAPE, label, sampler=sampler, steps=4))
    assert len(frames) == 5
    expected = STARTS.get(sampler, [999, 749, 499, 249] if "euler" in sampler else [999, 749, 500, 250])
    assert seen == [[t] * 2 for t in expected]
    assert all(each is label for each in labels)
    torch.testing.assert_close(frames[0], normal(generators(0, range(2)), SHAPE), rtol=1e-4, atol=0)
    torch.testing.assert_close(frames[-1], torch.zeros(2, *SHAPE), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sampler", sorted({*SAMPLERS} - {"ddpm"})
)  # whose larger variance is exact in small steps only
def test_what_the_network_sees_has_unit_variance(sampler):
    """A denoiser that never sees an image, x0 = 0, sees noise of the spread that its timestep tells."""
    schedule, seen = Schedule(), []

    def denoise(x, t, label):
        seen.append(x.std().item() / schedule.at(t)[1].mean().item())
        return 0 * x

    *_, last = denoising(denoise, schedule, generators(0, range(64)), SHAPE, sampler=sampler, steps=6)
    assert seen == pytest.approx([1.0] * len(seen), rel=0.03)
    assert last.abs().max() < 0.01


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(name="cosine", timesteps=20)], ids=["linear", "cosine"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_ends_in_images(sampler, schedule):
    for steps in (1, 2, 3, 14, 16, schedule.timesteps - 1):
        x = draw(NetDenoiser(toy, schedule), schedule, generators(0, [0]), SHAPE, sampler=sampler, steps=steps)
        assert x.isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "steps", "fewer"), [("euler", 61, 60), ("euler_ancestral", 61, 60),
    ("dpmpp_2m", 1000, 999), ("unipc", 1000, 999)],
)  # fmt: skip
def test_steps_that_a_scheduler_would_space_wrongly_are_refused(sampler, steps, fewer):
    """diffusers would visit timestep -1, or one timestep twice."""
    with pytest.raises(ValueError, match=rf"steps={steps} cannot be spaced .* by sampler {sampler} .*; give {fewer}$"):
        check(sampler, steps, Schedule())
    check(sampler, fewer, Schedule())


def test_drawing_keeps_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    for x in denoising(lambda x, t, label: weight * x, Schedule(), generators(0, [0]), SHAPE, steps=2):
        assert not x.requires_grad
        assert torch.is_grad_enabled()


def test_samples_stay_in_the_range_of_images():
    x = draw(lambda x, t, label: 0 * x + 5, Schedule(), generators(0, [0]), SHAPE, steps=3)
    torch.testing.assert_close(x, torch.ones(1, *SHAPE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "dddim", "steps": 5},
            r"unknown sampler 'dddim'; did you mean ddim or ddpm\? \(of: ddim, ddpm, dpmpp_2m, ",
        ),
        ({"sampler": "ddim", "steps": 0}, "steps=0 makes no image; give 1 to 1000"),
        (
            {"sampler": "ddim", "steps": 1001},
            "steps=1001 is more than the 1000 timesteps of the model; give 1000 or fewer",
        ),
        ({"sampler": "ddpm", "steps": 5, "eta": 0.5}, "eta=0.5 has no meaning for sampler ddpm; .* choose: ddim"),
        ({"sampler": "ddim", "steps": 5, "eta": 1.5}, "eta=1.5 is outside 0"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        check(schedule=Schedule(), **options)
    with pytest.raises(ValueError, match=message):
        next(denoising(toy, Schedule(), generators(0, [0]), SHAPE, **options))


@pytest.mark.parametrize("steps", [1, 3, 50, 600, 999])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_first_timestep_is_that_of_the_scheduler(sampler, steps):
    scheduler = SAMPLERS[sampler].make(Schedule(), steps)
    assert first_timestep(sampler, steps, Schedule()) == scheduler.timesteps[0].item()


@pytest.mark.parametrize(
    ("steps", "nearest"), [(1, 10), (9, 10), (10, None), (50, None), (499, None), (501, 500), (800, 901), (999, None)]
)
def test_a_late_start_is_told_with_the_nearest_number_of_steps_without_one(steps, nearest):
    warning = late_start("ddim", steps, Schedule())
    assert (warning is None) == (nearest is None)
    assert nearest is None or f"; {nearest} steps start higher" in warning
    assert late_start("unipc", steps, Schedule()) is None
