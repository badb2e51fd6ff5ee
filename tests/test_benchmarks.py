"""The benchmarks: what is concluded from timings, and each comparison once, with small networks."""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from scipy.stats import spearmanr
from torch.testing import assert_close

import resnet
from benchmarks import (
    data,
    gpu,
    guidance,
    paired,
    sampling,
    steps,
    train_vs_script,
    unet_vs_diffusers,
    windows,
    zoo_vs_plain,
    zoo_vs_timm,
)
from benchmarks.paired import CONTROL, Plan, Timings
from benchmarks.steps import NoisePrediction, TheirStep, build, build_theirs
from tests.test_arrows import imports
from unet import UNetConfig

CPU = torch.device("cpu")
TINY = UNetConfig(
    size=(8, 8), base_channels=16, channel_multipliers=(1,), blocks_per_level=1, attention_levels=(), groups=8
)


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Other tests of the same process have another precision."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def timings(control: float, other: float, spread: float = 0.01, load: str | None = None) -> Timings:
    """Times of twenty rounds: 1 s for ours, multiples with a small spread for the others."""
    noise = np.linspace(1 - spread, 1 + spread, 20)
    return Timings({"ours": np.ones(20), CONTROL: control * noise, "theirs": other * noise[::-1]}, load)


@pytest.mark.parametrize(
    ("control", "other", "verdict"),
    [
        (1.0, 1.3, "slower than ours"),
        (1.0, 0.8, "faster than ours"),
        (1.0, 1.001, "no difference"),
        (1.04, 1.045, "no difference"),
        (1.06, 1.3, "not judged"),
        (0.94, 1.3, "not judged"),
    ],
)
def test_only_a_difference_that_the_control_does_not_show_is_a_verdict(
    control: float, other: float, verdict: str
) -> None:
    found = timings(control, other)
    assert found.verdict("theirs") == verdict
    assert (f"outside {paired.BAND[0]}" in (found.doubt or "")) == (verdict == "not judged")
    assert verdict in found.table("work", images=4)


def test_the_ratio_is_the_median_of_the_rounds_with_an_interval_around_it() -> None:
    found = timings(1.0, 1.5)
    ratio = found.ratio("theirs")
    assert ratio.median == pytest.approx(1.5, rel=1e-3)
    assert 1.485 <= ratio.low < ratio.median < ratio.high <= 1.515
    assert "| theirs | 1.5 s | 2.67 | 1.5" in found.table("work", images=4)


def test_nothing_is_judged_beside_other_work(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert timings(1.0, 2.0, load="a load of 3").verdict("theirs") == "not judged"
    parser = argparse.ArgumentParser()
    paired.add_options(parser, rounds=3)
    monkeypatch.setattr(paired.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(paired.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"load of 3\.0 on 2 cores.*1 thread.*--any-load"):
        paired.start(parser.parse_args([]))
    assert "3.0" in (paired.start(parser.parse_args(["--any-load"])).load or "")
    assert "load 3.0" in capsys.readouterr().out
    monkeypatch.setattr(paired.os, "getloadavg", lambda: (0.4, 0.0, 0.0))
    assert paired.start(parser.parse_args([])) == Plan(3)
    assert paired.start(parser.parse_args(["--cpu-time"])).clock is paired.time.process_time
    with pytest.raises(ValueError, match=r"--rounds=0"):
        paired.start(parser.parse_args(["--rounds", "0"]))


def test_calls_take_turns_and_one_that_fails_is_reported() -> None:
    def fail() -> None:
        raise RuntimeError("no kernel\nand more")

    order: list[str] = []
    ticks = iter(range(1000))
    calls = {name: partial(order.append, name) for name in "abc"}
    found = paired.measure({**calls, "d": fail}, Plan(rounds=4, warm_up=1, clock=lambda: next(ticks)))
    assert "".join(order) == "abc" + "abc" + "cba" + "bca" + "acb"
    assert found.failed == {"d": "failed: RuntimeError: no kernel"}
    assert "| d | failed: RuntimeError: no kernel |" in found.table("work", images=1)


@pytest.mark.parametrize("what", unet_vs_diffusers.KINDS)
def test_the_networks_are_compared(what: str) -> None:
    make = unet_vs_diffusers.KINDS[what]
    calls = make(build(TINY), 2, CPU, False, False)
    found = paired.measure(calls, Plan(rounds=1, warm_up=1))
    assert list(found.seconds) == list(calls)
    assert not found.failed


def test_a_step_of_ours_has_the_loss_of_diffusers() -> None:
    net = build(TINY)
    theirs, task = build_theirs(net), NoisePrediction(net)
    step = TheirStep(theirs, 2, CPU)
    assert_close(task.kept, step.scheduler.alphas_cumprod)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    assert_close(net(x, t), theirs(x, t, return_dict=False)[0])


def test_ours_and_the_pipeline_draw_the_same_digits() -> None:
    calls = sampling.candidates(build(sampling.digits()), 2, 3, CPU, "float32")
    assert sampling.difference(calls) < 1e-5


@pytest.mark.parametrize("has_peer", [pytest.param(True, marks=pytest.mark.slow), False])
def test_every_section_of_the_gpu_report_runs(has_peer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_peer:
        monkeypatch.setitem(sys.modules, "diffusers", None)
    setup = gpu.Setup(TINY, TINY, (2,), CPU, Plan(rounds=1, warm_up=1), drawn=(1,), side=32)
    text = "\n".join(gpu.report(setup, deadline=math.inf))
    assert "Failed" not in text, text
    assert "nan" not in text
    assert text.count("## ") == len(gpu.SECTIONS)
    assert ("UNet2DModel tuned" in text, "DDIMPipeline |" in text) == (has_peer, has_peer)
    assert "| MFU |" in text
    assert text.count("Left out") == (0 if has_peer else 1)


def test_a_section_of_the_gpu_report_fails_or_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setup: gpu.Setup) -> Iterator[str]:
        """What fails."""
        yield "begun"
        raise torch.OutOfMemoryError("out of memory: 3 GiB\nand more")

    monkeypatch.setattr(gpu, "SECTIONS", {fail: 0.5, gpu.rates: 2.0})
    setup = gpu.Setup(TINY, TINY, (2,), CPU, Plan(rounds=1, warm_up=1), side=32)
    failed = "Failed: OutOfMemoryError: out of memory: 3 GiB\n"
    left_out = "Left out: it may take 2 minutes.\n"
    found = list(gpu.report(setup, deadline=time.monotonic() + 60))
    assert found == ["## What fails\n", "begun", failed, "## The GPU\n", left_out]


def test_the_gpu_report_needs_no_diffusers() -> None:
    for module in (gpu, paired, steps):
        found = {name for name, lazy in imports(Path(module.__file__ or "")) if not lazy}
        assert not found & {"diffusers", "diffusion", "pipelines", "tasks"}


@pytest.mark.parametrize(
    ("main", "arguments", "rows"),
    [
        (zoo_vs_plain.main, "--model resnet18 --size 32 --batch 2", ("plain torch.nn",)),
        (data.main, "--images 8 --batch 4 --side 8", ("DataLoader of PNG files", "GB/s")),
    ],
)
def test_a_comparison_prints_its_table(main: Callable[[list[str]], None], arguments: str, rows, capsys) -> None:
    main([*arguments.split(), "--rounds", "1", "--warm-up", "1", "--any-load"])
    printed = capsys.readouterr().out
    assert all(row in printed for row in (*rows, CONTROL))


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 0.05)])
@pytest.mark.parametrize("what", zoo_vs_timm.KINDS)
def test_every_network_of_the_comparison_with_timm_predicts_the_same(what: str, bf16: bool, tolerance: float) -> None:
    ours = resnet.build(resnet.ResNetConfig(blocks_per_stage=(1, 1), widths=(8, 16), stem_channels=8, num_classes=5))
    theirs = zoo_vs_timm.with_random_norms(copy.deepcopy(ours)).eval()
    ours.load_state_dict(theirs.state_dict())
    arrange, work = zoo_vs_timm.KINDS[what]
    nets, x = arrange(ours, theirs, CPU, bf16), torch.randn(2, 3, 32, 32)
    assert {"ours", CONTROL, "timm", zoo_vs_timm.TIMM} <= nets.keys()
    for net in nets.values():
        found = zoo_vs_timm.difference(net, theirs, x)
        assert bf16 * 1e-4 <= found < tolerance
        work(net, x)()


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_timm_that_cannot_be_imported_is_one_line(
    is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The package of a folder lacks a library; or no package is installed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    if is_folder:
        (tmp_path / "timm").mkdir()
        (tmp_path / "timm" / "__init__.py").write_text("import absent_library\n")
        monkeypatch.delitem(sys.modules, "timm", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit) as ended:
        zoo_vs_timm.main(["--timm", str(tmp_path)] if is_folder else [])
    assert ended.value.code == 2
    assert ("absent_library" if is_folder else "--timm") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments", "error"),
    [
        (unet_vs_diffusers.main, "--preset edm2-img64-s", "--preset=edm2-img64-s"),
        (unet_vs_diffusers.main, "--batch 0", "--batch=0"),
        (sampling.main, "--preset edm2-img64-s", "--preset=edm2-img64-s"),
        (data.main, "--images 8 --batch 9", "--batch=9"),
        (gpu.main, "", "--device=cuda"),
        (train_vs_script.main, "--script absent.py", "--script=absent.py"),
        (train_vs_script.main, "--updates 0", "--updates=0"),
        (windows.main, "--num 0", "--num=0"),
        (zoo_vs_timm.main, "--timm absent", "--timm=absent"),
        (zoo_vs_timm.main, "--batch 8 0", "--batch=0"),
    ],
)
def test_wrong_options_are_one_line(main: Callable[[list[str]], None], arguments: str, error: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_accuracy_is_correlated_with_the_scale_up_to_its_plateau_and_recall_over_all_scales() -> None:
    rows = [[(0.1, 0.9, 3.0)] * 2, [(0.5, 0.8, 3.0)] * 2, [(0.995, 0.85, 3.0)] * 2, [(0.99, 0.2, 3.0), (1.0, 0.4, 5.0)]]
    assert guidance.correlations([0, 1, 2, 3], rows) == "Spearman: accuracy up to scale 2 1.00; recall -0.80"
    assert guidance.line("free", 3, rows[3]) == "| free | 3 | 0.995 ± 0.005 | 0.300 ± 0.100 | 4.000 ± 1.000 |"


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    x, y = [0.0, 1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.9, 0.9, 0.7]
    assert guidance.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert guidance.spearman(y, x) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(guidance.spearman(x, [1.0] * 5))
