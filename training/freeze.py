"""Freezes parameters, chosen by name patterns."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from residual.names import suggest


def freeze(model: nn.Module, patterns: Sequence[str]) -> str | None:
    """Excludes the parameters whose names match one of `patterns` (shell-style: * ? [ ]) from training.

    Returns a message; None without patterns. Raises ValueError for a pattern that matches nothing, with the closest
    names, and if no parameter would be left to train.
    """
    if not patterns:
        return None
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not frozen_names(model, [pattern]):
            examples = f"names are such as {names[0]} and {names[-1]}"
            raise ValueError(f"freeze={pattern} matches no parameter; {suggest(pattern, _patterns(names), examples)}")
    frozen = frozen_names(model, patterns)
    if len(frozen) == len(names):
        raise ValueError(f"freeze={','.join(patterns)} leaves no parameter to train; freeze fewer")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    count = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"freeze: {count:,} of {total:,} parameters, {len(frozen)} of {len(names)} tensors"


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """The names of the parameters that match one of `patterns`."""
    names = (name for name, _ in model.named_parameters())
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _patterns(names: Sequence[str]) -> list[str]:
    """All names, and a pattern for every module with its parameters."""
    parts = [name.split(".") for name in names]
    branches = {".".join(part[:depth]) + ".*": None for part in parts for depth in range(1, len(part))}
    return [*branches, *names]
