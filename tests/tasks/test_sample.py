import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from diffusion import DDPM, SAMPLERS
from pictures.files import to_uint8
from pictures.pixel_format import BYTES, PixelFormat
from pipelines.diffusion import DiffusionModel, load_model
from tests.tasks.small import SMALL
from unet import UNet

ROOT = Path(__file__).parents[2]


def pixels(folder):
    """All images of a folder, in order, as integers."""
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob("0*.png"))]).astype(int)


def run(model, out, *flags):
    sample.main([str(model), "--out", str(out), "--device", "cpu", *map(str, flags)])
    return pixels(out)


def test_one_file_per_image_as_the_library_draws_it(conditional, tmp_path, capsys):
    found = run(conditional, tmp_path / "out", "--num", 12, "--steps", 10, "--seed", 3)
    model = load_model(conditional)
    expected = model.draw(range(12), [k % 10 for k in range(12)], steps=10, seed=3)
    assert abs(found - to_uint8(expected)[..., 0]).max() == 0
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][::12] == ["000000.png", "grid.png"]
    printed = capsys.readouterr().out
    assert "12 images, ddim, 10 steps, seed 3" in printed
    assert f"grid: {tmp_path / 'out' / 'grid.png'}" in printed


def test_images_depend_neither_on_batches_nor_on_their_number(conditional, tmp_path):
    whole = run(conditional, tmp_path / "64", "--num", 64, "--steps", 10, "--batch", 64)
    sevens = run(conditional, tmp_path / "7", "--num", 64, "--steps", 10, "--batch", 7)
    ones = run(conditional, tmp_path / "1", "--num", 9, "--steps", 10, "--batch", 1)
    assert abs(sevens - whole).max() <= 1
    assert abs(ones - whole[:9]).max() <= 1


def test_two_processes_draw_what_one_draws(conditional, tmp_path):
    one = run(conditional, tmp_path / "one", "--num", 7, "--steps", 10, "--animation")
    flags = ["--num", "7", "--steps", "10", "--animation", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--",
         str(ROOT / "sample.py"), str(conditional), *flags],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images:") == done.stdout.count("grid:") == 1
    assert abs(pixels(tmp_path / "two") - one).max() <= 1
    for name in ("grid.png", "animation.gif"):
        with Image.open(tmp_path / "one" / name) as first, Image.open(tmp_path / "two" / name) as second:
            assert abs(np.array(first).astype(int) - np.array(second).astype(int)).max() <= 1


def test_every_flag_matters(conditional, tmp_path):
    base = run(conditional, tmp_path / "base", "--num", 2, "--steps", 5, "--label", "three")
    same = run(conditional, tmp_path / "same", "--num", 2, "--steps", 5, "--label", "3")
    assert (base == same).all()
    for name, value in {
        "label": "none", "guidance": 4, "seed": 1, "eta": 1, "sampler": "ddpm", "steps": 6,
    }.items():  # fmt: skip
        flags = {"label": "three", "steps": 5} | {name: value}
        other = run(conditional, tmp_path / name, "--num", 2, *[w for k, v in flags.items() for w in (f"--{k}", v)])
        assert abs(other - base).max() > 1, name
    flags = ["--num", 2, "--steps", 5, "--label", "three", "--sampler", "heun"]
    heun = run(conditional, tmp_path / "heun", *flags)
    assert abs(run(conditional, tmp_path / "churn", *flags, "--churn", 4) - heun).max() > 1
    guided = run(conditional, tmp_path / "guided", *flags, "--guidance", 4)
    within = run(conditional, tmp_path / "within", *flags, "--guidance", 4, "--guidance-interval", 0.2, 3)
    assert abs(within - guided).max() > 1
    assert abs(within - heun).max() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_command_line(conditional, tmp_path, sampler, capsys):
    run(conditional, tmp_path, "--num", 2, "--steps", 3, "--sampler", sampler, "--guidance", 2, "--animation")
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames == 4
    assert "3/3" in capsys.readouterr().err


def test_a_model_without_classes_needs_no_label(unconditional, tmp_path):
    assert run(unconditional, tmp_path, "--num", 3, "--steps", 2).shape == (3, 8, 8)


def test_the_grid_can_be_left_out_and_moved(conditional, tmp_path, capsys):
    run(conditional, tmp_path / "bare", "--num", 2, "--steps", 2, "--no-grid")
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["000000.png", "000001.png"]
    assert "grid:" not in capsys.readouterr().out
    run(conditional, tmp_path / "moving", "--num", 2, "--steps", 3, "--animation", "--no-grid")
    with Image.open(tmp_path / "moving" / "animation.gif") as animation:
        assert animation.n_frames == 4
    assert "animation:" in capsys.readouterr().out


def test_a_long_animation_is_thinned(conditional, tmp_path):
    run(conditional, tmp_path, "--num", 1, "--steps", 60, "--animation")
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames <= sample.MAX_FRAMES
        animation.seek(animation.n_frames - 1)
        last = np.array(animation.convert("L")).astype(int)
    assert abs(last - np.array(Image.open(tmp_path / "grid.png")).astype(int)).max() <= 1


def test_a_huge_grid_stops_at_its_first_images(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "MAX_IN_GRID", 4)
    run(conditional, tmp_path / "few", "--num", 4, "--steps", 2)
    run(conditional, tmp_path / "many", "--num", 6, "--steps", 2, "--batch", 3)
    grids = [np.array(Image.open(tmp_path / name / "grid.png")).astype(int) for name in ("few", "many")]
    assert abs(grids[0] - grids[1]).max() <= 1


def test_a_run_folder_is_sampled_and_dated(conditional, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "000123456").mkdir(parents=True)
    (folder / "config.yaml").write_text("task: diffusion\n")
    os.symlink(conditional, folder / "model")
    run(folder, tmp_path / "out", "--num", 1, "--steps", 50)
    assert f"model: {folder} at 123,456 images seen; 1 images" in capsys.readouterr().out


def test_notes_warn_of_a_late_start_and_of_older_images(conditional, tmp_path, capsys):
    run(conditional, tmp_path, "--num", 5, "--steps", 50)
    assert "note:" not in capsys.readouterr().out
    run(conditional, tmp_path, "--num", 2, "--steps", 1)
    printed = capsys.readouterr().out
    assert "note: 1 steps of ddim start at timestep 0 of 999" in printed
    assert f"note: {tmp_path} also holds 3 images that this command did not write" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num", "0"], "num=0"),
        (["--num", "1000000000000"], "num=1000000000000"),
        (["--batch", "0"], "batch=0"),
        (["--steps", "0"], "steps=0"),
        (["--steps", "1001"], "steps=1001"),
        (["--sampler", "dddim"], "sampler 'dddim'; did you mean ddim"),
        (["--sampler", ""], "sampler ''"),
        (["--sampler", "ddpm", "--eta", "0.5"], "eta=0.5"),
        (["--churn", "1"], "churn=1"),
        (["--guidance-interval", "2", "1"], "guidance_interval=2,1"),
        (["--guidance-interval", "1", "2"], "guidance_interval=1,2"),
        (["--label", "10"], "label 10"),
        (["--label", "thre"], "class 'thre'; did you mean three"),
        (["--label", "none", "--guidance", "2"], "guidance=2"),
        (["--out", __file__], __file__),
        (["--guidance", "nan"], "guidance=nan"),
        (["--device", "meta"], "device='meta'"),
        (["--device", "tpux"], "device='tpux'"),
        (["--num", "x"], "--num: invalid int value: 'x'"),
        (["--lable", "3"], "--lable 3"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(conditional, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        sample.main([str(conditional), "--out", str(tmp_path / "out"), *flags])
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label", "3"], "label '3'"),
        (["--guidance", "2"], "guidance=2"),
    ],
)
def test_options_for_labels_need_a_model_with_classes(unconditional, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        sample.main([str(unconditional), "--out", str(tmp_path), *flags])
    assert message in capsys.readouterr().err


def untrained(folder, channels, pixels):
    """The folder of a model of such images, and what it draws (1 step of DDIM from 16 numbers)."""
    net = UNet(replace(SMALL, in_channels=channels, out_channels=channels))
    model = DiffusionModel(net, DDPM(), pixel_format=pixels)
    model.save(folder)
    return model.draw(range(2), None, steps=1)


def test_images_that_cannot_be_pictures_are_refused_before_work(tmp_path, capsys):
    untrained(tmp_path, 2, BYTES)
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "images with 2 channels cannot be PNG files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_greys_of_16_bits_are_drawn_with_16_bits(tmp_path):
    pixels = PixelFormat(dtype="uint16", high=65535)
    expected = pixels.from_unit(untrained(tmp_path, 1, pixels))[:, 0].astype(int)
    found = run(tmp_path, tmp_path / "out", "--num", 2, "--steps", 1)
    assert abs(found - expected).max() <= 1
    assert len(np.unique(found % 256)) > 1
    for name, mode in (("000000.png", "I;16"), ("grid.png", "L")):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.mode == mode


def test_colours_have_8_bits_whatever_the_cache_kept(tmp_path):
    untrained(tmp_path, 3, PixelFormat(dtype="uint16", high=65535))
    assert run(tmp_path, tmp_path / "out", "--num", 2, "--steps", 1).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("channels", "pixels"),
    [
        (2, PixelFormat(dtype="int16", low=-1000, high=1000, file="npy")),
        (4, PixelFormat(dtype="float32", low=-3.5, high=9, file="npy")),
        (1, PixelFormat(dtype="float16", low=0, high=1, file="npy")),
        (3, PixelFormat(file="npy")),
    ],
)
def test_arrays_come_out_as_arrays_of_their_kind(tmp_path, capsys, channels, pixels):
    expected = pixels.from_unit(untrained(tmp_path, channels, pixels))
    flags = ["--num", "2", "--steps", "1", "--animation", "--device", "cpu"]
    sample.main([str(tmp_path), "--out", str(tmp_path / "out"), *flags])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"000000.npy", "000001.npy", "grid.png", "animation.gif"}
    for k in range(2):
        found = np.load(tmp_path / "out" / f"00000{k}.npy", allow_pickle=False)
        assert found.dtype == pixels.dtype
        assert found.shape == (channels, 8, 8)
        level = 1e-5 * (pixels.high - pixels.low) + (found.dtype.kind in "iu")
        np.testing.assert_allclose(found.astype(float), expected[k].astype(float), rtol=1e-3, atol=level)
    printed = capsys.readouterr().out
    assert "000000.npy … " in printed
    assert (f"note: images have {channels} channels, of which pictures show" in printed) == (channels in (2, 4))


def test_a_missing_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "nowhere")])
    assert "nowhere'; give a run folder (of train.py) or a model folder" in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        sample.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(action.help for action in sample.parser()._actions)
    assert "the averaged model" in " ".join(printed.split()) or "averaged model" in printed
