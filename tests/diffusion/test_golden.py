"""The recorded outputs of EDM's and EDM2's own denoisers, around our networks with the same weights."""

import pytest
import torch

from diffusion import EDM, Condition, NetworkDenoiser
from tests.golden.fill import golden_input
from tests.golden.networks import GOLDEN, PRECONDITIONED, check_output, label, network


@pytest.mark.parametrize("row", PRECONDITIONED)
def test_the_published_denoisers(row: str) -> None:
    net, condition = network(row), Condition(label(row))
    x = golden_input(tuple(GOLDEN[row]["output_shape"]), "x")
    sigma = torch.tensor(GOLDEN[row]["inputs"]["sigma"])
    with torch.no_grad():
        check_output(row, NetworkDenoiser(net, EDM())(x, sigma, condition))
        with pytest.raises(AssertionError):
            check_output(row, NetworkDenoiser(net, EDM(sigma_data=0.5001))(x, sigma, condition))
