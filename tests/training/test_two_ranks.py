"""Two processes train the same model as one. Both start once, and do everything that is asked here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.training.test_loop import losses, rows, same_weights
from tests.training.toy import BATCH, ToyTask, hashes, loop, newest, train
from tests.training.two_ranks import AVERAGES
from training.log import read

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder in which two processes have run `two_ranks.py`; "elastic" was begun by one process."""
    out = tmp_path_factory.mktemp("two_ranks")
    train(out / "elastic", images=6 * BATCH)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "tests/training/two_ranks.py"), str(out)]
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (out / "stdout").write_text(done.stdout)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The same runs in this process."""
    out = tmp_path_factory.mktemp("one_rank")
    train(out / "plain")
    return out


@pytest.mark.parametrize("run", ["plain", "parts"])
def test_two_ranks_equal_one(one, two, run):
    assert len(losses(two / run)) == 10
    assert losses(two / run) == pytest.approx(losses(one / "plain"), abs=1e-5)
    same_weights(one / "plain", two / run, 1e-5)


def test_a_resumed_run_is_the_same_bit_for_bit(two):
    assert len(hashes(two / "halves")) == 3
    assert hashes(two / "halves") == hashes(two / "straight")
    assert losses(two / "halves") == losses(two / "straight")


def test_both_save_and_end_if_one_loses_a_file_and_no_update_is_repeated(two):
    for rank in range(2):
        assert (two / f"lost{rank}.txt").read_text().startswith("shard 7 has disappeared (saved after 32 images")
    assert hashes(two / "lost") == hashes(two / "straight")
    assert losses(two / "lost") == losses(two / "straight")


def test_unreadable_images_count_on_all_processes_together(two):
    for rank in range(2):
        text = (two / f"unreadable{rank}.txt").read_text()
        assert text.startswith("more than data.max_bad 1 images cannot be read"), "one on each"
        assert text.count("not an image") == 2
        assert text.endswith("(saved after 8 images)")
    assert newest(two / "streamed").name == "000000008"


def test_both_use_a_smaller_micro_batch_if_the_memory_of_one_runs_out(two):
    assert hashes(two / "halved") == hashes(two / "straight")
    assert losses(two / "halved") == losses(two / "straight")
    printed = (two / "stdout").read_text()
    assert printed.count("out of memory with 4 images in a forward pass: from now on 2, in 2 passes") == 2
    for rank in range(2):
        assert "not even one image" in (two / f"too_large{rank}.txt").read_text()


def test_an_evaluation_that_fails_on_one_process_leaves_no_trace(two):
    assert hashes(two / "failing") == hashes(two / "plain")
    found = {row["images"]: row for row in read(two / "failing/log.jsonl") if "evaluated" in row}
    for images, rank in {16: 1, 32: 1, 48: 0}.items():
        assert found[images]["failed"] == {"sum": f"process {rank}: RuntimeError: injected"}
    assert [found[images]["ranks"] for images in (64, 80)] == [1, 1], "both take part again"
    assert "the sum failed 3 times" in (two / "stdout").read_text()


def test_stops_change_no_line_of_the_log(two):
    assert len(rows(two / "logged")) == 5
    assert rows(two / "logged in pieces") == rows(two / "logged")


def test_a_signal_to_one_rank_stops_both_after_the_same_update(two):
    for rank in range(2):
        assert (two / f"stopped{rank}.txt").read_text() == "False 4"  # two micro-batches per update
    assert "stopped by SIGTERM after 16 images" in (two / "stdout").read_text()
    assert hashes(two / "stopped") == hashes(two / "straight")
    assert losses(two / "stopped") == losses(two / "straight")


def test_frozen_parameters_stay_frozen_on_two_ranks(two):
    start = ToyTask().model.state_dict()
    for name, tensor in load_file(newest(two / "frozen") / "model.safetensors").items():
        assert name == "calls" or tensor.equal(start[name]) == name.startswith("first."), name


def test_two_ranks_resume_a_run_of_one(one, two):
    assert losses(two / "elastic") == pytest.approx(losses(one / "plain"), abs=1e-5)
    same_weights(one / "plain", two / "elastic", 1e-5)
    assert (
        "processes: 1 when saved, 2 now; same images and noise, other dropout, batch norms and rounding"
        in (two / "stdout").read_text()
    )


def test_the_averages_are_the_same_on_both_and_on_one(two, tmp_path):
    ranks = [load_file(two / f"average{rank}.safetensors") for rank in range(2)]
    expected = load_file(two / "expected0.safetensors")
    runner = loop(tmp_path, ToyTask(), **AVERAGES)
    for _ in range(10):
        runner.step.update()
    runner.step.close()
    assert list(runner.step.averages) == ["ema", "ema-16", "ema-0.1"]
    for average, ema in runner.step.averages.items():
        for parameter, value in ema.model.named_parameters():
            name = f"{average}.{parameter}"
            assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0)
            assert_close(ranks[0][name].double(), expected[name], rtol=0, atol=1e-6)
            assert_close(ranks[0][name], value, rtol=0, atol=1e-5)


def test_one_bad_process_stops_both_before_anything_is_saved(two):
    for rank in range(2):
        printed = (two / f"diverged{rank}.txt").read_text()
        assert re.search(r"training diverged: 1 update .*: loss is nan", printed)
    assert newest(two / "diverged").name == "000000000"
    assert len(losses(two / "diverged")) == 3


def test_an_update_that_is_not_finite_on_one_process_is_skipped_by_both(two):
    saved = [torch.load(two / f"skipped{rank}.pt") for rank in range(2)]
    for skipped, _, before, after in saved:
        assert skipped == [False, False, False, True]
        assert_close(after, before, rtol=0, atol=0)
    assert_close(saved[0][3], saved[1][3], rtol=0, atol=0)
    assert [bool(loss.isfinite()) for _, loss, *_ in saved] == [True, False]


def test_an_error_on_the_main_process_is_raised_on_both(two):
    for rank in range(2):
        assert "is not a run folder (no config.yaml)" in (two / f"refused{rank}.txt").read_text()
        assert "there is no such folder or file" in (two / f"no_images{rank}.txt").read_text()


def test_only_the_main_process_prints(two):
    assert (two / "stdout").read_text().count("device: cpu, 2 processes; precision: float32 (as requested)") == 24
