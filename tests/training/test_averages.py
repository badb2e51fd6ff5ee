"""Snapshots of power-function averages, and what is reconstructed from them."""

import errno
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tests.training.toy import BATCH, ToyTask, newest, tensors, train
from training import loop
from training.averages import MAX_ERROR, Average, Profiles, RunAverages, fit
from training.checkpoint import sha256
from training.ema import power_exponent

WIDTHS = (0.05, 0.1)
EVERY = {"power_widths": WIDTHS, "snapshot_every_images": BATCH}


def snapshots(path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted((path / "snapshots").iterdir())}


def profiles(widths, times) -> Profiles:
    """Those of each width at each time."""
    return Profiles.of(
        [width for _ in times for width in widths],
        [time for time in times for _ in widths],
    )


def test_inner_products_equal_numerical_integrals():
    known = profiles((0.02, 0.1, 0.25), (0.3, 0.8, 1.0))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    found = known.inner(known)
    for i, (a, end_a) in enumerate(zip(known.exponent, known.end, strict=True)):
        for j, (b, end_b) in enumerate(zip(known.exponent, known.end, strict=True)):
            end = min(end_a, end_b)
            time = (nodes + 1) / 2 * end
            first = (a + 1) * (time / end_a) ** a / end_a
            second = (b + 1) * (time / end_b) ** b / end_b
            assert found[i, j] == pytest.approx((weights * end / 2 * first * second).sum(), rel=1e-9)


def test_the_error_is_that_of_the_sum_of_profiles():
    """The difference of the functions, integrated numerically."""
    known, wanted = profiles(WIDTHS, np.arange(1, 13) / 12), Profiles.of([0.03, 0.2], [1.0, 1.0])
    coefficients, errors = fit(known, wanted)
    nodes, weights = np.polynomial.legendre.leggauss(300)
    pieces = [((nodes + 1) / 2 + piece) / 12 for piece in range(12)]  # smooth between two snapshots

    def values(of: Profiles, time):
        return (of.exponent + 1) * (time[:, None] / of.end) ** of.exponent / of.end * (time[:, None] <= of.end)

    difference = sum(
        (weights / 24) @ (values(known, time) @ coefficients - values(wanted, time)) ** 2 for time in pieces
    )
    norm = sum((weights / 24) @ values(wanted, time) ** 2 for time in pieces)
    assert_close(errors, np.sqrt(difference / norm), rtol=1e-6, atol=0)
    assert_close(coefficients.sum(axis=0), np.ones(2), rtol=0, atol=1e-9)


def test_a_tracked_width_is_its_own_snapshot():
    known = profiles(WIDTHS, [0.25, 0.5, 0.75, 1.0])
    coefficients, errors = fit(known, Profiles.of(WIDTHS, [1.0, 1.0]))
    assert_close(coefficients[-2:], np.eye(2), rtol=0, atol=1e-6)
    assert (errors < 1e-6).all()


@pytest.mark.parametrize("width", [0.03, 0.04, 0.07, 0.15, 0.2])
def test_a_reconstruction_is_as_near_as_its_error(width):
    """In float64, of weights that change at random: the bound of Cauchy and Schwarz."""
    updates, every = 240, 10
    trajectory = np.random.default_rng(0).normal(size=(updates, 50))

    def average(width: float, until: int):
        edges = (np.arange(until + 1) / until) ** (power_exponent(width) + 1)
        return np.diff(edges) @ trajectory[:until]

    times = range(every, updates + 1, every)
    stored = np.stack([average(each, time) for time in times for each in WIDTHS])
    wanted = Profiles.of([width], [updates])
    coefficients, errors = fit(profiles(WIDTHS, times), wanted)
    assert 0 < errors[0] < MAX_ERROR
    difference = coefficients[:, 0] @ stored - average(width, updates)
    bound = errors[0] * np.sqrt(wanted.inner(wanted)[0, 0]) * np.sqrt((trajectory**2).sum(axis=0))
    assert (abs(difference) <= bound).all()
    assert abs(difference).max() > 0.01 * bound.max(), "not by accident"


def test_a_width_of_a_run_equals_the_one_that_was_tracked(tmp_path):
    train(tmp_path / "two", **EVERY, images=15 * BATCH, checkpoint_every_images=BATCH, keep_last=100)
    train(tmp_path / "one", power_widths=(0.07,), images=15 * BATCH)
    found = RunAverages(str(tmp_path / "two")).choose(0.07)
    assert (found.images, found.name) == (15 * BATCH, "0.07")
    assert re.search(rf"width 0\.07, reconstructed from \d+ snapshots.* {found.error:.2%}", found.about)
    assert 1e-4 < found.error < MAX_ERROR
    states = [load_file(path / "model.safetensors") for path in sorted((tmp_path / "two/checkpoints").iterdir())[1:]]
    wanted = Profiles.of([0.07], [15.0])
    size = float(np.sqrt(wanted.inner(wanted)[0, 0]))
    for name, value in tensors(tmp_path / "one", "ema-0.07").items():
        if name == "calls":
            assert found.weights()[name] == value == 15
            continue
        spread = torch.stack([state[name] for state in states]).double()
        spread = (spread - spread.mean(dim=0)).square().sum(dim=0).sqrt()
        difference = (found.weights()[name].double() - value.double()).abs()
        assert (difference <= found.error * size * spread + 1e-6).all(), name
        assert difference.max() > 0


def test_weights_that_never_change_are_exact(tmp_path):
    task = ToyTask()
    task.model.first.requires_grad_(False)
    start = task.model.first.weight.clone()
    train(tmp_path, task, **EVERY)
    chosen = RunAverages(str(tmp_path)).choose(0.07)
    assert len(chosen.parts) > 2
    assert_close(chosen.weights()["first.weight"], start, rtol=1e-6, atol=1e-7)


def test_half_lives_are_read_from_the_newest_checkpoint(tmp_path):
    train(tmp_path, more_halflife_images=(16,), halflife_images=50)
    averages = RunAverages(str(tmp_path / "model"))  # of a run, too
    for halflife, file in ((16, "ema-16"), (50, "ema")):
        chosen = averages.choose(halflife)
        assert (chosen.images, chosen.error, chosen.name) == (80, 0, str(halflife))
        assert_close(chosen.weights(), tensors(tmp_path, file), rtol=0, atol=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With half-lives of 50 and 16 images, and snapshots of two widths after every second update of ten."""
    path = tmp_path_factory.mktemp("averages") / "run"
    ema = {"halflife_images": 50, "more_halflife_images": (16,), "power_widths": WIDTHS}
    train(path, **ema, snapshot_every_images=2 * BATCH)
    return path


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0.01, r"ema=0\.01 .*error of \d\d\.\d%, above 5%.*half-lives: 50, 16; widths: 0\.0\d+ to 0\.\d+"),
        (0.28, r"ema=0\.28 .*error of \d\d\.\d%, above 5%"),
        (0.5, r"ema=0\.5 is a width that the run cannot give.*widths: 0\.0"),
        (1e-9, r"ema=1e-09 .*widths"),
        (17, r"ema=17 is not a half-life.*half-lives: 50, 16"),
        (1, r"ema=1 is not a half-life"),
        (1.5, r"ema=1\.5 is neither"),
        (0, r"ema=0 is neither"),
        (-16, r"ema=-16 is neither"),
        (float("nan"), r"ema=nan is neither"),
        (float("inf"), r"ema=inf is neither"),
        (1e300, r"ema=\d+ is not a half-life"),
    ],
)
def test_what_a_run_does_not_have_is_refused_with_what_it_has(run, value, match):
    with pytest.raises(ValueError, match=match):
        RunAverages(str(run)).choose(value)


def test_the_listed_range_of_widths_can_be_given(run):
    averages = RunAverages(str(run))
    with pytest.raises(ValueError, match=r"to 0\.\d+$") as error:
        averages.choose(0.5)
    low, high = map(float, re.findall(r"widths: ([\d.]+) to ([\d.]+)$", str(error.value))[0])
    assert low < 0.05 < 0.1 < high
    for width in (low * 1.05, 0.05, 0.1, high * 0.95):
        assert averages.choose(width).error <= MAX_ERROR


def test_a_run_without_snapshots_is_one_line(tmp_path):
    train(tmp_path / "run", images=BATCH, halflife_images=None)
    with pytest.raises(ValueError, match=r"ema=0\.1 .*half-lives: none; widths: none.*ema\.power_widths"):
        RunAverages(str(tmp_path / "run")).choose(0.1)
    with pytest.raises(ValueError, match=r"run folder.*nowhere"):
        RunAverages(str(tmp_path / "nowhere"))
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"run folder.*model"):
        RunAverages(str(tmp_path / "model"))


def spoil_nan(path):
    save_file({"first.weight": torch.full((2,), torch.nan)}, path)


def spoil_other(path):
    save_file({"first.weight": torch.ones(2)}, path)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda path: os.truncate(path, 100), r"000000064-0\.05.*not a complete safetensors file"),
        (lambda path: os.truncate(path, 0), r"000000064-0\.05.*not a complete safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x04" + bytes(100)), r"000000064-0\.05.*pickle"),
        (spoil_nan, r"000000064-0\.05.*first\.weight.*nan"),
        (spoil_other, r"000000064-0\.05.*other weights"),
        (lambda path: (path.unlink(), path.mkdir()), r"000000064-0\.05.*a folder"),
        (lambda path: (path.unlink(), os.mkfifo(path)), r"000000064-0\.05.*named pipe"),
    ],
)
def test_a_damaged_snapshot_is_named(run, tmp_path, spoil, match):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/snapshots/000000064-0.05.safetensors"
    chosen = RunAverages(str(tmp_path / "run")).choose(0.07)
    spoil(path)
    with pytest.raises(ValueError, match=match):
        chosen.weights()


def test_a_removed_snapshot_makes_the_error_larger(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = RunAverages(str(tmp_path / "run")).choose(0.12)
    (tmp_path / "run/snapshots/000000064-0.05.safetensors").unlink()
    (tmp_path / "run/snapshots/notes.txt").write_text("not a snapshot")
    after = RunAverages(str(tmp_path / "run")).choose(0.12)
    assert before.error < after.error <= MAX_ERROR
    assert after.weights().keys() == tensors(tmp_path / "run").keys()


def test_files_that_no_run_writes_are_no_snapshots(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = RunAverages(str(tmp_path / "run"))
    for name in ("000000064-0.0", "000000064-0.9", "000000000-0.1"):
        shutil.copy(before.snapshots[0].path, tmp_path / f"run/snapshots/{name}.safetensors")
    assert RunAverages(str(tmp_path / "run")).snapshots == before.snapshots


def test_an_older_checkpoint_does_not_replace_a_damaged_one(tmp_path):
    train(tmp_path, **EVERY, checkpoint_every_images=4 * BATCH, keep_last=3)
    damaged = newest(tmp_path) / "ema.safetensors"
    averages = RunAverages(str(tmp_path))
    damaged.unlink()
    with pytest.raises(ValueError, match=rf"{averages.main}.*{damaged.parent.name}.*damaged"):
        averages.choose(averages.main)


def test_a_single_number_in_the_record_is_no_list(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(re.sub(r"more_halflife_images:.*", "more_halflife_images: 50", config.read_text()))
    averages = RunAverages(str(tmp_path / "run"))
    assert averages.halflives == [averages.main]


def test_integers_are_those_of_the_last_part(tmp_path):
    for number in (1, 2):
        save_file({"w": torch.tensor([float(number)]), "n": torch.tensor(number)}, tmp_path / f"{number}.safetensors")
    parts = ((0.25, tmp_path / "1.safetensors"), (0.75, tmp_path / "2.safetensors"))
    assert_close(Average("0.1", "", 8, parts).weights(), {"w": torch.tensor([1.75]), "n": torch.tensor(2)})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run with snapshots after every update, without interruption."""
    path = tmp_path_factory.mktemp("straight")
    train(path, **EVERY)
    return path


def test_snapshots_of_a_resumed_run_are_the_same(straight, tmp_path):
    train(tmp_path, **EVERY, images=6 * BATCH)
    train(tmp_path, **EVERY)
    assert len(snapshots(straight)) == 20
    assert snapshots(tmp_path) == snapshots(straight)


class Killed(BaseException):
    """In the place of a SIGKILL."""


@pytest.mark.parametrize("moment", ["before the first", "between two widths", "before the checkpoint"])
def test_a_kill_leaves_no_snapshot_out_and_none_stale(straight, tmp_path, monkeypatch, moment):
    settings = EVERY | {"checkpoint_every_images": 4 * BATCH}
    write, begun = loop.write_snapshots, []

    def killed(folder, images, averages):
        begun.append(images)
        if len(begun) < 6:
            return write(folder, images, averages)
        if moment != "before the first":
            done = averages if moment == "before the checkpoint" else {WIDTHS[0]: averages[WIDTHS[0]]}
            write(folder, images, done)
        (folder / "tmp-000000056-0.1.safetensors").write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(loop, "write_snapshots", killed)
    with pytest.raises(Killed):
        train(tmp_path / "run", **settings)
    monkeypatch.setattr(loop, "write_snapshots", write)
    stale = tmp_path / "run/snapshots/000000064-0.1.safetensors"
    shutil.copy(straight / "snapshots/000000008-0.1.safetensors", stale)
    assert newest(tmp_path / "run").name == "000000032"
    train(tmp_path / "run", **settings)
    assert snapshots(tmp_path / "run") == snapshots(straight)


def test_snapshots_are_removed_where_the_run_resumes(tmp_path):
    """An older checkpoint, after another interval: those up to it stay, the others are written at the new one."""
    train(tmp_path, **EVERY, checkpoint_every_images=4 * BATCH, keep_last=3)
    shutil.rmtree(newest(tmp_path))
    shutil.rmtree(newest(tmp_path))
    train(tmp_path, **EVERY | {"snapshot_every_images": 5 * BATCH}, checkpoint_every_images=4 * BATCH)
    seen = sorted({int(name[:9]) // BATCH for name in snapshots(tmp_path)})
    assert seen == [1, 2, 3, 4, 5, 10]


def test_a_full_disk_costs_snapshots_only(straight, tmp_path, monkeypatch, capsys):
    write = loop.write_snapshots

    def full(folder, images, averages):
        if images == 5 * BATCH:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, images, averages)

    monkeypatch.setattr(loop, "write_snapshots", full)
    train(tmp_path, **EVERY)
    text = r"NO SNAPSHOTS after 40 images: the disk is full: .*the snapshots.*training continues"
    assert len(re.findall(text, capsys.readouterr().out)) == 1
    missing = {f"000000040-{width}.safetensors" for width in WIDTHS}
    expected = {name: digest for name, digest in snapshots(straight).items() if name not in missing}
    assert snapshots(tmp_path) == expected
    assert_close(tensors(tmp_path, "ema-0.1"), tensors(straight, "ema-0.1"), rtol=0, atol=0)


def test_no_file_is_left_of_a_snapshot_that_does_not_fit(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.snapshots.replace_file", fails)
        train(tmp_path, **EVERY, images=2 * BATCH)
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused_before_training(tmp_path):
    tmp_path.joinpath("run").mkdir()
    train(tmp_path / "run", images=BATCH)
    (tmp_path / "run/snapshots").write_text("")
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/log.jsonl").unlink()
    task = ToyTask()
    with pytest.raises(FileExistsError, match="snapshots"):
        train(tmp_path / "run", task, **EVERY)
    assert task.batches == []


def test_diverged_weights_are_not_in_a_snapshot(tmp_path):
    task = ToyTask()
    task.spoil_at = (4,)
    with pytest.raises(ValueError, match="training diverged"):
        train(tmp_path, task, **EVERY, log_every_images=10**9, max_skipped=0)
    assert sorted({int(name[:9]) // BATCH for name in snapshots(tmp_path)}) == [1, 2, 3]
