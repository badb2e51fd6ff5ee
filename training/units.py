"""Numbers and sizes in bytes as text with a unit prefix."""


def show_count(number: float, digits: int = 4) -> str:
    """A number with a unit prefix: 1.05 M."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{digits}g} {unit}"
    return f"{number:.0f}"


def show_size(count: float) -> str:
    """A number of bytes with a unit prefix: 1.05 MB."""
    return f"{show_count(count, 3)}B" if count >= 1e3 else f"{count:.0f} bytes"
