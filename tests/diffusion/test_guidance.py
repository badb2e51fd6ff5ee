import math

import pytest
import torch
from torch.testing import assert_close

from diffusion import DDPM, EDM, Condition, Flow, classifier_free, classifier_guided, guided
from tests.diffusion.closed_form import interior_times

X, T, NULL = torch.linspace(-2, 2, 12).view(3, 1, 2, 2), torch.tensor([0.1, 1.0, 10.0]), 4
LABEL = Condition(torch.tensor([0, 1, 2]))
UNLABELLED = Condition(torch.full((3,), NULL))


def denoise(x, time, condition):
    """Depends on everything it receives, image by image."""
    return (x + 0.1 * time.view(-1, 1, 1, 1) + 0.2 * condition.label.view(-1, 1, 1, 1)).tanh()


def worse(x, time, condition):
    return 0.5 * denoise(x, time, condition)


def cfg(scale: float, **options):
    return classifier_free(denoise, scale, NULL, EDM(), **options)


def test_scale_1_is_the_plain_denoiser_and_0_the_unconditional_one() -> None:
    assert_close(cfg(1.0)(X, T, LABEL), denoise(X, T, LABEL), rtol=0, atol=0)
    assert_close(cfg(0.0)(X, T, LABEL), denoise(X, T, UNLABELLED), rtol=0, atol=0)
    assert_close(guided(denoise, worse, 1.0, EDM())(X, T, LABEL), denoise(X, T, LABEL), rtol=0, atol=0)
    assert_close(guided(denoise, worse, 0.0, EDM())(X, T, LABEL), worse(X, T, LABEL), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5, -1.0])
def test_other_scales_lie_on_the_line_through_both_denoisers(scale: float) -> None:
    given, free = denoise(X, T, LABEL), denoise(X, T, UNLABELLED)
    assert_close(cfg(scale)(X, T, LABEL), free + scale * (given - free))
    bad = worse(X, T, LABEL)
    assert_close(guided(denoise, worse, scale, EDM())(X, T, LABEL), bad + scale * (given - bad))


def test_classifier_free_guidance_is_guidance_by_the_unlabelled_network() -> None:
    def unlabelled(x, time, condition):
        return denoise(x, time, UNLABELLED)

    assert_close(cfg(3.0)(X, T, LABEL), guided(denoise, unlabelled, 3.0, EDM())(X, T, LABEL))


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("make", [cfg, lambda scale, **options: guided(denoise, worse, scale, EDM(), **options)])
def test_guidance_acts_within_an_interval_of_noise_levels_alone(make, scale: float) -> None:
    everywhere, nowhere = make(scale)(X, T, LABEL), denoise(X, T, LABEL)
    within = make(scale, interval=(0.5, 5.0))(X, T, LABEL)
    assert_close(within[1], everywhere[1])
    assert_close(within[[0, 2]], nowhere[[0, 2]])
    assert_close(make(scale, interval=(20.0, 30.0))(X, T, LABEL), nowhere, rtol=0, atol=0)
    assert_close(make(scale, interval=(0.0, math.inf))(X, T, LABEL), everywhere, rtol=0, atol=0)


@pytest.mark.parametrize("make", [cfg, lambda scale, **options: guided(denoise, worse, scale, EDM(), **options)])
def test_only_extrapolated_images_are_clipped(make) -> None:
    given = denoise(X, T, LABEL)
    assert given.abs().max() > 0.5
    clipped, free = make(3.0, limit=0.5, interval=(0.5, 5.0))(X, T, LABEL), make(3.0, interval=(0.5, 5.0))(X, T, LABEL)
    assert_close(clipped[1], free[1].clamp(-0.5, 0.5))
    assert_close(clipped[[0, 2]], given[[0, 2]])
    assert_close(make(0.5, limit=0.5)(X, T, LABEL), make(0.5)(X, T, LABEL))


@pytest.mark.parametrize("make", [cfg, lambda scale, **options: guided(denoise, worse, scale, EDM(), **options)])
def test_rescaled_images_have_the_contrast_without_guidance(make) -> None:
    given, free = denoise(X, T, LABEL), make(3.0)(X, T, LABEL)
    full, half = (make(3.0, rescale=share)(X, T, LABEL) for share in (1.0, 0.5))
    assert_close(full.flatten(1).std(dim=1), given.flatten(1).std(dim=1))
    ratio = given.flatten(1).std(dim=1) / free.flatten(1).std(dim=1)
    assert_close(half, 0.5 * free + 0.5 * ratio.view(-1, 1, 1, 1) * free)
    assert_close(make(1.0, rescale=1.0)(X, T, LABEL), given)


@pytest.mark.parametrize("inside", [True, False])
def test_the_learned_variance_is_that_with_the_label(inside: bool) -> None:
    def with_variance(x, time, condition):
        return torch.cat([denoise(x, time, condition), 100.0 + condition.label.view(-1, 1, 1, 1) + 0 * x], dim=1)

    options = {"limit": 0.5, "interval": (0.0 if inside else 0.5, math.inf)}
    variance = with_variance(X, T, LABEL)[:, 1:]
    assert_close(
        classifier_free(with_variance, 3.0, NULL, EDM(), **options)(X, T, LABEL),
        torch.cat([cfg(3.0, **options)(X, T, LABEL), variance], dim=1),
    )
    assert_close(  # the worse network has no variance
        guided(with_variance, worse, 3.0, EDM(), **options)(X, T, LABEL),
        torch.cat([guided(denoise, worse, 3.0, EDM(), **options)(X, T, LABEL), variance], dim=1),
    )


def test_both_denoised_images_come_from_one_batch_and_only_where_both_are_needed() -> None:
    sizes = []

    def counting(x, time, condition):
        sizes.append(len(x))
        return denoise(x, time, condition)

    for scale, interval in [(2.0, (0.0, math.inf)), (0.0, (0.0, math.inf)), (2.0, (20.0, 30.0))]:
        classifier_free(counting, scale, NULL, EDM(), interval)(X, T, LABEL)
    assert sizes == [6, 3, 3]


def test_every_part_of_the_condition_reaches_both() -> None:
    seen = []

    def remembering(x, time, condition):
        seen.append(condition)
        return x

    condition = Condition(LABEL.label, emb=torch.arange(6.0).view(3, 2), augment=torch.arange(9.0).view(3, 3))
    classifier_free(remembering, 2.0, NULL, EDM())(X, T, condition)
    assert seen[0].label.tolist() == [0, 1, 2, 4, 4, 4]
    assert_close(seen[0].emb, condition.emb.repeat(2, 1))
    assert_close(seen[0].augment, condition.augment.repeat(2, 1))
    assert seen[0].numbers is None


def test_numbers_are_hidden_beside_the_null_label_and_without_labels() -> None:
    seen = []

    def remembering(x, time, condition):
        seen.append(condition)
        return x

    numbers = torch.arange(1.0, 7.0).view(3, 2)
    classifier_free(remembering, 2.0, NULL, EDM())(X, T, Condition(LABEL.label, numbers=numbers))
    classifier_free(remembering, 2.0, None, EDM())(X, T, Condition(numbers=numbers))
    for condition in seen:
        assert_close(condition.numbers, torch.cat([numbers, torch.zeros(3, 2)]))
    assert seen[0].label.tolist() == [0, 1, 2, 4, 4, 4]
    assert seen[1].label is None
    with pytest.raises(ValueError, match="guidance=2"):
        classifier_free(remembering, 2.0, None, EDM())(X, T, Condition())
    assert seen[0].image is None


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_without_labels_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"guidance={scale:g}.*label"):
        cfg(scale)(X, T, Condition())


# --- by a classifier -------------------------------------------------------------------------------------------------

MEANS = torch.tensor([[-0.8, 0.3], [0.1, 0.5], [0.6, -0.4]], dtype=torch.float64).view(3, 1, 1, 2)


class GaussianClasses:
    """Images of each class are N(mean of the class, 0.3²), and all classes are equally frequent."""

    def __init__(self, formulation):
        self.formulation = formulation

    def posterior(self, x, level):
        """Logarithms of the probabilities of the classes of noisy images (b, classes)."""
        variance = level.alpha.square() * 0.3**2 + level.sigma.square()
        distance = (x[:, None] - level.alpha[:, None] * MEANS).square().flatten(2).sum(dim=2)
        return (-distance / (2 * variance.flatten(1))).log_softmax(dim=1)

    def log_probability(self, x, time, label):
        return self.posterior(x, self.formulation.level(time)).gather(1, label[:, None])[:, 0]

    def of_class(self, x, time, condition):
        level = self.formulation.level(time)
        gain = level.alpha * 0.3**2 / (level.alpha.square() * 0.3**2 + level.sigma.square())
        mean = MEANS[condition.label]
        return mean + gain * (x - level.alpha * mean)

    def free(self, x, time, condition):
        weights = self.posterior(x, self.formulation.level(time)).exp()
        each = [self.of_class(x, time, Condition(torch.full((len(x),), k))) for k in range(len(MEANS))]
        return sum(weights[:, k, None, None, None] * one for k, one in enumerate(each))


@pytest.mark.parametrize("formulation", [DDPM(prediction="v", schedule="cosine"), EDM(), Flow()])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_an_exact_classifier_turns_the_denoiser_of_all_images_into_that_of_a_class(formulation, scale: float) -> None:
    data, time = GaussianClasses(formulation), interior_times(formulation, 6)
    x = formulation.level(time).scale() * torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).view(6, 1, 1, 2)
    label = Condition(torch.tensor([0, 1, 2, 2, 1, 0]))
    found = classifier_guided(data.free, data.log_probability, scale, formulation)(x, time, label)
    given, free = data.of_class(x, time, label), data.free(x, time, label)
    assert_close(found, free + scale * (given - free))


def by_classifier(scale: float, denoise=denoise, **options):
    return classifier_guided(denoise, lambda x, time, label: (label * x.sum((1, 2, 3))).sin(), scale, EDM(), **options)


def test_scale_0_of_a_classifier_is_the_plain_denoiser() -> None:
    assert by_classifier(0.0) is denoise
    with pytest.raises(ValueError, match="label"):
        by_classifier(1.0)(X, T, Condition())


def test_a_classifier_acts_within_an_interval_and_its_images_are_rescaled_and_clipped() -> None:
    given, moved = denoise(X, T, LABEL), by_classifier(0.3)(X, T, LABEL)
    within = by_classifier(0.3, interval=(0.5, 5.0))(X, T, LABEL)
    assert not torch.equal(moved[1:], given[1:])
    assert_close(within, torch.stack([given[0], moved[1], given[2]]))
    assert_close(by_classifier(0.3, interval=(20.0, 30.0))(X, T, LABEL), given, rtol=0, atol=0)
    assert_close(by_classifier(0.3, limit=0.5)(X, T, LABEL), moved.clamp(-0.5, 0.5))
    rescaled = by_classifier(0.3, rescale=1.0)(X, T, LABEL)
    assert_close(rescaled.flatten(1).std(dim=1), given.flatten(1).std(dim=1))


def test_a_classifier_leaves_the_learned_variance_and_pure_noise_alone() -> None:
    flow = Flow()

    def with_variance(x, time, condition):
        return torch.cat([denoise(x, time, condition), time.view(-1, 1, 1, 1).expand(x.shape)], dim=1)

    found = by_classifier(0.3, with_variance)(X, T, LABEL)
    assert_close(found[:, 1:], T.view(-1, 1, 1, 1).expand(X.shape))
    noise = torch.ones(3)
    pure = classifier_guided(denoise, lambda x, time, label: x.sum((1, 2, 3)), 2.0, flow)(X, noise, LABEL)
    assert_close(pure, denoise(X, noise, LABEL))
