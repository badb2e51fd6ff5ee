"""Modes of sample.py, with small networks that have learned nothing: what must hold for any weights."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import drawing.draw
import drawing.job
import drawing.nearest
import sample
from diffusion import DDPM
from diffusion.edits import GREY, keep_grey, slerp
from diffusion.sampler import stretches
from drawing.options import show
from pictures.files import read_image
from pictures.pixel_format import PixelFormat
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from tests.tasks.small import sample_on_two_processes
from training.data import DataConfig, open_images
from unet import UNet, UNetConfig

CLASSES = ("cat", "dog", "eel")
TINY = {"size": (8, 8), "base_channels": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1, "groups": 4}


def model_folder(folder, channels, classes=None):
    config = UNetConfig(
        **TINY, in_channels=channels, out_channels=channels, classes=None if classes is None else len(classes)
    )
    net = UNet(config)
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    DiffusionModel(net, DDPM(prediction="v", schedule="cosine"), classes, null_label=classes is not None).save(folder)
    return folder


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory):
    """Draws grey images of three classes, or without a label."""
    return model_folder(tmp_path_factory.mktemp("grey"), 1, CLASSES)


@pytest.fixture(scope="module")
def colour_model(tmp_path_factory):
    """Draws colour images without labels."""
    return model_folder(tmp_path_factory.mktemp("colour"), 3)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folders of pictures and masks to start from."""
    home, random = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 255
    sets = {
        "grey": random.integers(0, 256, (3, 8, 8), np.uint8),
        "colour": random.integers(0, 256, (2, 8, 8, 3), np.uint8),
        "half": half[None],
        "masks": np.stack([half, half.T, 255 - half]),
        "two": np.stack([half, half]),
        "one_white": np.stack([half, np.full((8, 8), 255, np.uint8), half]),
        "one_black": np.stack([half, half, np.zeros((8, 8), np.uint8)]),
        "grey_edge": np.where(np.arange(8) == 4, 7, half)[None].astype(np.uint8),
        "black": np.zeros((1, 8, 8), np.uint8),
        "white": np.full((1, 8, 8), 255, np.uint8),
        "large": random.integers(0, 256, (1, 16, 16), np.uint8),
        "dark": np.full((2, 8, 8), 90, np.uint8),
    }
    for name, pictures in sets.items():
        (home / name).mkdir()
        for k, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(home / name / f"{k}.png")
    (home / "broken").mkdir()
    (home / "broken" / "0.png").write_bytes(b"no picture")
    (home / "empty").mkdir()
    return home


def run(model, out, *flags):
    """The pixels of the images that a command draws."""
    steps = [] if flags[:2] == ("--sweep", "steps") else ["--steps", "3"]
    grid = [] if "--grid" in flags else ["--no-grid"]
    sample.main([str(model), "--out", str(out), "--device", "cpu", *steps, *grid, *map(str, flags)])
    return np.stack([np.array(Image.open(path)) for path in sorted((out / "images").glob("*.png"))]).astype(int)


def pictures(folder):
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]).astype(int)


def record(folder):
    return json.loads((folder / "samples.json").read_text())


@pytest.mark.parametrize("flags", [("--sampler", "ddpm"), ("--sampler", "dpmpp_2m", "--strength", 0.5)])
def test_inpainting_keeps_known_pixels_exactly(grey_model, given, tmp_path, flags):
    found = run(grey_model, tmp_path, "--from", given / "grey", "--mask", given / "half" / "0.png", "--num", 4, *flags)
    known = pictures(given / "grey")[[0, 1, 2, 0]]
    assert (found[:, :, :4] == known[:, :, :4]).all()
    assert abs(found[:, :, 4:] - known[:, :, 4:]).max(axis=(1, 2)).min() > 10
    assert abs(found[3] - found[0]).max() > 1, "another image number has other noise"
    facts = record(tmp_path)
    assert (facts["mask"], facts["resample"], facts["label"]) == (str(given / "half" / "0.png"), 4, "none")
    with Image.open(tmp_path / "images" / "000000.png") as picture:
        assert picture.text["mask"] == str(given / "half" / "0.png")
        assert picture.text["from"] == str(given / "grey")


def test_a_mask_for_each_image_and_resampling(grey_model, given, tmp_path):
    flags = ["--from", given / "grey", "--mask", given / "masks", "--num", 3, "--label", "dog"]
    found = run(grey_model, tmp_path / "once", *flags, "--resample", 1)
    known, black = pictures(given / "grey"), pictures(given / "masks") == 0
    assert (found[black] == known[black]).all()
    twice = run(grey_model, tmp_path / "twice", *flags, "--resample", 2, "--batch", 2)
    assert (twice[black] == known[black]).all()
    assert abs(twice[~black] - found[~black]).max() > 1
    assert record(tmp_path / "twice")["label"] == "dog"


@pytest.mark.slow
def test_arrays_keep_known_values_exactly(tmp_path):

    model = load_model(model_folder(tmp_path / "bytes", 1))
    replace(model, pixel_format=PixelFormat(dtype="float32", low=-3, high=7, file="npy")).save(tmp_path / "model")
    values = np.random.default_rng(0).uniform(-3, 7, (2, 1, 8, 8)).astype(np.float32)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "values.npy", values)
    flags = ["--from", tmp_path / "values.npy", "--mask", tmp_path / "mask.png", "--num", 2, "--steps", 3]
    sample.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--device", "cpu", *map(str, flags)])
    found = np.stack([np.load(path) for path in sorted((tmp_path / "out" / "images").glob("*.npy"))])
    np.testing.assert_array_equal(found[:, :, :2], values[:, :, :2])


def test_colours_are_drawn_and_grey_values_kept(colour_model, given, tmp_path):
    for source in ("colour", "dark"):
        found = run(colour_model, tmp_path / source, "--grey", given / source)
        known = pictures(given / source)
        wanted = known @ GREY if source == "colour" else known
        assert len(found) == 2
        assert abs(found @ GREY - wanted).max() < 0.6
        assert (found.max(axis=3) - found.min(axis=3)).max() > 20
    assert record(tmp_path / "dark")["grey"] == str(given / "dark")


def test_colours_outside_the_range_move_towards_grey():
    random = torch.Generator().manual_seed(0)
    grey = torch.rand(4, 1, 8, 8, generator=random) * 2 - 1
    x = keep_grey(grey)(torch.randn(4, 3, 8, 8, generator=random) * 3)
    assert x.abs().max() <= 1 + 1e-6
    torch.testing.assert_close((x * torch.tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True), grey, atol=1e-5, rtol=0)
    torch.testing.assert_close(keep_grey(grey)(x), x, atol=1e-5, rtol=0)


def test_stretches_are_made_again():
    assert stretches(0, 25, 1) == [(0, 25)]
    assert stretches(0, 25, 2) == [(0, 5), (0, 5), (5, 15), (5, 15), (15, 25), (15, 25)]
    assert stretches(20, 25, 2) == [(20, 25)] * 2


def test_inversion_reconstructs_images(grey_model, given, tmp_path, capsys):
    flags = ["--from", given / "grey", "--invert", "--steps"]
    few = run(grey_model, tmp_path / "few", *flags, 3)
    many = run(grey_model, tmp_path / "many", *flags, 12, "--grid")
    known = pictures(given / "grey")
    errors = [np.square(found - known).mean() for found in (few, many)]
    assert len(many) == 3
    assert errors[1] < errors[0] / 4
    assert record(tmp_path / "many")["psnr"] == pytest.approx(10 * np.log10(255**2 / errors[1]))
    assert f"PSNR {record(tmp_path / 'many')['psnr']:.1f} dB of 3 images" in capsys.readouterr().out
    assert record(tmp_path / "many")["sampler"] == "euler"
    with Image.open(tmp_path / "many" / "grid.png") as grid:
        assert np.isin(known[0], np.array(grid)).all()


def test_images_between_seeds_and_labels(grey_model, tmp_path):
    flags = ["--num", 1, "--label"]
    a = run(grey_model, tmp_path / "a", *flags, "cat", "--seed", 3)[0]
    b = run(grey_model, tmp_path / "b", *flags, "cat", "--seed", 7)[0]
    other = run(grey_model, tmp_path / "other", *flags, "eel", "--seed", 3)[0]
    between = run(grey_model, tmp_path / "between", "--between", 3, 7, "--label", "cat", "--num", 4, "--batch", 3)
    assert abs(between[[0, 3]] - [a, b]).max() <= 1
    assert abs(between[1] - a).mean() < abs(between[2] - a).mean()
    assert len(between) == 4
    with Image.open(tmp_path / "between" / "between.gif") as animation:
        assert animation.n_frames == 4
    morph = run(grey_model, tmp_path / "morph", "--morph", "cat", "eel", "--seed", 3, "--num", 3, "--npz")
    assert abs(morph[[0, 2]] - [a, other]).max() <= 1
    assert record(tmp_path / "morph")["morph"] == ["cat", "eel"]
    assert not (tmp_path / "morph" / "labels.csv").exists()
    assert np.load(tmp_path / "morph" / "samples.npz").files == ["arr_0"]
    with Image.open(tmp_path / "morph" / "images" / "000001.png") as picture:
        assert (picture.text["morph"], picture.text["share"]) == ("cat eel", "0.5")
        assert not picture.text.keys() & {"label", "class"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("grey", ["--from", "GIVEN/grey", "--mask", "GIVEN/masks", "--num", 3]),
        ("colour", ["--grey", "GIVEN/colour", "--num", 3]),
        ("grey", ["--from", "GIVEN/grey", "--invert"]),
        ("grey", ["--from", "GIVEN/grey", "--between", 2, 0, "--num", 3]),
        ("grey", ["--sweep", "steps", 2, 3, "--num", 3, "--nearest", "GIVEN/grey"]),
    ],
    ids=["mask", "grey", "invert", "between", "sweep"],
)
def test_two_processes_draw_what_one_draws_in_every_mode(request, given, tmp_path, model, flags):
    """An odd number of images, so that the shares differ."""
    home = request.getfixturevalue(f"{model}_model")
    flags = [str(flag).replace("GIVEN", str(given)) for flag in flags]
    one = run(home, tmp_path / "one", *flags, "--grid")
    steps = [] if "--sweep" in flags else ["--steps", 3]
    sample_on_two_processes(home, *steps, *flags, "--device", "cpu", "--out", tmp_path / "two")
    np.testing.assert_allclose(pictures(tmp_path / "two" / "images"), one, rtol=0, atol=1)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    if "--invert" in flags:
        psnr = [record(tmp_path / name)["psnr"] for name in ("one", "two")]
        assert psnr[1] == pytest.approx(psnr[0], abs=0.05)
    if "--nearest" in flags:
        one_near, two_near = ((tmp_path / name / "nearest.csv").read_text().split() for name in ("one", "two"))
        assert [row.split(",")[:2] for row in two_near] == [row.split(",")[:2] for row in one_near]


@pytest.mark.slow
def test_noise_and_label_move_together(grey_model, tmp_path):
    other = run(grey_model, tmp_path / "a", "--num", 1, "--label", "eel", "--seed", 3)[0]
    b = run(grey_model, tmp_path / "b", "--num", 1, "--label", "cat", "--seed", 7)[0]
    both = run(grey_model, tmp_path / "both", "--morph", "eel", "cat", "--between", 3, 7, "--num", 2)
    assert abs(both - [other, b]).max() <= 1


@pytest.mark.slow
def test_images_between_images(grey_model, given, tmp_path):
    found = run(grey_model, tmp_path, "--from", given / "grey", "--between", 2, 0, "--num", 3, "--steps", 40)
    errors = abs(found[[0, 2]] - pictures(given / "grey")[[2, 0]]).mean(axis=(1, 2))
    assert errors.max() < 10 < abs(found[1] - found[0]).mean()


@pytest.mark.parametrize(("value", "text"), [(1234567.0, "1234567"), (0.5, "0.5"), (2.0, "2"), ([1.0, "x"], "1 x")])
def test_values_of_options_are_shown_exactly(value, text):
    assert show(value) == text


def test_slerp_keeps_the_norm():
    first, second = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    share = torch.linspace(0, 1, 5)
    x = slerp(first, second, share)
    torch.testing.assert_close(x[0], first[0])
    torch.testing.assert_close(x[4], second[4])
    assert ((x.flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)) - 1).abs().max() < 0.1
    torch.testing.assert_close(slerp(first, first, share), first)


def test_a_sweep_draws_the_same_images_by_each_value(grey_model, tmp_path, monkeypatch):
    flags = ["--sweep", "steps", 2, 5, "--num", 3, "--batch", 2]
    found = run(grey_model, tmp_path / "sweep", *flags)
    for k, steps in enumerate((2, 5)):
        alone = run(grey_model, tmp_path / str(steps), "--num", 3, "--batch", 2, "--steps", steps)
        np.testing.assert_array_equal(found[3 * k : 3 * k + 3], alone)
    with Image.open(tmp_path / "sweep" / "images" / "000004.png") as picture:
        assert (picture.text["steps"], picture.text["class"]) == ("5", "dog")
    assert record(tmp_path / "sweep")["sweep"] == ["steps", "2", "5"]

    save, left = drawing.draw.save_image, [4]

    def interrupted(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(drawing.draw, "save_image", interrupted)
        with pytest.raises(SystemExit):
            run(grey_model, tmp_path / "again", *flags)
    np.testing.assert_array_equal(run(grey_model, tmp_path / "again", *flags), found)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("sampler", 7), ("guidance", 6), ("steps", 5)])
def test_usual_values_of_a_sweep(grey_model, tmp_path, name, rows, monkeypatch):
    monkeypatch.setattr(DiffusionModel, "denoising", lambda model, images, labels, **options: [torch.zeros(1, 1, 8, 8)])
    assert len(run(grey_model, tmp_path, "--sweep", name, "--num", 1)) >= rows


@pytest.mark.parametrize(
    ("flags", "guided"), [(["--sweep", "guidance", 4, 1], True), (["--sweep", "guidance", 1, 4], True), ([], False)]
)
def test_the_batch_of_a_sweep_fits_every_row(grey_model, tmp_path, monkeypatch, flags, guided):
    found = list[bool]()
    monkeypatch.setattr(drawing.draw, "choose_batch", lambda model, device, guided: found.append(guided) or 8)
    run(grey_model, tmp_path, *flags, "--num", 1)
    assert found == [guided]


@pytest.mark.parametrize("padding", ["reflect", "periodic_width"])
def test_another_size_is_large_enough_for_the_padding(padding):
    settings = TINY | {"size": (16, 16), "channel_multipliers": (1, 1, 1, 1)}
    model = DiffusionModel(UNet(UNetConfig(**settings, in_channels=1, out_channels=1, padding=padding)), DDPM())
    assert model.sized(16, 24).shape == (1, 16, 24)
    with pytest.raises(ValueError, match=rf"size=8x16 .*{padding}"):
        model.sized(8, 16)


def test_another_size(grey_model, tmp_path):
    found = run(grey_model, tmp_path, "--size", 10, 6, "--num", 2)
    assert found.shape == (2, 10, 6)
    assert record(tmp_path)["shape"] == [1, 10, 6]


def test_the_nearest_training_images(grey_model, given, tmp_path, capsys):
    drawn = run(grey_model, tmp_path / "first", "--num", 2)
    source = tmp_path / "source"
    source.mkdir()
    for k, pixels in enumerate([*pictures(given / "grey"), *drawn]):
        Image.fromarray(pixels.astype(np.uint8)).save(source / f"{k}.png")
    run(grey_model, tmp_path / "out", "--num", 2, "--nearest", source)
    rows = [line.split(",") for line in (tmp_path / "out" / "nearest.csv").read_text().splitlines()[1:]]
    assert [rows[0], rows[3]] == [["000000.png", "3", "0.000000"], ["000001.png", "4", "0.000000"]]
    distance = np.sqrt(np.square((drawn[0] - pictures(given / "grey")) / 255).mean(axis=(1, 2))).min()
    assert min(float(row[2]) for row in rows[1:3] if row[1] in "012") == pytest.approx(distance, abs=1e-5)
    assert "median distance of 0.000" in capsys.readouterr().out
    assert (tmp_path / "out" / "nearest.png").is_file()
    assert record(tmp_path / "out")["nearest_sha256"] == open_images_fingerprint(source)


FORMATS = [
    (1, PixelFormat(dtype="uint16", high=65535)),
    (3, PixelFormat(dtype="uint16", high=65535)),
    (1, PixelFormat(dtype="float32", low=-3, high=7, file="npy")),
]


@pytest.mark.parametrize(("channels", "pixels"), FORMATS, ids=["grey16", "colour16", "float"])
def test_nearest_images_of_a_source_have_the_values_of_the_model(tmp_path, capsys, channels, pixels):
    model = load_model(model_folder(tmp_path / "bytes", channels))
    replace(model, pixel_format=pixels).save(tmp_path / "model")
    command = [str(tmp_path / "model"), "--device", "cpu", "--steps", "2", "--num", "2", "--no-grid"]
    sample.main([*command, "--out", str(tmp_path / "first")])
    drawn = np.stack([read_image(path) for path in sorted((tmp_path / "first" / "images").iterdir())])
    source = tmp_path / "source.npy" if pixels.file == "npy" else tmp_path / "source"
    if pixels.file == "npy":
        np.save(source, np.concatenate([drawn[::-1] / 2, drawn]).astype(np.float32))
    else:
        source.mkdir()
        for k, values in enumerate(np.concatenate([drawn[::-1] // 2, drawn])):
            Image.fromarray(values[0] if channels == 1 else values.transpose(1, 2, 0)).save(source / f"{k}.png")
    sample.main([*command, "--out", str(tmp_path / "out"), "--nearest", str(source)])
    rows = [line.split(",") for line in (tmp_path / "out" / "nearest.csv").read_text().splitlines()[1:]]
    assert [row[1:] for row in (rows[0], rows[3])] == [["2", "0.000000"], ["3", "0.000000"]]


@pytest.mark.parametrize("found", [PixelFormat(dtype="uint16", high=65535), PixelFormat(high=254)])
def test_nearest_images_with_other_values_are_refused(grey_model, given, monkeypatch, found):
    images = open_images(DataConfig(source=str(given / "grey"), labels=False))
    monkeypatch.setattr(images, "pixel_format", found)
    monkeypatch.setattr(drawing.nearest, "open_given", lambda *_: images)
    with pytest.raises(
        ValueError, match=rf"nearest 'those'.*{found.dtype} from 0 to {found.high:g}.*uint8 from 0 to 255"
    ):
        drawing.nearest.open_training("those", str(grey_model), load_model(grey_model))


def test_images_are_compared_in_parts_of_bounded_size(given, monkeypatch):
    images = open_images(DataConfig(source=str(given / "grey"), labels=False))
    values = images.pixel_format.to_unit(torch.from_numpy(images.read(np.arange(3)))).flatten(1)
    whole = drawing.nearest.search(values, images)
    read, sizes = images.read, list[int]()
    monkeypatch.setattr(images, "read", lambda numbers: sizes.append(len(numbers)) or read(numbers))
    monkeypatch.setattr(drawing.nearest, "BATCH_BYTES", 2 * 8 * 64)
    for found, wanted in zip(drawing.nearest.search(values, images), whole, strict=True):
        torch.testing.assert_close(found, wanted)
    assert sizes == [2, 1]


def test_a_grid_names_the_number_of_images_that_it_leaves_out(grey_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawing.job, "MAX_IN_GRID", 3)
    run(grey_model, tmp_path, "--num", 5, "--grid")
    assert "first 3 of 5 images" in capsys.readouterr().out


def open_images_fingerprint(source):

    return open_images(DataConfig(source=str(source), labels=False)).fingerprint


GREY_FROM = ["--from", "grey"]
BAD = [
    (["--mask", "half"], r"mask=.*--from"),
    ([*GREY_FROM, "--mask", "large"], r"mask .*large.*\(1, 16, 16\).*8x8"),
    ([*GREY_FROM, "--mask", "colour"], r"mask .*colour.*\(3, 8, 8\).*1 channel"),
    ([*GREY_FROM, "--mask", "two"], r"mask .*two.*2 masks for 3 images"),
    ([*GREY_FROM, "--mask", "black"], r"mask .*black.*every pixel is black"),
    ([*GREY_FROM, "--mask", "white"], r"mask .*white.*every pixel is white"),
    ([*GREY_FROM, "--mask", "one_white"], r"mask .*one_white.*number 1: every pixel is white"),
    ([*GREY_FROM, "--mask", "one_black"], r"mask .*one_black.*number 2: every pixel is black"),
    ([*GREY_FROM, "--mask", "grey_edge"], r"mask .*grey_edge.*value 7 .*255.*PNG"),
    ([*GREY_FROM, "--mask", "broken"], r"mask .*broken.*0\.png"),
    ([*GREY_FROM, "--mask", "empty"], r"mask .*empty.*no images"),
    ([*GREY_FROM, "--mask", "absent"], r"mask .*absent.*no such"),
    (["--from", "large", "--mask", "half"], r"from .*large.*\(1, 16, 16\).*\(1, 8, 8\)"),
    (["--from", "colour", "--mask", "half"], r"from .*colour.*\(3, 8, 8\).*\(1, 8, 8\)"),
    ([*GREY_FROM, "--mask", "half", "--resample", 0], r"resample=0 .*1"),
    ([*GREY_FROM, "--mask", "half", "--resample", 5000], r"resample=5000 .*1000"),
    ([*GREY_FROM, "--mask", "half", "--strength", 2], r"strength=2 "),
    ([*GREY_FROM, "--mask", "half", "--invert"], r"mask=.*--invert"),
    ([*GREY_FROM, "--mask", "half", "--guidance", 2], r"guidance=2 .*none; give --label"),
    ([*GREY_FROM, "--mask", "half", "--sweep", "guidance"], r"guidance=0 .*none; give --label"),
    (["--sweep", "guidance", 1, 4, "--label", "none"], r"guidance=4 .*none; leave"),
    (["--between", 1, 4, "--num", 257], r"num=257 .*256"),
    (["--morph", "cat", "dog", "--num", 257], r"num=257 .*256"),
    (["--sweep", "guidance", 1, 4, "--num", 129, "--grid"], r"num=129 .*258.*256.*--no-grid"),
    (["--sweep", "steps", 2, 5, "--steps", 20], r"sweep=steps .*steps=20 "),
    (["--sweep", "sampler", "--sampler", "heun"], r"sweep=sampler .*sampler=heun "),
    (["--sweep", "guidance", "--guidance", 3], r"sweep=guidance .*guidance=3 "),
    (["--resample", 3], r"resample=3 .*--mask or --grey"),
    (["--grey", "colour"], r"grey=.*colours.*1 channel"),
    (["--grey", "colour", "--from", "grey"], r"grey=.*--from"),
    (["--grey", "colour", "--strength", 0.5], r"strength=0\.5 .*--from"),
    (["--invert"], r"invert .*--from"),
    ([*GREY_FROM, "--invert", "--strength", 0.5], r"strength=0\.5 .*--invert"),
    ([*GREY_FROM, "--invert", "--sampler", "ddim"], r"sampler=ddim .*euler"),
    ([*GREY_FROM, "--invert", "--steps", 1], r"steps=1 .*2"),
    ([*GREY_FROM, "--invert", "--sweep", "steps"], r"invert .*--sweep"),
    ([*GREY_FROM, "--between", 0, 3], r"between.* 3 .*0 to 2"),
    ([*GREY_FROM, "--between", 0, -1], r"between.* -1 .*0 to 2"),
    ([*GREY_FROM, "--between", 0, 1, "--sampler", "heun"], r"sampler=heun .*euler"),
    (["--between", 4, 4], r"between=4 4 .*equal"),
    (["--between", 0, -1], r"between=-1 "),
    (["--between", 0, 2**32], rf"between={2**32} "),
    (["--between", 0, 1, "--num", 1], r"num=1 "),
    (["--between", 0, 1, "--label", "all"], r"between.*label is all"),
    (["--between", 0, 1, "--label", "cow"], r"'cow'.*cat"),
    (["--between", 0, 1, "--sweep", "steps"], r"between=0 1 .*--sweep"),
    (["--between", 0, "one"], r"between.*'one'"),
    (["--morph", "cat", "cat"], r"morph=cat cat .*equal"),
    (["--morph", "cat", "cow"], r"'cow'.*cat"),
    (["--morph", "cat", "dog", "--label", "eel"], r"morph=cat dog .*--label"),
    (["--morph", "cat", "dog", *GREY_FROM], r"morph=cat dog .*--from"),
    (["--sweep", "seed"], r"sweep=seed .*steps, sampler, guidance"),
    (["--sweep", "steps", 5], r"sweep steps: 5 .*2 to 20"),
    (["--sweep", "steps", 5, 5], r"sweep steps: 5 5 .*different"),
    (["--sweep", "steps", 5, "x"], r"sweep steps: 5 x .*int"),
    (["--sweep", "steps", 5, 2000], r"steps=2000 .*1000"),
    (["--sweep", "sampler", "ddim", "dim"], r"'dim'.*ddim"),
    (["--sweep", "guidance", 1, "nan"], r"guidance=nan "),
    (["--sweep", "steps", "--animation"], r"sweep=steps .*--animation"),
    (["--size", 9, 8], r"size=9x8.*multiples of 2"),
    (["--size", 0, 8], r"size=0x8 "),
    (["--size", 8, 10**6], r"size=8x1000000 .*8,192"),
    (["--nearest"], r"nearest: .*no run folder.*SOURCE"),
    (["--nearest", "absent"], r"nearest .*absent"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_what_makes_no_sense_is_one_line(grey_model, given, tmp_path, capsys, flags, message, monkeypatch):
    monkeypatch.setattr(DiffusionModel, "denoising", None)
    names = {path.name for path in given.iterdir()} | {"absent"}
    with pytest.raises(SystemExit) as end:
        run(grey_model, tmp_path / "out", *[given / flag if flag in names else flag for flag in flags])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]

    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_null_label_needs_a_label(grey_model, given, tmp_path, capsys):

    replace(load_model(grey_model), null_label=False).save(tmp_path / "model")
    with pytest.raises(SystemExit):
        run(tmp_path / "model", tmp_path / "out", "--from", given / "grey", "--invert")
    assert "give --label" in capsys.readouterr().err
