"""The check of a published preconditioned network against its row of reference numbers."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion import Preconditioned, Preconditioning, edm


def golden_input(shape: tuple[int, ...], name: str) -> Tensor:
    """The standard normal input with this name, from numpy's frozen legacy generator."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(noise, dtype=np.float32))


def assert_golden_preconditioned(
    net: Callable[..., Tensor], row: Mapping[str, Any], by: Preconditioning | None = None, tolerance: float = 5e-6
) -> None:
    """`net(x, t, label)`, the bare network with the row's weights, gives its numbers when preconditioned (as EDM).

    A row holds `inputs` (`sigma`, one-hot `class_labels`), `output_shape`, `output_first_row`, `output_last_row`,
    `output_mean` and `output_std`; the noisy images are `golden_input(output_shape, "x")`.
    """
    label = torch.tensor(row["inputs"]["class_labels"]).argmax(dim=1)
    x, sigma = golden_input(tuple(row["output_shape"]), "x"), torch.tensor(row["inputs"]["sigma"])
    with torch.no_grad():
        output = Preconditioned(net, by or edm(row["arguments"].get("sigma_data", 0.5)))(x, sigma, label)
    rows = output.reshape(-1, output.shape[-1])
    got = torch.cat([rows[0], rows[-1], torch.stack([output.mean(), output.std()])])
    numbers = [*row["output_first_row"], *row["output_last_row"], row["output_mean"], row["output_std"]]
    torch.testing.assert_close(got, torch.tensor(numbers), rtol=0, atol=tolerance)
