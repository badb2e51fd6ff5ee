import pytest
import torch

from diffusion import guided

X, T, LABEL, NULL = torch.linspace(-2, 2, 12).view(3, 1, 2, 2), torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]), 4


def denoise(x, t, label):
    """Depends on all that it is given, image by image."""
    return (x + 0.1 * t.view(-1, 1, 1, 1) + 0.2 * label.view(-1, 1, 1, 1)).tanh()


def test_scale_1_is_the_plain_denoiser_and_0_the_unconditional_one():
    torch.testing.assert_close(guided(denoise, 1.0, NULL)(X, T, LABEL), denoise(X, T, LABEL), rtol=0, atol=0)
    free = denoise(X, T, torch.full_like(LABEL, NULL))
    torch.testing.assert_close(guided(denoise, 0.0, NULL)(X, T, LABEL), free, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5, -1.0])
def test_other_scales_go_along_the_line_through_both_within_the_range_of_images(scale):
    given, free = denoise(X, T, LABEL), denoise(X, T, torch.full_like(LABEL, NULL))
    line = free + scale * (given - free)
    assert scale < 7 or line.abs().max() > 1
    torch.testing.assert_close(guided(denoise, scale, NULL)(X, T, LABEL), line.clamp(-1, 1))


def test_both_guesses_come_from_one_batch():
    sizes = []

    def counting(x, t, label):
        sizes.append(len(x))
        return denoise(x, t, label)

    guided(counting, 2.0, NULL)(X, T, LABEL)
    guided(counting, 0.0, NULL)(X, T, LABEL)
    assert sizes == [6, 3]


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_without_labels_is_refused(scale):
    with pytest.raises(ValueError, match=f"guidance={scale:g} needs a label"):
        guided(denoise, scale, NULL)(X, T, None)
