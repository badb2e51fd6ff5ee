"""Diffusion models of fields: conditions, static fields, numbers, missing values, standardised values."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion import EDM
from drawing.nearest import open_training
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.inputs import FILE, Numbers, standardised
from tasks.augment import random_flip
from tasks.comparison import QualityConfig
from tasks.denoising import DiffusionAugment, DiffusionConfig, DiffusionTask
from tasks.likelihood import bits_per_dimension
from tasks.quality import Quality
from tests.tasks.small import SMALL, shaken, small_run
from training.data import DataConfig, Images
from training.random import GlobalRandom
from training.task import Batch

RNG = np.random.default_rng(0)
UNITS = Units(mean=(280.0, 0.0, 5.0), std=(10.0, 2.0, 1.0), transform=("none", "arcsinh", "none"))
NARROW = replace(SMALL, base_channels=8, channel_multipliers=(1,), attention_levels=(), groups=4, middle="none")
STATIC = np.stack([np.arange(64.0), np.arange(64.0) ** 2]).reshape(2, 8, 8).astype(np.float32)


class Recorder(nn.Module):
    """A network that keeps its inputs; its output is zero."""

    def forward(self, x: torch.Tensor, *args, augment: torch.Tensor | None = None) -> torch.Tensor:
        self.x, self.augment = x, augment
        return torch.zeros_like(x[:, :2])


def images(static: bool = True, vectors: bool = True, conditions: int = 1, missing: bool = False) -> Images:
    """Sixteen images: two target channels and a condition, in units; with missing values if asked for."""
    unit = RNG.normal(size=(16, 3, 8, 8)).astype(np.float32)
    values = UNITS.from_unit(torch.from_numpy(unit))
    if missing:
        values[:, 0, 0] = np.nan
        values[3, 1, 2] = np.nan
        values[5, 2, 4] = np.nan
    found = Images(
        values,
        pixel_format=UNITS,
        conditions=conditions,
        static=STATIC if static else None,
        vectors=RNG.normal(3, 2, (16, 2)).astype(np.float32) if vectors else None,
        vector_columns=("strain", "season") if vectors else (),
    )
    found.seen = ~np.isnan(values).all(axis=0) if missing else None
    return found


def built(found: Images, **fields) -> DiffusionTask:
    missing = found.seen is not None
    data = DataConfig(source="digits", missing=missing)
    run = small_run(model=NARROW, objective=EDM(), data=data, **fields)
    return shaken(run.build(found))


def batch_of(found: Images, count: int = 4) -> Batch:
    numbers = np.arange(count)
    vector = None if found.vectors is None else torch.from_numpy(found.vectors[numbers])
    return Batch(found.pixel_format.to_unit(torch.from_numpy(found.read(numbers))), None, vector=vector)


def random(count: int = 4, update: int = 0) -> GlobalRandom:
    return GlobalRandom(0, update, "task", count, slice(0, count), "cpu")


def losses(task: DiffusionTask, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return task.loss(task.model.eval(), task.prepare(batch, random()), random())


def changed(batch: Batch, channel: int, value: float) -> Batch:
    image = batch.image.clone()
    image[:, channel] = value
    return replace(batch, image=image)


def test_the_network_takes_the_condition_the_static_fields_and_the_numbers() -> None:
    found = images()
    task = built(found)
    config = task.diffusion.net.config
    assert (config.in_channels, config.out_channels, config.augment_channels) == (2 + 1 + 2, 2, 3)
    assert task.diffusion.shape == (2, 8, 8)
    assert task.diffusion.pixel_format == UNITS.channels(0, 2)
    assert task.diffusion.inputs is not None
    assert task.diffusion.inputs.pixel_format == UNITS.channels(2, 3)
    batch = batch_of(found)
    loss = losses(task, batch)
    assert not torch.equal(losses(task, changed(batch, 2, 1.0)), loss), "the condition has an effect"
    assert batch.vector is not None
    assert not torch.equal(losses(task, replace(batch, vector=batch.vector + 1)), loss), "the numbers have an effect"
    net, size = task.model, (4, 5, 8, 8)
    with torch.no_grad():
        zeros = net(torch.zeros(size), torch.zeros(4))
        static = net(torch.cat([torch.zeros(4, 3, 8, 8), torch.ones(4, 2, 8, 8)], 1), torch.zeros(4))
    assert not torch.equal(zeros, static)


def test_static_fields_are_standardised_and_augmented_with_the_images() -> None:
    found = images(vectors=False)
    task = built(found, augment=DiffusionAugment(flip=True))
    prepared = task.prepare(batch_of(found, 16), random(16))
    fields = standardised(torch.from_numpy(STATIC))
    assert_close(fields.mean((1, 2)), torch.zeros(2), rtol=0, atol=1e-6)
    assert_close(fields.std((1, 2), correction=0), torch.ones(2))
    expected = random_flip(fields.expand(16, -1, -1, -1), random(16))
    assert_close(prepared.image[:, 3:], expected, rtol=0, atol=0)
    assert len(prepared.image[:, 3:].unique(dim=0)) == 2, "some are mirrored"


def test_missing_values_have_no_loss_and_their_masks_are_an_input() -> None:
    found = images(missing=True)
    task = built(found)
    assert task.diffusion.net.config.in_channels == 2 + 1 + 2 + 3
    batch = batch_of(found)
    loss = losses(task, batch)
    assert loss.isfinite().all()
    net = Recorder()
    prepared = task.prepare(batch, random())
    whole = task.loss(net, prepared, random())
    known = ~batch.image.isnan()
    assert_close(net.x[:, 5:], known.float(), rtol=0, atol=0)
    filled = replace(prepared, image=torch.where(prepared.image.isnan(), 7.0, prepared.image))
    with_values = task.loss(net, filled, random())
    assert (with_values > whole).all(), "missing values add no error"
    assert_close(net.x[:, 5:], torch.ones(4, 3, 8, 8), rtol=0, atol=0)


def test_images_are_drawn_where_training_images_had_values() -> None:
    found = images(missing=True)
    model = built(found).diffusion
    condition = found.pixel_format.to_unit(torch.from_numpy(found.read(np.arange(4, 6))))[:, 2:]
    x = model.draw(range(2), None, image=condition, steps=2)
    assert x.isfinite().all()
    hidden = model.hidden(x)
    assert found.seen is not None
    unseen = torch.from_numpy(~found.seen[:2]).expand_as(x)
    assert_close(x[unseen], torch.zeros(int(unseen.sum())), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(hidden.isnan().numpy(), np.broadcast_to(~found.seen[:2], (2, 2, 8, 8)))
    with pytest.raises(ValueError, match="NaN"):
        built(images()).diffusion.draw(range(2), None, image=condition, steps=2)


def test_standardised_values_are_not_clipped() -> None:
    found = images(static=False, vectors=False, conditions=0)
    for objective, sampler in (
        (EDM(sigma_max=2.0), "heun"),
        (None, "ddim"),
        (None, "dpmpp_2m"),
        (None, "dpmpp_2m_sde"),
    ):
        fields = {} if objective is None else {"objective": objective}
        model = shaken(small_run(model=NARROW, **fields).build(found)).diffusion
        x = model.draw(range(4), None, steps=5, sampler=sampler, noise=20 * torch.randn(4, 3, 8, 8))
        assert x.abs().max() > 5


def test_guidance_hides_the_numbers() -> None:
    model = built(images(static=False)).diffusion
    image = torch.randn(2, 1, 8, 8)
    given = {"image": image, "vector": [(1.0, 2.0), (3.0, 4.0)], "steps": 3}
    drawn = {scale: model.draw(range(2), None, guidance=scale, **given) for scale in (0.0, 1.0, 2.0)}
    free = model.draw(range(2), None, image=image, steps=3)
    with pytest.raises(ValueError, match=r"guidance=2.*vector"):
        model.draw(range(2), None, image=image, guidance=2.0, steps=3)
    assert_close(drawn[0.0], free, rtol=1e-5, atol=1e-5)
    assert not torch.equal(drawn[1.0], free)
    assert not torch.equal(drawn[2.0], drawn[1.0])


def test_numbers_of_a_share_of_the_images_are_hidden_in_training() -> None:
    found, net = images(), Recorder()
    task = built(found, diffusion=DiffusionConfig(label_dropout=0.5))
    batch = batch_of(found, 16)
    task.loss(net, task.prepare(batch, random(16)), random(16))
    hidden = (net.augment == 0).all(dim=1)
    assert 0 < hidden.sum() < 16
    assert task.diffusion.inputs is not None
    numbers = task.diffusion.inputs.numbers
    assert numbers is not None
    assert batch.vector is not None
    assert_close(net.augment[~hidden], numbers.label(batch.vector)[~hidden])
    assert_close(numbers.label(batch.vector)[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-5)


def test_a_model_folder_keeps_everything(tmp_path: Path) -> None:
    model = built(images(missing=True)).diffusion
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.inputs is not None
    assert model.inputs is not None
    assert again.inputs.document() == model.inputs.document()
    assert again.pixel_format == model.pixel_format
    given = {"image": torch.randn(2, 1, 8, 8), "vector": [(1.0, 2.0)] * 2, "steps": 2}
    assert_close(again.draw(range(2), None, **given), model.draw(range(2), None, **given), rtol=0, atol=0)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=FILE):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": {"channels": "1"}}, "channels='1'"),
        ({"inputs": {"channels": 2}}, "2"),
        (
            {"inputs": {"pixel_format": {"mean": [0.0] * 2, "std": [1.0] * 2, "transform": ["none"] * 2}}},
            "pixel_format",
        ),
        ({"inputs": {"numbers": {"mean": [float("inf"), 0.0]}}}, "mean"),
        ({"inputs": {"numbers": {"names": ["a"], "mean": [0.0], "std": [1.0]}}}, "numbers"),
        ({"pixel_format": {"mean": [0.0], "std": [1.0], "transform": ["none"]}}, "pixel_format"),
    ],
)
def test_an_edited_description_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    built(images()).diffusion.save(tmp_path)
    path = tmp_path / "diffusion.json"
    path.write_text(json.dumps(merged(json.loads(path.read_text()), change)))
    with pytest.raises(ValueError, match=named):
        load_model(tmp_path)


def merged(document: dict, change: dict) -> dict:
    new = {name: merged(document[name], each) if isinstance(each, dict) else each for name, each in change.items()}
    return document | new


def test_damaged_fields_are_refused(tmp_path: Path) -> None:
    built(images()).diffusion.save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(ValueError, match=FILE):
        load_model(tmp_path)


def test_a_model_card_has_the_conditions() -> None:
    card = built(images()).diffusion.model_card("me/fields")
    assert "model.draw(range(4), model.cycle(range(4)), image=image, vector=vector)" in card
    assert "condition of 1 channel" in card
    assert "strain, season" in card
    assert "--condition FILES" in card
    assert "[-1, 1]" not in card


def test_models_without_all_this_have_the_same_folder_as_before(tmp_path: Path) -> None:
    model = DiffusionModel(shaken(small_run(model=NARROW).build(plain())).diffusion.net, EDM())
    model.save(tmp_path)
    assert not (tmp_path / FILE).exists()
    assert "inputs" not in json.loads((tmp_path / "diffusion.json").read_text())


def plain() -> Images:
    return Images(RNG.integers(0, 255, (4, 1, 8, 8)).astype(np.uint8))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "1 channel"),
        ({"image": torch.zeros(2, 2, 8, 8)}, "image"),
        ({"image": torch.zeros(2, 1, 4, 8)}, "image"),
        ({"image": torch.zeros(2, 1, 8, 8), "vector": [(1.0,), (2.0,)]}, "vector"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        built(images()).diffusion.draw(range(2), None, steps=2, **given)


def test_numbers_that_a_model_needs_are_named() -> None:
    model = built(images(), diffusion=DiffusionConfig(label_dropout=0.0)).diffusion
    with pytest.raises(ValueError, match="strain"):
        model.draw(range(2), None, image=torch.zeros(2, 1, 8, 8), steps=2)


def test_images_with_missing_values_are_not_compared() -> None:
    found = images(static=False, vectors=False, conditions=0, missing=True)
    model = built(found).diffusion
    with pytest.raises(ValueError, match=r"quality\.judge=j.*data\.missing"):
        Quality(model, QualityConfig(judge="j"), found, found, every_images=1)
    with pytest.raises(ValueError, match=r"nearest 'x'.*missing"):
        open_training("x", "model", model)


def test_a_model_with_inputs_has_no_likelihood() -> None:
    found = images(static=False, conditions=0)
    with pytest.raises(ValueError, match="likelihood"):
        bits_per_dimension(built(found).diffusion, found, QualityConfig(), "they")


def test_a_model_without_conditions_takes_none() -> None:
    model = shaken(small_run(model=NARROW).build(plain())).diffusion
    with pytest.raises(ValueError, match="image"):
        model.draw(range(1), None, image=torch.zeros(1, 1, 8, 8), steps=2)
    with pytest.raises(ValueError, match="vector"):
        model.draw(range(1), None, vector=[(1.0,)], steps=2)


def test_fields_have_the_size_of_their_training() -> None:
    with pytest.raises(ValueError, match="16x16"):
        built(images()).diffusion.sized(16, 16)
    assert built(images(static=False)).diffusion.sized(16, 16).shape == (2, 16, 16)


@pytest.mark.parametrize(
    "numbers",
    [
        {"names": ("a",), "mean": (0.0, 1.0), "std": (1.0,)},
        {"names": ("a",), "mean": (0.0,), "std": (0.0,)},
    ],
)
def test_numbers_that_are_none_are_refused(numbers: dict) -> None:
    with pytest.raises(ValueError, match="std"):
        Numbers(**numbers)
