"""Names that a user gives, looked up in a table; an unknown one is answered with its nearest neighbours."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Returns `name` if it is one of `names`. Raises ValueError, naming the nearest of them first, if it is not."""
    names = list(names)
    if name in names:
        return name
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of: {some(names)}"
    raise ValueError(f"unknown {kind} {name!r}; {hint}" + (f" (of: {some(names)})" if near else ""))


def some(names: Sequence[str], most: int = 12) -> str:
    """The names in one line, shortened after `most` of them."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
