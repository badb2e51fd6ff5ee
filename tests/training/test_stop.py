"""Stopping a run: signals, their timing, and what is saved."""

import os
import signal

import pytest

from tests import forks
from tests.training.test_loop import losses
from tests.training.toy import BATCH, ToyTask, hashes, newest, train
from training import checkpoint, stop
from training.stop import SIGNALS, Stop


@pytest.fixture(autouse=True)
def _default_handlers():
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if the tests were started by nohup
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_requests_a_stop_that_stays(number):
    with Stop() as request:
        assert request.agreed() is None
        signal.raise_signal(number)
        assert request.agreed() == number.name
        signal.raise_signal(signal.SIGTERM)
        assert request.agreed() == number.name


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.agreed() is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", None])
def test_the_end_of_a_launcher_requests_a_stop(monkeypatch, launcher):
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "no")
    with Stop() as request:
        assert request.agreed() is None
        monkeypatch.setattr(os, "getppid", lambda: stop._PARENT + 1)
        assert request.agreed() == ("the end of its launcher" if launcher else None)


SECOND_CTRL_C = """
import signal
from training.stop import Stop
with Stop() as request:
    signal.raise_signal(signal.SIGINT)
    print(request.agreed(), flush=True)
    signal.raise_signal(signal.SIGINT)
    print("still here", flush=True)
"""


def test_a_second_ctrl_c_ends_the_process_at_once():
    done = forks.run(SECOND_CTRL_C)
    assert done.stdout == "SIGINT\n"
    assert done.stderr == "\nstopping after this update; Ctrl-C again: at once\n"
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_run_is_saved_and_resumes_bit_for_bit(tmp_path, capsys, number):
    assert train(tmp_path / "straight", ToyTask(dropout=0.3)).finished is True
    task = ToyTask(dropout=0.3)
    task.signal_at = 4, number
    assert train(tmp_path / "pieces", task).finished is False
    assert newest(tmp_path / "pieces").name == f"{4 * BATCH:09d}"
    saved = f"stopped by {number.name} after 32 images, saved in {tmp_path / 'pieces'}"
    assert saved in capsys.readouterr().out
    assert train(tmp_path / "pieces", ToyTask(dropout=0.3)).finished is True
    assert hashes(tmp_path / "pieces") == hashes(tmp_path / "straight")
    assert losses(tmp_path / "pieces") == losses(tmp_path / "straight")


def test_what_is_due_is_saved_once(tmp_path, monkeypatch):
    published = []
    monkeypatch.setattr(checkpoint, "publish", lambda staged, do=checkpoint.publish: published.append(do(staged)))
    task = ToyTask()
    task.signal_at = 4, signal.SIGTERM
    train(tmp_path, task, checkpoint_every_images=4 * BATCH, eval_every_images=4 * BATCH)
    assert len(published) == 2  # before the first update, and now
    assert task.evaluated == []


@pytest.mark.parametrize("checkpoint_every_images", [2 * BATCH, 10**9])
def test_an_evaluation_is_cut_short_saved_and_made_again(tmp_path, checkpoint_every_images):
    dues = {"eval_every_images": 2 * BATCH, "checkpoint_every_images": checkpoint_every_images}
    straight = train(tmp_path / "straight", **dues)
    task = ToyTask()
    task.signal_in_evaluation = 4 * BATCH, signal.SIGTERM
    assert train(tmp_path / "pieces", task, **dues).finished is False
    assert task.evaluated == [16]
    assert newest(tmp_path / "pieces").name == f"{4 * BATCH:09d}"
    rest = train(tmp_path / "pieces", **dues)
    assert rest.finished is True
    assert rest.evaluated == straight.evaluated[1:]
    assert hashes(tmp_path / "pieces") == hashes(tmp_path / "straight")


def test_a_stop_in_the_last_evaluation_leaves_it_to_be_made(tmp_path):
    task = ToyTask()
    task.signal_in_evaluation = 10 * BATCH, signal.SIGTERM
    assert train(tmp_path, task).finished is False
    rest = train(tmp_path)
    assert rest.finished is True
    assert (rest.batches, rest.evaluated) == ([], [80])
