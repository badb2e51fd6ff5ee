"""The report of a run: what it shows of a folder, what of it is damaged, and what can never leave it."""

import json
import os
import re
import shlex
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.report import main as print_report
from tests.training.toy import BATCH, train
from training import run_report
from training.charts import chart
from training.run_facts import add_usage, read_facts
from training.run_report import (
    COMMANDS,
    MAX_BYTES,
    MAX_GRIDS,
    MAX_PICTURE_BYTES,
    make_report,
    next_command,
    picture_data,
    write_report,
)
from training.task import Figure
from training.yaml_file import write_yaml

FIGURES = {
    "distance": Figure("distance (squared features)", log=True, best="lowest"),
    "floor": Figure("distance (squared features)", log=True, dashed=True),
}
EVIL = '"><script>alert(1)</script>`'


class Page(HTMLParser):
    """The elements of a page: names, attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> Page:
    found = Page(make_report(read_facts(path), FIGURES))
    assert found.open == []
    return found


def run_of(path: Path, *rows: dict, task: str = "diffusion", **settings: object) -> Path:
    """A run folder with a log."""
    (path / "samples").mkdir(parents=True)
    tree = {"format_version": 2, "task": task, "train": {"images": 400, "seed": 0}, **settings}
    (path / "config.yaml").write_text(write_yaml(tree))
    (path / "log.jsonl").write_text("".join(f"{json.dumps({'update': 1, **row})}\n" for row in rows))
    return path


ROWS = [
    {"images": 100, "time": "2026-01-01T00:00:00+00:00", "loss": 2.0, "images_per_second": 50.0, "data_wait": 0.5},
    {"images": 200, "time": "2026-01-01T00:00:05+00:00", "evaluated": True, "distance": 4.0, "floor": 0.5},
    {"images": 200, "time": "2026-01-01T00:00:05+00:00", "loss": 1.0, "images_per_second": 25.0, "data_wait": 0.0},
    {"images": 300, "time": "2026-01-01T00:01:05+00:00", "evaluated": True, "distance": 7.0, "floor": 0.5},
]


def grid(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def test_an_interval_of_skipped_updates_counts_once(tmp_path: Path) -> None:
    rows = [
        {"images": 100, "loss": 1.0},
        {"images": 200},
        {"images": 250, "skipped": True},
        {"images": 300, "loss": 1.0},
    ]
    speeds = [50.0, 25.0, None, 50.0]
    timed = [
        row if speed is None else row | {"images_per_second": speed} for row, speed in zip(rows, speeds, strict=True)
    ]
    assert read_facts(run_of(tmp_path, *timed)).log.training_seconds == pytest.approx(100 / 50 + 100 / 25 + 100 / 50)


def test_facts_are_those_of_the_log(tmp_path):
    facts = read_facts(run_of(tmp_path / "run", *ROWS))
    assert (facts.log.images_seen, facts.total_images, facts.is_finished) == (300, 400, False)
    assert facts.log.training_seconds == pytest.approx(100 / 50 + 100 / 25)
    assert facts.log.waiting_seconds == pytest.approx(1.0)
    assert facts.log.elapsed_seconds == 65
    assert list(facts.log.curves["loss"]) == [(100, 2.0), (200, 1.0)]
    assert list(facts.log.figures["distance"]) == [(200, 4.0), (300, 7.0)]


def test_a_page_has_figures_with_their_floor_curves_and_commands(tmp_path):
    text = page(run_of(tmp_path / "my run", *ROWS)).text
    assert re.search(r"distance7.*4 at 200.*floor 0\.5", text)
    assert "300 of 400 images seen" in text
    assert f"python sample.py '{tmp_path / 'my run'}' --num 64" in text
    curves = [tag for tag, _ in page(tmp_path / "my run").tags if tag == "svg"]
    assert len(curves) == 3  # loss, speed, distance with its floor


@pytest.mark.parametrize("task", [*run_report.COMMANDS, "own"])
def test_a_run_of_any_task_without_a_log_has_a_page(tmp_path, task):
    path = run_of(tmp_path / "run", task=task)
    (path / "log.jsonl").unlink()
    assert f"--config {path / 'config.yaml'}" in page(path).text


def test_nothing_of_the_folder_becomes_markup(tmp_path):
    row = {"images": 100, "evaluated": True, EVIL: 1.0, "time": EVIL}
    path = run_of(tmp_path / "<b>run", row, data={"source": EVIL}, task=EVIL)
    names = [{"name": EVIL, "images": 2, "right": 1, "confused_with": EVIL}]
    (path / "samples" / "classes.json").write_text(json.dumps({"images_seen": 1, "classes": names}))
    (path / "usage.json").write_text(json.dumps({"seconds": {EVIL: 1.0}, "machine": {EVIL: EVIL}}))
    grid(path / "samples" / "a'><i>1.png")
    found = page(path)
    allowed = {"script", "b", "i"}
    assert not allowed & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/")
    assert found.text.count("<script>") >= 6
    assert not [tag for tag, attributes in found.tags if tag == "link" or "href" in attributes]


def test_grids_over_time_are_the_first_the_last_and_some_between(tmp_path):
    path = run_of(tmp_path / "run", *ROWS)
    for number in range(20):
        grid(path / "samples" / f"{number * 100:09d}.png")
    grid(path / "samples" / "ensemble-000000100.png")
    captions = [str(attributes["alt"]) for tag, attributes in page(path).tags if tag == "img"]
    assert len(captions) == MAX_GRIDS + 1
    assert (captions[0], captions[MAX_GRIDS - 1]) == ("1,900 images seen", "0 images seen")
    assert captions[-1] == "ensemble-000000100.png"


def test_damaged_parts_are_notes(tmp_path):
    path = run_of(tmp_path / "run", *ROWS)
    with open(path / "log.jsonl", "a") as file:
        file.write('{"images": 1, "lo')
    (path / "usage.json").write_text("[")
    (path / "samples" / "classes.json").write_text('{"classes": [3]}')
    (path / "samples" / "000000100.png").write_bytes(b"\x89PNG damaged")
    os.mkfifo(path / "samples" / "000000200.png")
    notes = page(path).text.split("note: ")[1:]
    for part in ("1 damaged line of log.jsonl", "usage.json", "classes.json", "000000100.png", "000000200.png"):
        assert any(part in note for note in notes), part


def test_missing_grids_are_a_note(tmp_path):
    assert "has no grids" in page(run_of(tmp_path / "run", *ROWS)).text


@pytest.mark.parametrize("content", [None, "task: [", "format_version: 99\n"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        write_report(tmp_path, FIGURES)
    assert not (tmp_path / "report.html").exists()


def test_pictures_are_reduced_to_their_limit(tmp_path):
    grid(tmp_path / "small.png")
    assert picture_data(tmp_path / "small.png")[:2] == ("png", (tmp_path / "small.png").read_bytes())
    grid(tmp_path / "large.png", (1200, 900))
    kind, data, width = picture_data(tmp_path / "large.png")
    assert kind == "jpeg"
    assert len(data) <= MAX_PICTURE_BYTES
    assert width <= 900


def test_the_size_is_bounded(tmp_path):
    numbers = {f"{'n' * 900}{k}": 1.0 for k in range(600)}
    rows = [{"images": 10 * k, "evaluated": k % 2 == 0, "loss": 1 / (k + 1)} | numbers for k in range(10)]
    path = run_of(tmp_path / "run", *rows, data={f"key{k}": "v" * 200 for k in range(400)})
    limit = MAX_PICTURE_BYTES * 4 // 3 * (MAX_GRIDS + run_report.MAX_OTHERS + len(run_report.OF_CLASSES))
    classes = [{"name": "c" * 500, "images": 1, "right": 0, "confused_with": "c" * 500}] * 1000
    (path / "samples" / "classes.json").write_text(json.dumps({"images_seen": 1, "classes": classes}))
    assert len(make_report(read_facts(path), FIGURES).encode()) + limit < MAX_BYTES


def test_usage_adds_up_over_processes(tmp_path):
    for _ in range(2):
        add_usage(tmp_path, {"evaluations": 1.5}, {"device": "cpu"}, None)
    assert json.loads((tmp_path / "usage.json").read_text())["seconds"] == {"evaluations": 3.0}


def test_a_run_writes_its_report_after_each_evaluation_and_at_the_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "training.loop.write_report", lambda path, figures: seen.append(read_facts(path).log.images_seen)
    )
    train(tmp_path / "run", eval_every_images=4 * BATCH)
    assert seen == [4 * BATCH, 8 * BATCH, 10 * BATCH]


def test_a_report_shows_what_a_run_used(tmp_path):
    train(tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    for what in ("evaluations", "checkpoints", "peak memory of the main process", "80 of 80 images seen"):
        assert what in text


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("a broken report")

    monkeypatch.setattr("training.loop.write_report", fail)
    assert train(tmp_path / "run").finished
    assert "report.html is not written: RuntimeError: a broken report" in capsys.readouterr().out


@pytest.mark.parametrize("task", COMMANDS)
def test_the_next_command_is_read_by_a_shell(task: str) -> None:
    run = Path("my runs/it's")
    command = next_command({"task": task}, run)
    assert command is not None
    assert shlex.split(command)[:3] == ["python", shlex.split(COMMANDS[task][0])[1], str(run)]


def test_a_task_of_ones_own_has_no_next_command() -> None:
    assert next_command({"task": "toy"}, Path("run")) is None


def test_a_diffusion_model_that_enlarges_is_used_as_such() -> None:
    command = next_command({"task": "diffusion", "diffusion.upscale": 2}, Path("run"))
    assert command == "python sample.py run --upscale IMAGES"
    assert next_command({"task": "diffusion", "diffusion.upscale": None}, Path("run")) != command


def test_a_model_of_conditions_is_used_with_them() -> None:
    command = next_command({"task": "diffusion", "data.condition": "input.npy"}, Path("run"))
    assert command == "python sample.py run --condition FILES"


@pytest.mark.parametrize(("low", "high"), [(31.19, 31.24), (0.9011, 0.9021), (1e6, 1.0004e6), (0, 3e-4), (-0.2, 1)])
def test_ticks_of_an_axis_differ(low: float, high: float) -> None:
    texts = re.findall(r'text-anchor="end">([^<]*)<', chart({"a": [(0, low), (100, high)]}))
    assert len(texts) >= 3
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 8


@pytest.mark.parametrize("settings", [{"task": "superresolution"}, {"task": "diffusion", "diffusion": {"upscale": 2}}])
def test_the_columns_of_enlarged_pictures_are_named(tmp_path: Path, settings: dict) -> None:
    path = run_of(tmp_path / "run", **settings)
    grid(path / "samples" / "000000100.png")
    assert "100 images seen: small, by the bicubic filter, by the model, original" in page(path).text


def test_a_long_log_takes_the_memory_of_its_numbers(tmp_path):
    number, lines = 16, 500
    row = {"loss": 1.0, "gradient_norm": 2.0, "images_per_second": 30.0, "data_wait": 0.1}
    path = run_of(tmp_path / "run", *({"images": 10 * k, "update": k, **row} for k in range(lines)))
    read_facts(path)  # what is imported late
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        facts = read_facts(path)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(facts.log.curves["loss"]) == lines
    assert held < 1.3 * lines * len(row) * number + 10_000


LARGEST = float(np.finfo(np.float32).max)
ODD = [-1.7e308, 1.7e308, -LARGEST, LARGEST, -5.0, 0.0, 5e-324, 1e400]


@pytest.mark.parametrize("value", ODD)
def test_any_number_of_the_log_has_a_page(tmp_path: Path, value: float) -> None:
    odd = dict.fromkeys(["images_per_second", "data_wait", "loss", "learning_rate", "distance"], value)
    rows = [{**ROWS[0], "images": 0}, {**ROWS[0], **odd}, {**ROWS[1], **odd}, {**ROWS[0], "images": 50}, ROWS[3]]
    path = run_of(tmp_path / "run", *rows)
    page(path)
    log = read_facts(path).log
    assert 0 <= log.waiting_seconds <= log.training_seconds < float("inf")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, True, -1, "text"])
def test_odd_numbers_of_usage_and_classes_have_a_page(tmp_path: Path, value: object) -> None:
    path = run_of(tmp_path / "run")
    (path / "usage.json").write_text(json.dumps({"seconds": {"evaluations": value}, "peak_memory_bytes": value}))
    row = {"name": "0", "images": value, "right": 1, "confused_with": None}
    (path / "samples" / "classes.json").write_text(json.dumps({"images_seen": value, "classes": [row]}))
    page(path)


@pytest.mark.parametrize(
    ("name", "shown"), [("\ud800", r"\ud800"), ("a\0b", r"a\x00b"), ("<b>", "<b>"), ("n" * 400, "n" * 299 + "…")]
)
def test_an_odd_name_of_a_number_is_one_line_of_text(tmp_path: Path, name: str, shown: str) -> None:
    path = run_of(tmp_path / "run", {"images": 1, "evaluated": True, name: 1.0})
    write_report(path, FIGURES)
    found = page(path)
    assert shown in found.text
    assert [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"] == [shown]


def test_a_report_without_an_interval_prints_no_share_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report([str(run_of(tmp_path / "run", {"images": 0, "images_per_second": 5.0}))])
    printed = capsys.readouterr().out
    assert "images per second" in printed
    assert "waiting" not in printed


def test_a_number_that_no_float_holds_is_left_out(tmp_path):
    path = run_of(
        tmp_path / "run", {"images": 10, "loss": 10**400, "gradient_norm": 1.0}, {"images": 2**63, "loss": 1.0}
    )
    facts = read_facts(path)
    assert list(facts.log.curves) == ["gradient_norm"]
    assert facts.log.images_seen == 10
    assert "1 damaged line of log.jsonl" in facts.notes[0]


def test_damaged_values_are_left_out_of_a_page(tmp_path):
    row = {"images": 100, "time": "2026-01-01T00:00:00+00:00", "loss": 1.0}
    path = run_of(tmp_path / "run", row | {"images_per_second": 1e-320}, row, train={"images": float("inf")})
    (path / "usage.json").write_text('{"seconds": {"evaluations": NaN}, "peak_memory_bytes": Infinity}')
    facts = read_facts(path)
    assert facts.total_images is None
    assert (facts.log.training_seconds, facts.log.elapsed_seconds) == (0.0, 0.0)
    assert "evaluations" not in page(path).text
