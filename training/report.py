"""The report of `--dry-run`: settings, model size, memory, length and learning rates."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from residual.count import multiply_adds, parameters
from training.checkpoint import kept_checkpoints
from training.data import ImageSet
from training.memory import checkpoint_bytes, state_bytes
from training.step import TrainingSettings
from training.task import Task
from training.units import show_count, show_size
from training.yaml_file import write_yaml


def report(
    resolved: Mapping[str, Any], task: Task, settings: TrainingSettings, images: ImageSet, processes: int = 1
) -> str:
    """The report of a run before it starts, for a terminal of 80 columns.

    `resolved` has all settings as plain values. Memory is an estimate: tensors of the optimizer and of autograd,
    without the libraries' workspaces. Raises ValueError for a batch that the processes cannot share.
    """
    config = settings.train
    accumulation = config.accumulation(processes)
    micro_batch = config.batch // processes // accumulation
    slots = settings.optimizer.slots
    count, state = parameters(task.model), state_bytes(task.model, slots)
    two = torch.zeros(2, *images.shape, device="meta")  # a batch norm needs two
    one = activation_bytes(task.model, *task.example(two)) // 2
    activations = one * micro_batch
    seen = config.updates * config.batch
    parts = [(processes, "processes"), (accumulation, "passes"), (micro_batch, "images")]
    split = [f"{number} {name}" for number, name in parts if number > 1 or name == "images"]
    rows = {
        "parameters": f"{count:,}",
        "multiply-adds": f"{show_count(multiply_adds(task.model, *task.example(two[:1])))} per image, forward",
        "memory, estimated": f"{show_size(state + activations)} on each process, of it",
        "  model and optimizer": f"{show_size(state)} (weights, gradients, optimizer, EMA)",
        "  activations": f"{show_size(activations)} in float32 ({micro_batch} x {show_size(one)})",
        "checkpoint": f"{show_size(checkpoint_bytes(task.model, slots))} on disk, {kept_checkpoints(config)}",
        "updates": f"{config.updates:,} of {' x '.join(split)}",
        "length": f"{seen:,} images: each of the {len(images):,} about {seen / len(images):,.1f} times",
    }
    rates = [f"{point:>15,}   {settings.learning_rate(point):.3e}" for point in rate_points(settings)]
    table = [f"{name:<24}{text}" for name, text in rows.items()]
    return "\n".join([write_yaml(resolved), *table, "", "    images seen   learning rate", *rates])


def activation_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd stores for the backward pass of `model(*inputs)`, without parameters and buffers.

    Measured by a forward pass on the meta device, which computes nothing. Tensors that share memory count once.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # a reference, so that no other storage gets the same address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(*(x.to("meta") for x in inputs))
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def rate_points(settings: TrainingSettings, after_warmup: int = 8) -> list[int]:
    """Images seen before some updates: the first, the last, within and at the end of the warm-up, evenly after it."""
    config = settings.train
    last = (config.updates - 1) * config.batch
    edge = min(settings.schedule.warmup_images, last)
    points = [0, edge // 2, *(edge + (last - edge) * i // after_warmup for i in range(after_warmup + 1))]
    return sorted({-(-point // config.batch) * config.batch for point in points})
