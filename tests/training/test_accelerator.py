import pytest

from tests.training.toy import accelerator, config
from training import precision


def test_the_choice_is_printed(capsys):
    assert accelerator(config(precision="float32")).mixed_precision == "no"
    device, kernels = capsys.readouterr().out.splitlines()
    assert device == "device: cpu; precision: float32 (as requested)"
    assert "RESIDUAL_KERNELS=0" in kernels


def test_bf16_reaches_accelerate(monkeypatch):
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"amx_bf16"})
    assert accelerator(config(precision="auto")).mixed_precision == "bf16"


def test_accumulation_reaches_accelerate():
    assert accelerator(config(micro_batch=2)).gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("name", "reason"), [("tensorbord", "unknown"), ("comet_ml", "not installed: pip install comet_ml,")]
)
def test_unknown_trackers_and_those_not_installed_are_named(name, reason):
    with pytest.raises(ValueError, match=rf"train\.trackers.*{name}.* {reason}.*tensorboard"):
        accelerator(config(trackers=(name,)))


@pytest.mark.parametrize(("changes", "found"), [({}, "device=cpu"), ({"micro_batch": 2}, "micro-batches=4")])
def test_cuda_graphs_are_refused_where_they_cannot_be_recorded(changes, found):
    with pytest.raises(ValueError, match=rf"train\.cuda_graphs=True .*{found}"):
        accelerator(config(compile=True, cuda_graphs=True, **changes))
