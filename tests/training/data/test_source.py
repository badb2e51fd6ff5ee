import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from training.data import DataConfig, open_images
from training.data.sources.listing import KINDS
from training.data.sources.source import NAMED, find_source


def test_the_embedded_digits(config) -> None:
    images = open_images(config())
    assert (len(images), images.shape) == (1797, (1, 8, 8))
    assert images.classes == tuple("0123456789")
    table = load_digits()
    np.testing.assert_array_equal(images.labels, table.target)
    np.testing.assert_array_equal(images.read(np.arange(1797))[:, 0], np.round(table.images * 255 / 16))


def test_digits_without_labels_as_larger_rgb_images(config) -> None:
    images = open_images(config(labels=False, channels=3, size=16))
    assert (images.labels, images.classes, images.shape) == (None, None, (3, 16, 16))


def test_the_halves_of_the_embedded_photographs(config) -> None:
    whole = load_sample_images().images
    train, test = (open_images(config(source="photographs", split=split)) for split in ("train", "test"))
    assert train.shape == test.shape == (3, 427, 320)
    assert train.labels is None
    for number, image in enumerate(whole):
        halves = [each.read(np.array([number]))[0] for each in (train, test)]
        np.testing.assert_array_equal(np.concatenate(halves, axis=2), image.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"data\.labels is true.*'photographs'"):
        find_source(config(source="photographs", labels=True))


def test_class_folders_give_labels(config, pixels, save, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    first = save(folder / "cat" / "deep" / "b.png", pixels(0, 4, 5, 3))
    second = save(folder / "cat" / "z.PNG", pixels(1, 4, 5, 3))
    third = save(folder / "dog" / "a.webp", pixels(2, 4, 5, 3), lossless=True)
    (folder / "empty").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image")
    save(folder / "dog" / ".hidden.png", pixels(3, 9, 9, 3))
    images = open_images(config(source=folder))
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images.read(np.arange(3)), np.stack([first, second, third]).transpose(0, 3, 1, 2))
    assert open_images(config(source=folder, labels=False)).labels is None


def test_a_flat_folder_and_a_single_sub_folder_have_no_labels(config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "flat" / "a.png", pixels(0, 4, 4))
    save(tmp_path / "one" / "all" / "a.png", pixels(0, 4, 4))
    assert open_images(config(source=tmp_path / "flat")).labels is None
    assert open_images(config(source=tmp_path / "one")).labels is None
    assert open_images(config(source=tmp_path / "one", labels=True)).classes == ("all",)


def test_a_class_has_the_same_number_in_every_split(config, pixels, save, tmp_path: Path) -> None:
    for number, name in enumerate(["train/ant", "train/bee", "val/bee", "train/cat", "val/cat"]):
        save(tmp_path / "set" / name / "a.png", pixels(number, 4, 4, 3))
    for split, labels in {"train": [0, 1, 2], "validation": [1, 2]}.items():
        images = open_images(config(source=tmp_path / "set", split=split))
        assert images.classes == ("ant", "bee", "cat")
        assert images.labels is not None
        assert images.labels.tolist() == labels


def test_split_folders(config, pixels, save, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            save(folder / split / f"class{i}" / "a.png", pixels(i, 4, 4))
    assert open_images(config(source=folder)).classes == ("class0", "class1", "class2")
    assert len(open_images(config(source=folder, split="validation"))) == 2
    assert len(open_images(config(source=folder, split="val"))) == 2
    with pytest.raises(ValueError, match=r"data\.split 'test'.*'.*set'.*train, validation"):
        find_source(config(source=folder, split="test"))
    with pytest.raises(ValueError, match=r"data\.split 'test'.*'digits'.*train"):
        find_source(config(split="test"))


def test_a_named_source_has_an_argument_only_if_its_key_ends_in_a_colon(
    config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMED, "few:", lambda setting, *rest: replace(NAMED["digits"]("digits", *rest), name=setting))
    assert find_source(config(source="few:12")).name == "few:12"
    for source in ("few", "digits:12"):
        with pytest.raises(ValueError, match=rf"data\.source '{source}'"):
            find_source(config(source=source))
    with pytest.raises(ValueError, match=r"data\.label_column is 'x'"):
        find_source(config(source="few:12", label_column="x"))


def test_linked_folders_are_followed_once(config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "real" / "a.png", pixels(0, 4, 4))
    (tmp_path / "links").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "links" / "a")
    os.symlink(tmp_path / "links", tmp_path / "real" / "loop")
    assert len(open_images(config(source=tmp_path / "links"))) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", r"data\.source '.*none'"),
        ("empty", r"data\.source '.*empty'.* " + " ".join(KINDS["images"])),
        ("*.parquet", r"data\.source '.*\*\.parquet' matches no file"),
        ("mixed", r"data\.source '.*mixed'.*b\.png.*\(x\)"),
        ("both", r"data\.source '.*both'.*a\.png.*t\.parquet.*both/\*\.parquet'"),
    ],
)
def test_an_unusable_source_is_named(source, message, config, pixels, save, tmp_path: Path) -> None:
    for name in ("flat/a.png", "mixed/x/a.png", "mixed/b.png", "both/a.png"):
        save(tmp_path / name, pixels(0, 4, 4))
    (tmp_path / "both" / "t.parquet").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_images(config(source=tmp_path / source))


def test_a_possible_hub_name_is_not_downloaded(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data\.source 'owner/name'.*hub:owner/name$"):
        find_source(DataConfig(source="owner/name"))


def test_the_hub_needs_a_name(config) -> None:
    with pytest.raises(ValueError, match=r"data\.source 'hub:'.*hub:OWNER/NAME"):
        open_images(config(source="hub:"))


def test_required_labels_must_exist(config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "flat" / "a.png", pixels(0, 4, 4))
    with pytest.raises(ValueError, match=r"data\.labels is true .*'.*flat'"):
        open_images(config(source=tmp_path / "flat", labels=True))


@pytest.mark.parametrize("field", ["image_column", "label_column"])
def test_sources_without_columns_refuse_them(field: str, config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "flat" / "a.png", pixels(0, 4, 4))
    with pytest.raises(ValueError, match=rf"data\.{field} is 'img'"):
        open_images(config(**{field: "img"}))
    with pytest.raises(ValueError, match=rf"data\.{field} is 'img'"):
        open_images(config(source=tmp_path / "flat", **{field: "img"}))
