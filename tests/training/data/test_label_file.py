"""Labels from a file: JSON lines, JSON, CSV and tables."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from training.data import open_images
from training.data.sources import label_file


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
        ('{"file_name": "a.png", "label": 1.5}', r"line 1: label 1\.5 "),
        ('{"file_name": "a.png", "label": NaN}', "line 1: label nan "),
        ('{"file_name": "a.png", "label": 1e308}', r"line 1: label 1e\+308 "),
        ('{"file_name": "a.png", "label": -0.5}', r"line 1: label -0\.5 "),
        ('{"file_name": "a.png", "label": 100000}', "line 1: label 100000 "),
        ('{"file_name": "a.png", "label": %s}' % ("9" * 5000), "line 1: not valid JSON"),
        ('{"file_name": "a.png", "label": ["cat"]}', r"line 1: label \['cat'\] "),
        ('{"file_name": "a.png", "label": {"a": {"b": 1}}}', r"line 1: label \{'a'"),
        ('{"file_name": "a.png", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: not valid JSON"),
        ('{"file_name": "a.png", "label": ' + "[" * 500 + "]" * 500 + "}", r"line 1: label \[\["),
        ('{"file_name": "a.png", "label": " "}', "line 1: .*empty"),
        ('{"file_name": "a.png", "label": 1, "label": 2}', "line 1: .*'label' is given twice"),
        ('{"file_name": "sub/a.png", "label": 1}', r"line 1: .*'sub/a\.png'.*'a\.png'"),
        ('{"file_name": "sub/B.png", "label": 1}', r"line 1: .*'sub/B\.png'.*'sub/b\.png'"),
        ('{"file_name": "C:\\\\sub\\\\b.png", "label": 1}', r"line 1: 'C:.*leaves the folder"),
        ('{"file_name": "a.png", "text": "a dog"}', "data\\.label_column.*'file_name', 'text'"),
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


def test_a_label_file_of_the_source_is_pointed_out(folder: Path, config) -> None:
    lines(folder / "labels.jsonl", **GOOD)
    with pytest.raises(ValueError, match=r"data\.label_file 'labels\.jsonl'.*did you mean '.*set/labels\.jsonl'"):
        open_images(config(source=folder, label_file=Path("labels.jsonl")))
    with pytest.raises(ValueError, match=r"data\.label_file '~nosuchuser/l\.csv'"):
        open_images(config(source=folder, label_file=Path("~nosuchuser/l.csv")))


def test_a_file_that_cannot_be_read_is_named(folder: Path, config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.label_file '.*none\.jsonl'.*No such file"):
        open_images(config(source=folder, label_file=tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"data\.label_file '.*latin\.jsonl'.*UTF-8") as error:
        open_images(config(source=folder, label_file=tmp_path / "latin.jsonl"))
    assert "did you mean" not in str(error.value)


CSV = "file_name,label\na.png,dog\nsub/b.png,cat\nsub/c.png,dog\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", CSV),
        ("l.txt", CSV.partition("\n")[2]),
        ("l.tsv", CSV.replace(",", "\t")),
        ("l.csv", CSV.replace(",", ";")),
        ("l.csv", CSV.replace(",", "|")),
        ("l.txt", CSV.partition("\n")[2].replace(",", " ")),
        ("l.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("l.csv", CSV.replace("\n", "\r")),
        ("l.csv", CSV.replace("\n", "\n\n")),
        ("l.csv", CSV.rstrip("\n")),
        ("l.csv", CSV.replace("file_name,label", "Image, Class")),
        ("l.csv", CSV.replace("file_name,label", "id,label").replace(".png", "")),
        ("l.csv", "label,id_code\ndog,a\ncat,sub/b\ndog,sub/c\n"),
        ("l.csv", ",split,file_name,label\n0,x,a.png,dog\n1,x,sub/b.png,cat\n2,x,sub/c.png,dog\n"),
        ("l.csv", 'filename,label\n"a.png","dog"\n"sub/b.png", " cat "\nsub/c.png,"dog"\n'),
        ("l.csv", 'filename,label,note\na.png,dog,"1, 2"\nsub/b.png,cat,"x\ny"\nsub/c.png,dog,\n'),
        ("l.csv", CSV.replace("sub/", "sub\\")),
        ("l.csv", CSV.replace("sub/", "./sub/")),
        ("sub/l.csv", CSV.replace("sub/", "")),
        ("../l.csv", CSV.replace("a.png", "set/a.png").replace("sub/", "set/sub/")),
        ("l.csv", "FOLDER/".join(["file_name,label\n", "a.png,dog\n", "sub/b.png,cat\n", "sub/c.png,dog\n"])),
        ("l.json", '{"a.png": "dog", "sub/b.png": "cat", "sub/c.png": "dog"}'),
        ("l.json", '{"a": "dog", "sub/b": "cat", "sub/c": "dog"}'),
        ("l.json", '{"labels": [["a.png", "dog"], ["sub/b.png", "cat"], ["sub/c.png", "dog"]]}'),
        ("l.json", '[{"image": "a.png", "class": "dog"}, {"image": "sub/b.png", "class": "cat"},'
         ' {"image": "sub/c.png", "class": "dog"}]'),
        ("l.json", '[["a.png", "dog"], ["sub/b.png", "cat"], ["sub/c.png", "dog"]]'),
        ("l.json", '{"file": "a.png", "category": "dog"}\n{"file": "sub/b.png", "category": "cat"}\n'
         '{"path": "sub/c.png", "Label": "dog"}\n'),
        ("l.ndjson", '{"image_id": "a", "class": "dog"}\r\n{"image_id": "sub/b", "class": "cat"}\r\n'
         '{"image_id": "sub/c", "class": "dog"}'),
    ],
)  # fmt: skip
def test_label_files_are_read_as_people_have_them(name: str, text: str, folder: Path, config) -> None:
    text = text.replace("FOLDER", str(folder))
    if name == "sub/l.csv":  # relative to the file, which only works for images below it
        (folder / "a.png").rename(folder / "sub" / "a.png")
    (folder / name).write_bytes(text.encode())
    images = open_images(config(source=folder, label_file=folder / name))
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_of_labels(suffix: str, folder: Path, config) -> None:
    values = {"file_name": ["sub/c.png", "a.png", "sub/b.png"], "kind": [1, 1, 0]}
    features = Features(file_name=Value("string"), kind=ClassLabel(names=["cat", "dog"]))
    data = Dataset.from_dict(values, features=features)
    if suffix == "parquet":
        data.to_parquet(folder.parent / "l.parquet")
    else:
        with pa.OSFile(str(folder.parent / "l.arrow"), "wb") as file, pa.ipc.new_file(file, data.data.schema) as writer:
            writer.write_table(data.data.table)
    given = config(source=folder, label_file=folder.parent / f"l.{suffix}", label_column="kind")
    assert (open_images(given).classes, list(open_images(given).labels)) == (("cat", "dog"), [1, 0, 1])
    with pytest.raises(ValueError, match=r"data\.label_column.*'kind'"):
        open_images(config(source=folder, label_file=folder.parent / f"l.{suffix}"))


def test_a_table_with_more_rows_than_images_is_not_read(folder: Path, config) -> None:
    many = pa.table({"file_name": pa.nulls(1_000_000, pa.string()), "label": pa.nulls(1_000_000, pa.string())})
    pa.parquet.write_table(many, folder / "l.parquet")
    with pytest.raises(ValueError, match=r"data\.label_file '.*l\.parquet', it has 1,000,000 rows.* 3 images"):
        open_images(config(source=folder, label_file=folder / "l.parquet"))


def test_a_table_with_two_columns_of_one_name(folder: Path, config) -> None:
    names = pa.array(list(GOOD))
    pa.parquet.write_table(
        pa.table([names, names, pa.array([0, 1, 0])], ["file", "file", "label"]), folder / "l.parquet"
    )
    with pytest.raises(ValueError, match=r"l\.parquet has several columns 'file'"):
        open_images(config(source=folder, label_file=folder / "l.parquet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a readable parquet file"), (b"PAR1" * 9, "not a readable parquet file"), (None, "No such file")],
)
def test_a_damaged_table_of_labels_is_named(content, message: str, folder: Path, config) -> None:
    if content is not None:
        (folder / "l.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data\.label_file '.*l\.parquet'.*{message}"):
        open_images(config(source=folder, label_file=folder / "l.parquet"))


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        (("2", "0", "2"), ("0", "1", "2"), [2, 0, 2]),
        (("2.0", "0.0", "2.0"), ("0", "1", "2"), [2, 0, 2]),
        (("007", "12", "7"), ("007", "12", "7"), [0, 1, 2]),
        (("1", "x", "1"), ("1", "x"), [0, 1, 0]),
        (("1_0", "2", "1_0"), ("1_0", "2"), [0, 1, 0]),
        (("true", "False", "true"), ("False", "true"), [1, 0, 1]),
        (("cafe\u0301", "caf\u00e9", " caf\u00e9 "), ("caf\u00e9",), [0, 0, 0]),
        (("none", "all", "none"), ("all", "none"), [1, 0, 1]),
        (("\u202ex", "\x1b[31m", "<b>"), ("\x1b[31m", "<b>", "\u202ex"), [2, 0, 1]),
        (("\U0001f431", "x" * 300, "y"), ("x" * 300, "y", "\U0001f431"), [2, 0, 1]),
    ],
)
def test_labels_of_a_text_are_numbers_or_names(values, classes, labels, folder: Path, config) -> None:
    names = ("a.png", "sub/b.png", "sub/c.png")
    file = folder / "l.csv"
    file.write_text("".join(f"{name},{value}\n" for name, value in zip(names, values, strict=True)), encoding="utf-8")
    images = open_images(config(source=folder, label_file=file))
    assert (images.classes, images.labels.tolist()) == (classes, labels)
    assert str(images).isprintable()
    assert len(str(images)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,dog\nsub/d.png,cat\n", r"line 2: .*'sub/d\.png'.*'sub/"),
        ("a.png,dog\nsub/b.png,\n", "line 2: .*empty"),
        ("a.png,dog\nsub/b.png\n", "line 2: .*1 column,.* 2 "),
        ("a.png,0\nsub/b.png,nan\n", "line 2: label nan "),
        ("a.png,-1\nsub/b.png,0\n", r"line 1: label -1"),
        ("a.png,0.5\nsub/b.png,0\n", r"line 1: label 0\.5 "),
        ("a.png,1e308\n", r"line 1: label 1e\+308 "),
        ("a.png,inf\n", "line 1: label inf "),
        ("a.png,%s\n" % ("9" * 5000), "line 1: label inf "),
        ("a.png,dog,x\n", r"3 columns"),
        ("file_name,breed\na.png,dog\n", r"data\.label_column.*'breed'"),
        ("file_name,label\n", "no labels"),
        ("", "no labels"),
        ("img_no,kind\na.png,dog\n", "line 1: .*'img_no'.*file_name and label"),
        ("a.png,dog\nA,cat\na,cat\n", r"line 2: .*'A'"),
        ("a.png,dog\na,cat\n", r"line 2: 'a\.png' .*line 1"),
        ("a.png,dog\n.\\a.png,dog\n", r"line 2: 'a\.png' .*line 1"),
        ('"a.png,dog\nsub/b.png,cat\n', "line 1: not valid CSV"),
        ("a.png,dog\n" + "x" * 200_000 + ",cat\n", "line 2: .*field"),
        ("/etc/passwd,dog\n", "line 1: '/etc/passwd' leaves the folder"),
        ("\x00\x01\x02,\x03\n", r"line 1: .*no image"),
        ("a.png,dog\n" * 1000, r"line 2: 'a\.png'"),
    ],
)
def test_an_invalid_row_is_named(text: str, message: str, folder: Path, config) -> None:
    (folder / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"data\.label_file '.*l\.csv'.*{message}") as error:
        open_images(config(source=folder, label_file=folder / "l.csv"))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no labels"),
        ("[]", "no labels"),
        ("3", '"file_name"'),
        ('{"labels": null}', "null"),
        ('{"labels": [["a.png", [0, 1]]]}', r"entry 1: label \[0, 1\]"),
        ('{"a.png": 1, "a.png": 2}', r"'a\.png' is given twice"),
        ('{"images": [{"id": 1}], "annotations": []}', "'images'"),
        ('{"a.png": {"label": "cat"}}', r"entry 1: label \{'label': 'cat'\}"),
        ('{"cat": ["a.png"], "dog": []}', "entry 1: .*'cat'"),
        ('[{"file_name": "a.png", "label": 1}, {"label": 2}]', 'entry 2: .*"file_name"'),
        ('[{"file_name": "a.png", "label": 1}, 3]', 'entry 2: .*"file_name"'),
        ('{"a.png": 1,', "not valid JSON"),
    ],
)
def test_an_invalid_json_file_is_named(text: str, message: str, folder: Path, config) -> None:
    (folder / "l.json").write_text(text)
    with pytest.raises(ValueError, match=rf"data\.label_file '.*l\.json'.*{message}"):
        open_images(config(source=folder, label_file=folder / "l.json"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "a.png," + "x" * 99, "line 1: it has more than 50 char"),
        ("l.csv", "a.png,dog\n" + "," * 99, "line 2: it has more than 50 char"),
        ("l.csv", "\n" * 9 + "a.png,dog\n", "line 6: 6 lines are empty"),
        ("l.csv", "\r" * 9 + "a.png,dog\n", "line 6: 6 lines are empty"),
        ("l.jsonl", '{"file_name": "a.png", "label": "' + "x" * 50, "line 1: it has more than 50 char"),
        ("l.jsonl", "\n \n" * 9, "line 6: 6 lines are empty"),
        ("l.json", '{"labels": [' + "[]," * 90 + "[]]}", "line 1: it has more than 50 char"),
    ],
)
def test_a_text_is_read_line_by_line(name, text, message: str, folder: Path, config, monkeypatch) -> None:
    """Not as a list of all lines or values, which takes many times the memory of the text."""
    for limit, value in (("MAX_LINE", 50), ("MAX_EMPTY", 5), ("MAX_TEXT", 200)):
        monkeypatch.setattr(label_file, limit, value)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images(config(source=folder, label_file=folder / name))


@pytest.mark.parametrize("column", ["file_name", "label"])
def test_a_huge_cell_of_a_table_of_labels(column: str, folder: Path, config) -> None:
    columns = {"file_name": list(GOOD), "label": list(GOOD.values())}
    columns[column][1] = "x" * 2000
    pa.parquet.write_table(pa.table(columns), folder / "l.parquet")
    with pytest.raises(ValueError, match=rf"l\.parquet', column '{column}'.*row 1 has 2,000 char"):
        open_images(config(source=folder, label_file=folder / "l.parquet"))


def test_a_suffix_is_left_out_only_where_one_image_is_meant(folder: Path, config, pixels, save) -> None:
    save(folder / "a.jpg", pixels(9, 4, 4))
    (folder / "l.csv").write_text("a,dog\n")
    with pytest.raises(ValueError, match=r"line 1: .*'a'.*a\.(png|jpg).*a\.(png|jpg)"):
        open_images(config(source=folder, label_file=folder / "l.csv"))


def test_file_names_of_another_composition(config, pixels, save, tmp_path: Path) -> None:
    """macOS decomposes the letters of file names, and label files often do not."""
    save(tmp_path / "set" / "cafe\u0301.png", pixels(0, 4, 4))
    (tmp_path / "l.csv").write_text("caf\u00e9.png,x\n", encoding="utf-8")
    assert open_images(config(source=tmp_path / "set", label_file=tmp_path / "l.csv")).classes == ("x",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "named pipe"),
        (os.mkdir, "folder"),
        (lambda path: Path(path).write_text(CSV, encoding="utf-16"), "UTF-8"),
        (lambda path: Path(path).write_text("a.png,caf\u00e9", encoding="latin-1"), "UTF-8"),
        (lambda path: Path(path).write_bytes(os.urandom(4000)), "UTF-8"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "bytes"),
        (lambda path: os.symlink("nowhere", path), "No such file"),
        (lambda path: os.symlink(path, path), "symbolic links"),
    ],
)
def test_what_is_no_label_file_is_named(make, message: str, folder: Path, config) -> None:
    make(folder / "l.csv")
    with pytest.raises(ValueError, match=rf"data\.label_file '.*l\.csv'.*{message}"):
        open_images(config(source=folder, label_file=folder / "l.csv"))


def test_sources_with_labels_of_their_own_refuse_a_label_file(config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.label_file is 'x\.jsonl'"):
        open_images(config(label_file=Path("x.jsonl")))
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ValueError, match=r"data\.label_file is 'x\.jsonl'.*data\.label_column"):
        open_images(config(source=tmp_path / "t.parquet", label_file=Path("x.jsonl")))
