import json
import re
import signal
import time
from contextlib import nullcontext
from dataclasses import fields
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.toy import (
    BATCH,
    ToyEvaluation,
    ToyTask,
    accelerator,
    config,
    hashes,
    images,
    loop,
    newest,
    tensors,
    train,
)
from training import loop as loop_module
from training.config import TrainConfig
from training.ema import EmaConfig
from training.log import read
from training.loop import fit
from training.optimizer import OPTIMIZERS
from training.run_folder import RunFolder
from training.schedule import SCHEDULES
from training.task import plan_line
from training.units import show_size


def losses(path) -> list[float]:
    return [row["loss"] for row in read(path / "log.jsonl") if "loss" in row]


def rows(path) -> list[dict]:
    """The log without what depends on the clock."""
    clock = ("images_per_second", "data_wait", "time")
    return [{key: value for key, value in row.items() if key not in clock} for row in read(path / "log.jsonl")]


def same_weights(a, b, tolerance: float) -> None:
    for file in ("model", "ema"):
        for name, value in tensors(a, file).items():
            if name != "calls":
                assert_close(tensors(b, file)[name], value, rtol=0, atol=tolerance)


def test_it_learns(tmp_path):
    train(tmp_path, images=100 * BATCH)
    found = losses(tmp_path)
    assert len(found) == 100
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_accumulation_equals_one_large_batch(tmp_path, micro_batch):
    train(tmp_path / "whole")
    task = train(tmp_path / "parts", micro_batch=micro_batch)
    assert len(task.batches) == 10 * BATCH // micro_batch
    assert all(len(batch.image) == micro_batch for batch in task.batches)
    assert len(losses(tmp_path / "whole")) == 10
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    same_weights(tmp_path / "whole", tmp_path / "parts", 1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("split", [1, 6])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, dropout, split, capsys):
    def run(path, updates):
        train(path, ToyTask(dropout=dropout), images=updates * BATCH, micro_batch=4, warmup_images=50)

    run(tmp_path / "straight", 10)
    run(tmp_path / "halves", split)
    run(tmp_path / "halves", 10)
    assert len(hashes(tmp_path / "halves")) == 3
    assert hashes(tmp_path / "halves") == hashes(tmp_path / "straight")
    assert losses(tmp_path / "halves") == losses(tmp_path / "straight")
    text = f"resuming {tmp_path / 'halves'} from {split * BATCH} images (update {split})"
    assert text in capsys.readouterr().out


def test_a_run_that_dies_between_checkpoints_resumes_with_the_same_bits(tmp_path):
    settings = {"checkpoint_every_images": 4 * BATCH, "eval_every_images": 2 * BATCH}
    train(tmp_path / "straight", ToyTask(dropout=0.3), **settings)
    task = ToyTask(dropout=0.3)
    task.spoil_at = (7,)
    with pytest.raises(ValueError, match="training diverged"):
        train(tmp_path / "died", task, **settings, max_skipped=0)
    assert newest(tmp_path / "died").name == "000000032"
    train(tmp_path / "died", ToyTask(dropout=0.3), **settings)
    assert hashes(tmp_path / "died") == hashes(tmp_path / "straight")

    assert rows(tmp_path / "died") == rows(tmp_path / "straight")


LOGGED = {"log_every_images": 4 * BATCH, "eval_every_images": 5 * BATCH, "checkpoint_every_images": 3 * BATCH}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """An undisturbed run whose lines of the log lie between checkpoints."""
    path = tmp_path_factory.mktemp("logged")
    train(path, **LOGGED)
    return path


@pytest.mark.parametrize("stops", [*([update] for update in range(1, 11)), [1, 2, 3, 5], [3, 6], list(range(1, 10))])
def test_a_stop_at_any_update_changes_no_line_of_the_log(tmp_path, logged, stops):
    for before, update in zip([0, *stops], stops, strict=False):
        task = ToyTask()
        task.signal_at = update - before, signal.SIGTERM
        assert train(tmp_path, task, **LOGGED).finished is False
        assert newest(tmp_path).name == f"{update * BATCH:09d}"
    assert train(tmp_path, **LOGGED).finished
    assert rows(tmp_path) == rows(logged)


@pytest.mark.parametrize("update", range(1, 11))
def test_a_death_at_any_update_changes_no_line_of_the_log(tmp_path, logged, update):
    class Dying(ToyTask):
        def after_update(self, model):
            if len(self.batches) == update:
                raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        train(tmp_path, Dying(), **LOGGED)
    assert train(tmp_path, **LOGGED).finished
    assert rows(tmp_path) == rows(logged)


def test_the_speed_counts_only_what_this_process_trained(tmp_path):
    task = ToyTask()
    task.signal_at = 7, signal.SIGTERM
    train(tmp_path, task, log_every_images=8 * BATCH)
    began = time.perf_counter()
    train(tmp_path, log_every_images=8 * BATCH)
    seconds = time.perf_counter() - began
    [speed] = [row["images_per_second"] for row in read(tmp_path / "log.jsonl") if row["images"] == 8 * BATCH]
    assert speed >= BATCH / seconds
    [state] = [json.loads((newest(tmp_path) / "state.json").read_text())]
    assert (state["unlogged_updates"], state["unlogged_sums"]) == (0, [[0.0, 0.0]])


def test_an_evaluation_is_planned_once_before_it_runs(tmp_path, monkeypatch, capsys):
    planned = []

    def plan(evaluation, model, folder, record=True):
        planned.append((folder, record, model.training, torch.is_grad_enabled(), len(evaluation.task.evaluated)))
        return "3 things", 12.4

    monkeypatch.setattr(ToyEvaluation, "plan", plan)
    train(tmp_path, eval_every_images=3 * BATCH)
    assert planned == [(tmp_path / "samples", True, False, False, 0)]
    assert re.search(r"^sum: 3 things takes about 12 s, \d+ % of the run$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("images", "speed", "text"),
    [(40, None, "takes about 5.0 s"), (40, 4.0, "5.0 s, 33 % of the run"), (10, 1.0, "5.0 s, 33 % of the run")],
)
def test_the_cost_of_an_evaluation_is_its_share_of_an_interval(images, speed, text):
    assert plan_line(ToyEvaluation(ToyTask(), 40), ("3 things", 5.0), images, speed).endswith(text)


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    train(tmp_path)
    text = f"finished: {tmp_path} has seen 80 images; its model is in {tmp_path / 'model'}"
    assert text in capsys.readouterr().out
    before = hashes(tmp_path)
    task = train(tmp_path)
    assert task.batches == []
    assert hashes(tmp_path) == before
    text = f"finished: {tmp_path} has seen 80 images; raise train.images to continue, or --fresh to start over"
    assert text in capsys.readouterr().out


def test_a_finished_run_can_be_extended(tmp_path):
    train(tmp_path)
    task = train(tmp_path, images=12 * BATCH)
    assert len(task.batches) == 2


def test_due_intervals(tmp_path):
    path = tmp_path / "run"
    task = train(path, log_every_images=3 * BATCH, eval_every_images=20, checkpoint_every_images=4 * BATCH, keep_last=3)
    rows = list(read(path / "log.jsonl"))
    assert [row["images"] for row in rows if "loss" in row] == [24, 48, 72, 80]
    assert task.evaluated == [24, 40, 64, 80], "the first updates at or after 20, 40, 60 images, and the end"
    assert [row["images"] for row in rows if row.get("evaluated")] == task.evaluated
    assert sorted(file.name for file in (path / "samples").iterdir()) == ["24.txt", "40.txt", "64.txt", "80.txt"]
    assert [folder.name for folder in sorted((path / "checkpoints").iterdir())] == [
        "000000032",
        "000000064",
        "000000080",
    ]
    assert task.saved == 4, "before the first update too"
    assert {row["update"] for row in rows if "loss" in row} == {3, 6, 9, 10}
    row = next(row for row in rows if "loss" in row)
    assert set(row) == {
        "images", "update", "time", "loss", "gradient_norm", "learning_rate", "images_per_second", "data_wait"
    }  # fmt: skip


def test_a_loss_line_is_the_mean_of_its_interval(tmp_path):
    train(tmp_path / "each")
    train(tmp_path / "fives", log_every_images=5 * BATCH)
    each = losses(tmp_path / "each")
    assert losses(tmp_path / "fives") == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5], rel=1e-6)


def test_keep(tmp_path):
    train(tmp_path, checkpoint_every_images=BATCH)
    assert [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())] == ["000000072", "000000080"]


def test_keep_permanently(tmp_path):
    train(tmp_path, checkpoint_every_images=10, keep_every_images=30)
    saved = [16, 24, 32, 40, 56, 64, 72, 80]  # the first updates at or after multiples of 10
    kept = [0, 32, 64, 72, 80]  # after 0, 30 and 60, and the two newest
    assert set(kept) <= {0, *saved}
    assert [int(folder.name) for folder in sorted((tmp_path / "checkpoints").iterdir())] == kept


def test_another_micro_batch_resumes_and_is_printed(tmp_path, capsys):
    train(tmp_path / "whole")
    train(tmp_path / "changed", images=5 * BATCH)
    train(tmp_path / "changed", micro_batch=4)
    text = "train.micro_batch: null when saved, 4 now; same images and noise, other dropout, batch norms"
    assert text in capsys.readouterr().out
    assert losses(tmp_path / "changed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    same_weights(tmp_path / "whole", tmp_path / "changed", 1e-5)


def test_the_size_of_checkpoints_is_printed_before_training(tmp_path, capsys):
    train(tmp_path, images=5 * BATCH, keep_last=3)
    size = (
        4 * 4 * sum(p.numel() for p in ToyTask().model.parameters()) + 2 * 8
    )  # weights, average, two of Adam; a buffer
    line = rf"checkpoints: {show_size(size)} each, 3 are kept; the first took \d+\.\d s; .+B are free"
    assert re.search(line, capsys.readouterr().out)
    train(tmp_path, checkpoint_every_images=10 * BATCH, keep_every_images=10 * BATCH)
    line = rf"checkpoints: {show_size(size)} each, 2 are kept, and 2 permanently; .+B are free"
    assert re.search(line, capsys.readouterr().out)


def test_a_checkpoint_is_there_before_the_first_update(tmp_path):
    runner = loop(tmp_path, ToyTask())
    runner.begin()
    assert newest(tmp_path).name == "000000000"
    assert_close(tensors(tmp_path)["first.weight"], ToyTask().model.first.weight.detach(), rtol=0, atol=0)
    assert (tmp_path / "model/model.safetensors").is_file()
    runner.step.close()


@pytest.mark.parametrize(
    ("log_every_images", "checkpoint_every_images"), [(BATCH, 10**9), (10**9, 6 * BATCH), (10**9, 10**9)]
)
def test_divergence_stops_before_anything_good_is_overwritten(tmp_path, log_every_images, checkpoint_every_images):
    task = ToyTask()
    task.spoil_at = (6,)
    intervals = {"log_every_images": log_every_images, "checkpoint_every_images": checkpoint_every_images}
    with pytest.raises(ValueError, match=r"training diverged: 1 update .* images .*: loss is nan.*--fresh"):
        train(tmp_path, task, **intervals, max_skipped=0)
    assert newest(tmp_path).name == "000000000"
    assert all(value.isfinite().all() for value in tensors(tmp_path).values())
    assert task.saved == 1
    train(tmp_path / "good", log_every_images=log_every_images)
    good = losses(tmp_path / "good")
    assert losses(tmp_path) == (good[:5] if log_every_images == BATCH else []), "no NaN in the log"


def test_the_average_is_that_of_the_trained_weights(tmp_path):
    runner = loop(tmp_path, ToyTask(), halflife_images=30)
    runner.begin()
    expected = runner.step.trained.first.weight.detach().double()
    for _ in range(10):
        runner.step.update()
        keep = runner.step.settings.ema.decays(runner.step.images_seen, BATCH)["ema"]
        expected = keep * expected + (1 - keep) * runner.step.trained.first.weight.detach().double()
    assert_close(runner.step.ema.model.first.weight.double(), expected, rtol=0, atol=1e-6)
    assert runner.step.ema.model.calls == 10
    runner.step.close()


class Syncs(TorchDispatchMode):
    """Counts the copies of numbers from the device to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **options or {})


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_an_update_waits_for_the_device_only_to_decide_whether_to_skip_it(tmp_path, max_grad_norm, monkeypatch):
    read, tolist = [], Tensor.tolist  # which is not counted
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: read.append(tensor) or tolist(tensor))
    runner = loop(tmp_path, ToyTask(), micro_batch=4, max_grad_norm=max_grad_norm)
    with Syncs() as syncs:
        for _ in range(3):
            loss = runner.step.update().loss
    assert (syncs.count, len(read)) == (0, 3)
    with syncs:
        loss.item()
    assert syncs.count == 1, "the counter counts"
    runner.step.close()


def final(path, task: ToyTask | None = None, **changes) -> dict[str, torch.Tensor]:
    train(path, task, **changes)
    return {f"{file}.{name}": value for file in ("model", "ema") for name, value in tensors(path, file).items()}


CHANGED = {
    "batch": 4, "learning_rate": 2e-2, "warmup_images": 40, "schedule": "cosine", "weight_decay": 0.5,
    "betas": (0.5, 0.9), "max_grad_norm": 0.01, "seed": 1, "precision": "bf16", "optimizer": "sgd", "momentum": 0.5,
    "nesterov": True, "decay_vectors": False, "milestones_images": (40, 60), "factor": 0.5, "constant_images": 20,
}  # fmt: skip
STEPS = {"schedule": "step", "milestones_images": (40,)}
OTHERS = {  # what else must be so for a field to matter
    "momentum": {"optimizer": "sgd"},
    "nesterov": {"optimizer": "sgd"},
    "decay_vectors": {"weight_decay": 0.5},
    "milestones_images": STEPS,
    "factor": STEPS,
    "constant_images": {"schedule": "inverse_sqrt", "constant_images": 40},
}
AVERAGED = {"halflife_images": 2, "rampup": None}
ELSEWHERE = {  # has no effect on the weights; shown by the test named
    "images": "test_a_finished_run_can_be_extended",
    "micro_batch": "test_accumulation_equals_one_large_batch",
    "log_every_images": "test_due_intervals",
    "eval_every_images": "test_due_intervals",
    "checkpoint_every_images": "test_due_intervals",
    "keep_last": "test_keep",
    "keep_every_images": "test_keep_permanently",
    "compile": "test_compile_changes_the_speed_only",
    "cuda_graphs": "test_cuda_graphs_change_the_speed_only",
    "hang_seconds": "test_the_limit_of_a_run_is_its_setting",
    "trackers": "test_trackers",
    "max_skipped": "test_divergence_stops_before_anything_good_is_overwritten",
    "more_halflife_images": "test_further_averages",
    "power_widths": "test_further_averages",
    "snapshot_every_images": "test_further_averages",
}


def test_every_field_is_shown_to_matter():
    classes = [TrainConfig, EmaConfig, *OPTIMIZERS.values(), *SCHEDULES.values()]
    names = {field.name for cls in classes for field in fields(cls)} | {"optimizer", "schedule"}
    assert names == {*CHANGED, *AVERAGED, *ELSEWHERE}
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.mark.parametrize("name", CHANGED)
def test_a_field_changes_the_weights(tmp_path, name, monkeypatch):
    monkeypatch.setattr("training.precision.cpu_flags", lambda: {"avx512_bf16"})
    others = OTHERS.get(name, {})
    before, after = final(tmp_path / "a", **others), final(tmp_path / "b", **others | {name: CHANGED[name]})
    assert any(not value.equal(after[key]) for key, value in before.items() if key.startswith("model."))


@pytest.mark.parametrize("name", AVERAGED)
def test_a_field_changes_the_average_only(tmp_path, name):
    before, after = final(tmp_path / "a"), final(tmp_path / "b", **{name: AVERAGED[name]})
    assert torch.equal(before["model.first.weight"], after["model.first.weight"])
    assert not torch.equal(before["ema.first.weight"], after["ema.first.weight"])


def test_further_averages(tmp_path):
    """They are in the checkpoint, and those with a width in snapshots; nothing else changes."""
    more = {"more_halflife_images": (2,), "power_widths": (0.1,), "snapshot_every_images": 3 * BATCH}
    before, after = final(tmp_path / "a"), final(tmp_path / "b", **more)
    assert_close(after, before, rtol=0, atol=0)
    assert hashes(tmp_path / "b").keys() - hashes(tmp_path / "a").keys() == {
        "ema-2.safetensors",
        "ema-0.1.safetensors",
    }
    assert not (tmp_path / "a/snapshots").exists()
    found = sorted(path.name for path in (tmp_path / "b/snapshots").iterdir())
    assert found == [f"{seen:09d}-0.1.safetensors" for seen in (24, 48, 72, 80)], "every 24, and the end"
    last = load_file(tmp_path / "b/snapshots/000000080-0.1.safetensors")
    assert_close(last, tensors(tmp_path / "b", "ema-0.1"), rtol=0, atol=0)
    trained = ("model", "ema", "ema-2", "ema-0.1")
    assert len({tensors(tmp_path / "b", name)["first.bias"].sum().item() for name in trained}) == 4


def test_flips_reach_the_images(tmp_path):
    flipped, plain = train(tmp_path / "a"), train(tmp_path / "b", ToyTask(flip=False))
    same = [
        torch.equal(a, b)
        for x, y in zip(flipped.batches, plain.batches, strict=True)
        for a, b in zip(x.image, y.image, strict=True)
    ]
    assert 20 < sum(same) < 60


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_changes_the_speed_only(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    task = ToyTask()
    task.model.norm = nn.GroupNorm(2, 8)  # NormAct has type checks here, which torch.compile cannot trace
    compiled = final(tmp_path / "a", task, images=3 * BATCH, compile=True)
    assert task.model._compiled_call_impl is not None
    for name, value in final(tmp_path / "b", images=3 * BATCH).items():  # by the same names
        assert_close(compiled[name], value, rtol=0, atol=1e-5)


@pytest.fixture
def on_gpu(monkeypatch):
    """accelerate chooses the GPU, other than in the tests of the CPU that ran before."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
def test_cuda_graphs_change_the_speed_only(tmp_path, on_gpu):
    task = ToyTask()
    task.model.norm = nn.GroupNorm(2, 8)  # as above
    replayed = final(tmp_path / "a", task, images=6 * BATCH, compile=True, cuda_graphs=True)
    for name, value in final(tmp_path / "b", images=6 * BATCH).items():
        assert_close(replayed[name], value, rtol=0, atol=1e-5)


def test_the_limit_of_a_run_is_its_setting(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(loop_module, "watching", lambda progress, limit, first: limits.append(limit) or nullcontext())
    train(tmp_path, hang_seconds=20.0)
    assert limits == [20]


def test_trackers(tmp_path):
    train(tmp_path / "a", images=BATCH)
    train(tmp_path / "b", images=BATCH, trackers=("tensorboard",))
    assert not (tmp_path / "a/tensorboard").exists()
    assert list((tmp_path / "b/tensorboard/residual-diffusion").glob("events.*"))


def test_bf16_reaches_the_convolutions_and_not_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("training.precision.cpu_flags", lambda: {"avx512_bf16"})
    task, seen = ToyTask(), []
    task.model.first.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(tmp_path, task, precision="bf16", images=BATCH, eval_every_images=BATCH)
    assert set(seen) == {torch.bfloat16}
    assert tensors(tmp_path)["first.weight"].dtype == torch.float32


def test_images_and_weights_are_channels_last(tmp_path):
    task = ToyTask()
    train(tmp_path, task, pictures=images(), images=BATCH)
    assert task.batches[0].image.is_contiguous(memory_format=torch.channels_last)
    assert task.model.last.weight.is_contiguous(memory_format=torch.channels_last)


def test_another_model_is_refused_with_the_difference(tmp_path):
    train(tmp_path)
    task = ToyTask(channels=4)
    task.model.extra = nn.Linear(1, 1)
    text = (
        "model.safetensors: the weights do not fit this network: 2 missing: extra.weight, extra.bias; "
        "6 of another shape: first.weight has (8, 1, 3, 3), expected (4, 1, 3, 3), first.bias has (8,), expected (4,), "
        "norm.weight has (8,), expected (4,), norm.bias has (8,), expected (4,), …; "
        "give the model that was trained, or --fresh to start over"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        train(tmp_path, task, images=12 * BATCH)


def test_unexpected_names_are_shown(tmp_path):
    larger = ToyTask()
    larger.model.extra = nn.Linear(1, 1)
    train(tmp_path, larger)
    with pytest.raises(ValueError, match=re.escape("do not fit this network: 2 unknown: extra.bias, extra.weight")):
        train(tmp_path, images=12 * BATCH)


def test_control_characters_in_the_path_of_a_run_are_escaped(tmp_path, capsys):
    train(tmp_path / "a\x1b[2J" / "run", images=BATCH)
    train(tmp_path / "a\x1b[2J" / "run", images=BATCH)
    printed = capsys.readouterr().out
    assert printed.count("a\\x1b[2J") >= 2
    assert "\x1b" not in printed


@pytest.mark.parametrize("length", [10 * BATCH, 12 * BATCH])  # the run is finished, or goes on
def test_other_images_are_refused_and_change_nothing(tmp_path, length):
    train(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "config.yaml", *(tmp_path / "model").iterdir())}
    with pytest.raises(ValueError, match=r"other images \(fingerprint \w{12}, now \w{12}\).*--run.*--fresh"):
        train(tmp_path, pictures=images(seed=1), images=length, log_every_images=3 * BATCH)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("later", ["two", ""])
def test_other_weights_that_the_loss_builds_on_are_refused(tmp_path, later):
    task = ToyTask()
    task.foundation = "one"
    train(tmp_path, task)
    again = ToyTask()
    again.foundation = later
    with pytest.raises(ValueError, match=rf"other weights.*\(fingerprint one, now {later}\)"):
        train(tmp_path, again)
    again.foundation = "one"
    assert train(tmp_path, again).finished is not None


def test_a_folder_that_is_not_open(tmp_path):
    settings = config()
    with pytest.raises(ValueError, match=re.escape(f"the run folder {tmp_path} is not open; call folder.open(")):
        fit(ToyTask(), images(), settings, RunFolder(tmp_path), accelerator(settings))
