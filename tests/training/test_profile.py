"""`--profile`: the trace and the table; the run stays the same."""

import json
from contextlib import closing

import torch
from torch.profiler import profile

from tests.training.test_loop import losses
from tests.training.toy import ToyTask, accelerator, config, hashes, images, resolved, train
from training.loop import fit
from training.profile import table
from training.run_folder import RunFolder


def profiled(path, **changes) -> None:
    settings = config(**changes)
    with closing(RunFolder(path)) as folder:
        folder.open(settings, resolved(settings))
        assert fit(ToyTask(dropout=0.3), images(), settings, folder, accelerator(settings), profiled=True)


def test_a_profile_changes_nothing_of_the_run(tmp_path, capsys):
    profiled(tmp_path / "a")
    printed = capsys.readouterr().out
    train(tmp_path / "b", ToyTask(dropout=0.3))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    names = {event.get("name") for event in json.loads((tmp_path / "a/profile/trace.json").read_text())["traceEvents"]}
    assert {"data", "clipping", "optimizer", "averaging", "aten::convolution_backward"} <= names
    assert "where the time goes: 3 updates of" in printed
    for kind in ("data", "optimizer", "averaging", "convolution", "normalisation", "dropout", "outside operations"):
        assert f"  {kind}  " in printed


def test_a_run_too_short_for_a_profile_prints_a_line(tmp_path, capsys):
    profiled(tmp_path, images=24)
    assert "profile: none, because the run ended before 7 updates" in capsys.readouterr().out


def test_operations_count_once_by_the_outermost_kind():
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
    x = torch.randn(2, 8, 16, 16)
    with profile() as found:
        with torch.profiler.record_function("optimizer"):
            net[0](x)
        net(x).sum()
    times = {line[2:22].strip(): float(line.split()[-3]) for line in table(found.events(), x.device)[1:]}
    assert times.keys() >= {"optimizer", "convolution", "normalisation", "activations", "other operations"}
    assert "other" not in times
