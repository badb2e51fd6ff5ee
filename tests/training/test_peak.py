"""Model FLOPs utilisation: peaks of GPUs by their names, and the number in the log."""

import json

import pytest
import torch

from tests.training.toy import BATCH, ToyTask, train
from training import loop
from training.peak import peak_flops, seconds_at_peak


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A1000", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks(name, tera):
    assert peak_flops(name, bf16=True) == (tera and tera * 1e12)
    assert peak_flops(name, bf16=False) == (tera and tera * 1e12 / 2)


def test_the_utilisation_is_in_the_log_where_the_peak_is_known(tmp_path, monkeypatch, capsys):
    train(tmp_path / "unknown", images=BATCH)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    task, cuda = ToyTask(), torch.device("cuda")
    seconds = seconds_at_peak(task.model, task, (1, 8, 8), cuda, True)
    assert seconds == pytest.approx(6 * 2 * 8 * 9 * 64 / 312e12), "two convolutions between 1 and 8 channels"
    monkeypatch.setattr(loop, "seconds_at_peak", lambda *inputs: 1e-6)
    train(tmp_path / "known", images=BATCH)
    assert "MFU=" in capsys.readouterr().err
    row = json.loads((tmp_path / "known/log.jsonl").read_text().splitlines()[0])
    assert row["mfu"] == row["images_per_second"] * 1e-6
    assert "mfu" not in (tmp_path / "unknown/log.jsonl").read_text()
