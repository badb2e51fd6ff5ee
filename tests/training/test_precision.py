import re

import pytest
import torch

from residual import Chain, native
from training import precision
from training.precision import choose_memory_format, choose_precision, cpu_flags, place

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "flags", "expected"),
    [
        ("auto", {"avx2"}, ("float32", "this CPU has no bf16 instructions")),
        ("auto", {"avx512_bf16", "avx2"}, ("bf16", "this CPU with avx512_bf16 has it")),
        ("bf16", {"amx_bf16"}, ("bf16", "this CPU with amx_bf16 has it")),
        ("float32", {"amx_bf16"}, ("float32", "as requested")),
    ],
)
def test_precision_follows_the_cpu(monkeypatch, wanted, flags, expected):
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert choose_precision(wanted, CPU) == expected


def test_precision_on_mps():
    assert choose_precision("auto", torch.device("mps")) == ("float32", "mps has no bf16 instructions")


@pytest.mark.parametrize(("device", "name"), [("cpu", "this CPU"), ("mps", "mps")])
def test_bf16_without_hardware_is_refused(monkeypatch, device, name):
    monkeypatch.setattr(precision, "cpu_flags", set)
    text = f"train.precision=bf16: {name} has no bf16 instructions; use auto or float32"
    with pytest.raises(ValueError, match=re.escape(text)):
        choose_precision("bf16", torch.device(device))


def test_cpu_flags(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor : 1\nflags : fpu\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "absent") == set()


@pytest.mark.parametrize(
    ("device", "bf16", "compiled", "last"),
    [
        ("cpu", False, False, True),
        ("cpu", True, False, False),
        ("cuda", True, False, True),
        ("cuda", False, False, False),
        ("cuda", False, True, True),
        ("mps", False, True, False),
    ],
)
def test_the_faster_layout_is_chosen(device: str, bf16: bool, compiled: bool, last: bool, monkeypatch) -> None:
    monkeypatch.setattr(precision, "has_kernel", lambda device: device.type == "cuda")
    expected = torch.channels_last if last else torch.contiguous_format
    assert choose_memory_format(torch.device(device), bf16, compiled) is expected


def test_without_the_kernel_cuda_keeps_nchw(monkeypatch) -> None:
    monkeypatch.setattr(precision, "has_kernel", lambda _: False)
    assert choose_memory_format(torch.device("cuda"), True, compiled=False) is torch.contiguous_format


@pytest.mark.parametrize(("bf16", "compiled", "last"), [(True, False, True), (True, True, False), (False, True, True)])
def test_the_kernels_make_channels_last_faster_in_bf16(bf16: bool, compiled: bool, last: bool, monkeypatch) -> None:
    monkeypatch.setattr(native, "library", object())
    expected = torch.channels_last if last else torch.contiguous_format
    assert choose_memory_format(torch.device("cpu"), bf16, compiled) is expected


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_network_that_draws_has_the_faster_layout_and_the_kernels(monkeypatch, name, dtype, kernels):
    called, net = [], torch.nn.Conv2d(4, 4, 3)
    monkeypatch.setattr(native, "library", object() if kernels else None)
    monkeypatch.setattr(native, "load", lambda: called.append("kernels") or "loaded")
    monkeypatch.setattr(precision, "keep_freed_memory", lambda: called.append("memory"))
    assert place(net, CPU, name, compiled=kernels) == ([] if kernels else ["loaded"])
    assert net.weight.dtype is dtype
    assert net.weight.is_contiguous(memory_format=torch.channels_last) is (kernels or name == "float32")
    assert called == ["kernels", "memory"]


def test_norms_are_folded_with_the_kernels_alone(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: "loaded")
    for library, compiled in ((object(), False), (object(), True), (None, False)):
        monkeypatch.setattr(native, "library", library)
        net = Chain(conv=torch.nn.Conv2d(4, 4, 3), norm=torch.nn.BatchNorm2d(4)).eval()
        place(net, CPU, compiled=compiled)
        assert isinstance(net.norm, torch.nn.Identity) is (library is not None and not compiled)
