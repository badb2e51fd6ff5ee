"""What a network is made of, as text."""

import copy

import torch

from residual.count import multiply_adds_of_parts, parameters
from resnet.classifier import Classifier


def summarize(model: Classifier, size: int) -> str:
    """A line for each level: the shape of its output (channels, height, width), its parameters and multiply-adds.

    Shapes and multiply-adds are those of one image of `size` × `size` px. Raises ValueError if it is too small.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    x, t = torch.empty(1, model.config.in_channels, size, size, device="meta"), torch.zeros(1, device="meta")
    conditioned = model.embedding is not None
    with torch.no_grad():
        maps = shadow.forward_features(x, range(len(model.levels)), t if conditioned else None)
    counts = multiply_adds_of_parts(model, *((x, t) if conditioned else (x,)))

    rows = [("", "output", "parameters", "multiply-adds")]
    if model.embedding is not None:
        width = shadow.embedding(t).shape[1]  # type: ignore[misc]
        rows.append(_row("embedding", (width,), parameters(model.embedding), counts.get("embedding", 0)))
    for index, (level, features) in enumerate(zip(model.levels, maps, strict=True)):
        name = f"stage {index}" if index else "stem"
        rows.append(_row(name, tuple(features.shape[1:]), parameters(level), counts[f"levels.{index}"]))
    rows.append(_row("classifier", (model.config.num_classes,), parameters(model.fc), counts["fc"]))
    rows.append(_row("total", (), parameters(model), counts[""]))
    return "\n".join(f"{name:<10}  {shape:>16}  {count:>13}  {work:>15}" for name, shape, count, work in rows)


def _row(name: str, shape: tuple[int, ...], count: int, work: int) -> tuple[str, str, str, str]:
    return name, " x ".join(map(str, shape)), f"{count:,}", f"{work:,}"
