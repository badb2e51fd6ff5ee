"""Malformed inputs of every kind end in a valid value or in one line; the same few each time. See `tests.fuzz`."""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.__main__ import kinds
from tests.fuzz.boundary import Case, Entry, Fault, Kind, Link, try_case
from tests.fuzz.data import pictures, written
from tests.fuzz.mutate import deep, dumped

KINDS = kinds()
TABLE = pa.table({"image": [pictures()["png RGB"]] * 3, "label": [0, 1, 0]})
OPEN = {"size": (8, 8), "channels": 3}


def with_features(document: object) -> bytes:
    """A table with the metadata that the library `datasets` stores in it."""
    return written(TABLE.replace_schema_metadata({"huggingface": json.dumps(document)}), "parquet")


NESTED = dumped({"format_version": 3, "files": {}, "config": deep(600)})
FOUND: list[tuple[str, Case, str | None]] = [
    ("pictures", Case({"picture": b"\0"}), r"not an image"),
    ("pictures", Case({"picture": pictures()["png RGB"][:20]}), r"."),
    ("pictures", Case({"picture": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 |\0\0-jp2h"}), r"."),
    ("tables", Case({"a.parquet": with_features({"info": {"features": "x"}})}, OPEN), r"a\.parquet"),
    (
        "tables",
        Case({"a.parquet": with_features({"info": {"features": {"image": {"_type": "X"}}}})}, OPEN),
        r"a\.parquet",
    ),
    ("logs", Case({"log.jsonl": Entry.PIPE}), r"log\.jsonl is a named pipe"),
    ("logs", Case({"log.jsonl": Link("/dev/zero")}), r"log\.jsonl is a device"),
    ("logs", Case({"log.jsonl": b"[" * 100_000 + b"\n3\n"}), None),
    ("checkpoints", Case({"000000008/state.json": Entry.PIPE}), r"000000008: state\.json.*named pipe"),
    ("checkpoints", Case({"000000008/state.json": b"[" * 100_000}), r"000000008: state\.json"),
    (
        "checkpoints",
        Case({"000000008/state.json": dumped({"files": {}, "format_version": 3, "a": deep(600)})}),
        r"state\.json",
    ),
    ("checkpoints", Case({"²/state.json": b"{}"}), None),
]
"""inputs that once had another end: the kind, and what is in the one line (None: a valid value)"""


@pytest.mark.parametrize("name", KINDS)
def test_malformed_inputs_end_in_a_value_or_in_one_line(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]()

    @settings(
        max_examples=kind.examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases)
    def holds(case: Case) -> None:
        try_case(kind, case, tmp_path / "trial")

    holds()


@pytest.mark.parametrize(("name", "case", "message"), FOUND)
def test_inputs_that_once_failed(name: str, case: Case, message: str | None, tmp_path: Path) -> None:
    found = try_case(KINDS[name](), case, tmp_path)
    assert found is None if message is None else re.search(message, found or "")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda folder, options: {}["missing"], r"KeyError"),
        (lambda folder, options: os.write(999, b""), r"OSError"),  # names no file
        (lambda folder, options: print("\x1b[2J"), r"control characters"),
        (lambda folder, options: (folder.parent / "new").touch(), r"new"),
        (lambda folder, options: Path("file").write_bytes(b""), r"file"),
        (lambda folder, options: [None for _ in iter(int, 1)], r"processor time"),
    ],
)
def test_another_end_is_a_fault(use, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.boundary.CPU_SECONDS", 0.2)
    with pytest.raises(Fault, match=message):
        try_case(Kind(KINDS["json"]().cases, use), Case(), tmp_path)
