"""The command line of evaluate.py. Needs no PyTorch, so that help and errors come at once."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from training.flags import read_flags
from training.script import VERSION, show_and_exit

OWN: dict[str, tuple[str | None, str]] = {
    "ema": ("NUMBER", "other averages of the run"),
    "likelihood": (None, "the bits per dimension that a diffusion model needs"),
    "other": ("IMAGES", "images whose likelihood is computed, too"),
}
"""flags that are no settings of a run"""
USAGE = (
    "usage: evaluate.py RUN|MODEL|DRAWN [--ema NUMBER ...] [--likelihood [--other IMAGES]] [--data.KEY VALUE ...] "
    "[--quality.KEY VALUE ...] [--ensemble.KEY VALUE ...] [--classification.validation_batch N]"
)
ALLOWED = ("data.", "quality.", "ensemble.", "classification.validation_batch")


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how."""

    given: str
    """a run, a model or images"""
    flags: tuple[str, ...]
    """the settings of the run that are changed"""
    ema: tuple[float, ...] = ()
    likelihood: bool = False
    other: str | None = None
    """images whose likelihood is computed, too"""
    help: bool = False
    """whether the settings are shown, and nothing is evaluated"""
    completion: str | None = None
    """the shell whose completion is printed, and nothing is evaluated"""


def read(argv: Sequence[str], about: str) -> Request:
    """Reads the command line; prints the help text `about`, or the version, and exits, if they are asked for.

    Raises ValueError for flags that are unknown or do not fit together.
    """
    if not argv:
        raise ValueError(f"no run is given; {USAGE}")
    given, flags = (None, argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    (likelihood, other), flags = split_likelihood(flags)
    ema, flags = split_averages(flags)
    own, settings = read_flags(flags)
    if "version" in own:
        show_and_exit(VERSION)
    if "print-completion" in own:
        return Request("", (), completion=own["print-completion"])
    if given is None:
        if "help" in own:
            show_and_exit(f"{about}\n{USAGE}")
        raise ValueError(f"no run is given before {argv[0]}; {USAGE}")
    if wrong := next((name for name in (*own, *settings) if name != "help" and not name.startswith(ALLOWED)), None):
        raise ValueError(f"'--{wrong}' cannot be used with evaluate.py; {USAGE}")
    return Request(given, tuple(flags), tuple(ema), likelihood, other, "help" in own)


def split_likelihood(words: Sequence[str]) -> tuple[tuple[bool, str | None], list[str]]:
    """Whether --likelihood is given, the images of --other, and the other flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--likelihood", action="store_true")
    parser.add_argument("--other")
    try:
        found, left = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; {USAGE}") from None
    if found.other is not None and not found.likelihood:
        raise ValueError(f"other={found.other} is compared by likelihood; give --likelihood, too")
    return (found.likelihood, found.other), left


def split_averages(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """The numbers of --ema, which may be several words, or one with commas; and the other flags."""
    found, left, inside = list[float](), list[str](), False
    for word in words:
        name, equals, text = word.partition("=")
        if name == "--ema":
            found, inside = [], not equals
            values = text if equals else ""
        elif inside and not word.startswith("--"):
            values = word
        else:
            inside = False
            left.append(word)
            continue
        try:
            found += [float(value) for value in values.split(",") if value.strip()]
        except ValueError:
            raise ValueError(f"ema={values} is not a number; give widths below 1, or half-lives in images") from None
    if not found and len(left) < len(words):
        raise ValueError("ema has no value; give widths below 1, or half-lives in images")
    return found, left
