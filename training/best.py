"""The best model of a run: a model folder with the averaged weights of the evaluation with the best leading figure.

Its best.json is written with it, so that figure and weights belong together after a crash, too. The folder itself holds
the figure of the best model so far, because a resumed run starts at an older checkpoint and repeats evaluations.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from residual.names import shorten
from residual.weights.config import read_config, read_json
from storage.write import replace_folder, write_text
from training.progress import print_line
from training.run_folder import set_aside
from training.task import Figure

RECORD = "best.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A leading figure of the averaged model."""

    figure: str
    value: float
    images_seen: int
    conditions: dict
    """what the value depends on besides the weights; see `Evaluation.conditions`"""
    written: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """when, ISO 8601"""

    def beats(self, other: "Measured", figure: Figure) -> bool:
        """Whether it is better. Values of another figure or under other conditions are not compared: the new one is."""
        if (self.figure, self.conditions) != (other.figure, other.conditions):
            return True
        return self.value != other.value and figure.choose((self.value, other.value)) == self.value


def keep(folder: Path, new: Measured, figure: Figure, save: Callable[[Path], object]) -> None:
    """Replaces the model folder `folder` by one that `save` writes if `new` is better than what is recorded there.

    For the main process only. What lies there without a readable record is moved aside, with a message.
    """
    if os.path.lexists(folder):
        try:
            old = read_config(Measured, read_json(folder / RECORD))
        except (ValueError, OSError) as error:
            moved = set_aside(folder)
            print_line(f"{folder} has no readable record of its model ({error}); moved to {moved}")
        else:
            if not new.beats(old, figure):
                return
            before, now = ({**each.conditions, "figure": each.figure} for each in (old, new))
            if differ := [name for name in now if before.get(name) != now[name]]:
                print_line(f"{folder} was measured with another {shorten(differ, 3)}; the newest model replaces it")

    def fill(target: Path) -> None:
        save(target)
        write_text(target / RECORD, json.dumps(asdict(new), indent=2) + "\n")

    replace_folder(folder, fill)
