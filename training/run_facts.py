"""What a run folder records about its run: settings, log, use of the machine. Damaged parts become notes."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from residual.names import amount
from storage.read import is_regular, read_json
from storage.write import write_text
from training import log
from training.disk_space import ignore_disk_full
from training.log_facts import LogFacts, is_number
from training.run_folder import RunFolder
from training.yaml_file import read_settings

USAGE_FILE = "usage.json"


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder records it, in progress or finished. Reads only."""

    path: Path
    settings: Mapping[str, Any]
    """by dotted name"""
    log: LogFacts
    """of the lines of the log"""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """see `add_usage`"""
    notes: tuple[str, ...] = ()
    """what of the folder could not be read"""

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.settings.get("task", "unknown"))

    @property
    def total_images(self) -> int | None:
        """Images of the whole run; None if the settings have no such number."""
        total = self.settings.get("train.images")
        return int(total) if is_number(total) else None

    @property
    def is_finished(self) -> bool:
        """Whether all images were seen."""
        return self.total_images is not None and self.log.images_seen >= self.total_images


def read_facts(path: Path) -> RunFacts:
    """The facts of a run folder. Raises ValueError for another folder, and for settings that cannot be read."""
    folder = RunFolder(path)
    if not is_regular(folder.config):
        raise ValueError(f"{str(path)!r} is no run folder (no config.yaml); give a run folder of train.py")
    settings, _ = read_settings(folder.config, is_record=True)
    facts, usage, notes = LogFacts(), dict[str, Any](), list[str]()
    damaged = 0
    try:
        for row in log.read_lines(folder.log):
            if row is None:
                damaged += 1
            else:
                facts.add(row)
    except (ValueError, OSError) as error:
        notes.append(f"log.jsonl cannot be read: {error}")
    if damaged:
        notes.append(f"left out: {amount(damaged, 'damaged line')} of log.jsonl")
    try:
        if (path / USAGE_FILE).exists():
            usage = read_json(path / USAGE_FILE)
    except (ValueError, OSError) as error:
        notes.append(f"{USAGE_FILE} cannot be read: {error}")
    return RunFacts(path, settings, facts, usage, tuple(notes))


def add_usage(path: Path, seconds: Mapping[str, float], machine: Mapping[str, Any], device_bytes: int | None) -> None:
    """Adds to RUN/usage.json: seconds of evaluations, checkpoints and the like; and replaces machine and peak memory.

    The memory is that of the main process. A full disk is ignored.
    """
    try:
        before = read_json(path / USAGE_FILE).get("seconds")
    except (ValueError, OSError):  # absent, or damaged
        before = None
    spent = {name: value for name, value in before.items() if is_number(value)} if isinstance(before, dict) else {}
    for name, value in seconds.items():
        spent[name] = spent.get(name, 0.0) + value
    document = {
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "machine": dict(machine),
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_device_memory_bytes": device_bytes,
    }
    with ignore_disk_full():
        write_text(path / USAGE_FILE, json.dumps(document, indent=2) + "\n")


def peak_memory_bytes() -> int | None:
    """The most memory that this process has used; None where the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
