"""Two stages: a regression, and a diffusion model of its residual."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffusion import EDM
from pictures.preprocessing import Preprocessing
from pipelines.classification import ImageClassifier
from pipelines.diffusion import REGRESSION
from pipelines.diffusion_folder import load_model
from pipelines.regression import DESCRIPTION_FILE, load_regression
from resnet import create_model
from tasks.denoising import DiffusionConfig, DiffusionTask
from tasks.inputs import residual_std
from tasks.regression import RegressionRun, RegressionTask, prediction_error
from tests.tasks.small import shaken, small_run
from tests.tasks.test_fields import NARROW, UNITS, batch_of, images, losses, random
from training.data import DataConfig, Images
from training.output_folder import weights_sha256
from training.task import Batch


def regression(found: Images) -> RegressionTask:
    data = DataConfig(source="digits", missing=found.seen is not None)
    task = RegressionRun(model=NARROW, data=data).build(found)
    generator = torch.Generator().manual_seed(0)
    for weight in task.model.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    task.model.eval()
    return task


def saved(found: Images, folder: Path) -> Path:
    folder.mkdir()
    task = regression(found)
    task.save(task.model, folder)
    return folder


def two_stages(found: Images, folder: Path) -> DiffusionTask:
    data = DataConfig(source="digits", missing=found.seen is not None)
    config = DiffusionConfig(regression=str(folder))
    return shaken(small_run(model=NARROW, objective=EDM(), data=data, diffusion=config).build(found))


def test_the_loss_is_the_error_of_the_known_values() -> None:
    found = images(missing=True)
    task = regression(found)
    assert task.regression.net.config.in_channels == 1 + 2 + 1
    batch = batch_of(found, 6)
    model = task.regression
    fields = model.inputs.with_static(batch.image[:, 2:])
    with torch.no_grad():
        predicted = model(*model.training(fields, batch.vector))
        loss = task.loss(task.model, batch, random(6))
    error = (predicted - batch.image[:, :2]).square()
    expected = torch.where(batch.image[:, :2].isnan(), 0.0, error).mean((1, 2, 3))
    assert_close(loss, expected)


def test_missing_values_have_no_gradient() -> None:
    found = images(missing=True)
    task, batch = regression(found), batch_of(found, 6)
    assert batch.image[:, :2].isnan().any()
    task.loss(task.model, batch, random(6)).mean().backward()
    for name, weight in task.model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_the_evaluation_is_over_all_known_values() -> None:
    found = images(missing=True)
    task = regression(found)
    batch = batch_of(found, 16)
    model = task.regression
    with torch.no_grad():
        predicted = model(*model.training(model.inputs.with_static(batch.image[:, 2:]), batch.vector))
    expected = (predicted - batch.image[:, :2]).square().nanmean().sqrt()
    measured = prediction_error(model, found)
    assert measured is not None
    assert measured["rmse"] == pytest.approx(float(expected), rel=1e-5)


def test_a_model_folder_predicts_the_same(tmp_path: Path) -> None:
    found = images()
    folder = saved(found, tmp_path / "model")
    model, again = regression(found).regression, load_regression(folder)
    condition, vector = torch.randn(3, 1, 8, 8), [(1.0, 2.0)] * 3
    predicted = again.predict(condition, vector, 3, (8, 8), "cpu")
    assert_close(predicted, model.predict(condition, vector, 3, (8, 8), "cpu"), rtol=0, atol=0)
    assert predicted.shape == (3, *again.shape)
    with pytest.raises(ValueError, match="vector"):
        again.predict(condition, None, 3, (8, 8), "cpu")


def test_samples_are_the_prediction_and_a_scaled_residual(tmp_path: Path) -> None:
    found = images()
    task = two_stages(found, saved(found, tmp_path / "first"))
    model, base = task.diffusion, task.diffusion.base
    assert base is not None
    given = {"image": torch.randn(2, 1, 8, 8), "vector": [(1.0, 2.0)] * 2, "steps": 3}
    alone = replace(model, base=None).draw(range(2), None, **given)
    mean = base.model.predict(given["image"], given["vector"], 2, (8, 8), "cpu")
    std = torch.tensor(base.std)[:, None, None]
    assert_close(model.draw(range(2), None, **given), mean + std * alone)


def test_the_network_learns_the_scaled_residual(tmp_path: Path) -> None:
    found = images()
    task = two_stages(found, saved(found, tmp_path / "first"))
    base = task.diffusion.base
    assert base is not None
    assert base.std == residual_std(base.model, found)
    assert task.foundation == weights_sha256(base.model.net), "a resumed run needs the same"
    batch = batch_of(found, 4)
    fields = base.model.inputs.with_static(batch.image[:, 2:])
    residual = base.residual(batch.image[:, :2], fields, batch.vector)
    plain = DiffusionTask(replace(task.diffusion, base=None), task.config, task.augment)
    image = torch.cat([residual, batch.image[:, 2:]], dim=1)
    assert_close(losses(task, batch), losses(plain, Batch(image, None, vector=batch.vector)))
    whole = batch_of(found, 16)
    all_fields = base.model.inputs.with_static(whole.image[:, 2:])
    scaled = base.residual(whole.image[:, :2], all_fields, whole.vector)
    assert_close(scaled.square().mean((0, 2, 3)), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_the_model_folder_holds_both(tmp_path: Path) -> None:
    found = images(missing=True)
    task = two_stages(found, saved(found, tmp_path / "first"))
    (tmp_path / "model").mkdir()
    task.diffusion.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    given = {"image": torch.randn(2, 1, 8, 8), "vector": [(1.0, 2.0)] * 2, "steps": 2}
    assert_close(again.draw(range(2), None, **given), task.diffusion.draw(range(2), None, **given))  # other layouts
    description = tmp_path / "model" / "diffusion.json"
    document = json.loads(description.read_text())
    description.write_text(json.dumps(document | {"residual_std": [1.0]}))
    with pytest.raises(ValueError, match="residual_std"):
        load_model(tmp_path / "model")
    description.write_text(json.dumps({name: each for name, each in document.items() if name != "residual_std"}))
    with pytest.raises(ValueError, match="residual_std"):
        load_model(tmp_path / "model")
    description.write_text(json.dumps(document))
    other = tmp_path / "model" / REGRESSION / DESCRIPTION_FILE
    text = other.read_text()
    other.write_text(text.replace("280.0", "281.0"))
    with pytest.raises(ValueError, match=REGRESSION):
        load_model(tmp_path / "model")
    other.unlink()
    with pytest.raises(ValueError, match=REGRESSION):
        load_model(tmp_path / "model")


def test_a_regression_of_other_data_is_refused(tmp_path: Path) -> None:
    folder = saved(images(static=False), tmp_path / "first")
    with pytest.raises(ValueError, match="regression"):
        two_stages(images(static=False, vectors=False), folder)
    with pytest.raises(ValueError, match="condition"):
        RegressionRun(model=NARROW).build(images(conditions=0))


def test_a_residual_starts_from_no_image(tmp_path: Path) -> None:
    found = images()
    model = two_stages(found, saved(found, tmp_path / "first")).diffusion
    given = {"image": torch.randn(2, 1, 8, 8), "vector": [(1.0, 2.0)] * 2, "steps": 2}
    with pytest.raises(ValueError, match="residual"):
        model.draw(range(2), None, origin=torch.zeros(2, 2, 8, 8), **given)
    with pytest.raises(ValueError, match="residual"):
        model.inverting(torch.zeros(2, 2, 8, 8), None, sampler="euler", **given)


def test_the_time_of_a_regression_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match=r"model\.time_embedding=log_fourier"):
        RegressionRun(model=replace(NARROW, time_embedding="log_fourier"))


def test_a_guide_draws_the_same_residual(tmp_path: Path) -> None:
    found = images()
    model = two_stages(found, saved(found, tmp_path / "first")).diffusion
    assert model.base is not None
    for base in (None, replace(model.base, std=(1.0, 2.0))):
        with pytest.raises(ValueError, match="residual_std"):
            model.guided_by(replace(model, base=base))
    assert model.guided_by(model).guide is model.net


def test_no_classifier_guides_a_residual(tmp_path: Path) -> None:
    found = images()
    model = two_stages(found, saved(found, tmp_path / "first")).diffusion
    preprocessing = Preprocessing(size=(8, 8), channels=1)
    net = create_model("resnet20", num_classes=2, in_channels=2)
    classifier = ImageClassifier(net, ("a", "b"), preprocessing, UNITS, formulation=model.formulation)
    with pytest.raises(ValueError, match="residual"):
        model.classified_by(classifier)


def test_another_size_suits_the_regression(tmp_path: Path) -> None:
    found = images(static=False, vectors=False)
    deep = replace(NARROW, channel_multipliers=(1, 1, 1))
    task = RegressionRun(model=deep, data=DataConfig(source="digits")).build(found)
    (tmp_path / "first").mkdir()
    task.save(task.model, tmp_path / "first")
    for weight in task.model.parameters():
        weight.data.add_(torch.ones_like(weight), alpha=0.01)
    model = two_stages(found, tmp_path / "first").diffusion
    assert model.sized(12, 12).shape == (2, 12, 12)
    with pytest.raises(ValueError, match=r"size=10x10.* 4 pixels"):
        model.sized(10, 10)


def test_the_error_of_another_set_is_in_the_units_of_the_training() -> None:
    found = images(static=False, vectors=False)
    model = regression(found).regression
    other = Images(found.read(np.arange(16)), pixel_format=replace(UNITS, mean=(0.0, 1.0, 2.0)), conditions=1)
    assert prediction_error(model, other) == prediction_error(model, found)


def test_what_is_predicted_exactly_leaves_nothing_to_draw() -> None:
    found = images(static=False, vectors=False)
    model = regression(found).regression
    exact = Images(np.repeat(found.read(np.arange(1)), 3, axis=0), pixel_format=found.pixel_format, conditions=1)
    for weight in model.net.parameters():
        weight.data.zero_()
    values = exact.read(np.arange(3))
    values[:, :2] = np.array(found.pixel_format.from_unit(torch.zeros(1, 3, 1, 1)))[:, :2]
    zero = Images(values, pixel_format=found.pixel_format, conditions=1)
    with pytest.raises(ValueError, match="channel 0"):
        residual_std(model, zero)
