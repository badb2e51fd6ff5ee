"""Models that no machine can train, refused before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training import memory
from training.memory import checkpoint_bytes, require_memory, saved_bytes, state_bytes, total_bytes
from training.units import show_size

CPU = torch.device("cpu")


def outline(width: int = 10) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1, bias=False))


def test_state_is_weights_average_gradients_and_moments() -> None:
    assert state_bytes(outline(), 2) == 5 * 4 * (100 + 10 + 10)
    assert state_bytes(outline(), 0) == 3 * 4 * (100 + 10 + 10)
    assert state_bytes(outline(), 2, frozenset({"0.weight"})) == 5 * 4 * 20 + 2 * 4 * 100
    model = nn.Sequential(nn.Linear(2, 2, bias=False).requires_grad_(False), nn.BatchNorm1d(2))
    assert state_bytes(model, 2) == 2 * 4 * 4 + 5 * 4 * 4 + 2 * (2 * 2 * 4 + 8)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    code = """
import resource, torch
from training.memory import keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16, 1 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    assert int(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)) < 1000  # of 16,384


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_limits_of_the_user_are_left_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[object]()
    monkeypatch.setattr(memory.ctypes, "CDLL", opened.append)
    monkeypatch.setenv(name, "131072")
    memory.keep_freed_memory()
    assert opened == []


@pytest.mark.parametrize("optimizer_slots", [0, 1, 2])
def test_a_checkpoint_is_weights_average_and_optimizer_slots(optimizer_slots: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False).requires_grad_(False), nn.BatchNorm1d(2))
    weights, buffers, trained = 4 * (4 + 4), 2 * 2 * 4 + 8, 4 * 4
    assert checkpoint_bytes(model, optimizer_slots) == 2 * (weights + buffers) + optimizer_slots * trained
    three = checkpoint_bytes(model, optimizer_slots, averages=3)
    assert three == checkpoint_bytes(model, optimizer_slots) + 2 * (weights + buffers)
    assert saved_bytes(model, optimizer_slots, averages=3) == three + weights + buffers
    assert saved_bytes(model, optimizer_slots, 2) == 2 * checkpoint_bytes(model, optimizer_slots) + weights + buffers


def test_the_limit_is_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 2400)
    require_memory(outline, [], CPU, 2)
    monkeypatch.setattr(memory, "total_bytes", lambda device: 2399)
    require_memory(outline, [], CPU, 1)
    with pytest.raises(ValueError, match=r"2\.4 kB \(weights.* of 120 parameters\).* cpu "):
        require_memory(outline, [], CPU, 2)
    with pytest.raises(ValueError, match="training this model takes"):
        require_memory(outline, [], CPU, 0, averages=4)
    require_memory(outline, ["0.*"], CPU, 2)
    monkeypatch.setattr(memory, "total_bytes", lambda device: None)
    require_memory(outline, [], CPU, 2)


@pytest.mark.parametrize("width", [2**40, 2**70])
def test_a_model_of_more_than_2_to_the_63_bytes_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=r"more than .* cpu "):
        require_memory(lambda: outline(width), [], CPU, 2)


def test_the_memory_of_the_machine_is_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = total_bytes(CPU)
    assert alone is not None
    assert alone > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert total_bytes(CPU) == alone // 2
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    assert total_bytes(CPU) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert total_bytes(CPU) is not None


def test_sizes_have_units() -> None:
    assert [show_size(n) for n in (12, 1500, 25.3e9, 4.79e16)] == ["12 bytes", "1.5 kB", "25.3 GB", "47.9 PB"]
