"""Weight names of torchvision's `BackboneWithFPN`, the `backbone` of its detectors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from residual.weights.keymap import Place
from residual.weights.layout import Layout

_OLD = re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)")


def places(body: Layout, config: Any, levels: int) -> Iterator[Place]:
    """The backbone's blocks without its classifier, by the names of its own layout, then the pyramid."""
    for place in body.places(config):
        if place.ours != "fc":
            theirs = ".".join(filter(None, ("body", place.theirs)))
            yield replace(place, ours=place.ours.replace("levels.", "body.", 1), theirs=theirs)
    for i in range(levels):
        yield Place("module", f"lateral.{i}", f"fpn.inner_blocks.{i}.0")
        yield Place("module", f"smooth.{i}", f"fpn.layer_blocks.{i}.0")


def current_names(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a detector's backbone under today's names, and one message if other parts were left out.

    Files from before torchvision 0.14 have `inner_blocks.0.weight` for today's `inner_blocks.0.0.weight`.
    """
    messages = []
    if any(name.startswith("backbone.") for name in given):
        if others := [name for name in given if not name.startswith("backbone.")]:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in others))
            messages.append(f"{parts}: left out, {len(others)} tensors of a detector's other parts")
        given = {name.removeprefix("backbone."): t for name, t in given.items() if name not in others}
    return {_OLD.sub(r"\1.0.\2", name): tensor for name, tensor in given.items()}, messages
