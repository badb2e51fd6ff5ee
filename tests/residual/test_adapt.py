"""Weights for images with another number of channels."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from residual.weights.adapt import adapt_inputs, adapt_outputs


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_output_for_an_image_is_that_for_its_repetition(old: int, new: int) -> None:
    weight = torch.randn(2, old, 3, 3, dtype=torch.float64)
    image = torch.randn(1, min(old, new), 5, 5, dtype=torch.float64)
    before, after = (image[:, [i % image.shape[1] for i in range(n)]] for n in (old, new))
    adapted = adapt_inputs(weight, new)
    assert_close(nn.functional.conv2d(after, adapted), nn.functional.conv2d(before, weight))
    assert_close(adapted.sum(dim=1), weight.sum(dim=1))  # an image of equal channels


def test_the_dtype_is_kept() -> None:
    weight = torch.ones(2, 3, 1, 1, dtype=torch.bfloat16)
    assert all(adapt_inputs(weight, channels).dtype == torch.bfloat16 for channels in (1, 2, 5))


def test_outputs_are_averaged_or_repeated() -> None:
    bias = torch.tensor([1.0, 2.0, 6.0])
    assert adapt_outputs(bias, 1).tolist() == [3.0]
    assert adapt_outputs(bias, 2).tolist() == [3.5, 2.0]
    assert adapt_outputs(bias, 4).tolist() == [1.0, 2.0, 6.0, 1.0]
