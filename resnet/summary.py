"""Table of a network's parts, as text."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from residual.count import multiply_adds_of_parts, parameters


def summarize(model: Any, size_px: int) -> str:
    """One row per part of the model's `outline`: output shape (channels, height, width), parameters, multiply-adds.

    Shapes and multiply-adds are those of one image of `size_px` × `size_px`. Raises ValueError if that is too small.
    """
    shadow = copy.deepcopy(model).to("meta")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, path in model.outline.items():
        shadow.get_submodule(path).register_forward_hook(_recorder(shapes, name))
    inputs = [torch.empty(1, model.in_channels, size_px, size_px, device="meta")]
    if "embedding" in model.outline:
        inputs.append(torch.zeros(1, device="meta"))
    counts = multiply_adds_of_parts(shadow, *inputs)

    rows = [("", "output", "parameters", "multiply-adds")]
    for name, path in model.outline.items():
        rows.append(_row(name, shapes[name], parameters(model.get_submodule(path)), counts.get(path, 0)))
    rows.append(_row("total", (), parameters(model), counts[""]))
    return "\n".join(f"{name:<10}  {shape:>16}  {count:>13}  {work:>15}" for name, shape, count, work in rows)


def _recorder(shapes: dict[str, tuple[int, ...]], name: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    return record


def _row(name: str, shape: tuple[int, ...], count: int, work: int) -> tuple[str, str, str, str]:
    return name, " x ".join(map(str, shape)), f"{count:,}", f"{work:,}"
