"""The report of a run: RUN/report.html, one file without scripts that needs nothing else to be shown.

It is made of the run folder alone, so it can be written while the run is in progress and again afterwards. What is
absent or damaged is a note on the page. Every text of the folder is escaped. The file has at most `MAX_BYTES`.
"""

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from storage.read import is_regular, read_bytes, read_json
from storage.show import printable
from storage.write import replace_file
from training.charts import chart
from training.log import failures
from training.log_facts import Point, is_number
from training.run_facts import RunFacts, read_facts
from training.task import Figure, limits_of
from training.units import show_size

REPORT_FILE = "report.html"
MAX_BYTES = 8 << 20
MAX_GRIDS = 6
"""of the grids over time: the first, the last, and evenly spaced ones"""
MAX_OTHERS = 4
"""pictures of other kinds, such as of ensembles, and pictures of classes"""
MAX_PICTURE_BYTES, MAX_SIDE_PX = 350_000, 1000
"""of a picture on the page; larger ones are reduced"""
MAX_FILE_BYTES = 64 << 20
"""of a picture in the folder"""
MAX_CLASSES, MAX_PANELS, MAX_SETTINGS, MAX_NOTES = 100, 24, 500, 20
MAX_TEXT = 300
"""characters of a value or a name"""
CLASSES_FILE = "classes.json"
OF_CLASSES = {
    "confusion.png": "Confusion matrix: true classes down, predicted classes across",
    "mistakes.png": "The worst mistakes: the wrongly classified images with the largest loss",
}
DRAWN_ELSEWHERE = {"metrics.png", *OF_CLASSES}
OF_TRAINING = ("loss", "gradient_norm", "learning_rate", "images_per_second")
COMMANDS = {
    "diffusion": ("python sample.py {run} {given}", "python evaluate.py {run}"),
    "distillation": ("python sample.py {run} {given}", "python evaluate.py {run}"),
    "classification": ("python evaluate.py {run}", "python evaluate.py {run} --data.source MY_IMAGES"),
    "superresolution": ("python sample.py {run} --upscale IMAGES", "python evaluate.py {run}"),
    "regression": ("python evaluate.py {run}",),
}
"""what a trained model is used with, by task"""
CONTINUE = "python train.py --config {config} --run {run}"


def write_report(path: Path, figures: Mapping[str, Figure]) -> Path:
    """Writes report.html into the run folder `path`; returns its path. `figures` describe the evaluations' numbers.

    Raises ValueError for a folder that is no run.
    """
    page = make_report(read_facts(path), figures)
    target = path / REPORT_FILE
    replace_file(target, lambda new: new.write_text(page, encoding="utf-8"), flush=False)
    return target


def use_commands(settings: Mapping[str, Any], run: str) -> list[str]:
    """The commands that use the model of a run. A task of one's own has none.

    `settings` are those of the run, by dotted name. `run` is its folder, quoted for a shell.
    """
    commands = COMMANDS.get("superresolution" if _enlarges(settings) else str(settings.get("task")), ())
    given = "--condition FILES" if settings.get("data.condition") else "--num 64"
    return [command.format(run=run, given=given) for command in commands]


def _enlarges(settings: Mapping[str, Any]) -> bool:
    """Whether the run trains a model that enlarges images."""
    return settings.get("task") == "superresolution" or settings.get("diffusion.upscale") is not None


def next_command(settings: Mapping[str, Any], run: Path) -> str | None:
    """The first of `use_commands`; None if there is none."""
    return next(iter(use_commands(settings, shlex.quote(str(run)))), None)


def make_report(facts: RunFacts, figures: Mapping[str, Figure]) -> str:
    """The page of a run."""
    notes = [*facts.notes, *failures(facts.log.failed)]
    name = _text(facts.path.resolve().name)
    sections = {
        "Figures": _figures(facts, figures),
        "Curves": _curves(facts, figures),
        "Images over time": _grids(facts, notes),
        "Classes": _classes(facts, notes),
        "Time and machine": _time(facts),
        "Memory and disk": _memory(facts),
        "Use": _use(facts),
        "Settings": _settings(facts),
    }
    shown = notes[:MAX_NOTES] + [f"and {len(notes) - MAX_NOTES} more"] * (len(notes) > MAX_NOTES)
    body = "".join(f'<p class="note">note: {_text(note)}</p>' for note in shown)
    body += "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items() if content)
    return f'{HEAD.format(title=name)}<h1>{name}</h1><p class="state">{_state(facts)}</p>{body}</body></html>\n'


def _state(facts: RunFacts) -> str:
    total = facts.total_images
    of = "" if total is None else f" of {total:,}"
    state = "finished" if facts.is_finished else "in progress, or stopped"
    last = facts.log.last_time
    when = "" if last is None else f"; last line of the log: {_text(last)}"
    return f"{_text(facts.task)}, {state}: {facts.log.images_seen:,}{of} images seen{when}"


def _figures(facts: RunFacts, figures: Mapping[str, Figure]) -> str:
    """A table of what evaluations measured last, with the best values and the floors."""
    if not facts.log.figures:
        return "<p>No evaluation yet.</p>"
    rows = []
    for name, points in list(facts.log.figures.items())[:MAX_SETTINGS]:
        figure = figures.get(name)
        if figure is not None and figure.dashed:
            continue
        limits = [] if figure is None else limits_of(figure, figures)
        floors = [f"{other} {facts.log.figures[other][-1][1]:.4g}" for other in limits if other in facts.log.figures]
        best = ""
        if figure is not None and figure.best is not None:
            images, value = figure.choose(points, key=lambda point: point[1])
            best = f"{value:.4g} at {images:,}"
        unit = "" if figure is None else figure.axis
        rows.append((name, f"{points[-1][1]:.4g}", best, ", ".join(floors), unit))
    seen = max(points[-1][0] for points in facts.log.figures.values())
    columns = [("figure", "last", "best", "beside it", "unit"), *rows]
    used = [column for column in zip(*columns, strict=True) if any(column[1:])]
    head, *lines = zip(*used, strict=True)
    return f"<p>After {seen:,} images seen.</p>" + _table(head, lines)


def _curves(facts: RunFacts, figures: Mapping[str, Figure]) -> str:
    """Panels: those of the updates, then the evaluations' figures, those of the same axis together."""
    panels = list[tuple[str, str]]()
    for name in OF_TRAINING:
        if points := facts.log.curves.get(name):
            panels.append((name, chart({name: points}, log=name in ("loss", "gradient_norm"), title=name)))
    axes = dict[str, dict[str, Sequence[Point]]]()
    for name, points in facts.log.figures.items():
        axes.setdefault(figures[name].axis if name in figures else _line(name), {})[name] = points
    for axis, curves in list(axes.items())[: MAX_PANELS - len(panels)]:
        curves = {_line(name): points for name, points in list(curves.items())[:MAX_PANELS]}
        log = any(figures[name].log for name in curves if name in figures)
        dashed = [name for name in curves if name in figures and figures[name].dashed]
        title = axis if len(curves) > 1 or axis in curves else f"{next(iter(curves))}: {axis}"
        panels.append((title, chart(curves, log, dashed, title)))
    if not panels:
        return "<p>The log has no numbers yet.</p>"
    shown = (f"<figure><figcaption>{_text(title)}</figcaption>{svg}</figure>" for title, svg in panels)
    return f'<div class="panels">{"".join(shown)}</div>'


def _grids(facts: RunFacts, notes: list[str]) -> str:
    """The grids of samples/, and the newest picture of each other kind."""
    folder = facts.path / "samples"
    series = dict[str, list[Path]]()
    try:
        found = sorted(folder.glob("*.png"))
    except OSError as error:
        notes.append(f"{folder} cannot be read: {error.strerror}")
        found = []
    for path in found:
        if path.name not in DRAWN_ELSEWHERE:
            series.setdefault(path.stem.rstrip("0123456789"), []).append(path)
    grids = series.pop("", [])
    if not grids and facts.log.images_seen and facts.task in ("diffusion", "distillation"):
        notes.append(f"samples/ of {facts.path} has no grids")
    chosen = sorted({round(k * (len(grids) - 1) / max(1, MAX_GRIDS - 1)) for k in range(MAX_GRIDS)} if grids else set())
    columns = ": small, by the bicubic filter, by the model, original" if _enlarges(facts.settings) else ""
    pictures = [(grids[k], f"{int(grids[k].stem):,} images seen{columns}") for k in reversed(chosen)]
    others = [(paths[-1], paths[-1].name) for paths in list(series.values())[:MAX_OTHERS]]
    newest, *earlier = _pictures(pictures, notes) or [""]
    panels = f'<div class="panels">{"".join(earlier)}</div>' if earlier else ""
    return newest + panels + "".join(_pictures(others, notes))


def _classes(facts: RunFacts, notes: list[str]) -> str:
    """Accuracy of each class, the confusion matrix and the worst mistakes of a classifier."""
    folder = facts.path / "samples"
    if not (folder / CLASSES_FILE).exists():
        return ""
    try:
        document = read_json(folder / CLASSES_FILE)
        rows = [
            (str(each["name"]), int(each["images"]), int(each["right"]), str(each["confused_with"] or ""))
            for each in document["classes"]
        ]
        seen = int(document["images_seen"])
    except (ValueError, OSError, KeyError, TypeError, OverflowError) as error:
        notes.append(f"{folder / CLASSES_FILE} cannot be read: {type(error).__name__}: {error}")
        return ""
    rows.sort(key=lambda row: row[2] / max(row[1], 1))
    cells = [
        (name, f"{right / count:.1%}" if count else "no images", f"{right:,} of {count:,}", confused)
        for name, count, right, confused in rows[:MAX_CLASSES]
    ]
    more = f"<p>{len(rows) - MAX_CLASSES:,} more classes are better.</p>" if len(rows) > MAX_CLASSES else ""
    table = _table(("class, the worst first", "accuracy", "right", "most often taken for"), cells)
    pictures = [(folder / name, text) for name, text in OF_CLASSES.items() if (folder / name).exists()]
    matrix, *others = _pictures(pictures, notes) or [""]
    beside = f'<div class="panels">{"".join(others)}<div>{table}{more}</div></div>'
    return f"<p>After {seen:,} images seen.</p>{matrix}{beside}"


def _pictures(pictures: Sequence[tuple[Path, str]], notes: list[str]) -> list[str]:
    """Each picture with its caption; one that cannot be read is a note."""
    shown = list[str]()
    for path, caption in pictures:
        try:
            kind, data, width = picture_data(path)
        except (ValueError, OSError) as error:
            notes.append(f"{path} cannot be shown: {error}")
            continue
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        text = _text(caption)
        image = f'<img src="{source}" alt="{text}" style="width:{width}px">'
        shown.append(f"<figure><figcaption>{text}</figcaption>{image}</figure>")
    return shown


def picture_data(path: Path) -> tuple[str, bytes, int]:
    """Format, bytes and width of a PNG file, reduced until it has at most `MAX_PICTURE_BYTES`.

    Raises ValueError or OSError for another or a damaged file.
    """
    data = read_bytes(path, MAX_FILE_BYTES)
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
    except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is damaged or no PNG file ({error})") from None
    width, side = picture.width, MAX_SIDE_PX
    if len(data) <= MAX_PICTURE_BYTES:
        return "png", data, width
    reduced = picture.convert("RGB")
    while True:
        reduced.thumbnail((side, side))
        file = BytesIO()
        reduced.save(file, "jpeg", quality=85)
        if file.tell() <= MAX_PICTURE_BYTES:
            return "jpeg", file.getvalue(), reduced.width
        side = side * 3 // 4


def _time(facts: RunFacts) -> str:
    """Speed, and where the time went."""
    rows = list[tuple[str, str]]()
    if (speed := facts.log.speed) is not None:
        low, middle, high = speed
        rows.append(("images per second", f"{middle:,.4g} (quartiles {low:,.4g} to {high:,.4g})"))
    if utilisation := facts.log.curves.get("mfu"):
        rows.append(("model FLOPs utilisation", f"{utilisation[-1][1]:.1%}"))
    training, waiting = facts.log.training_seconds, facts.log.waiting_seconds
    rows += [("updates", _seconds(training - waiting)), ("waiting for data", _seconds(waiting))] if training else []
    seconds = facts.usage.get("seconds")
    for name, value in seconds.items() if isinstance(seconds, dict) else ():
        if is_number(value):
            rows.append((str(name), _seconds(value)))
    if (elapsed := facts.log.elapsed_seconds) is not None:
        rows.append(("from the first to the last line of the log", _seconds(elapsed)))
    machine = facts.usage.get("machine")
    if isinstance(machine, dict):
        rows += [(str(name), str(value)) for name, value in machine.items()]
    return _table(("", ""), rows) if rows else ""


def _memory(facts: RunFacts) -> str:
    rows = list[tuple[str, str]]()
    for key, name in (
        ("peak_memory_bytes", "peak memory of the main process"),
        ("peak_device_memory_bytes", "peak memory of its GPU"),
    ):
        if is_number(value := facts.usage.get(key)):
            rows.append((name, show_size(value)))
    for name in ("model", "best", "checkpoints", "snapshots", "samples"):
        if (folder := facts.path / name).is_dir() and (size := _size(folder)):
            rows.append((f"{name}/ on disk", show_size(size)))
    return _table(("", ""), rows) if rows else ""


def _use(facts: RunFacts) -> str:
    run = shlex.quote(printable(str(facts.path)))
    config = shlex.quote(printable(str(facts.path / "config.yaml")))
    lines = use_commands(facts.settings, run)
    resume = CONTINUE.format(run=run, config=config)
    lines.append(resume if not facts.is_finished else f"{resume} --train.images MORE")
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _settings(facts: RunFacts) -> str:
    rows = [(name, "null" if value is None else str(value)) for name, value in facts.settings.items()]
    return f"<details><summary>{len(rows)} settings</summary>{_table(('', ''), rows[:MAX_SETTINGS])}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column has the names of the rows."""
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    lines = (
        f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _text(value: object) -> str:
    """A text of unknown origin as HTML: one line, shortened, escaped."""
    return escape(_line(value), quote=True)


def _line(value: object) -> str:
    """A text of unknown origin as one line, shortened."""
    text = str(value)
    return printable(text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…")


def _seconds(value: float) -> str:
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{int(seconds):02}" if hours or minutes else f"{seconds:.1f} s"


def _size(folder: Path) -> int:
    """Bytes of the regular files in a folder and below, as far as they can be looked at."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink() and is_regular(path))


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 1120px; margin: 0 auto;
  padding: 16px }}
h1 {{ margin: 8px 0 0; overflow-wrap: anywhere }}
h2 {{ font-size: 18px; border-bottom: 1px solid #d1d9e0; padding-bottom: 4px; margin: 32px 0 12px }}
.state {{ color: #59636e; margin: 4px 0 0 }}
.note {{ background: #fff8c5; border: 1px solid #d4a72c; border-radius: 6px; padding: 6px 10px;
  overflow-wrap: anywhere }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 20px }}
figure {{ margin: 0 0 16px }}
figcaption {{ font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere }}
svg {{ width: 100%; height: auto; display: block }}
svg text {{ font-size: 11px; fill: #59636e }}
.grid {{ stroke: #e4e8ec }}
.legend {{ margin: 2px 0 0; font-size: 13px }}
.key {{ margin-right: 10px; white-space: nowrap }}
.wide {{ overflow-x: auto }}
img {{ max-width: 100%; height: auto; display: block; image-rendering: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #eaeef2; vertical-align: top;
  font-weight: 400; overflow-wrap: break-word }}
details td {{ overflow-wrap: anywhere }}
tbody th {{ color: #59636e }}
thead th {{ font-weight: 600 }}
pre {{ background: #f6f8fa; border-radius: 6px; padding: 12px; white-space: pre-wrap; overflow-wrap: anywhere }}
summary {{ cursor: pointer }}
</style></head><body>
"""
