"""What training changes: the weights, their average, the optimizer, and the update it stands at."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from residual.weights.keymap import check_state
from training.accelerator import choose_memory_format, on_main
from training.checkpoint import Checkpoint, read_tensors
from training.config import TrainingSettings
from training.ema import Ema


class TrainState:
    """Model, EMA and optimizer on the devices. `model` is what the loss calls, `trained` the same without wrappers.

    Parameters that require no gradient are frozen: the optimizer does not know them, neither does its checkpoint.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings, accelerator: Accelerator) -> None:
        self.settings, self.batch = settings, settings.train.batch
        self.update = 0
        self.memory_format = choose_memory_format(
            accelerator.device, accelerator.mixed_precision == "bf16", settings.train.compile
        )
        self.trained = model.to(accelerator.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        average = copy.deepcopy(self.trained)  # before accelerate replaces the forward of the other one
        if settings.train.compile:
            self.trained.compile()  # in place: the names of the weights stay
        self.model, self.optimizer = accelerator.prepare(self.trained, settings.optimizer.make(self.trainable))
        average.load_state_dict(self.trained.state_dict())  # on several processes: the weights of the main one
        self.ema = Ema(average, self.trained)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.trained.parameters() if parameter.requires_grad]

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
            self._allocate_optimizer()
        live = self.tensors()
        on_main(lambda: _copy_into(live, read_tensors(checkpoint), checkpoint))
        for tensors in live.values():
            for tensor in tensors.values():
                tensor.copy_(broadcast(tensor.contiguous()))
        self.update = checkpoint.update

    def _allocate_optimizer(self) -> None:
        for parameter in self.trainable:
            self.optimizer.state[parameter] = self.settings.optimizer.new_state(parameter)


def _copy_into(live: dict[str, dict[str, Tensor]], saved: dict[str, dict[str, Tensor]], checkpoint: Checkpoint) -> None:
    for file, tensors in live.items():
        try:
            check_state(saved[file], tensors)
        except ValueError as error:
            raise ValueError(
                f"{checkpoint.folder / file}.safetensors: {error}; "
                "give the model that was trained, or --fresh to start over"
            ) from None
    for file, tensors in live.items():
        for name, tensor in tensors.items():
            tensor.copy_(saved[file][name])
