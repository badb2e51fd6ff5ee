"""Weights of a U-Net for another one that has other image channels, or other labels, and is the same in all else."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from residual.weights.adapt import adapt_inputs, adapt_outputs
from unet.config import UNetConfig, encoder_blocks

_FREE = {"in_channels", "out_channels", "size", "classes", "null_label", "learned_variance", "init", "dropout"}
"""fields in which the two networks may differ: adapted below, or without a part in the meaning of the weights"""
_PER_LEVEL = {
    "channel_multipliers",
    "blocks_per_level",
    "attention_levels",
    "heads",
    "head_channels",
    "resample",
    "recompute_levels",
}


def adapt_weights(
    weights: Mapping[str, Tensor], there: UNetConfig, here: UNetConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of the network `there` as those of the network `here`, and one sentence per thing that was adapted.

    - Image channels: an image whose channels repeat cyclically (a grey one as RGB) means the same to both networks.
    - Learned variance that `here` lacks is left out.
    - Labels: rows of numbers that both have are kept, as is “no label”; others start at the mean of the rows there, at
      zero if there are none. Without labels here, “no label” (else that mean) goes into a bias.

    Raises ValueError, with the difference, for networks that differ in anything else.
    """
    if differences := [f"{name}={a!r} there, {b!r} here" for name, a, b in _differences(there, here)]:
        way_out = "give the same settings, or none where the weights come with theirs"
        raise ValueError(f"the networks differ in {'; '.join(differences)}; {way_out}")
    adapted, said = dict(weights), []
    if there.learned_variance and not here.learned_variance:
        for name in ("head.conv.weight", "head.conv.bias"):
            adapted[name] = adapted[name][: there.out_channels]
        said.append("output: the half that is the learned variance is left out")
    if there.in_channels != here.in_channels:
        for name in _input_weights(here):
            adapted[name] = adapt_inputs(adapted[name], here.in_channels)
        kind = "summed" if here.in_channels < there.in_channels else "shared"
        said.append(f"input: {there.in_channels} channels there, {here.in_channels} here; weights are {kind}")
    if there.out_channels != here.out_channels:
        for name in ("head.conv.weight", "head.conv.bias"):
            halves = adapted[name].chunk(1 + here.learned_variance)
            adapted[name] = torch.cat([adapt_outputs(half, here.out_channels) for half in halves])
        kind = "averaged" if here.out_channels < there.out_channels else "repeated"
        said.append(f"output: {there.out_channels} channels there, {here.out_channels} here; weights are {kind}")
    said += _adapt_labels(adapted, there, here)
    return adapted, said


def _input_weights(config: UNetConfig) -> Iterator[str]:
    """The names of the weights that read the image."""
    yield "encoder.0.conv.weight"
    if config.input_skips:
        first = (i for i, block in enumerate(encoder_blocks(config), start=1) if block.resample is not None)
        yield from (f"input_skips.{i}.branch.weight" for i in list(first)[:1])


def _adapt_labels(weights: dict[str, Tensor], there: UNetConfig, here: UNetConfig) -> Iterator[str]:
    """Changes the label's weights in place, and tells how."""
    if (there.classes, there.null_label) == (here.classes, here.null_label) or there.classes is here.classes is None:
        return
    if there.classes is None:
        assert here.classes is not None
        _write_rows(weights, here, weights["embedding.linear2.weight"].new_zeros(here.classes + 1, _width(here)))
        if here.label_embedding == "linear_first":
            weights["embedding.label.bias"] = weights["embedding.linear2.weight"].new_zeros(_width(here))
        yield f"labels: there are none there, {here.classes} here, which start at zero"
        return
    rows, null = _read_rows(weights, there)
    mean = rows.mean(dim=0)
    if here.classes is None:
        _fold(weights, there, mean if null is None else null)
        kept = "their mean" if null is None else "“no label”"
        yield f"labels: the {there.classes} there are left out; {kept} goes into a bias"
        return
    table = here.label_embedding == "table"
    both = min(there.classes, here.classes)
    new = torch.cat([rows[:both], mean.expand(here.classes - both, -1), (mean if null is None else null)[None]])
    if table and here.null_label and null is None and there.classes == here.classes + 1:
        new[-1] = rows[-1]  # other libraries have no word for a row more than there are classes
        yield f"labels: number {here.classes} of the {there.classes} there is taken for “no label” here"
    else:
        started = [f"numbers {both} to {here.classes - 1}"] * (both < here.classes)
        started += ["“no label”"] * (table and here.null_label and null is None)
        anew = f", {' and '.join(started)} start at the mean of those there" if started else ""
        yield f"labels: {there.classes} there, {here.classes} here; the first {both} are kept by number{anew}"
    _write_rows(weights, here, new)


def _width(config: UNetConfig) -> int:
    """Of the vector that a label becomes."""
    if config.label_embedding != "linear_first":
        return config.emb_channels
    base = config.time_channels or config.base_channels
    return base if config.time_embedding in ("ddpm", "adm") else 2 * base


def _scale(config: UNetConfig) -> float:
    """Of the one-hot label, where a linear map reads it."""
    assert config.classes is not None
    return config.classes**0.5 if config.label_embedding == "linear_first" else 1.0


def _read_rows(weights: Mapping[str, Tensor], config: UNetConfig) -> tuple[Tensor, Tensor | None]:
    """What each label adds, and what “no label” does (none: the network does not know it). Biases are left out."""
    weight = weights["embedding.label.weight"].float()
    if config.label_embedding == "table":
        return weight[: config.classes], weight[config.classes] if config.null_label else None
    rows = weight.T * _scale(config)
    return rows, torch.zeros_like(rows[0]) if config.null_label else None


def _write_rows(weights: dict[str, Tensor], config: UNetConfig, rows: Tensor) -> None:
    """Sets what each label adds; the last row is what “no label” does, where that is a row of its own."""
    if config.label_embedding == "table":
        weights["embedding.label.weight"] = rows if config.null_label else rows[:-1]
    else:
        weights["embedding.label.weight"] = (rows[:-1] / _scale(config)).T.contiguous()


def _fold(weights: dict[str, Tensor], config: UNetConfig, row: Tensor) -> None:
    """Takes the label's weights out; what a label of this row does is added to the bias that follows it."""
    weights.pop("embedding.label.weight")
    if config.label_embedding == "linear_first":
        vector = row + weights.pop("embedding.label.bias")
        weights["embedding.linear1.bias"] = (
            weights["embedding.linear1.bias"] + weights["embedding.linear1.weight"] @ vector
        )
    else:
        weights["embedding.linear2.bias"] = weights["embedding.linear2.bias"] + row


def _differences(there: UNetConfig, here: UNetConfig) -> Iterator[tuple[str, Any, Any]]:
    """Fields (or what they say of each level) that would give the same weights another meaning, with both values."""
    labelled = there.classes is not None and here.classes is not None
    for field in fields(UNetConfig):
        name = field.name
        if name in _FREE | _PER_LEVEL or (name == "label_embedding" and not labelled):
            continue
        if name == "time_channels":
            name = "emb_channels"
        if getattr(there, name) != getattr(here, name):
            yield name, getattr(there, name), getattr(here, name)
    if there.learned_variance < here.learned_variance:
        yield "learned_variance", False, True
    a, b = _per_level(there), _per_level(here)
    yield from ((name, a[name], b[name]) for name in a if a[name] != b[name])


def _per_level(config: UNetConfig) -> dict[str, tuple[Any, ...]]:
    levels = config.levels
    last = levels[-1]
    return {
        "channels per level": tuple(level.channels for level in levels),
        "blocks_per_level": tuple(level.blocks for level in levels),
        "attention_levels": tuple(i for i, level in enumerate(levels) if level.attention),
        "heads": tuple(level.heads for level in levels if level.attention or level is last),
        "resample": tuple(level.resample for level in levels[:-1]),
    }
