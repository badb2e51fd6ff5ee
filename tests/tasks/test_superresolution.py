"""Super-resolution as a task: its loss, its evaluation, what it saves, what it refuses; EDSR by tiles."""

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import evaluate
import evaluating.command
import sample
from benchmarks import superresolution
from pictures.pixel_format import BYTES, PixelFormat
from pictures.tiles import Tiles
from pipelines.superresolution import EDSRUpscaler, as_bytes, load_upscaler, shrunk
from residual.resample import bicubic
from resnet import EDSR, EDSRConfig, create_model
from tasks.augment import random_crop, random_turn
from tasks.enlargement import check_measurable, luminance, measure
from tasks.superresolution import SuperResolutionConfig, SuperResolutionRun, SuperResolutionTask
from training.accelerator import make_accelerator
from training.cli import parse
from training.config import TrainConfig
from training.data import DataConfig, Images, open_images
from training.ema import EmaConfig
from training.loop import fit
from training.optimizer import OPTIMIZERS
from training.random import GlobalRandom
from training.run_folder import RunFolder
from training.settings import plain
from training.task import Batch

SMALL = EDSRConfig(channels=4, blocks=1, residual=True)
RIGHT, BELOW = 1, 3
"""pixels that the scale does not divide"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs of 43 x 41 px to train on, and one to measure."""
    from sklearn.datasets import load_sample_images

    path = tmp_path_factory.mktemp("pictures")
    photograph = load_sample_images().images[0]
    for number, split in enumerate(("train", "train", "test")):
        (path / "data" / split).mkdir(parents=True, exist_ok=True)
        part = photograph[200 : 240 + BELOW, 300 + 40 * number : 340 + 40 * number + RIGHT]
        Image.fromarray(part).save(path / "data" / split / f"{number}.png")
    return path


def small_run(folder: Path, images: int = 16, **fields) -> SuperResolutionRun:
    data = DataConfig(source=str(folder / "data"), labels=False, validation="test", cache=folder / "cache")
    train = TrainConfig(images=images, batch=4, trackers=(), precision="float32", checkpoint_every_images=8)
    values = {"data": data, "model": SMALL, "train": train, "ema": EmaConfig(halflife_images=16)}
    config = SuperResolutionConfig(patch_px=16)
    optimizer = OPTIMIZERS["adamw"](learning_rate=1e-3)
    return SuperResolutionRun(**{"superresolution": config, "optimizer": optimizer, **values, **fields})


def train(path: Path, run: SuperResolutionRun) -> Path:
    images, engine = open_images(run.data), make_accelerator(run.train)
    with closing(RunFolder(path)) as opened:
        opened.open(run, {"task": "superresolution", **plain(run)}, False)
        fit(run.build(images), images, run, opened, engine)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return train(folder / "run", small_run(folder))


@pytest.fixture
def upscaler() -> EDSRUpscaler:
    """A network with random weights."""
    torch.manual_seed(0)
    return EDSRUpscaler(EDSR(replace(SMALL, residual=False)).eval())


def build(folder: Path, fields: dict) -> SuperResolutionTask:
    """What train.py does before it trains."""
    run = small_run(folder, **fields)
    run.check_init()
    return run.build(open_images(run.data))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def random(count: int = 4) -> GlobalRandom:
    return GlobalRandom(0, 0, "augment", count, slice(None), "cpu")


# --- the training ----------------------------------------------------------------------------------------------------


def test_parts_are_cut_at_random_places_and_turned_in_eight_ways() -> None:
    places = torch.arange(30.0).view(1, 1, 5, 6).expand(400, 1, 5, 6)
    parts = random_crop(places, random(400), (2, 2))
    assert set(parts[:, 0, 0, 0].int().tolist()) == {6 * row + column for row in range(4) for column in range(5)}
    assert_close(parts[:, 0] - parts[:, :1, 0, :1], torch.tensor([[0.0, 1.0], [6.0, 7.0]]).expand(400, 2, 2))
    turned = random_turn(parts - parts[:, :, :1, :1], random(400))
    assert len({tuple(each.flatten().int().tolist()) for each in turned}) == 8
    with pytest.raises(ValueError, match="5 x 6 px"):
        random_turn(places, random(400))


@pytest.mark.parametrize("turn", [False, True])
def test_the_loss_of_a_new_residual_network_is_that_of_the_bicubic_filter(folder: Path, turn: bool) -> None:
    run = small_run(folder, superresolution=SuperResolutionConfig(patch_px=16, turn=turn))
    task = run.build(open_images(run.data))
    image = BYTES.to_unit(torch.from_numpy(pixels(4, 3, 20, 22)))
    batch = task.prepare(Batch(image, None), random())
    part = random_crop(image, again := random(), (16, 16))
    assert_close(batch.image, random_turn(part, again) if turn else part)
    enlarged = F.interpolate(shrunk(batch.image, 2), size=(16, 16), mode="bicubic", antialias=True)
    expected = (enlarged - batch.image).abs().mean(dim=(1, 2, 3))
    assert_close(task.loss(task.model, batch, random()), expected, rtol=1e-4, atol=1e-5)
    direct = small_run(folder, model=replace(SMALL, residual=False)).build(open_images(run.data))
    assert (direct.loss(direct.model, batch, random()) > expected + 0.01).all()


def test_small_images_are_those_of_pillow() -> None:
    """Pillow rounds after each of its two passes; so a level may differ."""
    image = np.asarray(Image.fromarray(pixels(6, 8, 3)).resize((32, 24), Image.Resampling.BICUBIC))
    ours = shrunk(BYTES.to_unit(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())), 2)
    theirs = np.asarray(Image.fromarray(image).resize((16, 12), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(BYTES.from_unit(ours)[0].astype(int) - theirs).max() <= 1
    assert_close(as_bytes(ours), ours, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"24 x 32 px.*scale=5"):
        shrunk(torch.zeros(1, 3, 24, 32), 5)


def test_a_run_goes_on_bit_for_bit(folder: Path, trained: Path) -> None:
    train(folder / "parts", small_run(folder, images=8))
    train(folder / "parts", small_run(folder))
    whole, parts = (load_upscaler(run).net.state_dict() for run in (trained, folder / "parts"))
    assert_close(parts, whole, rtol=0, atol=0)


def similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) with Gaussian windows of 11 x 11 px, mirrored at edges, by numpy."""
    weights = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights /= weights.sum()

    def mean(z: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(z, 5, mode="reflect"), (11, 11))
        return np.einsum("hwij,i,j->hw", windows, weights, weights)

    (a, b), (c1, c2) = (mean(x), mean(y)), ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
    both, spread = mean(x * y) - a * b, mean(x * x) - a * a + mean(y * y) - b * b
    return float(((2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (spread + c2))).mean())


def test_the_evaluation_compares_with_numpy_and_pillow(folder: Path, trained: Path) -> None:
    """The bicubic figures, computed again by numpy; pictures of Pillow, whose levels differ by 1, have similar ones."""
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if "psnr" in line][-1]
    with Image.open(folder / "data" / "test" / "2.png") as picture:
        original = picture.crop((0, 0, 40, 42))
    again = original.resize((20, 21), Image.Resampling.BICUBIC).resize((40, 42), Image.Resampling.BICUBIC)
    low = shrunk(BYTES.to_unit(torch.from_numpy(np.asarray(original).transpose(2, 0, 1)[None].copy())), 2)
    ours = BYTES.from_unit(bicubic(low, (42, 40)))[0].transpose(1, 2, 0)
    weights = np.array([65.481, 128.553, 24.966]) / 255
    grey = [16 + np.asarray(each, np.float64)[2:-2, 2:-2] @ weights for each in (original, ours, again)]
    psnr, pillow = (10 * np.log10(255**2 / np.square(grey[0] - each).mean()) for each in grey[1:])
    assert found["bicubic_psnr"] == pytest.approx(psnr, abs=1e-3)
    assert found["bicubic_psnr"] == pytest.approx(pillow, abs=0.1)
    assert found["bicubic_ssim"] == pytest.approx(similarity(grey[0], grey[1]), abs=1e-4)
    with Image.open(trained / "samples" / "000000016.png") as grid:
        assert grid.width > 4 * 40
    figures, _ = measure(load_upscaler(trained), open_images(replace(small_run(folder).data, split="test")))
    assert figures == pytest.approx({name: found[name] for name in figures}, abs=1e-4)


def test_an_image_that_is_reproduced_exactly_has_100_db(trained: Path) -> None:
    even = np.full((2, 3, 20, 20), 90, np.uint8)
    even[1] = pixels(3, 20, 20)
    figures, rows = measure(load_upscaler(trained), Images(even))
    assert rows[0][1]["bicubic_psnr"] == 100
    assert figures["bicubic_psnr"] == pytest.approx(50 + rows[1][1]["bicubic_psnr"] / 2)


def test_a_figure_of_the_bicubic_filter_is_no_verdict_on_the_model(trained: Path, monkeypatch, capsys) -> None:
    for name, message in (("bicubic_ssim", "whatever the model"), ("ssim", "model is damaged")):
        monkeypatch.setattr(evaluating.command, "measure_enlarged", lambda *_, name=name: ({name: float("nan")}, []))
        with pytest.raises(SystemExit, match="2"):
            evaluate.main([str(trained)])
        assert re.search(f"{name} is nan.*{message}", capsys.readouterr().err)


def test_evaluate_prints_the_figures(folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(trained)])
    printed = capsys.readouterr().out
    assert "43 x 41 px" in printed
    assert "bicubic_psnr: " in printed
    evaluate.main([str(trained / "model"), "--data.source", str(folder / "data"), "--data.validation", "test"])
    assert capsys.readouterr().out.splitlines()[-5:] == printed.splitlines()[-5:]


def test_the_benchmark_compares_runs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    superresolution.main([str(trained), str(trained), "--out", str(tmp_path / "strip.png")])
    rows = capsys.readouterr().out.splitlines()
    assert rows[3].split("|")[1:4] == rows[4].split("|")[1:4]
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 5 * 40


def test_a_wrong_run_of_the_benchmark_is_one_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        superresolution.main([str(tmp_path / "absent"), "--out", str(tmp_path / "strip.png")])
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent" in line


def test_luminance() -> None:
    white = torch.ones(1, 3, 1, 1)
    assert_close(luminance(torch.cat([white, -white])).flatten(), torch.tensor([235.0, 16.0]))
    assert_close(luminance(torch.tensor([[[[-1.0, 1.0]]]])).flatten(), torch.tensor([0.0, 255.0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"superresolution": SuperResolutionConfig(patch_px=17)}, r"patch_px=17.*model\.scale=2.*18"),
        ({"superresolution": SuperResolutionConfig(patch_px=44)}, r"43 x 41 px.*patch_px=44"),
        ({"init": "x"}, "init=x"),
    ],
)
def test_what_cannot_be_trained(folder: Path, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, fields)


def test_other_images_than_colour_pictures_are_refused(folder: Path) -> None:
    run = replace(small_run(folder), data=DataConfig(validation=None))
    with pytest.raises(ValueError, match=r"1 channel of uint8.*data\.channels=3"):
        run.build(Images(pixels(2, 1, 40, 40)))
    deep = PixelFormat(dtype="uint16", high=65535)
    with pytest.raises(ValueError, match=r"3 channels of uint16.*data\.bits=8"):
        run.build(Images(pixels(2, 3, 40, 40).astype(np.uint16), pixel_format=deep))
    with pytest.raises(ValueError, match=r"data\.validation have 1 channel"):
        check_measurable(Images(pixels(2, 1, 40, 40)), 3, 2)
    with pytest.raises(ValueError, match=r"data\.validation have 40 x 16 px.*17"):
        check_measurable(Images(pixels(2, 3, 40, 16)), 3, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--superresolution.patch_px", "0"], r"superresolution\.patch_px=0"),
        (["--model.scale", "5"], r"model\.scale=5.*2, 3 or 4"),
        (["--model.preset", "edsr_x8"], "edsr_x8"),
        (["--data.crop", "cut"], r"data\.crop cut.*size"),
        (["--model.kind", "unet"], "unet"),
    ],
)
def test_flags_that_cannot_be_used(flags: list[str], message: str) -> None:
    from tasks import RUNS

    with pytest.raises(ValueError, match=message):
        parse(RUNS, ["--task", "superresolution", *flags])


def test_a_preset_is_a_published_network() -> None:
    from tasks import RUNS

    run = parse(RUNS, ["--task", "superresolution", "--model.preset", "edsr_baseline_x3"]).run
    assert isinstance(run, SuperResolutionRun)
    assert (run.model.scale, run.model.blocks, run.model.residual) == (3, 16, False)


# --- the model -------------------------------------------------------------------------------------------------------


def test_pictures_of_any_kind_and_size(upscaler: EDSRUpscaler, tmp_path: Path) -> None:
    grey, colour = pixels(5, 7), pixels(9, 4, 3)
    Image.fromarray(colour).save(tmp_path / "a.png")
    made = upscaler.upscale([grey, colour, str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()])
    assert [each.shape for each in made] == [(10, 14, 3), (18, 8, 3), (18, 8, 3), (18, 8, 3)]
    np.testing.assert_array_equal(made[1], made[2])
    np.testing.assert_array_equal(made[2], made[3])
    with torch.no_grad():
        levels = upscaler.net(torch.from_numpy(colour.transpose(2, 0, 1)[None].copy()).float())[0]
    np.testing.assert_array_equal(made[1], levels.clamp(0, 255).round().byte().permute(1, 2, 0).numpy())


def test_tiles_change_nothing_where_the_overlap_hides_the_edges(upscaler: EDSRUpscaler) -> None:
    """This network looks 5.5 px far: head, block, end of the body, upsampling and half of the last convolution."""
    image = pixels(40, 31, 3)
    whole = upscaler.upscale([image])[0]
    tiled = replace(upscaler, tiles=Tiles(px=26, overlap_px=24, batch=2)).upscale([image])[0]
    assert np.abs(tiled.astype(int) - whole).max() <= 1  # rounded
    assert (tiled == whole).mean() > 0.999
    near = replace(upscaler, tiles=Tiles(px=12, overlap_px=0)).upscale([image])[0]
    assert (near != whole).any()


@pytest.mark.parametrize("residual", [False, True])
def test_the_last_sum_of_a_network_in_bf16_is_in_float32(residual: bool) -> None:
    torch.manual_seed(0)
    net, levels = EDSR(replace(SMALL, residual=residual)), torch.from_numpy(pixels(1, 3, 8, 8)).float()
    with torch.no_grad():
        exact, made = net(levels), net.bfloat16()(levels.bfloat16())
    assert made.dtype == torch.float32
    assert (made - made.bfloat16()).abs().max() > 0, "it is not rounded"
    assert_close(made, exact, rtol=0, atol=1.0)


def test_published_networks_enlarge(tmp_path: Path) -> None:
    net = create_model("edsr_baseline_x2", channels=4, blocks=1)
    net.save_pretrained(tmp_path)
    assert load_upscaler(tmp_path).upscale([pixels(4, 4)])[0].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.png", r"nowhere\.png"),
        (b"", "bytes.*no image"),
        (b"GIF89a", "bytes"),
        (pixels(2, 3, 4, 5), "ndarray"),
        (np.zeros((4, 4), np.float32), "ndarray.*32 bits"),
    ],
)
def test_what_is_no_picture(upscaler: EDSRUpscaler, picture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upscaler.upscale([pixels(4, 4), picture])


def test_one_name_is_no_list(upscaler: EDSRUpscaler) -> None:
    with pytest.raises(ValueError, match=r"list.*a\.png"):
        upscaler.upscale("a.png")


def test_models_of_other_kinds_do_not_enlarge(tmp_path: Path, trained: Path) -> None:
    create_model("resnet20").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ResNet.*EDSR"):
        load_upscaler(tmp_path)
    with pytest.raises(ValueError, match="no model in"):
        load_upscaler(trained / "samples")
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_upscaler(trained, {})


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = EDSR(SMALL)
    net.head.bias.data[0] = float("nan")
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"head\.bias"):
        load_upscaler(tmp_path)


# --- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures of different sizes, one of them grey."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(pixels(14, 20, 3)).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels(9, 5)).save(tmp_path / "in" / "sub" / "=b.png")
    return tmp_path / "in"


def test_upscale_writes_every_picture_at_its_own_size(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(trained), "--upscale", str(pictures), "--out", str(tmp_path / "out"), "--device", "cpu"]
    sample.main(command)
    assert "2 pictures" in capsys.readouterr().out
    made = load_upscaler(trained).upscale([pictures / "a.png", pictures / "sub" / "=b.png"])
    for number, expected in enumerate(made):
        with Image.open(tmp_path / "out" / "images" / f"{number:06d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)
    rows = (tmp_path / "out" / "files.csv").read_text().splitlines()
    assert rows[1:] == ["000000.png,a.png,14,20", "000001.png,sub/=b.png,9,5"]
    record = json.loads((tmp_path / "out" / "upscaled.json").read_text())
    assert (record["num"], record["scale"], record["tiles"]["px"]) == (2, 2, 192)
    assert (tmp_path / "out" / "grid.png").is_file()
    sample.main([*command, "--tile", "6", "--overlap", "0", "--batch", "3", "--no-grid", "--precision", "bf16"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["files.csv", "images", "upscaled.json"]
    rounded = json.loads((tmp_path / "out" / "upscaled.json").read_text())
    assert rounded["tiles"] == {"px": 6, "overlap_px": 0, "batch": 3}
    assert rounded["weights_sha256"] == record["weights_sha256"]
    with Image.open(tmp_path / "out" / "images" / "000000.png") as picture:
        assert (np.asarray(picture) != made[0]).any()


def test_an_interrupted_command_keeps_what_is_finished(
    trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarging, numbers = EDSRUpscaler.enlarging, []

    def count(self, low, number=0):
        numbers.append(number)
        if number == 1 and len(numbers) == 2:
            raise RuntimeError("cut short")
        return enlarging(self, low, number)

    monkeypatch.setattr(EDSRUpscaler, "enlarging", count)
    command = [str(trained), "--upscale", str(pictures), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(RuntimeError, match="cut short"):
        sample.main(command)
    assert not (tmp_path / "out").exists()
    sample.main(command)
    assert numbers == [0, 1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "0"], "tile=0"),
        (["--tile", "8", "--overlap", "8"], r"overlap=8.*tile=8"),
        (["--overlap", "-1"], "overlap=-1"),
        (["--batch", "0"], "batch=0"),
        (["--steps", "5"], "steps has no effect"),
        (["--label", "3"], "label has no effect"),
        (["--guidance", "2"], "guidance has no effect"),
        (["--num", "3"], "num has no effect"),
        (["--npz"], "npz has no effect"),
        (["--from", "x"], "origin has no effect"),
        (["--out", "arrays.npy/x"], "out="),
        (["--device", "tpu"], "device='tpu'"),
        (["--ema", "7"], "ema"),
        (["--upscale", "nowhere"], "upscale 'nowhere'"),
        (["--upscale", "."], r"upscale '\.'"),
        (["--upscale", "damaged"], r"bad\.png cannot be read"),
        (["--upscale", "large"], r"large\.png.*9600 x 9600 px.*more than"),
        (["--upscale", "arrays.npy"], r"upscale 'arrays\.npy'.*arrays cannot"),
        (["--upscale", "deep"], r"deep\.tif.*32 bits"),
    ],
)
def test_what_cannot_be_upscaled(
    trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, flags: list[str], message
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "large").mkdir()
    Image.new("1", (4_800, 4_800)).save(tmp_path / "large" / "large.png")
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "deep" / "deep.tif")
    np.save(tmp_path / "arrays.npy", pixels(2, 3, 4, 4))
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(trained), "--upscale", str(pictures), *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert set(tmp_path.iterdir()) == before
    assert not (trained / "upscaled").exists()


@pytest.mark.parametrize(("flags", "message"), [([], "give --upscale"), (["--tile", "8"], "give --upscale")])
def test_a_model_that_enlarges_draws_nothing(trained: Path, flags: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        sample.main([str(trained / "model"), *flags])
    assert message in capsys.readouterr().err
