import pytest
import torch
from diffusers import DDPMScheduler

from diffusion import PREDICTIONS, NetDenoiser, Schedule, clean_and_noise, noised, squared_error, target
from diffusion.objective import drop_labels

T = torch.tensor([0, 1, 300, 999])


def images(dtype=torch.float64):
    return torch.rand(4, 3, 4, 2, dtype=dtype) * 2 - 1, torch.randn(4, 3, 4, 2, dtype=dtype)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_image_and_noise_come_back_from_every_prediction(prediction, name):
    (x0, noise), (alpha, sigma) = images(), Schedule(name=name).at(T, torch.float64)
    x = noised(x0, noise, alpha, sigma)
    answer = target(prediction, x0, noise, alpha, sigma)
    got = clean_and_noise(prediction, answer, x, alpha, sigma)
    torch.testing.assert_close(got, (x0, noise), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guess_of_the_clean_image_is_that_of_diffusers(prediction):
    schedule = Schedule()
    scheduler = DDPMScheduler(**{**schedule.scheduler_config(prediction), "clip_sample": False})
    x, answer = images(torch.float32)
    for row, t in enumerate(T.tolist()):
        alpha, sigma = schedule.at(T[row : row + 1])
        ours, _ = clean_and_noise(prediction, answer[row : row + 1], x[row : row + 1], alpha, sigma)
        theirs = scheduler.step(answer[row : row + 1], t, x[row : row + 1]).pred_original_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_velocity_is_salimans_and_ho():
    (x0, noise), (alpha, sigma) = images(), Schedule().at(T, torch.float64)
    torch.testing.assert_close(target("v_prediction", x0, noise, alpha, sigma), alpha * noise - sigma * x0)


def test_unknown_prediction_names_the_nearest():
    (x0, noise), (alpha, sigma) = images(), Schedule().at(T, torch.float64)
    with pytest.raises(ValueError, match="unknown prediction 'epsilom'; did you mean epsilon"):
        target("epsilom", x0, noise, alpha, sigma)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_a_constant_answer_has_a_closed_form(prediction):
    (x0, noise), schedule = images(), Schedule()
    alpha, sigma = schedule.at(T, torch.float64)
    loss = squared_error(lambda x, t, label: 0 * x + 2, x0, T, noise, schedule=schedule, prediction=prediction)
    truth = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[prediction]
    torch.testing.assert_close(loss, (2 - truth).square().flatten(1).mean(1))


def test_loss_is_zero_for_the_right_answer_and_of_one_image_alone():
    (x0, noise), schedule = images(), Schedule()
    right = squared_error(lambda x, t, label: noise, x0, T, noise, schedule=schedule)
    assert right.shape == (4,)
    torch.testing.assert_close(right, torch.zeros(4, dtype=torch.float64), rtol=0, atol=0)
    spoiled = noise.clone()
    spoiled[2] += 1
    wrong = squared_error(lambda x, t, label: spoiled, x0, T, noise, schedule=schedule)
    torch.testing.assert_close(wrong, torch.tensor([0.0, 0, 1, 0], dtype=torch.float64))


def test_loss_stays_float32_around_a_bf16_network():
    x0, noise = images(torch.float32)
    seen = []

    def net(x, t, label):
        seen.append(x.dtype)
        return x.bfloat16()

    assert squared_error(net, x0, T, noise, schedule=Schedule()).dtype == torch.float32
    assert seen == [torch.float32]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_denoiser_hides_what_its_network_predicts(prediction):
    (x0, noise), schedule = images(torch.float32), Schedule()
    alpha, sigma = schedule.at(T)
    answer = target(prediction, x0, noise, alpha, sigma)
    denoise = NetDenoiser(lambda x, t, label: answer, schedule, prediction)
    torch.testing.assert_close(denoise(noised(x0, noise, alpha, sigma), T), x0, rtol=0, atol=1e-4)


def test_labels_are_dropped_one_image_at_a_time():
    label, uniform = torch.tensor([3, 1, 4, 1]), torch.tensor([0.0, 0.05, 0.1, 0.9])
    assert drop_labels(label, uniform, 0.1, null=10).tolist() == [10, 10, 4, 1]
    assert drop_labels(label, uniform, 0.0, null=10).tolist() == [3, 1, 4, 1]
    assert drop_labels(label, uniform, 1.0, null=10).tolist() == [10] * 4
