import json
import re
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from accelerate.utils import LoggerType
from PIL import Image

from tests.training.toy import accelerator, config, train
from training.log import PROJECT, RunLog, evaluated, read, truncate
from training.progress import print_line
from training.step import TrainingSettings


@pytest.mark.parametrize("end", [b'{"images": 16, "lo', b"\0" * 40, b'{"im\xff\xfe": 8}\n{"images": 32}\n'])
def test_truncate_drops_what_came_later_and_what_cannot_be_read(tmp_path, end):
    path = tmp_path / "log.jsonl"
    rows = [{"images": images, "loss": images / 7} for images in (8, 16, 24)]
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + end)
    truncate(path, 16)
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b'{"images": 12, "lo',
        b"\0" * 40,
        b"\xff\xfe\r\x1b[31m",
        b"[8, 9]",
        b"12",
        b"null",
        b'"text"',
        b'{"loss": 1}',
        b'{"images": null}',
        b'{"images": "12"}',
        b'{"images": true}',
        b'{"images": 12.5}',
        b'{"images": NaN}',
        b'{"images": -8}',
        b'{"images": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"images": 8}{"images": 8}',
        b"",
    ],
)
def test_only_a_damaged_line_is_lost(tmp_path, capsys, line):
    path = tmp_path / "log.jsonl"
    rows = [json.dumps({"images": images, "loss": images / 7}).encode() for images in (8, 16, 24)]
    path.write_bytes(b"\n".join([rows[0], line, *rows[1:]]) + b"\n")
    assert [row["images"] for row in read(path)] == [8, 16, 24]
    truncate(path, 16)
    assert path.read_bytes().splitlines() == rows[:2]
    assert re.search(r"log\.jsonl: damaged lines .*: 2$", capsys.readouterr().out.strip())


def test_truncate_without_a_log(tmp_path):
    truncate(tmp_path / "log.jsonl", 16)
    assert list(tmp_path.iterdir()) == []


def test_evaluated(tmp_path):
    path = tmp_path / "log.jsonl"
    assert not evaluated(path, 8)
    path.write_text('{"images": 8, "loss": 1.0}\n{"images": 16, "evaluated": true}\n')
    assert not evaluated(path, 8)
    assert evaluated(path, 16)


def opened(path: Path, settings: TrainingSettings, images_seen: int) -> RunLog:
    return RunLog(path / "log.jsonl", path / "tensorboard", settings.train, images_seen, accelerator(settings))


def without_time(path: Path) -> list[dict]:
    rows = list(read(path))
    for row in rows:
        written = datetime.fromisoformat(row.pop("time"))
        assert written.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    return rows


def test_rows_and_the_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    settings = config()
    with closing(
        RunLog(tmp_path / "log.jsonl", tmp_path / "tensorboard", settings.train, 8, accelerator(settings))
    ) as log:
        log.advance(8)
        log.write(16, 2, {"loss": 0.123456})
        log.write(16, 2, {"score": 2.0}, evaluated=True)
    assert without_time(tmp_path / "log.jsonl") == [
        {"images": 16, "update": 2, "loss": 0.123456},
        {"images": 16, "update": 2, "evaluated": True, "score": 2.0},
    ]
    assert "16.0/80.0" in capsys.readouterr().err


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
    with closing(opened(tmp_path, config(), 0)) as log:
        for _ in range(5):
            log.advance(8)
        log.write(40, 5, {"loss": 0.123456, "data_wait": 0.011, "images_per_second": 2.0})
        log.write(40, 5, {"score": 2.0}, evaluated=True)
        log.write(40, 5, {}, saved=False)
    assert capsys.readouterr().err.splitlines() == [
        "40 of 80 images: loss=0.123 wait=1% images_per_second=2 left=00:20",
        "40 of 80 images: score=2",
    ]


def test_lines_cannot_control_the_terminal(capsys):
    print_line("moved \x1b[31m\u202e")
    assert capsys.readouterr().out == "moved \\x1b[31m\\u202e\n"


def test_the_bar_shows_all_numbers_at_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    settings = config(images=102_400_000, batch=128)
    log = opened(tmp_path, settings, 3_600_000)
    with closing(log):
        monkeypatch.setattr(log.bar, "dynamic_ncols", lambda file: (79, 24))  # what tqdm takes of a terminal with 80
        log.bar.start_t -= 3600
        log.advance(36_000_000)
        numbers = {"loss": 0.0345678, "gradient_norm": 0.123456, "learning_rate": 1.87654e-4, "data_wait": 0.0123}
        log.write(39_600_000, 1, numbers | {"images_per_second": 10_000.0})
        log.bar.refresh()
    line = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert line.startswith("39.6M/102M ")
    assert line.endswith(" left 10.0kimg/s, loss=0.0346 norm=0.12 lr=0.00019 wait=1%")
    assert len(line) <= 79


def test_tensorboard_gets_settings_numbers_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    options = config(trackers=("tensorboard",))
    found = {"data.size": [8, 8], "init": None, "train.batch": 8}
    engine = accelerator(options)
    log = RunLog(tmp_path / "log.jsonl", tmp_path / "tensorboard", options.train, 0, engine, found)
    with closing(log):
        log.write(16, 2, {"loss": 0.5})
        log.write_image("grid", 16, pixels)
    events = EventAccumulator(str(tmp_path / "tensorboard" / PROJECT)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(16, 0.5)]
    (image,) = events.Images("grid")
    assert image.step == 16
    assert np.array_equal(np.asarray(Image.open(BytesIO(image.encoded_image_string))), pixels)
    (stored,) = tmp_path.glob("tensorboard/*/*/hparams.yml")
    assert yaml.safe_load(stored.read_text()) == {"data.size": "[8, 8]", "init": None, "train.batch": 8}


class Wandb(ModuleType):
    """A stand-in for the module wandb that records what it gets."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.settings: dict = {}
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.settings.update(values))
        self.Image = lambda pixels: pixels.shape

    def init(self, **options) -> SimpleNamespace:
        self.started.append(options)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


def test_wandb_gets_one_project_settings_and_images_and_a_resume_continues_the_run(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    available = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    monkeypatch.setattr("training.accelerator.get_available_trackers", lambda: available)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: available)
    changes = {"trackers": ("wandb",), "images": 40, "checkpoint_every_images": 16, "eval_every_images": 40}
    train(tmp_path / "mine", **changes)
    train(tmp_path / "mine", **changes | {"images": 80})
    train(tmp_path / "other", **changes)
    assert [options["project"] for options in wandb.started] == ["residual-diffusion"] * 3
    assert [options["name"] for options in wandb.started] == ["mine", "mine", "other"]
    assert [options["resume"] for options in wandb.started] == ["allow"] * 3
    first, again, other = (options["id"] for options in wandb.started)
    assert first == again != other
    assert wandb.settings["train.batch"] == 8
    assert wandb.settings["machine.device"] == "cpu"
    steps = [step for step, values in wandb.logged if "loss" in values]
    assert steps == [*range(8, 88, 8), *range(8, 48, 8)]
    with closing(opened(tmp_path / "mine", config(trackers=("wandb",)), 40)) as log:
        log.write_image("grid", 40, np.zeros((2, 2, 3), np.uint8))
    assert wandb.logged[-1] == (40, {"grid": [(2, 2, 3)]})
    with closing(opened(tmp_path / "mine", config(trackers=("wandb",)), 0)):
        assert wandb.started[-1]["id"] != first, "a run that starts over is another one"
    (tmp_path / "mine" / "wandb_id").write_bytes(b"\xff../")
    with closing(opened(tmp_path / "mine", config(trackers=("wandb",)), 40)):
        assert re.fullmatch("[a-z0-9]{8}", wandb.started[-1]["id"])
