"""Layouts of other libraries: which of them fits a network and its weights."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from residual.names import require_known
from residual.weights.keymap import Difference, export_state, published_names
from residual.weights.layout import Layout

STEM = "levels.0.conv1.weight"
CLASSIFIER = ("fc.weight", "fc.bias")
NO_LAYOUTS = "this network has no layout of another library"
COUNTER = "num_batches_tracked"
Layouts = Mapping[str, Layout]
State = Mapping[str, Tensor]


def likely_layout(layouts: Layouts, config: Any, given: State, ours: State) -> str:
    """The layout that has most of these names, of those that can express the config.

    Raises `Difference`, with the reasons, if none can express it.
    """
    shared, reasons = {}, []
    for name, layout in layouts.items():
        try:
            layout.check(config)
        except ValueError as error:
            reasons.append(str(error))
        else:
            shared[name] = len(set(weight_names(layout, config, ours).values()) & layout.clean(given).keys())
    if not shared:
        raise Difference("; ".join(reasons) or NO_LAYOUTS)
    return max(shared, key=lambda name: shared[name])


def bodies(layouts: Layouts, config: Any, ours: State) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of weights, per layout that can express the config.

    Weights that depend on the number of classes or image channels are left out.
    """
    rest = (STEM, *CLASSIFIER)
    inner = {name: tensor for name, tensor in ours.items() if name not in rest and not name.endswith(COUNTER)}
    for layout in layouts.values():
        with suppress(ValueError):
            layout.check(config)
            theirs = export_state(layout.places(config), layout.table, inner)
            yield {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def weight_names(layout: Layout, config: Any, ours: State) -> dict[str, str]:
    """The published name of each of our weights."""
    found = published_names(layout.places(config), layout.table, ours)
    return {name: theirs for name, (theirs,) in found.items()}


def require_layout(layouts: Layouts, name: str, config: Any) -> Layout:
    """The layout of a name. Raises ValueError for an unknown name and for a config that the layout cannot express."""
    if not layouts:
        raise ValueError(NO_LAYOUTS)
    require_known("layout", name, layouts)
    layouts[name].check(config)
    return layouts[name]


def with_counters(theirs: State, names: Iterable[str]) -> dict[str, Tensor]:
    """Adds the batch counters that files from before 2018 lack and drops those that frozen norms do not have.

    `names` are the expected names.
    """
    wanted = {name for name in names if name.endswith(COUNTER)}
    found = {name: tensor for name, tensor in theirs.items() if name in wanted or not name.endswith(COUNTER)}
    missing = [name for name in wanted if name.replace(COUNTER, "running_mean") in found and name not in found]
    return found | {name: torch.zeros((), dtype=torch.int64) for name in missing}
