"""Training on patches with positions, and drawing of images that are larger than a patch, in windows."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import sample
from diffusion import EDM
from pictures.files import read_image
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.inputs import positions
from tasks.denoising import DiffusionAugment, DiffusionBatch, DiffusionConfig, DiffusionTask
from tasks.ensemble import periodic_axes
from tasks.regression import RegressionRun
from tests.tasks.small import SMALL, shaken, small_run
from training.data import DataConfig, Images
from training.random import GlobalRandom
from training.task import Batch
from unet import UNet

NARROW = replace(SMALL, base_channels=8, channel_multipliers=(1,), attention_levels=(), groups=4, middle="none")
UNITS = Units(mean=(1.0, 0.0), std=(2.0, 1.0), transform=("none", "none"))
PLANE, PERIODIC = (DiffusionAugment(crop_px=8, crop_positions=kind) for kind in ("plane", "periodic_width"))


def fields(conditions: int = 1, static: bool = False) -> Images:
    """Four fields of 12 x 20 pixels, in which each pixel has the number of its place."""
    values = np.arange(12 * 20, dtype=np.float32).reshape(1, 1, 12, 20).repeat(2, 1).repeat(4, 0)
    rows = np.arange(240, dtype=np.float32).reshape(1, 12, 20) if static else None
    return Images(values, pixel_format=UNITS, conditions=conditions, static=rows)


def built(images: Images, augment: DiffusionAugment, **settings) -> DiffusionTask:
    run = small_run(model=NARROW, objective=EDM(), data=DataConfig(source="digits"), augment=augment, **settings)
    return shaken(run.build(images))


def random(count: int) -> GlobalRandom:
    return GlobalRandom(0, 0, "task", count, slice(0, count), "cpu")


def prepared(task: DiffusionTask, images: Images, count: int) -> DiffusionBatch:
    image = images.pixel_format.to_unit(torch.from_numpy(images.read(np.zeros(count, int))))
    return task.prepare(Batch(image, None), random(count))


def test_positions_are_the_places_of_pixels() -> None:
    y, x = positions(4, 6)
    assert_close(y[:, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert_close(x[0], torch.tensor([-5, -3, -1, 1, 3, 5]) / 6)
    _, sine, cosine = positions(4, 6, periodic_width=True)
    assert_close(torch.complex(cosine, sine)[2], torch.polar(torch.ones(6), torch.pi * x[2]))


@pytest.mark.parametrize("augment", [PLANE, PERIODIC])
def test_patches_have_the_positions_of_their_pixels(augment) -> None:
    images = fields(static=True)
    task = built(images, augment)
    found = prepared(task, images, 500).image
    is_periodic = augment is PERIODIC
    places = positions(12, 20, is_periodic)
    assert found.shape == (500, 2 + 1 + len(places), 8, 8)
    number = (found[:, 1] * UNITS.std[1]).round().long()
    assert_close(found[:, 3:], places.flatten(1)[:, number].movedim(0, 1), rtol=0, atol=0)
    columns = number[:, 0] % 20
    assert (columns.diff(dim=1) < 0).any() == is_periodic, "patches across the border"
    assert columns[:, 0].unique().tolist() == list(range(20 if is_periodic else 13))


@pytest.mark.parametrize("augment", [PLANE, PERIODIC])
def test_a_model_of_patches_draws_whole_fields_in_windows(augment, tmp_path: Path) -> None:
    images = fields()
    task = built(images, augment)
    model = task.diffusion
    assert (task.shape, model.shape, model.windows) == ((1, 8, 8), (1, 12, 20), ((8, 8), (4, 4)))
    assert task.loss(task.model, prepared(task, images, 4), random(4)).isfinite().all()
    given = {"image": torch.randn(2, 1, 12, 20), "steps": 2}
    drawn = model.draw(range(2), None, **given)
    assert drawn.shape == (2, 1, 12, 20)
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.inputs.periodic_width == (augment is PERIODIC)
    assert periodic_axes(again) == (False, augment is PERIODIC)
    assert_close(again.draw(range(2), None, **given), drawn, rtol=0, atol=0)
    assert not torch.equal(model.in_windows(2).draw(range(2), None, **given), drawn)
    with pytest.raises(ValueError, match="12x20"):
        model.sized(24, 40)


def test_patches_with_a_condition_alone_are_drawn_at_any_larger_size() -> None:
    model = built(fields(), DiffusionAugment(crop_px=8)).diffusion
    assert model.draw([0], None, image=torch.zeros(1, 1, 12, 20), steps=2).shape == (1, 1, 12, 20)
    assert model.sized(16, 9).draw([0], None, image=torch.zeros(1, 1, 16, 9), steps=2).shape == (1, 1, 16, 9)
    with pytest.raises(ValueError, match=r"size=7x20.*8x8"):
        model.sized(7, 20)


def test_patches_have_the_residual_of_whole_fields(tmp_path: Path) -> None:
    images = fields(static=True)
    task = RegressionRun(model=NARROW).build(images)
    for weight in task.model.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    task.model.eval()
    task.save(task.model, tmp_path)
    both = built(images, PLANE, diffusion=DiffusionConfig(regression=str(tmp_path)))
    base = both.diffusion.base
    assert base is not None
    found = prepared(both, images, 4).image
    whole = both.diffusion.inputs.with_static(images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(1)))))
    residual = base.residual(whole[:, :1], whole[:, 1:3], None).flatten()
    number = (found[:, 1] * UNITS.std[1]).round().long()
    assert_close(found[:, 0], residual[number])
    assert both.diffusion.draw([0], None, image=torch.zeros(1, 1, 12, 20), steps=2).shape == (1, 1, 12, 20)


def test_patches_alone_are_drawn_as_before() -> None:
    model = built(fields(conditions=0), DiffusionAugment(crop_px=8)).diffusion
    assert (model.shape, model.windows) == ((2, 8, 8), None)


def test_guides_have_the_same_windows() -> None:
    model = built(fields(), PLANE).diffusion
    guided = model.guided_by(built(fields(), PLANE).diffusion)
    image = torch.zeros(1, 1, 12, 20)
    assert guided.draw([0], None, image=image, steps=2, guidance=2).shape == (1, 1, 12, 20)
    with pytest.raises(ValueError, match="windows"):
        model.guided_by(built(fields(), replace(PLANE, crop_px=6)).diffusion)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"crop_positions": "plane"}, "crop_positions=plane.*crop_px"),
        ({"crop_positions": "plane", "crop_px": 8, "flip": True}, "flip=true.*crop_positions"),
        ({"crop_positions": "plane", "crop_px": 8, "non_leaky": 0.1}, r"non_leaky=0\.1.*crop_positions"),
    ],
)
def test_positions_that_would_be_wrong_are_refused(settings, named) -> None:
    with pytest.raises(ValueError, match=named):
        DiffusionAugment(**settings)


def test_patches_are_not_periodic() -> None:
    with pytest.raises(ValueError, match=r"model\.padding=periodic_width"):
        small_run(model=replace(NARROW, padding="periodic_width"), augment=PERIODIC)


def test_enlarging_has_no_positions() -> None:
    pictures = Images(np.zeros((4, 1, 12, 20), np.uint8))
    with pytest.raises(ValueError, match=r"upscale=2.*positions"):
        small_run(model=NARROW, augment=PLANE, diffusion=DiffusionConfig(upscale=2)).build(pictures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that draws grey images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = UNet(replace(NARROW, in_channels=1, out_channels=1))
    for weight in net.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    DiffusionModel(net, EDM()).save(folder)
    return folder


def run(folder: Path, out: Path, *flags: object) -> np.ndarray:
    sample.main([str(folder), "--out", str(out), "--device", "cpu", "--steps", "2", "--no-grid", *map(str, flags)])
    return np.stack([read_image(path) for path in sorted((out / "images").iterdir())])


def test_the_command_draws_larger_images_in_windows(folder, tmp_path) -> None:
    found = run(folder, tmp_path / "out", "--size", 12, 17, "--window", "--overlap", 3, "--num", 2)
    model = load_model(folder).in_windows(3).sized(12, 17)
    drawn = model.pixel_format.from_unit(model.draw(range(2), None, steps=2))
    np.testing.assert_array_equal(found, drawn)
    again = run(folder, tmp_path / "again", "--size", 12, 17, "--window", "--num", 2)
    assert not np.array_equal(again, found), "half of a window is shared"
    changed = ["--from", tmp_path / "out" / "images", "--strength", 0.5, "--num", 2]
    assert run(folder, tmp_path / "changed", "--size", 12, 17, "--window", *changed).shape == found.shape


def test_the_command_draws_whole_fields_of_a_model_with_positions(tmp_path, capsys) -> None:
    built(Images(np.zeros((4, 1, 12, 20), np.uint8)), PLANE).diffusion.save(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path / "out", "--num", 1).shape == (1, 1, 12, 20)
    assert "windows: 8x8 px, which share 4x4 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--window"], "window.*8x8.*--size"),
        (["--overlap", 3], "overlap=3.*--window"),
        (["--window", "--size", 12, 12, "--overlap", 8], "overlap=8x8"),
        (["--window", "--size", 12, 7], "size=12x7.*8x8"),
    ],
)
def test_windows_that_do_not_suit_are_one_line(folder, tmp_path, capsys, flags, named) -> None:
    with pytest.raises(SystemExit) as end:
        run(folder, tmp_path / "out", *flags)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(named, line), line
    assert not (tmp_path / "out").exists()
