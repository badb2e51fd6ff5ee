"""Frozen parameters: which they are, and that not one bit of them changes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.toy import BATCH, ToyTask, hashes, newest, tensors, train
from training.freeze import freeze


def names(task: ToyTask) -> set[str]:
    return {name for name, weight in task.model.named_parameters() if not weight.requires_grad}


def test_patterns_are_those_of_a_shell() -> None:
    task = ToyTask()
    assert freeze(task.model, ["first.*", "*.bias"]) == "freeze: 89 of 193 parameters, 4 of 7 tensors"
    assert names(task) == {"first.weight", "first.bias", "norm.bias", "last.bias"}
    assert freeze(task.model, []) is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("frist.*", r"freeze=frist.\* matches no parameter; did you mean first.\*"),
        ("first", r"freeze=first matches no parameter; did you mean first.\*"),
        ("zzz", "freeze=zzz matches no parameter; names are such as first.weight and label.weight"),
        ("*", r"freeze=\* leaves no parameter to train; freeze fewer"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(ToyTask().model, [pattern])


def frozen() -> ToyTask:
    task = ToyTask(dropout=0.3)
    freeze(task.model, ["first.*", "label.*"])
    return task


def test_frozen_parameters_stay_bit_identical_and_the_others_train(tmp_path: Path) -> None:
    start = ToyTask(dropout=0.3).model.state_dict()
    train(tmp_path / "run", frozen(), weight_decay=0.1)
    for file in ("model", "ema"):
        for name, tensor in tensors(tmp_path / "run", file).items():
            if name != "calls":
                assert torch.equal(tensor, start[name]) == name.startswith(("first.", "label.")), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pattern", ["first.*", "norm.*", "first.*,norm.weight"])
def test_gradients_are_those_of_the_whole_network(pattern: str, memory_format: torch.memory_format) -> None:
    """In both layouts: a norm behind frozen layers in channels-last layout is where PyTorch's own would crash."""
    x, label = torch.randn(2, 1, 8, 8).contiguous(memory_format=memory_format), torch.tensor([0, 2])
    gradients = []
    for patterns in ([], pattern.split(",")):
        model = ToyTask().model.to(memory_format=memory_format)  # type: ignore[call-overload]
        freeze(model, patterns)
        model(x, label).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    whole, part = gradients
    assert {name for name, gradient in part.items() if gradient is None} == names_of(pattern)
    for name, gradient in part.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, whole[name])


def names_of(pattern: str) -> set[str]:
    task = ToyTask()
    freeze(task.model, pattern.split(","))
    return names(task)


def test_the_optimizer_does_not_know_them(tmp_path: Path) -> None:
    train(tmp_path / "run", frozen())
    moments = load_file(newest(tmp_path / "run") / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in moments} == {"norm.weight", "norm.bias", "last.weight", "last.bias"}


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "straight", frozen())
    train(tmp_path / "halves", frozen(), images=6 * BATCH)
    train(tmp_path / "halves", frozen())
    assert hashes(tmp_path / "halves") == hashes(tmp_path / "straight")
