"""Class folders, and what stands beside them: layouts of other programs, metadata, folders that cannot be read."""

import errno
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from training.data import Images, open_images, open_validation
from training.data.sources.listing import SYSTEM
from training.data.validate import validate

Make = Callable[..., Path]


@pytest.fixture
def make(pixels, save, tmp_path: Path) -> Make:
    """Makes a folder with an image of each name, and text files."""

    def write(names: Iterable[str], **texts: str) -> Path:
        for number, name in enumerate(names):
            save(tmp_path / "set" / name, pixels(number, 4, 4))
        for name, text in texts.items():
            (tmp_path / "set" / name).write_text(text, encoding="utf-8")
        return tmp_path / "set"

    return write


def found(images) -> tuple:
    return images.classes, None if images.labels is None else images.labels.tolist()


EDM = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[EDM[0], 6], [EDM[1], 0], [EDM[2], 6]], (tuple("0123456"), [6, 0, 6])),
        ([[EDM[2], "x"], [EDM[1], "y"], [EDM[0], "x"]], (("x", "y"), [0, 1, 0])),
        (None, (None, None)),
    ],
)
def test_the_layout_of_edm(labels, expected, make: Make, config) -> None:
    folder = make(EDM, **{"dataset.json": json.dumps({"labels": labels})})
    images = open_images(config(source=folder))
    assert found(images) == expected
    assert "labels: from dataset.json" in str(images)
    assert found(open_images(config(source=folder, labels=False))) == (None, None)


def test_the_layout_of_edm_without_its_file_has_no_classes(make: Make, config) -> None:
    assert "dataset.json" in str(open_images(config(source=make(EDM))))
    assert found(open_images(config(source=make(EDM)))) == (None, None)
    assert found(open_images(config(source=make(EDM), labels=True))) == (("00000", "00001"), [0, 0, 1])


@pytest.mark.parametrize(
    "names",
    [
        ["00000/00000.png", "00000/00999.png", "01000/01000.png"],  # FFHQ
        ["00000/00001.png", "69000/69999.PNG"],
        ["0a/0a1b2c3d4e5f.png", "ff/ff00112233445566.png"],
        ["3/3d4e5f6a7b.png", "C/CD4E5F6A7B.png"],
    ],
)
def test_parts_of_a_set_are_no_classes(names: list[str], make: Make, config) -> None:
    images = open_images(config(source=make(names)))
    assert images.classes is None
    assert "labels: none, as the sub-folders are parts of a set" in str(images)


@pytest.mark.parametrize(
    "names", [["00000/a.png", "01000/01000.png"], ["ad/ad01.png", "be/be02.png"], ["0/1.png", "1/2.png"]]
)
def test_folders_that_look_like_parts_are_classes(names: list[str], make: Make, config) -> None:
    assert found(open_images(config(source=make(names)))) == (tuple(name.partition("/")[0] for name in names), [0, 1])


def test_the_only_sub_folder_of_a_split_is_no_class(make: Make, config) -> None:
    """As in Tiny ImageNet."""
    folder = make(["train/n1/images/a.png", "train/n2/images/b.png", "val/images/c.png", "test/images/d.png"])
    assert found(open_images(config(source=folder))) == (("n1", "n2"), [0, 1])
    with pytest.raises(ValueError, match=r"val'.*images/c\.png.*\(n1, n2\).*data\.label_file"):
        open_images(config(source=folder, split="val"))
    assert open_images(config(source=folder, labels=True)).classes == ("images", "n1", "n2")
    folder = make(["val/n2/c.png"])
    (folder / "val" / "images" / "c.png").unlink()
    assert found(open_images(config(source=folder, split="val"))) == (("n1", "n2"), [1])


def test_null_labels_cannot_be_required(make: Make, config) -> None:
    folder = make(EDM, **{"dataset.json": '{"labels": null}'})
    with pytest.raises(ValueError, match=r"data\.labels is true.*dataset\.json"):
        open_images(config(source=folder, labels=True))


@pytest.mark.parametrize("text", ['{"name": "pets", "version": 1}', '{"images": [], "annotations": []}', "{}", "[3]"])
def test_another_dataset_json_is_named_and_not_used(text: str, make: Make, config) -> None:
    images = open_images(config(source=make(["cat/a.png", "dog/b.png"], **{"dataset.json": text})))
    assert found(images) == (("cat", "dog"), [0, 1])
    assert "dataset.json" in str(images)


METADATA = {
    "metadata.csv": "file_name,label\ncat/a.png,x\ndog/b.png,y\n",
    "metadata.jsonl": '{"file_name": "cat/a.png", "label": "x"}\n{"file_name": "dog/b.png", "label": "y"}\n',
    "METADATA.CSV": "file_name,text,label\ncat/a.png,a cat,x\ndog/b.png,a dog,y\n",
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_beside_the_images_has_the_labels(name: str, make: Make, config) -> None:
    folder = make(["cat/a.png", "dog/b.png"], **{name: METADATA[name]})
    images = open_images(config(source=folder))
    assert found(images) == (("x", "y"), [0, 1])
    assert f"labels: from {name}" in str(images)
    assert open_images(config(source=folder, labels=False)).labels is None


def test_metadata_as_a_table(make: Make, config) -> None:
    folder = make(["a.png", "b.png"])
    features = Features(file_name=Value("string"), label=ClassLabel(names=["no", "yes"]))
    Dataset.from_dict({"file_name": ["b.png", "a.png"], "label": [1, 0]}, features=features).to_parquet(
        folder / "metadata.parquet"
    )
    assert found(open_images(config(source=folder))) == (("no", "yes"), [0, 1])


def test_metadata_in_sub_folders_is_relative_to_them(make: Make, config) -> None:
    folder = make(["train/a.png", "train/b.png", "test/a.png"])
    (folder / "train" / "metadata.csv").write_text("file_name,label\na.png,y\nb.png,x\n")
    (folder / "test" / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "z"}')
    assert found(open_images(config(source=folder))) == (("x", "y", "z"), [1, 0])
    assert found(open_images(config(source=folder, split="test"))) == (("x", "y", "z"), [2])


def test_captions_are_named_and_not_used(make: Make, config) -> None:
    captions = '{"file_name": "cat/a.png", "text": "a cat"}\n{"file_name": "dog/b.png", "text": "a dog"}\n'
    folder = make(["cat/a.png", "dog/b.png"], **{"metadata.jsonl": captions})
    images = open_images(config(source=folder))
    assert found(images) == (("cat", "dog"), [0, 1])
    assert "metadata: not used" in str(images)
    assert found(open_images(config(source=folder, label_column="text"))) == (("a cat", "a dog"), [0, 1])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"metadata.csv": "file_name,label\ncat/a.png,x\n"}, r"metadata\.csv.* 1 of 2 images.*'dog/b\.png'"),
        ({"metadata.csv": METADATA["metadata.csv"] + "dog/c.png,y\n"}, r"metadata\.csv', line 4: .*'dog/c\.png'"),
        ({"metadata.jsonl": METADATA["metadata.jsonl"] + "{"}, r"metadata\.jsonl', line 3: .*JSON"),
        (METADATA | {"metadata.csv": "file_name,label\ncat/a.png,z\n"}, r"'cat/a\.png' .*'x'.*'z'.*metadata\.csv"),
    ],
)  # fmt: skip
def test_faulty_metadata_is_named_with_the_way_out(texts, message: str, make: Make, config) -> None:
    folder = make(["cat/a.png", "dog/b.png"], **texts)
    with pytest.raises(ValueError, match=rf"{message}.*data\.labels"):
        open_images(config(source=folder))
    assert len(open_images(config(source=folder, labels=False))) == 2


def test_folders_of_systems_are_left_out_and_counted(make: Make, config) -> None:
    folders = [*sorted(SYSTEM), "@eaDir", "__MACOSX", ".Trash", ".ipynb_checkpoints", "System Volume Information"]
    names = ["cat/a.png", "dog/b.png", "cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "cat/._a.png"]
    folder = make([*names, *(f"{name}/x.png" for name in folders)], **{"Thumbs.db": "", ".DS_Store": ""})
    images = open_images(config(source=folder))
    assert found(images) == (("cat", "dog"), [0, 1])
    assert f"{len({*SYSTEM, *folders}) - 2 + 1} system folders" in str(images)
    assert "2 hidden folders" in str(images)
    assert "1 .db" in str(images)


def test_one_name_in_two_compositions_is_one_class(make: Make, config) -> None:
    images = open_images(config(source=make(["caf\u00e9/a.png", "cafe\u0301/b.png", "dog/c.png"])))
    assert found(images) == (("caf\u00e9", "dog"), [0, 0, 1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/a.png", "masks/a.png"], r"images, masks.*data\.labels"),
        (["JPEGImages/a.png", "SegmentationClass/a.png"], r"JPEGImages, SegmentationClass"),
        (["train/images/a.png", "train/masks/a.png", "val/images/b.png"], r"train'.* images, masks"),
        (["train/cat/a.png", "val/cat/b.png", "extra/c.png"], r"splits train and val.*'extra'.*data\.labels"),
        (["train/cat/a.png", "test/cat/b.png", "c.png"], r"splits test and train.* images beside"),
        (["train/cat/a.png", "Train/cat/b.png"], r"Train and train.* split train"),
        (["val/cat/a.png", "valid/cat/b.png"], r"val and valid.* split validation"),
        (["cat/a.png", "b.png"], r"b\.png.*cat.*data\.labels"),
        (["annotations/a.png", "images/a.png"], r"annotations, images.*set/images'"),
        (["data/train/cat/a.png", "data/val/cat/b.png"], r"splits .*train, val.*set/data'"),
        (["train_a/x.png", "train_b/x.png"], r"train_a and train_b.* split train"),
    ],
)
def test_sub_folders_that_are_hardly_classes(names: list[str], message: str, make: Make, config) -> None:
    with pytest.raises(ValueError, match=rf"data\.source .*{message}"):
        open_images(config(source=make(names)))


def test_folders_whose_names_contain_splits(make: Make, config) -> None:
    folder = make(["train2017/cat/a.png", "train2017/dog/a.png", "val2017/cat/b.png"])
    assert found(open_images(config(source=folder))) == (("cat", "dog"), [0, 1])
    assert found(open_images(config(source=folder, split="val"))) == (("cat", "dog"), [0])


def test_metadata_belongs_to_a_pattern_too(make: Make, config) -> None:
    folder = make(["cat/a.png", "dog/b.png"], **{"metadata.csv": METADATA["metadata.csv"]})
    assert found(open_images(config(source=folder / "*" / "*.png"))) == (("x", "y"), [0, 1])


def test_a_label_file_is_not_an_image_table_or_array(make: Make, config) -> None:
    folder = make(["a.png", "b.png"])
    Dataset.from_dict({"file_name": ["b.png", "a.png"], "label": [1, 0]}).to_parquet(folder / "l.parquet")
    images = open_images(config(source=folder, label_file=folder / "l.parquet"))
    assert found(images) == (("0", "1"), [0, 1])
    assert "left out" not in str(images)


def test_sub_folders_are_classes_or_not_on_request(make: Make, config) -> None:
    folder = make(["images/a.png", "masks/a.png"])
    assert open_images(config(source=folder, labels=True)).classes == ("images", "masks")
    assert len(open_images(config(source=folder, labels=False))) == 2


@pytest.mark.parametrize("names", [["train/a.png", "car/b.png"], ["images/a.png", "cat/b.png"]])
def test_a_class_may_have_a_usual_name(names: list[str], make: Make, config) -> None:
    assert open_images(config(source=make(names))).classes == tuple(sorted(name.split("/")[0] for name in names))


def test_classes_one_level_too_deep_are_pointed_out(make: Make, config) -> None:
    images = open_images(config(source=make(["all/cat/a.png", "all/dog/b.png"])))
    assert images.classes is None
    assert "labels: none, as all images are in the sub-folder all" in str(images)


def test_the_flat_validation_split_of_imagenet(make: Make, config) -> None:
    folder = make(["train/n01/a.png", "train/n02/b.png", "val/ILSVRC2012_val_00000001.png"])
    assert open_images(config(source=folder)).classes == ("n01", "n02")
    with pytest.raises(ValueError, match=r"data\.source.*val'.*ILSVRC2012_val_00000001\.png.*n01, n02.*label_file"):
        open_validation(config(source=folder, validation="val"))
    (folder.parent / "val.txt").write_text("ILSVRC2012_val_00000001.png 1\n")
    (folder / "val" / "labels.txt").write_text("val/ILSVRC2012_val_00000001.png 1\n")
    given = config(source=folder, split="val", label_file=folder / "val" / "labels.txt")
    assert found(open_images(given)) == (("0", "1"), [1])


def test_deep_folders_and_empty_ones(make: Make, config) -> None:
    folder = make(["cat/" + "x/" * 60 + "a.png", "dog/y/b.png"])
    for name in ("empty", "nested/only/folders"):
        (folder / name).mkdir(parents=True)
    images = open_images(config(source=folder))
    assert found(images) == (("cat", "dog"), [0, 1])
    assert "2 empty folders" in str(images)


def test_folders_that_are_nested_too_deeply_are_an_error(make: Make, config, monkeypatch) -> None:
    def walk(*arguments: object, **options: object) -> None:
        raise RecursionError  # of Python 3.11, from about 1,000 folders inside each other on

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ValueError, match=r"data\.source.*set.*nested too deeply"):
        open_images(config(source=make(["a.png"])))


def test_a_folder_that_is_linked_twice_is_counted(make: Make, config) -> None:
    folder = make(["cat/a.png", "dog/b.png"])
    os.symlink(folder / "cat", folder / "zebra")
    assert "1 repeated folders" in str(open_images(config(source=folder)))


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "\x1b[31mred",
        "<b>&amp;",
        "\U0001f431",
        "\u202egnp",
        "x" * 255,
        "a\\b",
        " padded ",
        "caf\udce9",
        "none",
        " ",
    ],
)
def test_names_of_classes_as_they_come(name: str, make: Make, config) -> None:
    images = open_images(config(source=make([f"{name}/a.png", "zz/b.png"])))
    assert set(images.classes) == {name.strip() or name, "zz"}
    assert str(images).isprintable()
    assert len(str(images)) < 300


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    scandir = os.scandir

    def guarded(path="."):
        if os.fspath(path).endswith(name):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["cat", "set", "cat/deep"])
def test_a_folder_that_cannot_be_read_is_named(name, number, make: Make, config, monkeypatch) -> None:
    folder = make(["cat/deep/a.png", "dog/b.png"])
    refuse(monkeypatch, name, number)
    with pytest.raises(ValueError, match=rf"data\.source.*{name}'.*{os.strerror(number)}"):
        open_images(config(source=folder))


@pytest.mark.parametrize("source", ["x" * 300, "/".join(["x" * 200] * 30), "a\0b", "loop/set"])
def test_a_source_that_cannot_be_read_is_named(source: str, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(ValueError, match=r"data\.source '(x{100}|a.x00b|loop)"):
        open_images(config(source=source))


def test_a_source_that_may_not_be_looked_at_is_named(config, monkeypatch, tmp_path: Path) -> None:
    def stat(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ValueError, match=r"data\.source '.*secret'.*Permission denied"):
        open_images(config(source=tmp_path / "secret"))


@pytest.mark.parametrize(
    ("labels", "classes", "text"),
    [
        ([1, 3, 3], None, "4 classes: 0 (0), 1 (1), 2 (0), 3 (2); classes 0, 2 have no image"),
        ([1, 1], None, "2 classes: 0 (0), 1 (2); class 0 has no image"),
        ([0, 1], ("Cat", "cat"), "2 classes: Cat (1), cat (1); warning: the classes Cat and cat differ only"),
        (range(7), None, "7 classes: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1), …; warning: 7 classes for 7 images"),
        ([0, 0], ("a\x1b\n\u202e", "b" * 50), rf"2 classes: a\x1b\n\u202e (2), {'b' * 32}… (0); class {'b' * 32}… has"),
        ([500], None, "501 classes: 0 (0), 1 (0), 2 (0), 3 (0), 4 (0), …; classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "),
    ],
)  # fmt: skip
def test_the_summary_shows_the_classes(labels, classes, text: str, pixels) -> None:
    images = Images(pixels(0, len(labels), 1, 2, 2), np.array(labels), classes)
    assert text in str(images)
    assert images.class_counts == tuple(list(labels).count(label) for label in range(len(images.classes)))


def test_validation_counts_the_classes_of_a_run(make: Make, config, capsys) -> None:
    folder = make(["a.png", "b.png"], **{"metadata.csv": "file_name,label\na.png,0\nb.png,2\n"})
    validate(config(source=folder))
    shown = capsys.readouterr().out
    assert "3 classes" in shown
    assert "0: 1, 2: 1, 1: 0" in shown
    assert "labels          from metadata.csv" in shown
