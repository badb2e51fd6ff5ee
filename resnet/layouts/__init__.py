"""Converts weights of classifiers from and to the layouts of other libraries."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from residual.names import require_known
from residual.weights.adapt import adapt_inputs
from residual.weights.keymap import Difference, export_state, import_state, published_names
from residual.weights.layout import Layout

STEM = "levels.0.conv1.weight"
CLASSIFIER = ("fc.weight", "fc.bias")
NO_LAYOUTS = "this network has no layout of another library"
COUNTER = "num_batches_tracked"
Layouts = Mapping[str, Layout]
State = Mapping[str, Tensor]


def import_weights(
    layouts: Layouts, config: Any, given: State, ours: State, layout: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict from one in another layout, and one message per adaptation.

    `ours` is the network's own state dict; its classifier is kept if theirs is for another number of classes. Without
    `layout`, the layout that has most of the names is used. Raises ValueError for an unknown layout and for a config
    that the layout cannot express, and `Difference` if names or shapes do not fit.
    """
    if given.keys() == ours.keys():
        raise ValueError("the weights have our own names: load them by load_state_dict")
    name = likely_layout(layouts, config, given, ours) if layout is None else layout
    chosen = _layout(layouts, name, config)
    names = _names(chosen, config, ours)
    theirs, messages = with_counters(chosen.clean(given), names.values()), list[str]()
    messages += _adapt_stem(theirs, names[STEM], ours[STEM])
    messages += (left := _leave_out_classifier(theirs, [names[name] for name in CLASSIFIER], ours[CLASSIFIER[0]]))
    kept = {name: ours[name] for name in CLASSIFIER} if left else {}
    expected = {name: tensor for name, tensor in ours.items() if name not in kept}
    return import_state(chosen.places(config), chosen.table, theirs, expected) | kept, messages


def export_weights(layouts: Layouts, config: Any, ours: State, layout: str) -> dict[str, Tensor]:
    """The exact inverse of `import_weights`. Raises ValueError for a config that the layout cannot express."""
    chosen = _layout(layouts, layout, config)
    return export_state(chosen.places(config), chosen.table, ours)


def without_prefix(theirs: State) -> State:
    """Removes the prefix `module.` of DataParallel."""
    if theirs and all(name.startswith("module.") for name in theirs):
        return {name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    return theirs


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
            shared[name] = len(set(_names(layout, config, ours).values()) & layout.clean(given).keys())
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


def _names(layout: Layout, config: Any, ours: State) -> dict[str, str]:
    found = published_names(layout.places(config), layout.table, ours)
    return {name: theirs for name, (theirs,) in found.items()}


def _layout(layouts: Layouts, name: str, config: Any) -> Layout:
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


def _adapt_stem(theirs: dict[str, Tensor], name: str, ours: Tensor) -> list[str]:
    """Adapts their first convolution to our image channels, in place. Returns a message if it did."""
    if name not in theirs or theirs[name].dim() != 4 or (old := theirs[name].shape[1]) == (new := ours.shape[1]):
        return []
    theirs[name] = adapt_inputs(theirs[name], new)
    how = "summed" if new < old else "shared"
    return [f"{name}: {old} input channels adapted to {new}; weights are {how}"]


def _leave_out_classifier(theirs: dict[str, Tensor], names: list[str], ours: Tensor) -> list[str]:
    """Removes a classifier for another number of classes. Returns a message if it did."""
    weight = theirs.get(names[0])
    if weight is None or weight.shape[0] == len(ours):
        return []
    for name in names:
        theirs.pop(name, None)
    return [f"{' and '.join(names)}: not loaded, {weight.shape[0]} classes in the file and {len(ours)} in this network"]
