"""Labels from a file of JSON lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import open_images


@pytest.fixture
def folder(pixels, save, tmp_path: Path) -> Path:
    for i, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        save(tmp_path / "set" / name, pixels(i, 4, 4))
    return tmp_path / "set"


def lines(file: Path, **labels: Any) -> Path:
    text = "\n".join(json.dumps({"file_name": name, "label": label}) for name, label in labels.items())
    file.write_text(text, encoding="utf-8")
    return file


GOOD = {"a.png": "dog", "sub/b.png": "cat", "sub/c.png": "dog"}


def test_names_are_classes_in_their_order(folder: Path, config) -> None:
    file = lines(folder / "metadata.jsonl", **GOOD)
    images = open_images(config(source=folder, label_file=file))
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]


def test_numbers_are_class_numbers(folder: Path, config, tmp_path: Path) -> None:
    file = lines(tmp_path / "labels.jsonl", **{"./a.png": 2, "sub/b.png": 0, "sub/c.png": 2})
    images = open_images(config(source=folder, label_file=file))
    assert images.classes == ("0", "1", "2")
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 2]


def test_arrays_have_labels_too(config, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "x.npy", np.zeros((2, 2, 2), np.uint8))
    file = lines(tmp_path / "labels.jsonl", **{"x.npy": "zero"})
    assert open_images(config(source=tmp_path / "set", label_file=file)).classes == ("zero",)


def test_a_split_has_the_classes_of_all_and_needs_only_its_own_labels(config, pixels, save, tmp_path: Path) -> None:
    for i, name in enumerate(("train/a.png", "train/b.png", "val/a.png")):
        save(tmp_path / "set" / name, pixels(i, 4, 4))
    file = lines(tmp_path / "all.jsonl", **{"train/a.png": "x", "val/a.png": "y", "train/b.png": "z"})
    for split, numbers in (("train", [0, 2]), ("val", [1])):
        images = open_images(config(source=tmp_path / "set", label_file=file, split=split))
        assert images.classes == ("x", "y", "z")
        assert images.labels is not None
        assert images.labels.tolist() == numbers
    file = lines(tmp_path / "val.jsonl", **{"val/a.png": "y"})
    assert open_images(config(source=tmp_path / "set", label_file=file, split="val")).classes == ("y",)
    with pytest.raises(ValueError, match=r"data\.label_file .* 2 of 2 images.*'train/a\.png'"):
        open_images(config(source=tmp_path / "set", label_file=file))


def test_a_changed_file_is_noticed(folder: Path, config, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    first = open_images(config(source=folder, label_file=lines(file, **GOOD))).labels
    second = open_images(config(source=folder, label_file=lines(file, **GOOD | {"a.png": "cat"}))).labels
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([1, 0, 1], [0, 0, 1])


A, B = '{"file_name": "a.png", "label": "dog"}', '{"file_name": "sub/b.png", "label": "dog"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{A}\n\n{{broken", r"data\.label_file '.*labels\.jsonl', line 3: .*JSON"),
        ("[]", r"line 1: .*\"file_name\""),
        ('{"file_name": "a.png"}', r"line 1: .*\"file_name\""),
        ('{"file_name": 3, "label": 1}', r"line 1: .*\"file_name\""),
        ('{"file_name": "a.png", "label": null}', "line 1: label None "),
        ('{"file_name": "a.png", "label": true}', "line 1: label True "),
        ('{"file_name": "a.png", "label": -1}', "line 1: label -1 "),
        ('{"file_name": "a.png", "label": 1.0}', r"line 1: label 1\.0 "),
        ('{"file_name": "b.png", "label": 1}', r"line 1: .*'b\.png'"),
        ('{"file_name": "sub/../a.png", "label": 1}', r"line 1: 'sub/\.\./a\.png' "),
        ('{"file_name": "/a.png", "label": 1}', r"line 1: '/a\.png' "),
        (f"{A}\n{B}\n{A}", r"line 3: 'a\.png' .*line 1"),
        (f"{A}\n{B.replace('dog', 'x').replace(chr(34) + 'x' + chr(34), '3')}", "line 2: label 3 "),
        (f"{A}\n{B}\n", r"data\.label_file .* 1 of 3 images.*'sub/c\.png'"),
        ("\n", r"data\.label_file '.*labels\.jsonl'.*no labels"),
    ],
)
def test_an_invalid_line_is_named(text: str, message: str, folder: Path, config, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images(config(source=folder, label_file=file))


def test_a_file_that_cannot_be_read_is_named(folder: Path, config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.label_file '.*none\.jsonl'.*No such file"):
        open_images(config(source=folder, label_file=tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"data\.label_file '.*latin\.jsonl'.*utf-8"):
        open_images(config(source=folder, label_file=tmp_path / "latin.jsonl"))


def test_sources_with_labels_of_their_own_refuse_a_label_file(config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.label_file is 'x\.jsonl'"):
        open_images(config(label_file=Path("x.jsonl")))
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ValueError, match=r"data\.label_file is 'x\.jsonl'.*data\.label_column"):
        open_images(config(source=tmp_path / "t.parquet", label_file=Path("x.jsonl")))
