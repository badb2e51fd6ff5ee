"""Progress on a terminal: a bar that leaves out what a narrow one has no room for, and lines above it."""

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from storage.show import printable
from training.disk_space import ignore_disk_full


def print_line(text: str) -> None:
    """Print one line, above the progress bar if there is one; control characters are escaped.

    A full disk behind the standard output is ignored.
    """
    with ignore_disk_full():
        tqdm.write(printable(text))


class Bar(tqdm):
    """A progress bar whose line is never cut: what matters least is left out where there is no room for it.

    It shows the description, the count, a bar, the remaining time, the speed, and the words of the postfix. The words
    are left out first, from the last one on; then the speed, the first word, the bar, and the description. It follows
    the width of the terminal. With `disable=None` there is none in a file.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **{"dynamic_ncols": True} | options)

    @staticmethod
    def format_meter(*given: Any, **options: Any) -> str:
        """The line for a terminal of `ncols` columns; None: as long as it is. Other values are those of tqdm."""
        ncols, prefix, postfix = (options.pop(name, None) for name in ("ncols", "prefix", "postfix"))
        options["prefix"], line = f"{prefix} " if prefix else "", ""
        for layout in _layouts(str(postfix or "").split()):
            line = tqdm.format_meter(*given, **options | {"bar_format": layout.replace(" {bar}", "")})
            if ncols is None or len(line) <= ncols:
                has_room = ncols is not None and len(line) + len(" #") <= ncols
                whole = options | {"bar_format": layout, "ncols": ncols}
                return tqdm.format_meter(*given, **whole) if has_room else line
        return line[:ncols]


def _layouts(words: list[str]) -> Iterator[str]:
    """What a line can show, the fullest first."""
    start, speed = "{desc}{n_fmt}/{total_fmt} {bar} {remaining} left", " {rate_fmt}"
    for count in range(len(words), 0, -1):
        yield f"{start}{speed}, {' '.join(words[:count])}"
    if words:
        yield f"{start} {words[0]}"
    else:
        yield start + speed
    yield start
    yield start.removeprefix("{desc}")
