"""docs/scaling.md: its cost model is the measured one, and its predictions are what the script prints."""

from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import Cluster, exponent, family, kept_bytes

PAGE = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
MULTIPLY_ADDS, PARAMETERS = 6.22e9, 35.7e6  # of ddpm-cifar10


def test_the_model_gives_the_measured_times_of_one_gpu() -> None:
    for batch, seconds in ((128, 0.0583), (512, 0.1446)):
        assert Cluster().update_seconds(1, batch, MULTIPLY_ADDS, PARAMETERS) == pytest.approx(seconds, rel=0.02)
    graphs = Cluster(fixed_seconds=0).update_seconds(1, 128, MULTIPLY_ADDS, PARAMETERS)
    assert graphs == pytest.approx(0.0279, rel=0.02)


def test_a_ring_sends_almost_twice_the_gradients() -> None:
    cluster = Cluster(fixed_seconds=0, inside=1e9, between=1e8)
    assert cluster.update_seconds(4, 4, 0, 1e9) == pytest.approx(2 * 3 / 4 * 4)
    assert cluster.update_seconds(16, 16, 0, 1e9) == pytest.approx(2 * 15 / 16 * 4 * 10)


@pytest.mark.filterwarnings("ignore")
def test_the_rows_of_the_page_are_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "RECIPES", {"cifar10-ddpm": 32, "ffhq64-edm": 64})
    scaling.predict(Cluster())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line in PAGE


def test_memory_grows_with_the_pixels_and_the_width() -> None:
    sides, widths = (32, 64), (32, 64)
    assert exponent(sides, [kept_bytes(family(side, 32)) for side in sides]) == pytest.approx(1.8, abs=0.2)
    assert exponent(widths, [kept_bytes(family(32, width)) for width in widths]) == pytest.approx(0.95, abs=0.1)
