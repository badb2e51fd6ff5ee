import re

import pytest
import torch

from tests.training.toy import accelerator, config
from training import accelerator as module
from training.accelerator import choose_memory_format, choose_precision, cpu_flags, on_main, process_state

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "flags", "expected"),
    [
        ("auto", {"avx2"}, ("float32", "this CPU has no bf16 instructions")),
        ("auto", {"avx512_bf16", "avx2"}, ("bf16", "this CPU with avx512_bf16 has it")),
        ("bf16", {"amx_bf16"}, ("bf16", "this CPU with amx_bf16 has it")),
        ("float32", {"amx_bf16"}, ("float32", "as asked")),
    ],
)
def test_precision_follows_the_cpu(monkeypatch, wanted, flags, expected):
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    assert choose_precision(wanted, CPU) == expected


def test_precision_on_mps():
    assert choose_precision("auto", torch.device("mps")) == ("float32", "mps has no bf16 instructions")


@pytest.mark.parametrize(("device", "name"), [("cpu", "this CPU"), ("mps", "mps")])
def test_bf16_without_hardware_is_refused(monkeypatch, device, name):
    monkeypatch.setattr(module, "cpu_flags", set)
    text = f"train.precision=bf16: {name} has no bf16 instructions; use auto or float32"
    with pytest.raises(ValueError, match=re.escape(text)):
        choose_precision("bf16", torch.device(device))


def test_cpu_flags(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor : 1\nflags : fpu\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "absent") == set()


def test_the_choice_is_printed(capsys):
    assert accelerator(config(precision="float32")).mixed_precision == "no"
    assert capsys.readouterr().out == "device: cpu; precision: float32 (as asked)\n"


def test_bf16_reaches_accelerate(monkeypatch):
    monkeypatch.setattr(module, "cpu_flags", lambda: {"amx_bf16"})
    assert accelerator(config(precision="auto")).mixed_precision == "bf16"


def test_accumulation_reaches_accelerate():
    assert accelerator(config(micro_batch=2)).gradient_accumulation_steps == 4


def test_trackers_that_are_not_there():
    with pytest.raises(ValueError, match=re.escape("train.trackers: 'tensorbord' is unknown; available here: ")):
        accelerator(config(trackers=("tensorbord",)))
    with pytest.raises(ValueError, match=re.escape("train.trackers: 'comet_ml' is not installed; available here: ")):
        accelerator(config(trackers=("comet_ml",)))


def test_processes_that_do_not_see_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 processes were launched, but each would train alone"):
        process_state()


def test_on_main_returns_and_raises():
    assert on_main(lambda: 3) == 3
    with pytest.raises(OSError, match="disk full"):
        on_main(lambda: (_ for _ in ()).throw(OSError("disk full")))


@pytest.mark.parametrize(
    ("device", "bf16", "compiled", "last"),
    [
        ("cpu", False, False, True),
        ("cpu", True, False, False),
        ("cuda", True, False, False),
        ("cuda", True, True, True),
        ("mps", False, True, False),
    ],
)
def test_the_faster_layout_is_chosen(device: str, bf16: bool, compiled: bool, last: bool) -> None:
    expected = torch.channels_last if last else torch.contiguous_format
    assert choose_memory_format(torch.device(device), bf16, compiled) is expected
