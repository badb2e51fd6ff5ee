"""Diffusion on latents: the cache of an autoencoder, the run on it, its model folder, and what draws from that."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL, LDMPipeline
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

import evaluate
import export
import sample
import train
from diffusion import DDPM, EDM, Formulation, generators
from exporting.diffusers_folder import save_diffusers
from exporting.latents import fold_units
from metrics import frechet_distance
from pictures.autoencoder import Autoencoder, load_autoencoder
from pictures.files import read_image
from pictures.pixel_format import BYTES
from pictures.preprocessing import Preprocessing
from pictures.units import Units
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.graphs import check_graphs
from resnet import ResNetConfig
from resnet import build as build_classifier
from tasks.classification import ClassificationRun
from tasks.comparison import QualityConfig
from tasks.denoising import DiffusionAugment, DiffusionConfig, DiffusionTask
from tasks.distillation import DistillationRun
from tasks.ensemble import EnsembleConfig
from tasks.init import read_init
from tasks.likelihood import bits_per_dimension
from tasks.quality import Quality
from tasks.regression import RegressionRun
from tasks.superresolution import SuperResolutionRun
from tests.tasks.small import ROOT, SMALL, shaken, small_run
from training.data import DataConfig, Images, open_images
from training.data.cache import build
from unet import UNet, UNetConfig
from web.models import describe_model

COUNT = 24
PREPARED = Preprocessing(size=(8, 8), channels=1)
NARROW = replace(SMALL, base_channels=8, channel_multipliers=(1,), attention_levels=(), groups=4, middle="none")
UNITS = {"scaling_factor": 0.5, "shift_factor": 0.25}
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2


def make(seed: int = 0, channels: int = 1, **fields) -> AutoencoderKL:
    """A small autoencoder with random weights, which halves the size."""
    torch.manual_seed(seed)
    widths = {"block_out_channels": (4, 4), "norm_num_groups": 2, "latent_channels": 2}
    return AutoencoderKL(channels, channels, DOWN, UP, **{**UNITS, **widths, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of grey pictures (8x8 px), and autoencoders of grey and of colour pictures."""
    home, random = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    for number in range(COUNT):
        path = home / "pictures" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    make().save_pretrained(home / "grey")
    make(channels=3).save_pretrained(home / "colour")
    return home


def settings(folder: Path, **fields) -> DataConfig:
    default = {"source": str(folder / "pictures"), "autoencoder": str(folder / "grey"), "cache": folder / "cache"}
    return DataConfig(**{**default, "size": 8, "channels": 1, **fields})


def pictures(folder: Path) -> Images:
    found = open_images(settings(folder, autoencoder=None))
    assert isinstance(found, Images)
    return found


def latents(folder: Path, **fields) -> Images:
    found = open_images(settings(folder, **fields))
    assert isinstance(found, Images)
    return found


@pytest.fixture(scope="module")
def task(folder: Path) -> DiffusionTask:
    """A task on the latents, with random weights."""
    return shaken(small_run(model=NARROW, data=settings(folder)).build(latents(folder)))


@pytest.fixture(scope="module")
def model(task: DiffusionTask, tmp_path_factory) -> Path:
    """Its model folder."""
    saved = tmp_path_factory.mktemp("model")
    task.save(task.model, saved)
    return saved


def draw(model: Path, out: Path, *words: str) -> np.ndarray:
    """The pictures that sample.py writes."""
    sample.main([str(model), "--out", str(out), "--steps", "2", "--device", "cpu", *words])
    return np.concatenate([read_image(path) for path in sorted((out / "images").iterdir())])


# --- the cache ---


def test_the_cache_holds_the_mean_of_each_picture(folder: Path) -> None:
    kl, stored = make().eval(), pictures(folder).read(np.arange(COUNT))
    found = latents(folder)
    with torch.no_grad():
        means = [kl.encode(torch.from_numpy(each[None]) / 127.5 - 1).latent_dist.mean for each in stored]
    assert_close(torch.from_numpy(found.read(np.arange(COUNT))), torch.cat(means), rtol=0, atol=1e-6)
    encoded = [load_autoencoder(folder / "grey").encode(BYTES.to_unit(torch.from_numpy(each[None]))) for each in stored]
    assert_close(torch.from_numpy(found.read(np.arange(COUNT))), torch.cat(encoded), rtol=0, atol=0)
    assert found.shape == (2, 4, 4)
    assert found.pixel_format == Units(mean=(0.25, 0.25), std=(2.0, 2.0), transform=("none", "none"))
    assert found.classes == ("cat", "dog")
    assert "latents of 8 x 8 px" in str(found)


def test_a_picture_is_encoded_once(folder: Path, tmp_path: Path, monkeypatch) -> None:
    encoded, encode = [], build.encode
    monkeypatch.setattr(build, "encode", lambda *given: encoded.append(1) or encode(*given))
    first, second = (latents(folder, cache=tmp_path) for _ in range(2))
    assert len(encoded) == COUNT
    assert first.fingerprint == second.fingerprint == latents(folder).fingerprint
    assert len(list(tmp_path.glob("*/cache.json"))) == 1


def test_an_interrupted_build_resumes_with_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch) -> None:
    encode, encoded = build.encode, list[int]()

    def interrupted(*given) -> np.ndarray:
        if len(encoded) == 5:
            raise KeyboardInterrupt
        encoded.append(1)
        return encode(*given)

    monkeypatch.setattr(build, "SAVE_SECONDS", 0)
    monkeypatch.setattr(build, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        latents(folder, cache=tmp_path)
    monkeypatch.setattr(build, "encode", lambda *given: encoded.append(1) or encode(*given))
    found, whole = latents(folder, cache=tmp_path), latents(folder)
    assert len(encoded) == COUNT
    assert_close(found.read(np.arange(COUNT)), whole.read(np.arange(COUNT)), rtol=0, atol=0)
    assert found.fingerprint == whole.fingerprint


def test_another_decoder_pixel_or_factor_is_another_set(folder: Path, tmp_path: Path) -> None:
    """The decoder has no effect on the latents, but on what is drawn."""
    other = make()
    other.decoder.conv_out.bias.data += 1
    other.save_pretrained(tmp_path / "decoder")
    make().save_pretrained(tmp_path / "factor")
    config = json.loads((tmp_path / "factor" / "config.json").read_text())
    (tmp_path / "factor" / "config.json").write_text(json.dumps(config | {"scaling_factor": 2.0}))
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "cat" / "1.png")
    others = [{"autoencoder": str(tmp_path / name)} for name in ("decoder", "factor")]
    others.append({"source": str(tmp_path / "pictures")})
    found = [latents(folder, cache=tmp_path / "cache", **fields) for fields in ({}, *others)]
    assert len({each.fingerprint for each in found}) == 4
    assert len(list((tmp_path / "cache").glob("*/cache.json"))) == 4
    assert found[2].pixel_format != found[0].pixel_format
    shutil.copytree(folder / "grey", tmp_path / "moved")
    assert latents(folder, autoencoder=str(tmp_path / "moved")).fingerprint == found[0].fingerprint


def test_latents_per_channel_have_the_units_of_the_config() -> None:
    units = Autoencoder(make(latents_mean=(1.0, -1.0), latents_std=(2.0, 3.0))).units
    assert (units.mean, units.std) == ((1.0, -1.0), (4.0, 6.0))
    kl = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3)
    assert Autoencoder(kl).units.std == (1 / 0.18215,) * 3


def test_decoding_takes_few_pictures_at_a_time(monkeypatch) -> None:
    """The parts have no effect on the pictures."""
    autoencoder, x = Autoencoder(make()), torch.randn(5, 2, 4, 4)
    whole = autoencoder.decode(x)
    assert whole.shape == (5, 1, 8, 8)
    monkeypatch.setattr("pictures.autoencoder.DECODED_PX", 2 * 64)
    sizes, decode = list[int](), autoencoder.net.decode
    autoencoder.net.decode = lambda part: sizes.append(len(part)) or decode(part)
    assert_close(autoencoder.decode(x), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [2, 2, 1]


# --- bad input ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": None}, r"data\.size is null"),
        ({"channels": None}, r"data\.channels is null"),
        ({"bits": 16}, r"data\.bits is 16"),
        ({"stream": True, "cache": None}, r"data\.stream is true"),
        ({"condition": "other"}, r"data\.condition is 'other'"),
        ({"static": Path("z.npy")}, r"data\.static is 'z\.npy'"),
        ({"missing": True}, r"data\.missing is 'True'"),
        ({"normalisation": "mean_std"}, r"data\.normalisation is 'mean_std'"),
        ({"channels": 3}, r"grey.* takes pictures with 1 channels, not 3"),
        ({"autoencoder": "colour"}, r"colour.* takes pictures with 3 channels, not 1"),
        ({"size": (8, 9)}, r"multiples of 2 px, not 8 x 9"),
        ({"autoencoder": "pictures"}, r"pictures.* is no autoencoder"),
        ({"autoencoder": "nowhere"}, r"nowhere"),
        ({"source": "arrays.npy"}, r"data\.autoencoder is .* encodes pictures"),
    ],
)
def test_what_cannot_be_encoded_is_an_error_before_any_work(folder: Path, tmp_path: Path, fields, message) -> None:
    np.save(folder / "arrays.npy", np.zeros((2, 1, 8, 8), np.uint8))
    paths = {key: str(folder / fields[key]) for key in ("autoencoder", "source") if key in fields}
    with pytest.raises(ValueError, match=message):
        open_images(settings(folder, **{"cache": tmp_path, **fields, **paths}))
    assert not list(tmp_path.iterdir())


def spoil(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: spoil(f, _class_name="VQModel"), "VQModel"),
        (lambda f: spoil(f, latent_channels=3), "cannot be read|does not fit"),
        (lambda f: spoil(f, out_channels=2), "cannot be read|returns 2"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100), "cannot be read"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), r"no diffusion_pytorch_model\.safetensors"),
        (lambda f: f.rename(f.with_name("x")) and (f.mkdir(), f.with_name("x").rename(f / "vae")), r"give .*vae"),
    ],
)
def test_a_damaged_autoencoder_is_one_line(tmp_path: Path, damage, message: str) -> None:
    make().save_pretrained(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ValueError, match=message) as error:
        load_autoencoder(tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [0, -0.5, float("nan"), float("inf"), "one", None, True])
def test_a_scale_of_latents_that_is_no_positive_number_is_an_error(tmp_path: Path, scale: object) -> None:
    make().save_pretrained(tmp_path)
    spoil(tmp_path, scaling_factor=scale)
    with pytest.raises(ValueError, match=rf"/config\.json: scaling_factor={scale!r} .*above 0"):
        load_autoencoder(tmp_path)


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    broken = make()
    broken.encoder.conv_in.bias.data[0] = float("nan")
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.conv_in\.bias is not finite"):
        load_autoencoder(tmp_path)


def test_a_name_on_the_hub_may_have_a_revision(folder: Path, monkeypatch) -> None:
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder / "grey")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("owner/name", "owner/name@v1"):
        assert latents(folder, autoencoder=name).shape == (2, 4, 4)
    assert asked == [("owner/name", None), ("owner/name", "v1")]


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": DiffusionAugment(flip=True)},
        {"augment": DiffusionAugment(non_leaky=0.1)},
        {"augment": DiffusionAugment(crop_px=4)},
        {"diffusion": DiffusionConfig(upscale=2)},
        {"diffusion": DiffusionConfig(regression="runs/other")},
        {"ensemble": EnsembleConfig(members=2)},
    ],
)
def test_settings_of_pixels_are_refused(folder: Path, fields: dict) -> None:
    (section,) = fields
    with pytest.raises(ValueError, match=rf"{section}\.\w+=.*data\.autoencoder"):
        small_run(data=settings(folder, validation=0.5), **fields)


@pytest.mark.parametrize("kind", [ClassificationRun, SuperResolutionRun, DistillationRun, RegressionRun])
def test_other_tasks_take_no_autoencoder(folder: Path, kind) -> None:
    with pytest.raises(ValueError, match=r"data\.autoencoder=.*diffusion only"):
        kind(data=settings(folder), **({"teacher": "runs/x"} if kind is DistillationRun else {}))


def test_latents_that_the_network_cannot_halve_are_an_error(folder: Path) -> None:
    run = small_run(model=replace(NARROW, channel_multipliers=(1, 1, 1, 1)), data=settings(folder))
    with pytest.raises(ValueError, match=r"latents of the images .*4x4 px .*data\.size"):
        run.build(latents(folder))


# --- the model ---


def test_the_network_is_trained_on_scaled_latents(folder: Path, task: DiffusionTask) -> None:
    found, diffusion = latents(folder), task.diffusion
    assert diffusion.shape == (2, 4, 4)
    assert diffusion.output_shape == (1, 8, 8)
    assert diffusion.pixel_format == found.pixel_format
    assert diffusion.output_format == BYTES
    stored = torch.from_numpy(found.read(np.arange(COUNT)))
    assert_close(found.pixel_format.to_unit(stored), (stored - 0.25) * 0.5)
    assert not diffusion.check().clip, "nothing is clipped"
    unit = BYTES.to_unit(torch.from_numpy(pictures(folder).read(np.arange(COUNT))))
    assert_close(diffusion.encoded(unit), found.pixel_format.to_unit(stored))


def test_the_folder_is_enough_to_draw_pictures(task: DiffusionTask, model: Path, tmp_path: Path) -> None:
    """Those that the autoencoder decodes from the latents drawn; with labels, guidance and an animation."""
    words = ["--num", "5", "--label", "cat", "--guidance", "2", "--batch", "5", "--animation", "--npz"]
    found = draw(model, tmp_path / "out", *words)
    loaded = load_model(model)
    drawn = loaded.draw(range(5), [0] * 5, steps=2, guidance=2.0)
    with torch.no_grad():
        decoded = make().eval().decode(drawn / 0.5 + 0.25).sample
    assert_close(found[:, None], BYTES.from_unit(decoded), rtol=0, atol=1)
    np.testing.assert_array_equal(found[:, None], BYTES.from_unit(loaded.decoded(drawn)))
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"grid.png", "animation.gif", "samples.npz"}
    facts = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert facts["shape"] == [1, 8, 8]
    assert facts["autoencoder_sha256"] == Autoencoder(make()).fingerprint
    assert "8x8 px with 1 channel" in loaded.summary()
    assert "8×8 px with 1 channel" in describe_model(loaded).about


def test_the_code_of_the_page_draws_pictures(model: Path, tmp_path: Path, monkeypatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "latents.md").read_text("utf-8"), re.DOTALL)
    shutil.copytree(model, tmp_path / "runs" / "latents")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["pictures"].shape == (4, 1, 8, 8)
    assert names["pictures"].dtype == np.uint8


def test_pictures_are_encoded_to_start_from(folder: Path, model: Path, tmp_path: Path) -> None:
    given = sorted((folder / "pictures" / "cat").iterdir())[:2]
    words = ["--from", f"{folder / 'pictures' / 'cat'}", "--num", "2", "--label", "none", "--sampler", "euler"]
    found = draw(model, tmp_path / "out", *words, "--strength", "0.5")
    loaded = load_model(model)
    unit = BYTES.to_unit(torch.from_numpy(np.stack([read_image(path) for path in given])))
    options = {"origin": loaded.encoded(unit), "strength": 0.5, "steps": 2, "sampler": "euler"}
    drawn = loaded.draw(range(2), [2, 2], **options)
    np.testing.assert_array_equal(found[:, None], BYTES.from_unit(loaded.decoded(drawn)))


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "16", "16"],
        ["--from", "x", "--mask", "y"],
        ["--grey", "x"],
        ["--from", "x", "--invert"],
        ["--observe", "x", "--observe-noise", "1"],
        ["--classifier", "x"],
    ],
)
def test_options_of_pixels_are_one_line(model: Path, tmp_path: Path, words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        draw(model, tmp_path / "out", *words)
    assert ended.value.code == 2
    assert "draws latents of an autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_folder_with_another_autoencoder_is_an_error(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    make(seed=1).save_pretrained(tmp_path / "other" / "autoencoder")
    with pytest.raises(ValueError, match=r"autoencoder is not .*copy the model again"):
        load_model(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "autoencoder")
    with pytest.raises(ValueError, match=r"other/autoencoder is no autoencoder"):
        load_model(tmp_path / "other")


def test_an_exported_pipeline_without_its_autoencoder_is_an_error(tmp_path: Path) -> None:
    save_diffusers(drawing(), tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "vqvae")
    with pytest.raises(ValueError, match=r"out/vqvae is no autoencoder"):
        load_model(tmp_path / "out")


def test_a_guide_has_the_same_autoencoder(task: DiffusionTask) -> None:
    diffusion = task.diffusion
    assert diffusion.guided_by(replace(diffusion, autoencoder=Autoencoder(make()))).guide is not None
    with pytest.raises(ValueError, match=r"guide has autoencoder="):
        diffusion.guided_by(replace(diffusion, autoencoder=Autoencoder(make(seed=1))))


def test_metrics_compare_the_decoded_pictures(folder: Path, tmp_path: Path) -> None:
    config = ResNetConfig(blocks_per_stage=(1,), widths=(4,), stem="conv3", stem_channels=4, in_channels=1)
    judge = ImageClassifier(build_classifier(replace(config, num_classes=2)).eval(), ("cat", "dog"), PREPARED, BYTES)
    judge.save(tmp_path)
    data, config = settings(folder, validation=0.5), QualityConfig(judge=str(tmp_path), steps=2, batch=COUNT)
    task = shaken(small_run(model=NARROW, data=data, quality=config).build(latents(folder, validation=0.5)))
    found = task.evaluations[1]
    assert isinstance(found, Quality)
    metrics = found.measure(task.diffusion.net)
    assert metrics is not None
    held_out = found.comparison.held_out
    assert held_out.shape == (1, 8, 8)
    assert held_out.labels is not None
    drawn = task.diffusion.draw(range(len(held_out)), held_out.labels.tolist(), seed=config.seed, steps=2)
    values = BYTES.from_unit(task.diffusion.decoded(drawn)), held_out.read(np.arange(len(held_out)))
    with torch.no_grad():
        features = [judge.net.forward_features(BYTES.to_unit(torch.from_numpy(each))).mean((2, 3)) for each in values]
    assert metrics["frechet_distance"] == pytest.approx(frechet_distance(features[1], features[0]), rel=1e-3)


def test_neither_likelihood_nor_graphs_are_those_of_pictures(folder: Path, task: DiffusionTask, model: Path) -> None:
    with pytest.raises(ValueError, match="draws latents"):
        bits_per_dimension(task.diffusion, pictures(folder), QualityConfig(), "the images")
    with pytest.raises(ValueError, match="draws latents"):
        check_graphs(task.diffusion, "pt2")


@pytest.mark.parametrize("script", ["graph", "push", "evaluate"])
def test_scripts_that_take_no_latents_print_one_line(folder: Path, model: Path, tmp_path: Path, script: str, capsys):
    source = ["--data.source", str(folder / "pictures"), "--data.validation", "0.5"]
    command = {
        "graph": lambda: export.main([str(model), "--to", "pt2", "--out", str(tmp_path / "out")]),
        "push": lambda: export.main([str(model), "--push", "owner/name"]),
        "evaluate": lambda: evaluate.main([str(model), *source, "--data.autoencoder", str(folder / "grey")]),
    }[script]
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert "autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the pipeline of diffusers ---

V = DDPM(prediction="v")
NO_SHIFT = {"shift_factor": None}
PER_CHANNEL = {"latents_mean": (0.5, -1.0), "latents_std": (2.0, 0.25)}
NO_CONVS = {"use_quant_conv": False, "use_post_quant_conv": False}
COLOUR = {"channels": 3}


def drawing(objective: Formulation = V, config: UNetConfig = NARROW, **fields) -> DiffusionModel:
    """A model of latents of 4x4 values without labels, with random weights."""
    net, autoencoder = UNet(replace(config, in_channels=2, out_channels=2, size=(4, 4))), make(**fields)
    random = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=random), alpha=0.1)
    units = Autoencoder(autoencoder).units
    return DiffusionModel(net.eval(), objective, pixel_format=units, autoencoder=Autoencoder(autoencoder))


def pictures_of(model: DiffusionModel, labels: list[int] | None = None, **options) -> torch.Tensor:
    """Three pictures in [0, 1], by our own sampler."""
    latents = model.draw(range(3), labels, seed=5, steps=4, **options)
    assert latents.abs().max() > 1, "clipping would have an effect"
    found = (model.decoded(latents) / 2 + 0.5).clamp(0, 1)
    assert found.std() > 0.05, "pictures, not a constant"
    return found


def pictures_of_pipeline(pipeline: LDMPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    options = {"generator": generators(5, range(3)), "num_inference_steps": 4, "output_type": "np"}
    return torch.from_numpy(pipeline(batch_size=3, **options).images).permute(0, 3, 1, 2)


def saved(model: DiffusionModel, folder: Path) -> LDMPipeline:
    save_diffusers(model, folder)
    return LDMPipeline.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, NO_SHIFT, PER_CHANNEL, NO_CONVS, NO_SHIFT | NO_CONVS, PER_CHANNEL | NO_CONVS | NO_SHIFT, COLOUR],
    ids=str,
)
@pytest.mark.parametrize("objective", [DDPM(), DDPM(prediction="v", schedule="cosine", zero_terminal_snr=True)])
def test_the_pipeline_of_diffusers_draws_the_same_pictures(tmp_path: Path, objective: DDPM, fields: dict) -> None:
    model = drawing(objective, **fields)
    pipeline, ours = saved(model, tmp_path), pictures_of(model)
    assert_close(pictures_of_pipeline(pipeline), ours, rtol=0, atol=1e-4)
    assert_close(pictures_of(load_model(tmp_path)), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, NO_SHIFT, PER_CHANNEL | NO_CONVS], ids=str)
def test_latents_of_an_exported_autoencoder_have_one_unit(fields: dict) -> None:
    """Its latents, scaled, are the values of the network, and its pictures are the same."""
    autoencoder, x = Autoencoder(make(**fields)), torch.rand(2, 1, 8, 8) * 2 - 1
    folded = fold_units(autoencoder)
    assert folded.units == Units(mean=(0.0, 0.0), std=(2.0, 2.0), transform=("none", "none"))
    assert (folded is autoencoder) == (fields == NO_SHIFT)
    values = autoencoder.units.to_unit(autoencoder.encode(x))
    assert_close(folded.encode(x) / 2, values, rtol=0, atol=1e-5)
    decoded = autoencoder.decode(torch.from_numpy(autoencoder.units.from_unit(values)))
    assert_close(folded.decode(2 * values), decoded, rtol=0, atol=1e-5)
    with torch.no_grad():
        std, of_folded = (each.net.encode(x).latent_dist.std for each in (autoencoder, folded))
    assert_close(of_folded, 2 * std / torch.tensor(autoencoder.units.std)[:, None, None])


@pytest.mark.slow
def test_the_card_of_a_pipeline_draws_the_same_pictures(tmp_path: Path, monkeypatch) -> None:
    """By its code, and by the scheduler for few steps."""
    model = drawing(DDPM(prediction="v", schedule="cosine", timesteps=20))
    pipeline, card = saved(model, tmp_path), (tmp_path / "README.md").read_text(encoding="utf-8")
    names: dict = {"diffusers": diffusers, "scheduler": pipeline.scheduler}
    exec(re.search(r"^    (scheduler = .*)$", card, re.MULTILINE)[1], names)
    pipeline.scheduler = names["scheduler"]
    assert_close(pictures_of_pipeline(pipeline), pictures_of(model, sampler="dpmpp_2m"), rtol=0, atol=1e-4)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    ours = BYTES.from_unit(model.decoded(model.draw(range(4), None, steps=20)))
    theirs = np.stack([read_image(path) for path in sorted(tmp_path.glob("*.png"))])
    assert_close(theirs, ours, rtol=0, atol=1)
    assert "8x8 px with 1 channel" in card


@pytest.mark.slow
@pytest.mark.parametrize("label", ["cat", "none"])
def test_one_class_of_latents_is_exported(model: Path, tmp_path: Path, label: str) -> None:
    export.main([str(model), "--to", "diffusers", "--out", str(tmp_path / "out"), "--label", label])
    loaded = load_model(model)
    ours = pictures_of(loaded, [loaded.label(label)] * 3)
    assert_close(pictures_of_pipeline(LDMPipeline.from_pretrained(tmp_path / "out")), ours, rtol=0, atol=1e-4)
    found = draw(tmp_path / "out", tmp_path / "drawn", "--num", "3", "--seed", "5", "--steps", "4")
    assert_close(found[:, None], BYTES.from_unit(2 * ours - 1), rtol=0, atol=1)
    state, _ = read_init(drawing().net, str(tmp_path / "out"), None, loaded.formulation)
    assert_close(state, dict(load_model(tmp_path / "out").net.state_dict()))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: replace(drawing(), classes=("cat", "dog")), r"2 classes.*--label CLASS$"),
        (lambda: replace(drawing(), classes=("cat",), null_label=True), r"1 class\).*--label CLASS, or --label none"),
        (lambda: replace(drawing(), size=(4, 8)), r"8x16 px.*sample\.py"),
        (lambda: drawing(EDM()), r"objective\.kind=edm.*sample\.py"),
        (lambda: drawing(config=replace(NARROW, groups=4, padding="reflect")), r"padding.*reflect"),
    ],
)
def test_what_the_pipeline_of_diffusers_cannot_draw_is_an_error(tmp_path: Path, broken, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_diffusers(broken(), tmp_path)
    assert not list(tmp_path.iterdir())


# --- a run ---


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_refuses_another_autoencoder(folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    (tmp_path / "run.yaml").write_text(
        f"data: {{source: {folder / 'pictures'}, autoencoder: {folder / 'grey'}, size: 8, channels: 1,\n"
        f"       cache: {tmp_path / 'cache'}}}\n"
        "sample: {num: 4, steps: 2}\nmodel: {base_channels: 8, channel_multipliers: [1], blocks_per_level: 1,\n"
        "        attention_levels: [], groups: 4}\n"
        "train: {images: 32, batch: 8, log_every_images: 8, trackers: [], precision: float32}\n"
        "schedule: {warmup_images: 0}\n"
    )

    def run(name: str, *flags: str) -> Path:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        train.main(["--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / name), *flags])
        return tmp_path / name

    straight, pieces = run("straight"), run("pieces", "--train.images", "16")
    assert run("pieces") == pieces
    ends = [load_file(path / "checkpoints" / "000000032" / "model.safetensors") for path in (straight, pieces)]
    assert_close(ends[1], ends[0], rtol=0, atol=0)
    loaded = load_model(straight)
    assert loaded.autoencoder is not None
    with Image.open(straight / "samples" / "000000032.png") as grid:
        assert grid.mode == "L", "pictures, not channels in colours"
    assert draw(straight, tmp_path / "out", "--num", "4", "--nearest").shape == (4, 8, 8)
    make(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        run("pieces", "--data.autoencoder", str(tmp_path / "other"), "--train.images", "40")
    assert "fingerprint" in capsys.readouterr().err
