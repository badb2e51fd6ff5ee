"""Checks a user-supplied name; suggests the closest matches if it is unknown."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def require_known(kind: str, name: str, names: Iterable[str]) -> str:
    """Returns `name`. Raises ValueError, with the closest of `names`, unless it is one of them.

    `kind` describes the name in the message: "unknown sampler 'dddim'; did you mean ddim?".
    """
    names = list(names)
    if name in names:
        return name
    choices = f" (of: {shorten(names)})" if 0 < len(closest(name, names)) < len(names) else ""
    raise ValueError(f"unknown {kind} {name!r}; {suggest(name, names)}{choices}")


def suggest(name: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about an unknown name: the closest of `names`, else `otherwise`, else all of them."""
    names = list(names)
    if near := closest(name, names):
        return f"did you mean {' or '.join(near)}?"
    return f"give one of: {shorten(names)}" if otherwise is None else otherwise


def closest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `names` that are similar to `name`, the most similar first."""
    return get_close_matches(name, list(names), n=count)


def shorten(names: Sequence[str], count: int = 12) -> str:
    """The first `count` names in one line; with the number of all names if there are more."""
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")


def amount(count: int, noun: str) -> str:
    """A number with its noun: `1 class`, `1,000 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def rows_by_name(source: Sequence[str] | None, target: Sequence[str] | None) -> list[int | None] | None:
    """For each class of `target` the number of the class with its name in `source`, or None if there is none.

    None if one of them has no names, or only numbers as names: then classes go by their numbers.
    """
    for names in (source, target):
        if names is None or list(names) == [str(number) for number in range(len(names))]:
            return None
    assert source is not None
    assert target is not None
    numbers = {name: number for number, name in enumerate(source)}
    return [numbers.get(name) for name in target]
