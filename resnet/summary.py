"""Table of a network's parts, as text."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from residual.count import multiply_adds_of_parts, parameters


def summary(net: Any, size_px: int) -> str:
    """One row per part of a network of the zoo: output shape (channels, height, width), parameters, multiply-adds.

    Shapes and multiply-adds are those of one image of `size_px` × `size_px`. Raises ValueError if that is too small.
    """
    shadow, parts, shapes = copy.deepcopy(net).to("meta"), dict(_parts(net)), dict[str, str]()
    for name, path in parts.items():

        def record(module: nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
            shapes[name] = " x ".join(map(str, output.shape[1:]))

        shadow.get_submodule(path).register_forward_hook(record)
    image = torch.empty(1, getattr(net.config, "in_channels", 3), size_px, size_px, device="meta")
    counts = multiply_adds_of_parts(shadow, image, *[torch.zeros(1)] * ("embedding" in parts))
    rows = [(name, shapes[name], parameters(net.get_submodule(path)), path) for name, path in parts.items()]
    lines = [f"{'':<10}  {'output':>16}  {'parameters':>13}  {'multiply-adds':>15}"]
    for name, shape, count, path in (*rows, ("total", "", parameters(net), "")):
        lines.append(f"{name:<10}  {shape:>16}  {count:>13,}  {counts.get(path, 0):>15,}")
    return "\n".join(lines)


def _parts(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Name and path of each part."""
    for path, part in net.named_children():
        if isinstance(part, nn.ModuleList):
            yield from ((f"stage {i}" if i else "stem", f"{path}.{i}") for i in range(len(part)))
        else:
            yield path, path
