"""Standard streams that are closed, full or without a reader."""

import json
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from training.script import command

ROOT = Path(__file__).parents[2]
WORKS = r"""
import os, sys, warnings
from tqdm import tqdm
from training.progress import print_line
from training.script import command, require_printed

@command
def main(argv):
    with open(argv[0], "w") as file:
        assert file.fileno() > 2
        warnings.warn("careful")
        for number in tqdm(range(2000)):
            print_line(f"line {number} {'x' * 80}")
            print("note", number, file=sys.stderr)
        file.write("done")
    if argv[1:]:
        require_printed()

main()
"""
STREAMS = ["<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -1"]
OTHERS = ["2>&-", ">&-", "| head -1", "2>&1 >/dev/null | true"]


def run(code: str, *arguments: object, streams: str) -> tuple[int, str]:
    """Exit code and visible text of Python code under bash with redirected streams."""
    words = f'"$0" -c "$1" "${{@:2}}" {streams}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", words, sys.executable, code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("streams", [*STREAMS, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_the_work_goes_on_without_its_streams(tmp_path, streams):
    code, text = run(WORKS, tmp_path / "file", streams=streams)
    assert code == 0
    assert (tmp_path / "file").read_text() == "done"
    assert "Traceback" not in text
    assert "Exception ignored" not in text


@pytest.mark.parametrize(("streams", "expected"), [(">/dev/full", 2), ("| head -1", 0), (">&-", 0), ("", 0)])
def test_a_result_that_is_text_has_to_be_printed(tmp_path, streams, expected):
    code, text = run(WORKS, tmp_path / "file", "result", streams=streams)
    assert code == expected
    assert ("error: the standard output could not be written: No space left on device" in text) == (expected == 2)
    assert "Traceback" not in text


def test_an_error_of_a_thread_is_one_line(monkeypatch, capsys):
    @command
    def main(argv):
        thread = threading.Thread(target=lambda: int("a\nb\x1b"))
        thread.start()
        thread.join()

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored after the test
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    main([])
    assert re.fullmatch(r"note: a thread ended: ValueError: invalid literal .*'a\\nb\\x1b'\n", capsys.readouterr().err)


@pytest.mark.parametrize(("script", "streams", "expected"), [("train", "| head -1", 0), ("sample", ">/dev/full", 2)])
def test_help_without_a_reader(script, streams, expected):
    code, text = run(f"import {script}; {script}.main(['--help'])", streams=streams)
    assert code == expected
    assert "Traceback" not in text
    assert "Exception ignored" not in text


def test_the_lines_of_both_streams_are_written_in_their_order(tmp_path):
    _, text = run(WORKS, tmp_path / "file", streams=f">{tmp_path / 'log'} 2>&1; cat {tmp_path / 'log'}")
    numbers = re.findall(r"(?:line|note) (\d+)", text)
    assert [int(number) for number in numbers] == [number for number in range(2000) for _ in range(2)]


@pytest.mark.parametrize("streams", [">/dev/full 2>/dev/full", "2>&1 | head -1"])
def test_a_run_goes_on_without_its_streams(tmp_path, streams):
    flags = ["--config", "configs/digits-tiny.yaml", "--train.images", 256, "--train.log_every_images", 64]
    code, text = run("import sys, train; train.main(sys.argv[1:])", *flags, "--run", tmp_path / "run", streams=streams)
    assert code == 0
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows if "loss" in row] == [64, 128, 192, 256]
