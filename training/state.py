"""The state of a step on the disk: tensors for checkpoints (weights, averaged weights, optimizer), and the model."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor

from residual.lora import lora_state, merged, save_lora
from residual.weights.keymap import check_state
from training.processes import on_main
from training.step import Step

Tensors = Mapping[str, Mapping[str, Tensor]]
"""file -> name -> tensor"""


def state_tensors(step: Step) -> Tensors:
    """The live tensors of a step, not copies."""
    optimizer = {
        f"{name}.{slot}": value
        for name, parameter in step.trained.named_parameters()
        for slot, value in step.optimizer.state.get(parameter, {}).items()
    }
    averages = {name: average.model.state_dict() for name, average in step.averages.items()}
    return {"model": step.trained.state_dict(), **averages, "optimizer": optimizer}


@torch.no_grad()
def restore(step: Step, updates: int, read: Callable[[], Tensors]) -> None:
    """Set a step to its state after `updates` updates, bit for bit; to be called on every process.

    `read` returns the tensors; it is called on the main process only, which sends them to the others. Raises ValueError
    with the differences if names or shapes are not those of this step.
    """
    step.optimizer.state.clear()
    if updates > 0:
        for parameter in step.trainable:
            step.optimizer.state[parameter] = step.settings.optimizer.new_state(parameter)
    live = state_tensors(step)
    on_main(lambda: _copy(read(), live))
    for tensors in live.values():
        for tensor in tensors.values():
            tensor.copy_(broadcast(tensor.contiguous()))
    step.updates = updates


def write_model(step: Step, folder: Path) -> None:
    """Write the averaged model into an empty folder; LoRA is merged, and is in its folder `adapter`, too."""
    model = step.ema.model
    step.task.save(merged(model), folder)
    if lora_state(model):
        (folder / "adapter").mkdir()
        save_lora(model, folder / "adapter")


def _copy(source: Tensors, target: Tensors) -> None:
    for file, tensors in target.items():
        try:
            check_state(source.get(file, {}), tensors)
        except ValueError as error:
            raise ValueError(f"{file}.safetensors: {error}") from None
    for file, tensors in target.items():
        for name, tensor in tensors.items():
            tensor.copy_(source[file][name])
