"""Snapshots of power-function averages: one file of weights for each width, at a fixed interval of a run.

The files are `snapshots/<images seen, 9 digits>-<width>.safetensors`, with the network's names of the weights.
`training/averages.py` reconstructs other widths from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from residual.names import amount
from storage.write import remove, replace_file
from training.config import TrainConfig
from training.ema import MAX_WIDTH, MIN_WIDTH, EmaConfig
from training.memory import model_bytes
from training.units import show_size


@dataclass(frozen=True, order=True)
class Snapshot:
    """The file of one power-function average after a number of images."""

    images: int
    width: float
    path: Path


def list_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, oldest first."""
    names = ((path, re.fullmatch(r"([0-9]{9,})-(0\.[0-9]+)\.safetensors", path.name)) for path in folder.glob("*"))
    found = (Snapshot(int(match[1]), float(match[2]), path) for path, match in names if match)
    return sorted(each for each in found if each.images > 0 and MIN_WIDTH <= each.width <= MAX_WIDTH)


def write_snapshots(folder: Path, images: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Write the power-function averages after `images` images, by width; each file is complete or absent."""
    folder.mkdir(exist_ok=True)
    for width, state in averages.items():
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        path = folder / f"{images:09d}-{width}.safetensors"
        replace_file(path, partial(save_file, tensors))


def remove_snapshots(folder: Path, after_images: int) -> None:
    """Remove those of more images seen, which the resumed run writes again, and parts of files after a crash."""
    for path in folder.glob("tmp-*"):
        remove(path)
    for snapshot in list_snapshots(folder):
        if snapshot.images > after_images:
            remove(snapshot.path)


def kept_snapshots(ema: EmaConfig, config: TrainConfig, model: nn.Module) -> str:
    """The disk space of all snapshots of a run, for a message."""
    times = -(-config.images // ema.snapshot_every_images)
    size = len(ema.power_widths) * model_bytes(model)
    return f"{show_size(size)} each time, {amount(times, 'time')}: {show_size(times * size)} in all"
