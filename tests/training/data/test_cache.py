import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.data import open_images
from training.data.cache import open as module


@pytest.fixture
def pets(pixels, save, tmp_path: Path) -> Path:
    for i in range(6):
        save(tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png", pixels(i, 4, 5, 3))
    return tmp_path / "pets"


@pytest.fixture
def built(monkeypatch) -> list[Path]:
    """The cache folders that are built."""
    folders: list[Path] = []
    build = module.build

    def spy(source, preprocessing, folder, max_bad) -> None:
        folders.append(folder)
        build(source, preprocessing, folder, max_bad)

    monkeypatch.setattr(module, "build", spy)
    return folders


def test_images_are_decoded_once(pets: Path, config, built) -> None:
    first, second = open_images(config(source=pets)), open_images(config(source=pets))
    assert len(built) == 1
    np.testing.assert_array_equal(first.read(np.arange(6)), second.read(np.arange(6)))
    assert first.fingerprint == second.fingerprint
    assert second.classes == ("cat", "dog")


def test_numpy_alone_can_read_the_cache(pets: Path, config, built) -> None:
    images = open_images(config(source=pets))
    info = json.loads((built[0] / "cache.json").read_text())
    array = np.memmap(built[0] / "images.bin", info["dtype"], "r", shape=tuple(info["shape"]))
    np.testing.assert_array_equal(array, images.read(np.arange(6)))
    np.testing.assert_array_equal(np.load(built[0] / "labels.npy"), images.labels)
    assert info["format_version"] == 3
    assert info["pixel_format"] == {"dtype": "uint8", "low": 0, "high": 255, "file": "png"}
    assert info["notes"] == []
    assert info["classes"] == ["cat", "dog"]
    assert info["bad"] == []
    assert info["fingerprint"] == images.fingerprint
    assert info["source"] == str(pets)
    assert info["preprocessing"]["crop"] == "center"


def test_a_cache_is_opened_without_datasets_pyarrow_and_pillow(config, png, pixels, tmp_path: Path) -> None:
    from datasets import Dataset

    file = tmp_path / "t.parquet"
    Dataset.from_dict({"image": [{"bytes": png(pixels(0, 4, 4)), "path": None}]}).to_parquet(file)
    open_images(config(source=file))
    code = """
import sys
for name in ("datasets", "pyarrow", "PIL", "sklearn"):
    sys.modules[name] = None
from pathlib import Path
from training.data import DataConfig, open_images
print(open_images(DataConfig(source=sys.argv[1], cache=Path(sys.argv[2]))).shape)
"""
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 4, 4)", done.stderr


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 2},
        {"size": (2, 3), "crop": "stretch"},
        {"channels": 1},
        {"bits": 16},
        {"background": (0, 0, 0)},
        {"crop": "stretch"},
    ],
)
def test_other_settings_have_other_caches(fields: dict, pets: Path, config, built) -> None:
    open_images(config(source=pets))
    open_images(config(source=pets, **fields))
    assert len(set(built)) == 2


def test_other_labels_have_another_cache(pets: Path, config, built) -> None:
    assert open_images(config(source=pets)).classes == ("cat", "dog")
    assert open_images(config(source=pets, labels=False)).classes is None
    assert len(set(built)) == 2


def test_settings_without_effect_on_the_cache_share_it(pets: Path, config, built) -> None:
    for fields in ({}, {"max_bad": 0}):
        open_images(config(source=pets, **fields))
    assert len(built) == 1


def test_changed_files_are_noticed(pets: Path, config, built, pixels, save) -> None:
    before = open_images(config(source=pets)).fingerprint
    os.utime(pets / "dog" / "0.png", ns=(0, 0))
    touched = open_images(config(source=pets)).fingerprint
    save(pets / "dog" / "0.png", pixels(99, 4, 5, 3))
    changed = open_images(config(source=pets)).fingerprint
    save(pets / "dog" / "8.png", pixels(98, 4, 5, 3))
    more = open_images(config(source=pets)).fingerprint
    assert len(built) == 4
    assert before == touched
    assert len({before, changed, more}) == 3


def test_another_link_to_the_same_file_is_noticed(pets: Path, config) -> None:
    """The targets of the links are unchanged, in the same order."""
    for kind, file in (("a", "0.png"), ("b", "1.png")):
        link = pets.parent / "links" / kind / file
        link.parent.mkdir(parents=True)
        link.symlink_to(pets / "dog" / file)
    assert open_images(config(source=pets.parent / "links")).classes == ("a", "b")
    (pets.parent / "links" / "b").rename(pets.parent / "links" / "c")
    assert open_images(config(source=pets.parent / "links")).classes == ("a", "c")


def test_a_broken_link_is_an_unreadable_image(pets: Path, config) -> None:
    (pets / "dog" / "lost.png").symlink_to(pets / "nowhere.png")
    images = open_images(config(source=pets))
    assert images.bad == ("dog/lost.png: No such file or directory",)


def test_grey_images_among_colours_become_colours(config, pixels, save, tmp_path: Path) -> None:
    grey = [pixels(i, 3, 4) for i in range(4)]
    colour = pixels(9, 3, 4, 3)
    for i, array in enumerate([grey[0], grey[1], grey[2], colour, grey[3]]):
        save(tmp_path / "mixed" / f"{i}.png", array)
    images = open_images(config(source=tmp_path / "mixed"))
    expected = [np.stack([each] * 3) for each in grey]
    expected.insert(3, colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(images.read(np.arange(5)), np.stack(expected))
    (tmp_path / "mixed" / "3.png").unlink()
    assert open_images(config(source=tmp_path / "mixed")).shape == (1, 3, 4)


def test_different_sizes_need_a_size(config, pixels, save, tmp_path: Path) -> None:
    save(tmp_path / "mixed" / "a.png", pixels(0, 4, 6))
    save(tmp_path / "mixed" / "b.png", pixels(0, 4, 8))
    with pytest.raises(ValueError, match=r"a\.png has 4 x 6 px .*b\.png has 4 x 8.*data\.size"):
        open_images(config(source=tmp_path / "mixed"))
    assert open_images(config(source=tmp_path / "mixed", size=4)).shape == (1, 4, 4)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def test_a_truncated_image_is_named_skipped_and_counted(pets: Path, config, capsys) -> None:
    kept = np.delete(open_images(config(source=pets)).read(np.arange(6)), 4, axis=0)
    truncate(pets / "dog" / "2.png")
    for is_built in (True, False):
        images = open_images(config(source=pets))
        assert (len(images), len(images.bad)) == (5, 1)
        assert images.bad[0].startswith("dog/2.png: ")
        assert str(images).startswith("5 RGB images of 4 x 5 px (height x width), 2 classes: cat (3), dog (2); 1 more")
        assert "(dog/2.png: " in str(images)
        assert ("skipped dog/2.png: " in capsys.readouterr().err) == is_built
        np.testing.assert_array_equal(images.read(np.arange(5)), kept)
        assert images.labels is not None
        assert images.labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("cached", [True, False])
def test_more_unreadable_images_than_max_bad_are_an_error(cached: bool, pets: Path, config) -> None:
    truncate(pets / "dog" / "2.png")
    (pets / "cat" / "1.png").write_text("text")
    if cached:
        assert len(open_images(config(source=pets, max_bad=2)).bad) == 2
    with pytest.raises(ValueError, match=r"data\.max_bad 1 .*cat/1\.png: .*dog/2\.png: "):
        open_images(config(source=pets, max_bad=1))


def test_a_set_without_a_readable_image_is_an_error(config, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"data\.source '.*bad'.*a\.png: "):
        open_images(config(source=tmp_path / "bad"))


def test_only_the_main_process_builds(pets: Path, config, built) -> None:
    """The others get its path; on another machine, without that folder, they build their own."""
    found = []

    def on_main(find):
        found.append(find())
        return found[-1]

    open_images(config(source=pets), on_main=on_main)
    open_images(config(source=pets), on_main=lambda find: found[0])
    assert built == found
    open_images(config(source=pets), on_main=lambda find: Path("on another machine"))
    assert built == found
    shutil.rmtree(found[0])
    open_images(config(source=pets), on_main=lambda find: found[0])
    assert built == found * 2
