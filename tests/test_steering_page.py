"""docs/steering.md: its commands and pictures are those of benchmarks/gallery.py, and sample.py reads them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
from benchmarks import gallery, steering
from benchmarks.gallery import ROWS, write_inputs
from diffusion import DDPM
from drawing.options import check_together
from pipelines.diffusion import DiffusionModel
from training.data import Images
from unet import UNet, UNetConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "steering.md").read_text()


def test_every_command_of_the_page_draws_a_picture_of_it() -> None:
    commands = re.findall(r"^python (sample\.py .+)$", PAGE, re.MULTILINE)
    assert commands == [row.command for row in ROWS.values()]
    shown = re.findall(r"\]\(gallery/(\w+)\.\w+\)", PAGE)
    assert shown == list(ROWS)
    for path in (ROOT / "docs" / "gallery").iterdir():
        assert path.stat().st_size < 60_000, path


@pytest.mark.parametrize("name", ROWS)
def test_the_commands_are_read(name: str) -> None:
    script, *words = ROWS[name].command.split()
    assert script == "sample.py"
    check_together(sample.parser().parse_args(words))


@pytest.mark.parametrize("name", ["mask.png", "small.png", "points.npy", "blurred.npy"])
def test_the_inputs_of_the_page_are_those_of_the_script(tmp_path: Path, name: str) -> None:
    write_inputs(tmp_path, tmp_path / "runs")
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "gallery" / name).read_bytes()


@pytest.mark.slow
def test_the_figures_are_those_of_the_modes() -> None:
    config = UNetConfig(
        size=(8, 8), base_channels=8, channel_multipliers=(1, 2), in_channels=1, out_channels=1, groups=4
    )
    model = DiffusionModel(UNet(config), DDPM(prediction="v"))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert (steering.reconstructed(model, images, 40) - images).abs().mean() < 0.1
    drawn = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    drawn[..., 4:] = True
    found = steering.inpainted(model, images, drawn, resample=1, eta=1.0, seed=0)
    torch.testing.assert_close(found[..., :4], images[..., :4])
    assert (found[..., 4:] - images[..., 4:]).abs().mean() > 0.1


def test_classes_are_compared_by_name() -> None:
    images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8).numpy(), np.array([0, 1, 1]), ("cat", "dog"))
    assert steering.numbers(images, ("dog", "eel", "cat")).tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match="'dog'"):
        steering.numbers(images, ("cat",))


def test_wrong_options_of_the_scripts_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main, words, message in (
        (steering.main, [str(tmp_path), "--judge", "none"], "no run folder"),
        (gallery.main, ["--out", str(tmp_path / "out"), "--only", "nothing"], "'nothing'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
