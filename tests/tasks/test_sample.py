import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import drawing.draw
import drawing.job
import drawing.write
import residual
import sample
import training.precision
from diffusion import DDPM, SAMPLERS
from pictures.files import to_uint8
from pictures.pixel_format import BYTES, PixelFormat
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from residual import native
from tests import forks
from tests.tasks.small import CLASSES, SMALL, sample_on_two_processes
from training.compile import CACHE
from training.report import activation_bytes
from unet import UNet

ROOT = Path(__file__).parents[2]


def pixels(folder):
    """All images of a folder, in order, as integers."""
    return np.stack([np.array(Image.open(path)) for path in sorted((folder / "images").glob("0*.png"))]).astype(int)


def files(folder):
    """The files below a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def record(folder):
    return json.loads((folder / "samples.json").read_text())


def run(model, out, *flags, batch=("--batch", 64)):
    """The images of a command. Its batch is given, because the one that fits into memory takes time to find."""
    sample.main([str(model), "--out", str(out), "--device", "cpu", *map(str, (*batch, *flags))])
    return pixels(out)


def test_one_file_per_image_as_the_library_draws_it(conditional, tmp_path, capsys):
    found = run(conditional, tmp_path / "out", "--num", 12, "--steps", 10, "--seed", 3)
    model = load_model(conditional)
    expected = model.draw(range(12), [k % 10 for k in range(12)], steps=10, seed=3)
    assert abs(found - to_uint8(expected)[..., 0]).max() == 0
    assert files(tmp_path / "out") == {
        "grid.png",
        "labels.csv",
        "samples.json",
        *(f"images/{k:06d}.png" for k in range(12)),
    }
    printed = capsys.readouterr().out
    assert "12 images, ddim, 10 steps, seed 3" in printed
    assert f"grid: {tmp_path / 'out' / 'grid.png'}" in printed


def test_images_depend_neither_on_batches_nor_on_their_number(conditional, tmp_path):
    whole = run(conditional, tmp_path / "64", "--num", 64, "--steps", 10, "--batch", 64)
    sevens = run(conditional, tmp_path / "7", "--num", 64, "--steps", 10, "--batch", 7)
    ones = run(conditional, tmp_path / "1", "--num", 9, "--steps", 10, "--batch", 1)
    assert abs(sevens - whole).max() <= 1
    assert abs(ones - whole[:9]).max() <= 1


def count_images(monkeypatch, most=10**9):
    """The numbers of images in the forward passes of a command to come; more than `most` do not fit into memory."""
    denoising, counts = DiffusionModel.denoising, []

    def counting(model, images, labels, **options):
        counts.append(len(images))
        for step, x in enumerate(denoising(model, images, labels, **options)):
            if step and len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield x

    monkeypatch.setattr(DiffusionModel, "denoising", counting)
    return counts


def test_a_batch_that_does_not_fit_is_halved(conditional, tmp_path, monkeypatch, capsys):
    flags = ["--num", 11, "--steps", 2, "--animation"]
    whole = run(conditional, tmp_path / "whole", *flags)
    counts = count_images(monkeypatch, most=3)
    halved = run(conditional, tmp_path / "halved", *flags, "--batch", 8)
    assert counts == [8, 4, 2, 2, 2, 2, 2, 1]
    assert abs(halved - whole).max() <= 1
    assert "note: 8 images do not fit into memory; drawing 4 at a time" in capsys.readouterr().out
    with Image.open(tmp_path / "halved" / "animation.gif") as animation:
        assert animation.n_frames == 3


def test_the_batch_follows_from_free_memory(conditional, tmp_path, monkeypatch):
    per_image = activation_bytes(load_model(conditional).net, torch.zeros(1, 1, 8, 8), torch.zeros(1))
    for free, guidance, expected in (
        (None, 1, [7]),
        (0, 1, [1] * 7),
        (4.5 * per_image, 1, [4, 3]),
        (5 * per_image, 2, [2, 2, 2, 1]),
    ):
        monkeypatch.setattr(drawing.draw, "free_bytes", lambda device, free=free: free and int(free))
        with monkeypatch.context() as patch:
            counts = count_images(patch)
            run(conditional, tmp_path / "out", "--num", 7, "--steps", 1, "--guidance", guidance, batch=())
        assert counts == expected


def test_bf16_draws_nearly_the_same_images(conditional, tmp_path, monkeypatch):
    flags = ["--num", 12, "--steps", 10]
    whole, low = run(conditional, tmp_path / "whole", *flags), load_model(conditional)
    low.net.bfloat16()
    monkeypatch.setattr(training.precision, "cpu_flags", lambda: {"avx512_bf16"})
    found = run(conditional, tmp_path / "low", *flags, "--precision", "auto")
    np.testing.assert_array_equal(found, to_uint8(low.draw(range(12), low.cycle(range(12)), steps=10))[..., 0])
    assert 0 < abs(found - whole).mean() < 4
    assert record(tmp_path / "low")["precision"] == "bf16"
    assert record(tmp_path / "whole")["precision"] == "float32"
    with Image.open(tmp_path / "low" / "images" / "000000.png") as picture:
        assert picture.text["precision"] == "bf16"


@pytest.mark.parametrize("compiled", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_compiled_network_draws_the_same_images(conditional, tmp_path, monkeypatch, capsys, compiled):
    flags, graphs = ["--num", 12, "--steps", 3, "--batch", 5, "--animation"], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    whole = run(conditional, tmp_path / "whole", *flags)
    monkeypatch.setenv(CACHE, str(tmp_path / "code"))
    if compiled == "recorded":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    torch.compiler.reset()
    with torch._inductor.config.patch(freezing=False):
        found = run(conditional, tmp_path / "fast", *flags, "--compile")
        assert torch._inductor.config.freezing
    assert abs(found - whole).max() <= 1
    assert compiled == "compiled" or len(graphs) == 2, "the test of the compiler, and the network"
    assert record(tmp_path / "fast")["compile"] is True
    with Image.open(tmp_path / "fast/images/000011.png") as picture:
        assert picture.text["compile"] == "True"
    assert record(tmp_path / "whole")["compile"] is False
    assert f"compile=True: compiled code is kept in {tmp_path / 'code'}" in capsys.readouterr().out


def test_the_kernels_draw_the_same_images(conditional, tmp_path, monkeypatch, capsys):
    flags = ["--num", 12, "--steps", 3]
    whole = run(conditional, tmp_path / "whole", *flags)
    assert "CPU kernels: off" in capsys.readouterr().out
    monkeypatch.delenv("RESIDUAL_KERNELS")
    try:
        found = run(conditional, tmp_path / "fast", *flags)
        printed, used = capsys.readouterr().out, native.library is not None
        assert ("CPU kernels" in printed) is not used
        assert abs(found - whole).max() <= 1
    finally:
        native.unload()


def test_without_a_compiler_no_image_is_drawn(conditional, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda function, **options: 1 / 0)
    monkeypatch.setenv(CACHE, str(tmp_path / "code"))
    with pytest.raises(SystemExit):
        run(conditional, tmp_path / "out", "--compile")
    assert re.search(r"compile=True: code for cpu.*install.*leave it out", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_bf16_needs_hardware_that_has_it(conditional, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.precision, "cpu_flags", set)
    with pytest.raises(SystemExit):
        run(conditional, tmp_path / "out", "--precision", "bf16")
    assert "precision=bf16: this CPU has no bf16 instructions" in capsys.readouterr().err
    run(conditional, tmp_path / "out", "--precision", "auto", "--num", 1, "--steps", 1)
    assert record(tmp_path / "out")["precision"] == "float32"


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(conditional, tmp_path):
    one = run(conditional, tmp_path / "one", "--num", 7, "--steps", 10, "--animation")
    flags = ["--num", "7", "--steps", "10", "--animation", "--out", str(tmp_path / "two")]
    done = sample_on_two_processes(conditional, *flags)
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
    rescaled = run(conditional, tmp_path / "rescaled", *flags, "--guidance", 4, "--guidance-rescale", 0.7)
    assert abs(rescaled - guided).max() > 1


def test_images_are_changed(conditional, tmp_path, capsys):
    flags = ["--steps", 10, "--label", "three"]
    start = run(conditional, tmp_path / "start", "--num", 3, "--steps", 10, "--label", "seven")
    origin = ["--from", tmp_path / "start" / "images"]
    capsys.readouterr()
    moved = []
    for strength in (0.1, 0.5, 1.0):
        found = run(conditional, tmp_path / "out", *flags, *origin, "--num", 5, "--strength", strength)
        moved.append(abs(found[:3] - start).mean())
        printed = capsys.readouterr().out
        assert "from: 3 grey images" in printed
        assert f"; {round(10 * strength)} step" in printed
    assert moved == sorted(moved)
    seven = run(conditional, tmp_path / "batches", *flags, *origin, "--num", 5, "--batch", 2, "--strength", 1)
    assert abs(seven - found).max() <= 1
    facts = record(tmp_path / "out")
    assert (facts["from"], facts["strength"]) == (str(tmp_path / "start" / "images"), 1.0)
    assert len(facts["from_sha256"]) == 64
    run(conditional, tmp_path / "usual", *flags, *origin, "--num", 1, "--animation")
    assert record(tmp_path / "usual")["strength"] == 0.5
    with Image.open(tmp_path / "usual" / "animation.gif") as animation:
        assert animation.n_frames == 6


def test_images_that_cannot_be_changed_are_one_line(conditional, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for flags, message in (
        (["--strength", 0.5], "strength=0.5"),
        (["--from", tmp_path / "absent"], "absent"),
        (["--from", tmp_path / "empty"], "empty"),
        (["--from", "digits", "--strength", 0], "strength=0 "),
        (["--from", "digits", "--strength", 1.5], "strength=1.5"),
    ):
        with pytest.raises(SystemExit):
            run(conditional, tmp_path / "out", *flags)
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_worse_model_guides(conditional, tmp_path):
    flags = ["--num", 4, "--steps", 5, "--sampler", "heun"]
    model = load_model(conditional)
    for weight in model.net.parameters():
        weight.data *= 0.9
    model.save(tmp_path / "worse")
    guided = run(conditional, tmp_path / "guided", *flags, "--guidance", 2, "--guide", tmp_path / "worse")
    free = run(conditional, tmp_path / "free", *flags, "--guidance", 2)
    assert abs(guided - free).max() > 1
    plain = run(conditional, tmp_path / "plain", *flags)
    by_itself = run(conditional, tmp_path / "itself", *flags, "--guidance", 2, "--guide", conditional)
    assert abs(by_itself - plain).max() <= 1, "x0 + 2 (x0 - x0)"
    of_guide = run(conditional, tmp_path / "of", *flags, "--guidance", 0, "--guide", tmp_path / "worse")
    assert abs(of_guide - run(tmp_path / "worse", tmp_path / "alone", *flags)).max() <= 1
    assert record(tmp_path / "guided")["guide"] == str(tmp_path / "worse")
    assert record(tmp_path / "guided")["guide_sha256"] == record(tmp_path / "alone")["weights_sha256"]
    with Image.open(tmp_path / "guided/images/000000.png") as picture:
        assert picture.text["guide"] == str(tmp_path / "worse")
    unlabelled = ["--label", "none", "--guide", tmp_path / "worse"]
    assert len(run(conditional, tmp_path / "none", *flags, "--guidance", 2, *unlabelled)) == 4


def test_a_guide_is_a_model_of_the_same_kind(conditional, unconditional, tmp_path, capsys):
    for flags, message in (
        (["--guide", unconditional, "--guidance", 2], "guide has formulation="),
        (["--guide", conditional], "guide has no effect with guidance=1"),
        (["--guide-ema", 0.1], "guide_ema=0.1"),
        (["--guide", tmp_path / "absent", "--guidance", 2], "absent"),
    ):
        with pytest.raises(SystemExit):
            run(conditional, tmp_path / "out", *flags)
        assert message in capsys.readouterr().err
    replace(load_model(conditional), classes=CLASSES[::-1]).save(tmp_path / "others")
    with pytest.raises(SystemExit):
        run(conditional, tmp_path / "out", "--guide", tmp_path / "others", "--guidance", 2)
    assert "guide has classes=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_command_line(conditional, tmp_path, sampler, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(conditional, tmp_path, "--num", 2, "--steps", 3, "--sampler", sampler, "--guidance", 2, "--animation")
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames == 4
    assert "3/3" in capsys.readouterr().err


def test_without_a_terminal_the_progress_is_plain_lines(conditional, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawing.draw, "LINE_EVERY_SECONDS", 0)
    run(conditional, tmp_path, "--num", 8, "--steps", 2, "--batch", 2)
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if "drawing" in line][-1] == "drawing: 75.0%"
    assert [line for line in printed.err.splitlines() if not line.startswith("next: ")] == []


def test_a_class_called_all_or_none_does_not_change_the_default(conditional, tmp_path):
    names = ("all", "none", *CLASSES[2:])
    replace(load_model(conditional), classes=names).save(tmp_path / "model")
    for label, expected in (
        ([], ["all", "none", "two"]),
        (["--label", "all"], ["all"] * 3),
        (["--label", "none"], ["none"] * 3),
    ):
        run(tmp_path / "model", tmp_path / "out", "--num", 3, "--steps", 1, *label)
        with (tmp_path / "out" / "labels.csv").open(newline="") as file:
            assert [row["class"] for row in csv.DictReader(file)] == expected


def test_a_model_without_classes_needs_no_label(unconditional, tmp_path):
    assert run(unconditional, tmp_path, "--num", 3, "--steps", 2).shape == (3, 8, 8)


def test_the_grid_can_be_left_out_and_moved(conditional, tmp_path, capsys):
    run(conditional, tmp_path / "bare", "--num", 2, "--steps", 2, "--no-grid")
    assert not (tmp_path / "bare" / "grid.png").exists()
    assert "grid:" not in capsys.readouterr().out
    run(conditional, tmp_path / "moving", "--num", 2, "--steps", 3, "--animation", "--no-grid")
    with Image.open(tmp_path / "moving" / "animation.gif") as animation:
        assert animation.n_frames == 4
    assert "animation:" in capsys.readouterr().out


def test_a_long_animation_is_thinned(conditional, tmp_path):
    run(conditional, tmp_path, "--num", 1, "--steps", 60, "--animation")
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames <= drawing.draw.MAX_FRAMES
        animation.seek(animation.n_frames - 1)
        last = np.array(animation.convert("L")).astype(int)
    assert abs(last - np.array(Image.open(tmp_path / "grid.png")).astype(int)).max() <= 1


def test_a_huge_grid_stops_at_its_first_images(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing.job, "MAX_IN_GRID", 4)
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
    assert f"model: {folder} at 123,456 images seen; 1 image," in capsys.readouterr().out


def test_a_note_warns_of_a_late_start(conditional, tmp_path, capsys):
    run(conditional, tmp_path, "--num", 5, "--steps", 50)
    assert "note:" not in capsys.readouterr().out
    run(conditional, tmp_path, "--num", 2, "--steps", 1)
    assert "note: 1 steps of ddim start at timestep 0 of 999" in capsys.readouterr().out


def test_an_earlier_output_is_replaced_as_a_whole(conditional, tmp_path):
    run(conditional, tmp_path / "out", "--num", 5, "--steps", 2, "--animation", "--npz")
    assert {"animation.gif", "samples.npz"} < files(tmp_path / "out")
    run(conditional, tmp_path / "out", "--num", 2, "--steps", 2)
    assert files(tmp_path / "out") == {
        "grid.png",
        "labels.csv",
        "samples.json",
        "images/000000.png",
        "images/000001.png",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num", "0"], "num=0"),
        (["--num", "1000000000000"], "num=1000000000000"),
        (["--batch", "0"], "batch=0"),
        (["--precision", "fp8"], "--precision 'fp8'"),
        (["--steps", "0"], "steps=0"),
        (["--steps", "1001"], "steps=1001"),
        (["--sampler", "dddim"], "sampler 'dddim'; did you mean ddim"),
        (["--sampler", ""], "sampler ''"),
        (["--sampler", "ddpm", "--eta", "0.5"], "eta=0.5"),
        (["--churn", "1"], "churn=1"),
        (["--guidance-interval", "2", "1"], "guidance_interval=2,1"),
        (["--guidance-interval", "1", "2"], "guidance_interval has no effect with guidance=1"),
        (["--guidance-rescale", "0.5"], "guidance_rescale has no effect with guidance=1"),
        (["--guidance-rescale", "1.5", "--guidance", "2"], "guidance_rescale=1.5"),
        (["--label", "10"], "label 10"),
        (["--label", "thre"], "class 'thre'; did you mean three"),
        (["--label", "none", "--guidance", "2"], "guidance=2"),
        (["--out", __file__], __file__),
        (["--guidance", "nan"], "guidance=nan"),
        (["--guidance", "1001"], "guidance=1001"),
        (["--num", "1000001"], "num=1000001"),
        (["--seed", "-1"], "seed=-1"),
        (["--seed", "4294967296"], "seed=4294967296"),
        (["--out", "~nosuchuser/x"], "out '~nosuchuser/x'"),
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


def test_a_model_that_does_not_exist_is_named_before_the_output(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert "nowhere" in capsys.readouterr().err


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
    for name, mode in (("images/000000.png", "I;16"), ("grid.png", "L")):
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
    expected_files = {"images/000000.npy", "images/000001.npy", "grid.png", "animation.gif", "samples.json"}
    assert files(tmp_path / "out") == expected_files
    for k in range(2):
        found = np.load(tmp_path / "out" / "images" / f"00000{k}.npy", allow_pickle=False)
        assert found.dtype == pixels.dtype
        assert found.shape == (channels, 8, 8)
        level = 1e-5 * (pixels.high - pixels.low) + (found.dtype.kind in "iu")
        np.testing.assert_allclose(found.astype(float), expected[k].astype(float), rtol=1e-3, atol=level)
    assert "000000.npy … " in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "animation.gif") as animation:
        assert grid.size == animation.size
        assert (grid.width > channels * 96) == (channels != 3)


def test_values_at_the_ends_of_the_range_are_counted(tmp_path, capsys):
    pixels = PixelFormat(dtype="float32", low=-3, high=5, file="npy")
    drawn = pixels.from_unit(untrained(tmp_path, 2, pixels))
    share = np.mean((drawn <= -3) | (drawn >= 5))
    sample.main([str(tmp_path), "--out", str(tmp_path / "out"), "--num", "2", "--steps", "1", "--device", "cpu"])
    assert record(tmp_path / "out")["clipped_share"] == pytest.approx(share)
    assert (f"{share:.1%} of the values" in capsys.readouterr().out) == (share >= 0.01)
    assert share > 0.01


def test_the_share_of_clipped_values_of_pictures_is_no_concern(conditional, tmp_path, capsys):
    run(conditional, tmp_path / "out", "--num", 2, "--steps", 10)
    assert "of the values" not in capsys.readouterr().out


@pytest.mark.parametrize("label", ["all", "three", "none"])
def test_a_table_lists_the_labels(conditional, tmp_path, label):
    run(conditional, tmp_path / "out", "--num", 12, "--steps", 2, "--label", label)
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    number = {"all": 11 % 10, "three": 3, "none": 10}[label]
    assert rows[11] == {"file": "000011.png", "label": str(number), "class": (*CLASSES, "none")[number]}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ('a,b;"c"', 'a,b;"c"'),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-2+3", "'-2+3"),
        ("two\nlines", "two\\nlines"),
        ("\t=1", "\\t=1"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\udcff", "\\xff"),
        ("\u202egnp", "\\u202egnp"),
        ("日本", "日本"),
        ("", ""),
        ("n" * 5000, "n" * 5000),
        ("<img src=x>", "<img src=x>"),
    ],
)
def test_any_name_of_a_class_is_written_as_text(tmp_path, capsys, name, shown):
    net = UNet(replace(SMALL, in_channels=1, out_channels=1, classes=2))
    DiffusionModel(net, DDPM(), ("other", name)).save(tmp_path / "model")
    run(tmp_path / "model", tmp_path / "out", "--num", 2, "--steps", 2)
    rows = list(csv.reader((tmp_path / "out" / "labels.csv").read_text(encoding="utf-8").splitlines()))
    assert rows == [["file", "label", "class"], ["000000.png", "0", "other"], ["000001.png", "1", shown]]
    with Image.open(tmp_path / "out" / "images" / "000001.png") as picture:
        assert picture.text["label"] == "1"
        assert picture.text["class"] == shown.removeprefix("'")[: drawing.job.MAX_TEXT]
    assert "\x1b" not in capsys.readouterr().out


def test_a_picture_holds_what_drew_it(conditional, tmp_path):
    flags = ["--num", 5, "--steps", 3, "--seed", 7, "--guidance", 2, "--eta", 0.5, "--label", "three"]
    run(conditional, tmp_path / "out", *flags)
    with Image.open(tmp_path / "out" / "images" / "000004.png") as picture:
        assert picture.text == {
            "Software": f"residual-diffusion {residual.__version__}",
            "model": str(conditional), "image": "4", "seed": "7", "sampler": "ddim", "steps": "3", "guidance": "2.0",
            "eta": "0.5", "label": "3", "class": "three",
        }  # fmt: skip
    facts = record(tmp_path / "out")
    assert (facts["seed"], facts["label"], facts["num"], facts["images_seen"]) == (7, "three", 5, None)
    assert facts["model_folder"] == str(conditional.resolve())
    assert re.fullmatch("[0-9a-f]{64}", facts["weights_sha256"])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_array_for_evaluators(conditional, tmp_path, ranks):
    flags = ["--num", "7", "--steps", "2", "--npz", "--out", str(tmp_path / "out")]
    if ranks == 1:
        run(conditional, tmp_path / "out", *flags[:-2])
    else:
        sample_on_two_processes(conditional, *flags)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((7, 8, 8, 3), np.uint8)
        np.testing.assert_array_equal(arrays["arr_0"], pixels(tmp_path / "out")[..., None].repeat(3, axis=-1))
        assert arrays["arr_1"].tolist() == list(range(7))


def test_an_array_for_evaluators_without_labels_and_in_colour(tmp_path):
    untrained(tmp_path / "model", 3, BYTES)
    run(tmp_path / "model", tmp_path / "out", "--num", 3, "--steps", 1, "--npz")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert sorted(arrays) == ["arr_0"]
        np.testing.assert_array_equal(arrays["arr_0"], pixels(tmp_path / "out"))


def test_an_array_for_evaluators_of_16_bits_has_8(tmp_path):
    untrained(tmp_path / "model", 1, PixelFormat(dtype="uint16", high=65535))
    levels = run(tmp_path / "model", tmp_path / "out", "--num", 2, "--steps", 1, "--npz")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"][..., 0], np.rint(levels / 257))


def test_evaluators_of_pictures_read_no_fields(tmp_path, capsys):
    untrained(tmp_path / "model", 5, PixelFormat(dtype="float32", low=0, high=1, file="npy"))
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--npz"])
    assert "npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    """A process killed at once."""


def kill(count, command):
    """Runs sample.py, killed when it has written `count` images. A batch is given as in `run`."""
    save, left = drawing.draw.save_image, [count]

    def saving(*arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing.draw, "save_image", saving)
        with pytest.raises(Killed):
            sample.main([str(command[0]), "--batch", "64", *map(str, command[1:])])


def test_an_interrupted_command_goes_on_with_its_images(conditional, tmp_path, capsys):
    flags = ["--num", 11, "--steps", 5, "--batch", 3, "--animation", "--npz"]
    run(conditional, tmp_path / "whole", *flags)
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in files(tmp_path / "whole")}
    run(conditional, tmp_path / "out", "--num", 2, "--steps", 2)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    for count in (4, 9):
        kill(count, [str(conditional), "--out", str(tmp_path / "out"), "--device", "cpu", *map(str, flags)])
        assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == before
    run(conditional, tmp_path / "out", *flags)
    assert "continuing: 9 of 11 images" in capsys.readouterr().out
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_ctrl_c_reports_what_is_kept(conditional, tmp_path, monkeypatch, capsys):
    save = drawing.draw.save_image

    def interrupt(image, pixel_format, path, *more):
        if path.name == "000002.png":
            raise KeyboardInterrupt
        save(image, pixel_format, path, *more)

    monkeypatch.setattr(drawing.draw, "save_image", interrupt)
    with pytest.raises(SystemExit) as end:
        sample.main([str(conditional), "--out", str(tmp_path / "out"), "--num", "5", "--steps", "1", "--device", "cpu"])
    assert end.value.code == 130
    assert f"2 of 5 images are kept in '{tmp_path / 'tmp-new-out'}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tmp-new-out"]


def test_a_folder_that_cannot_be_made_is_named(conditional, capsys):
    with pytest.raises(SystemExit) as end:
        sample.main([str(conditional), "--out", "/proc/self/x", "--num", "1", "--steps", "1", "--device", "cpu"])
    assert end.value.code == 2
    assert "/proc/self/tmp-new-x" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--seed", 1), ("--steps", 3), ("--label", "two"), ("--guidance", 2), ("--eta", 1)])
def test_images_of_another_command_are_not_mixed_in(conditional, tmp_path, capsys, flag):
    kill(3, [str(conditional), "--out", str(tmp_path / "out"), "--num", "5", "--steps", "2", "--device", "cpu"])
    expected = run(conditional, tmp_path / "other", "--num", 5, "--steps", 2, *flag)
    found = run(conditional, tmp_path / "out", "--num", 5, "--steps", 2, *flag)
    printed = capsys.readouterr().out
    assert "tmp-new-out" in printed
    assert "continuing" not in printed
    np.testing.assert_array_equal(found, expected)


def test_images_of_other_weights_are_not_mixed_in(tmp_path, capsys):
    untrained(tmp_path / "model", 1, BYTES)
    flags = ["--num", "4", "--steps", "2", "--device", "cpu"]
    kill(3, [str(tmp_path / "model"), "--out", str(tmp_path / "out"), *flags])
    model = load_model(tmp_path / "model")
    model.net.head.conv.bias.data += 0.5
    model.save(tmp_path / "model")
    sample.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), *flags])
    assert "continuing" not in capsys.readouterr().out


def test_fewer_images_of_an_interrupted_command_are_enough(conditional, tmp_path, capsys):
    command = [str(conditional), "--out", str(tmp_path / "out"), "--steps", "2", "--device", "cpu", "--num"]
    kill(8, [*command, "20"])
    sample.main([*command, "6"])
    assert "continuing: 6 of 6 images" in capsys.readouterr().out
    assert len(pixels(tmp_path / "out")) == 6


@pytest.mark.parametrize("damage", ["truncate", "empty", "link", "folder", "other"])
def test_damaged_images_of_an_interrupted_command_are_drawn_again(conditional, tmp_path, damage):
    command = [str(conditional), "--out", str(tmp_path / "out"), "--steps", "2", "--num", "5", "--device", "cpu"]
    expected = run(conditional, tmp_path / "whole", "--num", 5, "--steps", 2)
    kill(3, command)
    path = tmp_path / "tmp-new-out" / "images" / "000001.png"
    content = path.read_bytes()
    path.unlink()
    if damage in ("truncate", "empty"):
        path.write_bytes(content[:40] if damage == "truncate" else b"")
    elif damage == "link":
        (tmp_path / "elsewhere.png").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere.png")
    elif damage == "folder":
        path.mkdir()
    else:
        Image.new("L", (9, 9)).save(path)
    sample.main(command)
    np.testing.assert_array_equal(pixels(tmp_path / "out"), expected)
    assert not (tmp_path / "out" / "images" / "000001.png").is_symlink()
    if damage == "link":
        assert (tmp_path / "elsewhere.png").read_bytes() == content


@pytest.mark.parametrize("flags", [[], ["--num", "3"]])
def test_the_default_folder_belongs_to_the_run(conditional, tmp_path, monkeypatch, capsys, flags):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("task: diffusion\n")
        shutil.copytree(conditional, tmp_path / name / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/model", "b"):
        sample.main([name, "--steps", "1", "--num", "2", "--device", "cpu", *flags])
    assert "grid: b/drawn/grid.png" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    for name in ("a", "b"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"config.yaml", "model", "drawn"}
        assert record(tmp_path / name / "drawn")["model_folder"] == str(tmp_path / name)


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["save_image", "_write_npz", "_write_labels", "save_animation"])
def test_a_full_disk_is_one_line_and_leaves_the_old_output(conditional, tmp_path, monkeypatch, capsys, place):
    before = run(conditional, tmp_path / "out", "--num", 2, "--steps", 2)
    monkeypatch.setattr(drawing.draw if place == "save_image" else drawing.write, place, full_disk)
    flags = ["--num", "3", "--steps", "1", "--npz", "--animation", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        sample.main([str(conditional), "--out", str(tmp_path / "out"), *flags])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert f"the disk of '{tmp_path / 'out'}' is full, free some space" in error
    assert ("3 of 3 images are kept" in error) == (place != "save_image")
    np.testing.assert_array_equal(pixels(tmp_path / "out"), before)
    assert (tmp_path / "tmp-new-out").exists() == (place != "save_image")
    assert not (tmp_path / "tmp-lock-out").exists()


@pytest.mark.parametrize("number", [3, *(pytest.param(other, marks=pytest.mark.slow) for other in (0, 1, 2, 4, 5))])
def test_files_that_may_not_grow(conditional, tmp_path, capfd, number):
    """Without any stand-in: the system refuses the first byte beyond each of several sizes."""
    limit = 100 * 4**number
    code = "import resource, signal, sys, sample; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sample.main(sys.argv[1:])"
    flags = ["--num", "40", "--steps", "1", "--npz", "--animation", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = forks.run(code, str(conditional), *flags)
    assert done.returncode in (0, 2), done.stderr
    assert (tmp_path / "out").exists() == (done.returncode == 0)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert str(tmp_path / "out") in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_too_large_a_batch_is_one_line(conditional, tmp_path, monkeypatch, capsys, error):
    def allocate(*arguments, **options):
        raise error

    monkeypatch.setattr(DiffusionModel, "denoising", allocate)
    with pytest.raises(SystemExit) as end:
        sample.main([str(conditional), "--out", str(tmp_path / "out"), "--batch", "200000", "--device", "cpu"])
    assert end.value.code == 2
    assert "batch=200000" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_refusal_of_memory_halves_the_batch(conditional, tmp_path):
    code = "import resource, sys, sample; used = 4096 * int(open('/proc/self/statm').read().split()[0]); "
    code += "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2); sample.main(sys.argv[1:])"
    flags = ["--num", "6000", "--batch", "6000", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(conditional), *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "note: 6,000 images do not fit into memory; drawing 3,000 at a time" in done.stdout
    assert sum(1 for _ in (tmp_path / "out" / "images").iterdir()) == 6000


def test_images_that_are_not_finite_are_refused(tmp_path, monkeypatch, capsys):
    untrained(tmp_path / "model", 1, BYTES)
    monkeypatch.setattr(UNet, "forward", lambda net, x, *rest: x * torch.nan)
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--steps", "2", "--device", "cpu"])
    assert "image 0" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_arrays_that_do_not_fit_on_the_disk_are_refused_before_work(tmp_path, monkeypatch, capsys):
    untrained(tmp_path / "model", 4, PixelFormat(dtype="float64", low=0, high=1, file="npy"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**6))
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--num", "1000000", "--device", "cpu"])
    assert "1,000,000 images: 2.05 GB are needed, 1 MB are free" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_of_folders_are_printed_safely(conditional, tmp_path, capsys):
    out = tmp_path / "a\nb\x1b[31m\udcff"
    run(conditional, out, "--num", 1, "--steps", 1)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "a\\nb\\x1b[31m\\xff/grid.png" in printed


def test_a_missing_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path / "nowhere")])
    assert "nowhere'; give a model folder or a hub id" in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        sample.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(action.help for action in sample.parser()._actions)
    assert "the averaged model" in " ".join(printed.split()) or "averaged model" in printed
