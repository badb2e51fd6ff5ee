import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.training.toy import accelerator, config
from training.log import RunLog, evaluated, read, truncate
from training.step import TrainingSettings


@pytest.mark.parametrize("end", [b'{"images": 16, "lo', b"\0" * 40, b'{"im\xff\xfe": 8}\n{"images": 16}\n'])
def test_truncate_drops_what_came_later_and_what_cannot_be_read(tmp_path, end):
    path = tmp_path / "log.jsonl"
    rows = [{"images": images, "loss": images / 7} for images in (8, 16, 24)]
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + end)
    truncate(path, 16)
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])


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


def test_rows_and_the_bar(tmp_path, capsys):
    settings = config()
    with closing(
        RunLog(tmp_path / "log.jsonl", tmp_path / "tensorboard", settings.train, 8, accelerator(settings))
    ) as log:
        log.advance(8)
        log.write(16, 2, {"loss": 0.123456})
        log.write(16, 2, {"score": 2.0}, evaluated=True)
    assert list(read(tmp_path / "log.jsonl")) == [
        {"images": 16, "update": 2, "loss": 0.123456},
        {"images": 16, "update": 2, "evaluated": True, "score": 2.0},
    ]
    assert "16.0/80.0" in capsys.readouterr().err


def test_the_bar_shows_all_numbers_at_80_columns(tmp_path, capsys):
    settings = config(images=102_400_000, batch=128)
    log = opened(tmp_path, settings, 3_600_000)
    with closing(log):
        log.bar.ncols = 79  # what tqdm takes of a terminal with 80
        log.bar.start_t -= 3600
        log.advance(36_000_000)
        numbers = {"loss": 0.0345678, "gradient_norm": 0.123456, "learning_rate": 1.87654e-4, "data_wait": 0.0123}
        log.write(39_600_000, 1, numbers | {"images_per_second": 10_000.0})
        log.bar.refresh()
    line = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert line.startswith("39.6M/102M ")
    assert line.endswith(" left 10.0kimg/s, loss=0.0346 norm=0.12 lr=0.00019 wait=1%")
    assert len(line) <= 79


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(trackers=("tensorboard",))
    with closing(
        RunLog(tmp_path / "log.jsonl", tmp_path / "tensorboard", settings.train, 0, accelerator(settings))
    ) as log:
        log.write(16, 2, {"loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(16, 0.5)]
