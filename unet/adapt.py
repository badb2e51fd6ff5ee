"""Adapts the weights of a U-Net to one with other image channels, labels or augmentation labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from residual.weights.adapt import adapt_inputs, adapt_outputs
from unet.config import Skeleton, UNetConfig
from unet.edm2_config import EDM2Config

_FREE = {
    "in_channels",
    "out_channels",
    "size",
    "classes",
    "null_label",
    "augment_channels",
    "learned_variance",
    "logvar_channels",
    "init",
    "padding",
    "pad",
    "dropout",
}
"""fields that may differ: either adapted below or irrelevant to the weights"""


def adapt_weights(
    weights: Mapping[str, Tensor],
    source: UNetConfig | EDM2Config,
    target: UNetConfig | EDM2Config,
    rows: Sequence[int | None] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Converts weights from `source` to `target` config. Returns the weights and one message per adaptation.

    - Image channels: an image whose channels repeat cyclically (grey as RGB) means the same to both networks.
    - Learned variance: dropped, or zero-initialised, which is the middle of its range.
    - The log-variance of the loss: dropped, or zero-initialised, which is the plain loss.
    - Labels: rows of numbers that both have are kept, as is “no label”; with `rows`, each class of `target` takes the
      row of this number in `source` (None: of none). Other rows start at the mean of the source's rows, or at zero if
      there are none. Without labels in `target`, “no label” (else the mean) goes into a bias.
    - Augmentation labels: dropped, or zero-initialised. Both networks agree on images that are not augmented, whose
      augmentation label is zero.

    Weights of EDM2 are not adapted. Raises ValueError, with the difference, for networks that differ in anything else.
    """
    if type(source) is not type(target):
        kinds = f"{type(source).__name__} in the source, {type(target).__name__} here"
        raise ValueError(f"the networks are of different kinds: {kinds}; build the network from the source's config")
    if differences := [f"{name}={a!r} in the source, {b!r} here" for name, a, b in _differences(source, target)]:
        way_out = "give the same settings, or leave them out if the weights come with theirs"
        raise ValueError(f"the networks differ in {'; '.join(differences)}; {way_out}")
    adapted, messages = dict(weights), list[str]()
    if isinstance(source, EDM2Config) or isinstance(target, EDM2Config):
        return adapted, messages
    if source.learned_variance and not target.learned_variance:
        for name in _output_weights(target):
            adapted[name] = adapted[name][: source.out_channels]
        messages.append("output: the learned variance is dropped")
    if target.learned_variance and not source.learned_variance:
        for name in _output_weights(target):
            adapted[name] = torch.cat([adapted[name], torch.zeros_like(adapted[name])])
        messages.append("output: the weights of the learned variance start at zero")
    if source.in_channels != target.in_channels:
        for name in _input_weights(target):
            adapted[name] = adapt_inputs(adapted[name], target.in_channels)
        how = "summed" if target.in_channels < source.in_channels else "shared"
        messages.append(f"input: {source.in_channels} channels in the source, {target.in_channels} here; {how}")
    if source.out_channels != target.out_channels:
        for name in _output_weights(target):
            halves = adapted[name].chunk(1 + target.learned_variance)
            adapted[name] = torch.cat([adapt_outputs(half, target.out_channels) for half in halves])
        how = "averaged" if target.out_channels < source.out_channels else "repeated"
        messages.append(f"output: {source.out_channels} channels in the source, {target.out_channels} here; {how}")
    messages += _adapt_labels(adapted, source, target, rows)
    messages += _adapt_augmentation(adapted, source, target)
    messages += _adapt_logvar(adapted, source, target)
    return adapted, messages


def _input_weights(config: UNetConfig) -> Iterator[str]:
    """The names of the weights that read the image."""
    yield "encoder.0.conv.weight"
    skips = [i for i, block in enumerate(config.skeleton.encoder(), start=1) if block.resample is not None]
    if config.input_skips:
        yield from (f"input_skips.{i}.branch.weight" for i in skips[:1])
    if config.pyramid:
        yield from (f"input_skips.{i}.conv.weight" for i in skips)


def _output_weights(config: UNetConfig) -> Iterator[str]:
    """The names of the weights and biases that write the image."""
    skips = [i for i, block in enumerate(config.skeleton.decoder()) if block.resample is not None and config.pyramid]
    for module in ("head.conv", *(f"output_skips.{i}.head.conv" for i in skips)):
        yield from (f"{module}.weight", f"{module}.bias")


def _adapt_augmentation(weights: dict[str, Tensor], source: UNetConfig, target: UNetConfig) -> Iterator[str]:
    """Changes the weights of the augmentation label in place, and yields messages."""
    if source.augment_channels == target.augment_channels:
        return
    weights.pop("embedding.augment.weight", None)
    if source.augment_channels is not None:
        yield f"augmentation: the label's weights are dropped; augment_channels={source.augment_channels} keeps them"
    if target.augment_channels is not None:
        zeros = weights["embedding.linear1.weight"].new_zeros(target.time_features, target.augment_channels)
        weights["embedding.augment.weight"] = zeros
        yield f"augmentation: the weights of the label's {target.augment_channels} numbers start at zero"


def _adapt_logvar(weights: dict[str, Tensor], source: UNetConfig, target: UNetConfig) -> Iterator[str]:
    """Changes the head of the loss's log-variance in place, and yields messages."""
    if source.logvar_channels == target.logvar_channels:
        return
    if weights.pop("logvar.linear.weight", None) is not None:
        yield f"log-variance of the loss: its head is dropped; logvar_channels={source.logvar_channels} keeps it"
    if target.logvar_channels is not None:
        weights["logvar.linear.weight"] = weights["embedding.linear1.weight"].new_zeros(1, target.logvar_channels)
        yield "log-variance of the loss: the weights of its head start at zero"


def _adapt_labels(
    weights: dict[str, Tensor], source: UNetConfig, target: UNetConfig, rows_kept: Sequence[int | None] | None
) -> Iterator[str]:
    """Changes the label's weights in place, and yields messages."""
    same = rows_kept is None or list(rows_kept) == list(range(source.classes or 0))
    if same and (source.classes, source.null_label) == (target.classes, target.null_label):
        return
    if source.classes is None:
        if target.classes is not None:
            _write_rows(
                weights, target, weights["embedding.linear2.weight"].new_zeros(target.classes + 1, _width(target))
            )
            if target.label_embedding == "linear_first":
                weights["embedding.label.bias"] = weights["embedding.linear2.weight"].new_zeros(_width(target))
            yield f"labels: none in the source, {target.classes} here, which start at zero"
        return
    rows, null = _read_rows(weights, source)
    mean = rows.mean(dim=0)
    if target.classes is None:
        _fold(weights, source, mean if null is None else null)
        kept = "their mean" if null is None else "“no label”"
        yield f"labels: the {source.classes} of the source are dropped; {kept} goes into a bias"
        return
    is_table = target.label_embedding == "table"
    both = min(source.classes, target.classes)
    numbers = rows_kept if rows_kept is not None else [*range(both), *[None] * (target.classes - both)]
    new = torch.stack([*(mean if i is None else rows[i] for i in numbers), mean if null is None else null])
    if rows_kept is None and is_table and target.null_label and null is None and source.classes == target.classes + 1:
        new[-1] = rows[-1]  # other libraries do not mark the row of “no label”
        yield f"labels: number {target.classes} of the {source.classes} in the source is taken for “no label”"
    elif rows_kept is not None:
        found = sum(number is not None for number in rows_kept)
        rest = f"; the other {len(rows_kept) - found} start at the mean of the source's" * (found < len(rows_kept))
        yield f"labels: {found} of {len(rows_kept)} classes have the row of their name in the source{rest}"
    else:
        started = [f"numbers {both} to {target.classes - 1}"] * (both < target.classes)
        started += ["“no label”"] * (is_table and target.null_label and null is None)
        rest = f", {' and '.join(started)} start at the mean of the source's" if started else ""
        kept = f"the first {both} are kept by number{rest}"
        yield f"labels: {source.classes} in the source, {target.classes} here; {kept}"
    _write_rows(weights, target, new)


def _width(config: UNetConfig) -> int:
    """Width of the vector of a label."""
    return config.time_features if config.label_embedding == "linear_first" else config.emb_channels


def _scale(config: UNetConfig) -> float:
    """Factor on the one-hot label before a linear map."""
    assert config.classes is not None
    return config.classes**0.5 if config.label_embedding == "linear_first" else 1.0


def _read_rows(weights: Mapping[str, Tensor], config: UNetConfig) -> tuple[Tensor, Tensor | None]:
    """What each label adds, and what “no label” adds (None: there is no such label). Biases are left out."""
    weight = weights["embedding.label.weight"].float()
    if config.label_embedding == "table":
        return weight[: config.classes], weight[config.classes] if config.null_label else None
    rows = weight.T * _scale(config)
    return rows, torch.zeros_like(rows[0]) if config.null_label else None


def _write_rows(weights: dict[str, Tensor], config: UNetConfig, rows: Tensor) -> None:
    """Sets what each label adds. The last row is for “no label”; a linear map has no such row."""
    if config.label_embedding == "table":
        weights["embedding.label.weight"] = rows if config.null_label else rows[:-1]
    else:
        weights["embedding.label.weight"] = (rows[:-1] / _scale(config)).T.contiguous()


def _fold(weights: dict[str, Tensor], config: UNetConfig, row: Tensor) -> None:
    """Removes the label's weights and adds what a label of this row does to the bias that follows."""
    weights.pop("embedding.label.weight")
    if config.label_embedding == "linear_first":
        vector = row + weights.pop("embedding.label.bias")
        weights["embedding.linear1.bias"] = (
            weights["embedding.linear1.bias"] + weights["embedding.linear1.weight"] @ vector
        )
    else:
        weights["embedding.linear2.bias"] = weights["embedding.linear2.bias"] + row


def _differences(source: Any, target: Any) -> Iterator[tuple[str, Any, Any]]:
    """Fields, or their values per level, that would give the same weights another meaning, with both values."""
    free = _FREE if isinstance(target, UNetConfig) else {"size", "dropout"}
    ignored = free | {field.name for field in fields(Skeleton)} - {"base_channels", "decoder_attention"}
    if source.classes is None or target.classes is None:
        ignored |= {"label_embedding"}
    for name in (field.name for field in fields(target) if field.name not in ignored):
        name = "emb_channels" if name == "time_channels" else name
        if getattr(source, name) != getattr(target, name):
            yield name, getattr(source, name), getattr(target, name)
    a, b = _per_level(source.skeleton), _per_level(target.skeleton)
    yield from ((name, a[name], b[name]) for name in a if a[name] != b[name])


def _per_level(skeleton: Skeleton) -> dict[str, tuple[Any, ...]]:
    levels = skeleton.levels
    return {
        "channels per level": tuple(level.channels for level in levels),
        "blocks_per_level": tuple(level.blocks for level in levels),
        "attention_levels": tuple(level.index for level in levels if level.attention),
        "heads": tuple(level.heads for level in skeleton.attending_levels),
        "resample": tuple(level.resample for level in levels[:-1]),
    }
