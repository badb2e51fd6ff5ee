"""The flags of a training run. Needs no PyTorch, so that a script can read them at once."""

from collections.abc import Sequence

from training.completion import COMPLETION

OWN = {
    "help": (None, "show this text and exit"),
    "config": ("FILE", "the run, as a YAML file"),
    "run": ("FOLDER", "its log, checkpoints, samples and model (default: runs/NAME for a config NAME.yaml or a task)"),
    "fresh": (None, "start over; the existing contents of the run folder are moved aside"),
    "dry-run": (None, "show the settings, the size of the model, memory and learning rates, and exit"),
    "version": (None, "show the version of the project and exit"),
    "print-completion": ("SHELL", COMPLETION),
    "profile": (None, "profile some updates: RUN/profile/trace.json, and a table of where their time goes"),
    "validate": (None, "check every image of the data set, report errors and statistics, and exit"),
}


def read_flags(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Splits a command line into the flags of the command and those of the run, each name -> text.

    The last of several equal flags counts, so that a script may end in "$@". Raises ValueError.
    """
    own: dict[str, str] = {}
    flags: dict[str, str] = {}
    words, last = ["--help" if word == "-h" else word for word in argv], ""
    while words:
        if (word := words.pop(0)) == "--":
            continue  # what launchers put before a script's flags
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            is_item = last and not word.startswith("-")
            way_out = f"write a list as one value: {last},{word}" if is_item else "every flag starts with --"
            raise ValueError(f"{word!r} is not a flag; {way_out}")
        if name in OWN and OWN[name][0] is None:
            if equals:
                raise ValueError(f"--{name} takes no value; leave {equals}{text} out")
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE")
            text = words.pop(0)
        if not text.strip() and OWN.get(name, ("",))[0] is not None:
            raise ValueError(f"--{name} is empty; give a value, null for none, or [] for an empty list")
        if name == "config" and name in own:
            raise ValueError(f"--config is given twice ({own[name]}, {text}); give one file and change it by flags")
        (own if name in OWN else flags)[name] = text
        last = "" if name in OWN else f"--{name} {text}"
    return own, flags
