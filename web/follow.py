"""A run in training, as its folder shows it: how far it is, its curves, grids and figures. Nothing is written to it."""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from storage.read import read_bytes
from storage.show import printable
from training.curves import draw_points
from training.run_facts import RunFacts, read_facts
from training.run_folder import RunFolder
from training.task import Figure
from web.models import is_run, require_folder

CURVES = {
    "loss": Figure("loss", log=True),
    "gradient_norm": Figure("gradient norm", log=True),
    "learning_rate": Figure("learning rate"),
    "images_per_second": Figure("images per second"),
}
"""numbers of the log that every run has"""
GRIDS = 3
"""pictures of evaluations that are shown, the newest ones"""


@dataclass(frozen=True)
class Followed:
    """What the folder of a run shows now."""

    about: str
    """how far the run is"""
    curves: dict[str, Image.Image]
    """of the numbers of `CURVES` that were logged"""
    metrics: Image.Image | None
    """curves of the figures of evaluations"""
    grids: list[tuple[Image.Image, str]]
    """pictures of evaluations, the newest first, with a line about it"""
    figures: dict[str, float]
    """of the newest evaluation"""


def follow(path: str, scratch: Path) -> Followed:
    """Reads a run folder; pictures are made in the folder `scratch`. Raises ValueError for another folder."""
    if not is_run(require_folder(path)):
        raise ValueError(f"{path!r} is not the folder of a run of train.py (no config.yaml); give one")
    facts, samples = read_facts(Path(path)), RunFolder(path).samples
    newest = max((points[-1][0] for points in facts.log.figures.values()), default=0)
    return Followed(
        _about(facts),
        _curves(facts, scratch),
        _open(samples / "metrics.png"),
        _grids(samples),
        {name: points[-1][1] for name, points in facts.log.figures.items() if points[-1][0] == newest},
    )


def _curves(facts: RunFacts, scratch: Path) -> dict[str, Image.Image]:
    found = dict[str, Image.Image]()
    for name in CURVES:
        points = facts.log.curves.get(name)
        draw_points({name: points} if points else {}, scratch / f"{name}.png", CURVES)
        if (picture := _open(scratch / f"{name}.png")) is not None:
            found[name] = picture
    return found


def _about(facts: RunFacts) -> str:
    """How far the run is, and about how much time is left, in a line."""
    settings, log = facts.settings, facts.log
    batch = settings["train.batch"]
    total = -(-settings["train.images"] // batch) * batch
    text = f"{log.images_seen:,} of {total:,} images seen ({log.images_seen / total:.0%})"
    if log.last_time is not None:
        text += f", last line {printable(log.last_time)}"
    speeds = log.curves.get("images_per_second")
    speed = speeds[-1][1] if speeds else 0.0
    left = (total - log.images_seen) / speed if speed > 0 else 0.0
    if not 0 < left < math.inf:
        return text
    return f"{text}; {speed:,.0f} images/s, {tqdm.format_interval(left)} left"


def _grids(folder: Path) -> list[tuple[Image.Image, str]]:
    names = sorted((path for path in folder.glob("[0-9]*.png") if path.stem.isdecimal()), reverse=True)
    opened = [(_open(path), f"drawn after {int(path.stem):,} images") for path in names[:GRIDS]]
    return [(picture, text) for picture, text in opened if picture is not None]


def _open(path: Path) -> Image.Image | None:
    """The picture in a file; None if there is none, or it is damaged."""
    try:
        picture = Image.open(BytesIO(read_bytes(path, None)), formats=["PNG"])
        picture.load()
        return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
