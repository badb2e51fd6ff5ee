"""What `--dry-run` tells: the settings, and how large, how long and how costly the run will be."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from residual.count import multiply_adds, parameters
from training.config import TrainConfig
from training.schedule import learning_rate
from training.task import Task
from training.yaml_file import write_yaml


def report(settings: Mapping[str, Any], task: Task, config: TrainConfig, images: int, processes: int = 1) -> str:
    """All that is known of a run before it starts, for a screen of 80 columns.

    `settings` is the resolved config, `images` how many the data set has. Memory is an estimate: what the optimizer and
    autograd keep, without the libraries' workspaces. Raises ValueError for a batch that the processes cannot share.
    """
    accumulation = config.accumulation(processes)
    micro_batch = config.batch // processes // accumulation
    count, stored = parameters(task.model), tensor_bytes(task.model)
    state = stored["parameters"] * 5 + stored["buffers"] * 2
    activations = activation_bytes(task.model, *task.example(1, "meta"))
    seen = config.updates * config.batch
    split = " x ".join(
        f"{number} {name}"
        for number, name in [(processes, "processes"), (accumulation, "passes"), (micro_batch, "images")]
        if number > 1 or name == "images"
    )
    rows = {
        "parameters": f"{count:,}",
        "multiply-adds": f"{_count(multiply_adds(task.model, *task.example(1, 'meta')))} per image, forward",
        "memory, estimated": f"{_size(state + activations * micro_batch)} on each process, of it",
        "  model and optimizer": f"{_size(state)} (weights, gradients, two of Adam, EMA)",
        "  activations": f"{_size(activations * micro_batch)} in float32 ({micro_batch} x {_size(activations)})",
        "checkpoint": f"{_size(stored['parameters'] * 4 + stored['buffers'] * 2)} on disk, {config.keep} are kept",
        "updates": f"{config.updates:,} of {split}",
        "length": f"{seen:,} images: each of the {images:,} about {seen / images:,.1f} times",
    }
    rates = [f"{point:>15,}   {learning_rate(config, point):.3e}" for point in rate_points(config)]
    lines = [*(f"{name:<24}{text}" for name, text in rows.items()), "", "    images seen   learning rate", *rates]
    return "\n".join([write_yaml(settings), *lines])


def activation_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of `model(*inputs)` in training, parameters and buffers excluded.

    Found by a forward pass on the meta device, which computes nothing; tensors that share memory count once.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(*(x.to("meta") for x in inputs))
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def tensor_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the parameters and of the buffers that a checkpoint holds."""
    names = {name for name, _ in model.named_parameters()}
    stored = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    of_parameters = sum(size for name, size in stored.items() if name in names)
    return {"parameters": of_parameters, "buffers": sum(stored.values()) - of_parameters}


def rate_points(config: TrainConfig, after_warmup: int = 8) -> list[int]:
    """Images seen before some updates of the run: the first and the last, within, at and evenly after the warm-up."""
    last = (config.updates - 1) * config.batch
    edge = min(config.warmup_images, last)
    points = [0, edge // 2, *(edge + (last - edge) * i // after_warmup for i in range(after_warmup + 1))]
    return sorted({-(-point // config.batch) * config.batch for point in points})


def _count(number: float, digits: int = 4) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{digits}g} {unit}"
    return f"{number:.0f}"


def _size(count: float) -> str:
    return f"{_count(count, 3)}B" if count >= 1e3 else f"{count:.0f} bytes"
