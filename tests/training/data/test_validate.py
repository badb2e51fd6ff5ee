"""`--validate` names every invalid image, and counts the others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import train
from training.data import DataConfig
from training.data.validate import validate


@pytest.fixture
def pets(pixels, save, tmp_path: Path) -> Path:
    """Eight valid images of many kinds."""
    folder = tmp_path / "pets"
    for i in range(3):
        save(folder / "cat" / f"{i}.png", pixels(i, 6, 4, 3))
    save(folder / "dog" / "0.png", pixels(0, 6, 4))
    save(folder / "dog" / "clear.png", pixels(1, 6, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "dog" / "turned.jpg", pixels(2, 4, 6, 3), exif=exif)
    frames = [Image.fromarray(pixels(i, 6, 4)) for i in range(2)]
    frames[0].save(folder / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "dog" / "same.png").write_bytes((folder / "cat" / "1.png").read_bytes())
    return folder


def rows(text: str) -> dict[str, str]:
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def test_the_summary_of_a_set(pets: Path, capsys) -> None:
    validate(DataConfig(source=str(pets)))
    assert rows(capsys.readouterr().out) == {
        "images": "8 of 8 are valid",
        "used in a run": "8 RGB images of 6 x 4 px (height x width), 2 classes",
        "modes": "RGB: 5, L: 1, RGBA: 1, P: 1",
        "height x width": "6 x 4: 7, 4 x 6: 1",
        "animated": "1 (dog/moving.gif)",
        "transparent": "1 (dog/clear.png)",
        "turned by EXIF": "1 (dog/turned.jpg)",
        "classes": "dog: 5, cat: 3",
        "same content": "1 (dog/same.png = cat/1.png)",
    }


def test_every_invalid_file_is_named_whatever_max_bad(pets: Path, capsys) -> None:
    for i in range(15):
        (pets / "cat" / f"bad{i:02}.png").write_bytes(b"no image" if i else b"")
    with pytest.raises(ValueError, match=r"15 of 23 images of data\.source '.*pets'"):
        validate(DataConfig(source=str(pets), max_bad=3))
    printed = capsys.readouterr().out
    assert [line.partition(":")[0] for line in printed.splitlines()[:15]] == [f"cat/bad{i:02}.png" for i in range(15)]
    assert "images          8 of 23 are valid" in printed


def test_different_sizes_are_an_error_without_a_size(pets: Path, pixels, save, capsys) -> None:
    save(pets / "cat" / "wide.png", pixels(0, 6, 9))
    with pytest.raises(ValueError, match=r"2 different sizes.*data\.size"):
        validate(DataConfig(source=str(pets)))
    assert "used in a run" not in capsys.readouterr().out
    validate(DataConfig(source=str(pets), size=8, channels=1, labels=False))
    assert "9 grey images of 8 x 8 px (height x width), no labels" in capsys.readouterr().out


def test_labels_of_a_table_are_validated(pixels, png, capsys, tmp_path: Path) -> None:
    images = [png(pixels(i, 4, 4)) for i in range(4)]
    pq.write_table(pa.table({"image": images, "label": [0, 5, None, -3]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="2 of 4 images"):
        validate(DataConfig(source=str(tmp_path / "t.parquet")))
    printed = capsys.readouterr().out
    assert "row 2: label None of image 2, row 2, " in printed
    assert "row 3: label -3 of image 3, row 3, " in printed
    assert rows(printed)["classes"] == "0: 1, 5: 1, 1: 0, 2: 0, 3: 0, 4: 0"  # as a run has them


def test_arrays(tmp_path: Path, capsys) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((5, 4, 4), i, np.float32))
    with pytest.raises(ValueError, match="1 of 3 images"):
        validate(DataConfig(source=str(tmp_path), range=(0, 1)))
    printed = capsys.readouterr().out
    assert printed.startswith("2.npy: 80 of 80 values are outside data.range 0 to 1, such as 2 at (0, 0, 0)\n")
    assert rows(printed)["modes"] == "float32: 2"
    assert rows(printed)["used in a run"] == "2 5-channel float32 arrays of 4 x 4 px (height x width), no labels"


def test_long_lists_are_cut_in_the_middle(pixels, save, capsys, tmp_path: Path) -> None:
    for i in range(25):
        save(tmp_path / "many" / f"{i:02}" / "a.png", pixels(i, 2, 2))
    validate(DataConfig(source=str(tmp_path / "many")))
    printed = rows(capsys.readouterr().out)["classes"]
    assert printed.startswith("00: 1, ")
    assert ", 09: 1, … (5 more) …, 15: 1, " in printed


def test_an_empty_table_is_an_error(tmp_path: Path) -> None:
    empty = pa.table({"image": pa.array([], pa.binary())})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, empty.schema) as writer:
        writer.write_table(empty)
    with pytest.raises(ValueError, match=r"data\.source '.*t\.arrow'"):
        validate(DataConfig(source=str(tmp_path / "t.arrow")))


def test_the_script_ends_with_0_or_2_and_keeps_nothing(pets: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--validate", "--data.source", str(pets), "--data.cache", str(tmp_path / "cache")]
    train.main(arguments)
    assert "8 of 8 are valid" in capsys.readouterr().out
    (pets / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as exit_code:
        train.main(arguments)
    assert exit_code.value.code == 2
    assert "error: 1 of 9 images of data.source " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]
