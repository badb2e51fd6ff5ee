"""Lines of the page: how far something is, or why it failed."""

import html
import re

from storage.show import printable

SCRATCH = "page-"
"""how the names of folders begin that exist only during a click"""


def message(error: ValueError | OSError) -> str:
    """An error as one line, without the folders of the page."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return re.sub(rf"[^\s'\"]*/{SCRATCH}[^/\s]+/", "", " ".join(text.split()))


def line(text: str, failed: bool = False) -> str:
    """A line as HTML, which shows the text as it is."""
    escaped = html.escape(printable(text))
    return f'<div role="alert" class="failed">{escaped}</div>' if failed else f"<div>{escaped}</div>"


def table(figures: dict[str, float]) -> str:
    """Names and numbers as HTML."""
    rows = [f"<tr><td>{html.escape(printable(name))}</td><td>{value:.4g}</td></tr>" for name, value in figures.items()]
    return f'<table class="figures">{"".join(rows)}</table>' if rows else ""
