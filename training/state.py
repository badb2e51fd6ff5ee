"""What training changes: the weights, their average, the optimizer, and the update it stands at."""

import copy
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from training.accelerator import on_main
from training.checkpoint import Checkpoint, read_tensors
from training.config import TrainConfig
from training.ema import Ema

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainState:
    """Model, EMA and optimizer on the devices. `model` is what the loss calls, `trained` the same without wrappers."""

    def __init__(self, model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> None:
        self.batch = config.batch
        self.update = 0
        self.memory_format = (
            torch.channels_last if accelerator.device.type in ("cpu", "cuda") else torch.contiguous_format
        )
        self.trained = model.to(accelerator.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        average = copy.deepcopy(self.trained)  # before accelerate replaces the forward of the other one
        if config.compile:
            self.trained.compile()  # in place: the names of the weights stay
        optimizer = torch.optim.AdamW(
            self.trained.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(self.trained, optimizer)
        average.load_state_dict(self.trained.state_dict())  # on several processes: the weights of the main one
        self.ema = Ema(average, self.trained)

    @property
    def images_seen(self) -> int:
        return self.update * self.batch

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds: the live tensors, by file and by name."""
        names = dict(self.trained.named_parameters())
        moments = {
            f"{name}.{moment}": value
            for name, parameter in names.items()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"model": self.trained.state_dict(), "ema": self.ema.model.state_dict(), "optimizer": moments}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to `checkpoint`, bit for bit. The main process reads it and sends it to the others.

        Raises ValueError, showing the difference, if its names or shapes are not those of this model.
        """
        if checkpoint.update > 0:
            self._allocate_moments()
        live = self.tensors()
        on_main(lambda: _copy_into(live, read_tensors(checkpoint), checkpoint))
        for tensors in live.values():
            for tensor in tensors.values():
                tensor.copy_(broadcast(tensor.contiguous()))
        self.update = checkpoint.update

    def _allocate_moments(self) -> None:
        for parameter in self.trained.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS[1:]},
            }


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], shown: int = 4) -> str | None:
    """How the names and shapes of `found` differ from `expected`, in one line; None if they do not."""
    listed = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "other shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    parts = [
        f"{kind}: {', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''}"
        for kind, names in listed.items()
        if names
    ]
    return "; ".join(parts) or None


def _copy_into(live: dict[str, dict[str, Tensor]], saved: dict[str, dict[str, Tensor]], checkpoint: Checkpoint) -> None:
    for file, tensors in live.items():
        if found := difference(tensors, saved[file]):
            raise ValueError(
                f"{checkpoint.folder / file}.safetensors does not fit this model ({found}); "
                "give the model that was trained, or --fresh to start over"
            )
    for file, tensors in live.items():
        for name, tensor in tensors.items():
            tensor.copy_(saved[file][name])
