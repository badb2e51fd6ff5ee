import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from training.data import Images, open_images
from training.data.sources.source import find_source

ANIMALS = ClassLabel(names=["cat", "dog", "eel"])


@pytest.fixture
def table(pixels, png) -> Callable[..., Dataset]:
    """A table of grey 4x4 images, image i drawn from seed i, with further columns (name -> (feature, values))."""

    def make(count: int = 4, image: str = "image", feature: Any = None, **columns: tuple[Any, list]) -> Dataset:
        kind = feature or Image()
        pictures: list[Any] = [png(pixels(i, 4, 4)) for i in range(count)]
        if feature is None:
            pictures = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
        features = Features({image: kind} | {name: each for name, (each, _) in columns.items()})
        return Dataset.from_dict(
            {image: pictures} | {n: values for n, (_, values) in columns.items()}, features=features
        )

    return make


@pytest.fixture
def read(config, tmp_path: Path) -> Callable[..., Images]:
    """Images of a table that went through a parquet file."""

    def through_parquet(table: Dataset, **fields: Any) -> Images:
        table.to_parquet(tmp_path / "table.parquet")
        return open_images(config(source=tmp_path / "table.parquet", **fields))

    return through_parquet


@pytest.fixture(autouse=True)
def _quiet_and_apart(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "huggingface")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def check(images: Images, pixels: Callable[..., np.ndarray], labels: list[int] | None, classes: tuple | None) -> None:
    np.testing.assert_array_equal(
        images.read(np.arange(len(images)))[:, 0], [pixels(i, 4, 4) for i in range(len(images))]
    )
    assert (None if images.labels is None else images.labels.tolist()) == labels
    assert images.classes == classes


def test_a_folder_whose_name_could_be_a_pattern(table, config, tmp_path: Path) -> None:
    folder = tmp_path / "set [1] é"
    folder.mkdir()
    table().to_parquet(folder / "a.parquet")
    assert len(open_images(config(source=folder))) == 4


def test_columns_are_found_by_their_type(table, read, pixels) -> None:
    images = read(table(image="scan", number=(Value("int64"), [5, 6, 7, 8]), species=(ANIMALS, [2, 0, 1, 0])))
    check(images, pixels, [2, 0, 1, 0], ("cat", "dog", "eel"))


def test_columns_are_found_by_usual_names(table, read, pixels) -> None:
    """Plain bytes and whole numbers, as other programs than `datasets` write them."""
    images = read(
        table(
            image="img", feature=Value("binary"), x=(Value("float32"), [0.0] * 4), label=(Value("int32"), [0, 2, 2, 1])
        )
    )
    check(images, pixels, [0, 2, 2, 1], ("0", "1", "2"))


def test_of_two_label_columns_the_fine_one_is_the_default(table, read, pixels) -> None:
    both = table(coarse_label=(ANIMALS, [0, 0, 0, 0]), fine_label=(ANIMALS, [0, 1, 2, 0]))
    check(read(both), pixels, [0, 1, 2, 0], ("cat", "dog", "eel"))
    check(read(both, label_column="coarse_label"), pixels, [0, 0, 0, 0], ("cat", "dog", "eel"))
    check(read(both, labels=False), pixels, None, None)


def test_an_image_column_can_be_named(table, read, pixels) -> None:
    two = table(other=(Image(), [{"bytes": b"no image", "path": None}] * 4))
    check(read(two), pixels, None, None)
    check(read(two.rename_columns({"image": "a", "other": "b"}), image_column="a"), pixels, None, None)
    with pytest.raises(ValueError, match=r"data\.image_column .*a, b"):
        read(two.rename_columns({"image": "a", "other": "b"}))


def test_texts_are_classes(table, read, pixels) -> None:
    check(read(table(label=(Value("string"), ["no", "yes", "yes", "no"]))), pixels, [0, 1, 1, 0], ("no", "yes"))


def test_a_table_may_hold_paths_of_images(read, pixels, save, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, file in enumerate(files):
        save(Path(file), pixels(i, 4, 4))
    check(read(Dataset.from_dict({"image": files})), pixels, None, None)


def test_a_folder_or_glob_of_parquet_files_with_splits(table, config, pixels, tmp_path: Path) -> None:
    whole = table(5)
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    whole.select(range(3)).to_parquet(folder / "train-00000-of-00002.parquet")
    whole.select(range(3, 5)).to_parquet(folder / "train-00001-of-00002.parquet")
    whole.select(range(2)).to_parquet(folder / "test-00000-of-00001.parquet")
    images = open_images(config(source=folder.parent))
    assert len(images) == 5
    check(images, pixels, None, None)
    assert len(open_images(config(source=folder, split="test"))) == 2
    assert len(open_images(config(source=str(folder / "*.parquet")))) == 7
    with pytest.raises(ValueError, match=r"data\.split 'tset'.*'.*set'.*test, train"):
        open_images(config(source=folder.parent, split="tset"))


def test_arrow_files_of_both_kinds(table, config, pixels, tmp_path: Path) -> None:
    labelled = table(label=(ANIMALS, [2, 0, 1, 0]))
    labelled.save_to_disk(tmp_path / "saved")  # the streaming format
    check(open_images(config(source=tmp_path / "saved")), pixels, [2, 0, 1, 0], ("cat", "dog", "eel"))
    plain = labelled.data.table
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, plain.schema) as writer:
        writer.write_table(plain)
    check(open_images(config(source=tmp_path / "file.arrow")), pixels, [2, 0, 1, 0], ("cat", "dog", "eel"))


def test_tables_of_two_kinds_are_refused(table, config, tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "set")
    table().to_parquet(tmp_path / "set" / "a.parquet")
    with pytest.raises(ValueError, match=r"data\.source '.*set'.*parquet and arrow"):
        open_images(config(source=tmp_path / "set"))


def test_a_hub_data_set(table, config, pixels, tmp_path: Path) -> None:
    """A local repository stands in for one of the hub: `datasets` reads both alike."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    table(label=(ANIMALS, [2, 0, 1, 0])).to_parquet(tmp_path / "owner" / "name" / "train.parquet")
    source = f"hub:{tmp_path / 'owner' / 'name'}"
    check(open_images(config(source=source)), pixels, [2, 0, 1, 0], ("cat", "dog", "eel"))
    with pytest.raises(ValueError, match=r"data\.source 'hub:.*name'.*\"tset\".*\['train'\]"):
        open_images(config(source=source, split="tset"))


def test_an_unreachable_hub_is_an_error(config, monkeypatch) -> None:
    asked = []

    def unreachable(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nlong story")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"data\.source 'hub:owner/name@v1\.0'.*Couldn't reach 'owner/name'"):
        open_images(config(source="hub:owner/name@v1.0"))
    assert asked == [(("owner/name",), {"split": "train", "revision": "v1.0"})]


MISSING = """Config name is missing.
Please pick one among the available configs: {names}
Example of usage:
\t`load_dataset('owner/name', 'a')`"""


@pytest.mark.parametrize("text", [MISSING, "BuilderConfig 'x' not found. Available: {names}"])
@pytest.mark.parametrize("names", [["plain_text", "en-US"], [f"part_{i}" for i in range(30)]])
def test_the_configurations_of_a_hub_data_set_are_listed(text, names, config, monkeypatch) -> None:
    def several(*arguments, **options):
        raise ValueError(text.format(names=names))

    monkeypatch.setattr("datasets.load_dataset", several)
    listed = ", ".join(names)
    with pytest.raises(ValueError, match=rf"data\.source 'hub:owner/name@v1'.*hub:owner/name:{names[0]}@v1.*{listed}"):
        open_images(config(source="hub:owner/name@v1"))


@pytest.mark.parametrize(
    ("source", "arguments", "revision"),
    [
        ("hub:owner/name", ("owner/name",), None),
        ("hub:owner/name:en-US", ("owner/name", "en-US"), None),
        ("hub:owner/name:2023.01@v1", ("owner/name", "2023.01"), "v1"),
        ("hub:name:small", ("name", "small"), None),
        ("hub:C:/sets/name", ("C:/sets/name",), None),
    ],
)
def test_a_configuration_of_a_hub_data_set(source, arguments, revision, table, config, pixels, monkeypatch) -> None:
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return table()

    monkeypatch.setattr("datasets.load_dataset", load)
    check(open_images(config(source=source)), pixels, None, None)
    assert asked == [(arguments, {"split": "train", "revision": revision})]


def test_configurations_have_caches_of_their_own(config) -> None:
    sources = ["hub:o/n", "hub:o/n:a", "hub:o/n:b", "hub:o/n@a"]
    assert len({json.dumps(find_source(config(source=source)).key) for source in sources}) == 4


@pytest.mark.parametrize("source", ["hub:", "hub::a", "hub:o/n:", "hub:o/n@", "hub:@v1"])
def test_an_incomplete_name_of_the_hub(source, config) -> None:
    with pytest.raises(ValueError, match=rf"data\.source '{source}'.*hub:OWNER/NAME"):
        open_images(config(source=source))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "hub", "no row group"])
def test_an_empty_table_is_named(kind: str, table, config, tmp_path: Path, monkeypatch) -> None:
    empty, source = table(label=(ANIMALS, [0] * 4)).select([]), tmp_path / f"empty.{kind}"
    if kind == "parquet":
        empty.to_parquet(source)
    elif kind == "arrow":
        with pa.OSFile(str(source), "wb") as file, pa.ipc.new_file(file, empty.data.schema):
            pass
    elif kind == "hub":
        monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: empty)
        source = "hub:owner/empty"
    else:
        source = tmp_path / "empty.parquet"
        pa.parquet.ParquetWriter(source, empty.data.schema).close()
    with pytest.raises(ValueError, match=r"data\.source '.*empty.*no image"):
        open_images(config(source=source))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Value("string"), Value("int64")),
        (Value("int32"), ClassLabel(names=["cat", "dog"])),
        (ClassLabel(names=["cat", "dog"]), ClassLabel(names=["dog", "cat"])),
        (ClassLabel(names=["cat"]), ClassLabel(names=["cat", "dog"])),
    ],
)
def test_files_whose_labels_mean_different_classes(one, other, png, pixels, config, tmp_path: Path) -> None:
    """They would be numbered by the classes of the first file."""
    for file, kind in (("a", one), ("b", other)):
        values = {
            "image": [{"bytes": png(pixels(0, 4, 4)), "path": None}],
            "label": ["0" if kind == Value("string") else 0],
        }
        Dataset.from_dict(values, Features({"image": Image(), "label": kind})).to_parquet(tmp_path / f"{file}.parquet")
    with pytest.raises(ValueError, match=r"label column 'label' .*b\.parquet.* a\.parquet.*data\.labels"):
        open_images(config(source=tmp_path))
    assert len(open_images(config(source=tmp_path, labels=False))) == 2


SECOND: dict[str, pa.Array] = {
    "list": pa.array([[1]]),
    "struct": pa.array([{"x": 1}]),
    "date": pa.array([0], pa.date32()),
    "float": pa.array([1.5]),
    "bool": pa.array([True]),
    "null": pa.nulls(1),
}


@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_of_another_type_in_a_later_file(column: str, kind: str, png, pixels, config, tmp_path: Path) -> None:
    usual = {"image": pa.array([png(pixels(0, 4, 4))]), "label": pa.array([0])}
    for file, columns in (("a", usual), ("b", usual | {column: SECOND[kind]})):
        pa.parquet.write_table(pa.table(columns), tmp_path / f"{file}.parquet")
    with pytest.raises(ValueError, match=rf"b\.parquet: {column} column '{column}'"):
        open_images(config(source=tmp_path))


def test_columns_of_one_name_are_an_error(png, pixels, config, tmp_path: Path) -> None:
    image = pa.array([png(pixels(0, 4, 4))])
    pa.parquet.write_table(pa.table([image, image], ["image", "image"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet has several columns 'image'"):
        open_images(config(source=tmp_path / "t.parquet"))


def test_columns_of_views(png, pixels, config, tmp_path: Path) -> None:
    """As Polars writes them."""
    columns = {
        "image": pa.array([png(pixels(0, 4, 4))], pa.binary_view()),
        "label": pa.array(["cat"], pa.string_view()),
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    check(open_images(config(source=tmp_path / "t.parquet")), pixels, [0], ("cat",))


def test_labels_of_texts_are_normalised(table, read, pixels) -> None:
    texts = [" cat", "cat ", "caf\u00e9", "cafe\u0301"]
    check(read(table(label=(Value("string"), texts))), pixels, [1, 1, 0, 0], ("caf\u00e9", "cat"))


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_label_is_missing(text, table, read) -> None:
    with pytest.raises(ValueError, match=r"image 2.* missing"):
        read(table(label=(Value("string"), ["a", "b", text, "a"])))


def test_several_image_columns_are_listed(table, read) -> None:
    two = table(image="left", right=(Image(), [{"bytes": b"no image", "path": None}] * 4))
    with pytest.raises(ValueError, match=r"2 columns.*data\.image_column.*: left, right$"):
        read(two)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_unreadable_file_is_named(kind: str, config, tmp_path: Path) -> None:
    file = tmp_path / f"bad.{kind}"
    file.write_bytes(b"PAR1 and then nothing that makes sense PAR1")
    with pytest.raises(ValueError, match=rf"bad\.{kind} .*{kind} file"):
        open_images(config(source=file))


def test_a_damaged_page_is_an_error(table, config, tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    table().to_parquet(file)
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"table\.parquet .*parquet file \(.+\)"):
        open_images(config(source=file))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": "imag"}, r"data\.image_column 'imag'.*image, label, x"),
        ({"label_column": "lable"}, r"data\.label_column 'lable'.*image, label, x"),
        ({"label_column": "q"}, r"data\.label_column 'q'.*image, label, x"),
        ({"label_column": "x"}, r"'x' .*float32.*data\.label_column"),
    ],
)
def test_a_wrong_column_lists_the_columns(fields: dict, message: str, table, read) -> None:
    with pytest.raises(ValueError, match=message):
        read(table(label=(ANIMALS, [0] * 4), x=(Value("float32"), [0.5] * 4)), **fields)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Value("string"), ["a cat", None, "a dog", "x" * 5000], r".*'a cat'.*data\.image_column"),
        (Value("float32"), [0.5] * 4, r".*float32.*data\.image_column"),
        (ANIMALS, [0] * 4, r".*int64.*data\.image_column"),
        (List(Value("int64")), [[1, 2]] * 4, r".*List\(Value\('int64'\)\).*data\.image_column"),
    ],
)
def test_a_column_without_images_is_an_error_before_decoding(feature, values, message, table, read, capsys) -> None:
    with pytest.raises(ValueError, match=rf"'x'{message}"):
        read(table(x=(feature, values)), image_column="x")
    assert "skipped" not in capsys.readouterr().err


def test_16_bits_from_a_table(table, read, pixels) -> None:
    images = read(table(), bits=16)
    np.testing.assert_array_equal(images.read(np.arange(4))[:, 0], [pixels(i, 4, 4) * np.uint16(257) for i in range(4)])


def test_required_labels_must_exist(table, read) -> None:
    with pytest.raises(ValueError, match=r"data\.labels is true .*data\.label_column .*image, x"):
        read(table(x=(Value("float32"), [0.5] * 4)), labels=True)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (ANIMALS, [0, 1, -1, -1], r"label -1 of image 2, row 2 \(2\.png\).*0\.\.2"),
        (Value("int64"), [0, 1, 2, -7], r"label -7 of image 3, row 3 \(3\.png\)"),
        (Value("int64"), [0, 1 << 40, 2, 3], r"label 1099511627776 of image 1, row 1 \(1\.png\)"),
        (Value("int64"), [0, None, 2, 3], r"label None of image 1, row 1 \(1\.png\)"),
        (Value("string"), ["a", None, "b", "c"], r"label None of image 1, row 1 \(1\.png\)"),
    ],
)
def test_a_label_out_of_range_is_named(feature, values: list, message: str, table, read) -> None:
    with pytest.raises(ValueError, match=message):
        read(table(label=(feature, values)))


def test_a_label_beyond_the_classes_is_named(pixels, png, config, tmp_path: Path) -> None:
    """Written by hand, as `datasets` does not write it."""
    rows = {"image": [png(pixels(i, 4, 4)) for i in range(2)], "label": [1, 3]}
    schema = Features({"image": Value("binary"), "label": ANIMALS}).arrow_schema
    pq.write_table(pa.table(rows).cast(schema), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"label 3 of image 1, row 1.*0\.\.2"):
        open_images(config(source=tmp_path / "t.parquet"))


def test_a_row_without_an_image_is_skipped_and_named(table, read, capsys) -> None:
    holed = table().map(lambda _, i: {"image": None} if i == 1 else {}, with_indices=True)
    images = read(holed)
    assert images.bad == ("row 1: no image",)
    assert len(images) == 3
    assert "skipped row 1: no image" in capsys.readouterr().err


@pytest.fixture
def paths(pixels, save, tmp_path: Path):
    """A table of paths in a folder of its own, with images below and beside it."""
    folder = tmp_path / "set"
    for i, name in enumerate(["set/a.png", "set/deep/b.png", "outside.png", "set2/c.png", "set/back\\slash.png"]):
        save(tmp_path / name, pixels(i, 4, 4))
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "out").symlink_to(tmp_path / "set2")
    (folder / "in.png").symlink_to("a.png")

    def write(names: list, kind: str = "text") -> Path:
        feature = Value("string") if kind == "text" else Image()
        values = names if kind == "text" else [{"bytes": None, "path": name} for name in names]
        table = pa.table({"image": values}).cast(Features({"image": feature}).arrow_schema)
        pq.write_table(table, folder / "t.parquet")
        return folder / "t.parquet"

    return write


@pytest.mark.parametrize("kind", ["text", "image"])
def test_paths_of_a_table_are_relative_to_its_folder(kind: str, paths, config, pixels, tmp_path, monkeypatch) -> None:
    file = paths(["a.png", "deep/b.png", "deep\\b.png", "./deep/../a.png", "in.png", "back\\slash.png"], kind)
    monkeypatch.chdir(tmp_path.parent)
    for source in (file, file.parent / "*.parquet"):
        images = open_images(config(source=source))
        expected = [pixels(i, 4, 4) for i in (0, 1, 1, 0, 0, 4)]
        np.testing.assert_array_equal(images.read(np.arange(6))[:, 0], expected)
    assert len(open_images(config(source=paths([str(file.parent / "a.png")], kind)))) == 1


OUTSIDE = {
    "parent": "../outside.png",
    "neighbour": "../set2/c.png",
    "through": "deep/../../outside.png",
    "absolute": "/etc/hostname",
    "link": "out.png",
    "linked folder": "out/c.png",
    "windows parent": "..\\outside.png",
    "drive": "C:\\images\\a.png",
    "drive with slashes": "C:/images/a.png",
    "share": "\\\\server\\share\\a.png",
    "file": "file:///etc/hostname",
    "http": "http://example.com/a.png",
    "https": "HTTPS://example.com/a.png",
    "s3": "s3://bucket/a.png",
    "hf": "hf://datasets/owner/name/a.png",
    "pipe": "/dev/stdin",
    "proc": "/proc/self/environ",
    "control": "../\x1b[31m.png",
}


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_table_names_no_file_outside_its_folder(name: str, kind: str, paths, config, monkeypatch) -> None:
    opened: list = []
    monkeypatch.setattr("pictures.decode.open_regular", lambda path: opened.append(path) or 1 / 0)
    with pytest.raises(ValueError, match=r"image") as error:
        open_images(config(source=paths([OUTSIDE[name]] * 2, kind)))
    text = str(error.value)
    assert repr(OUTSIDE[name]) in text
    assert "data.allow_outside" in text or "copy the images" in text
    assert not opened


@pytest.mark.parametrize("name", ["../outside.png", "../set2/c.png", "out.png"])
def test_a_setting_allows_files_outside(name: str, paths, config, pixels) -> None:
    images = open_images(config(source=paths([name]), allow_outside=True))
    np.testing.assert_array_equal(images.read(np.array([0]))[0, 0], pixels(3 if "c" in name else 2, 4, 4))


@pytest.mark.parametrize("name", ["none.png", "x" * 300 + ".png", "a\0b.png", "deep", " ", "in.png/a.png"])
def test_a_name_without_a_file_counts_as_bad(name: str, paths, config) -> None:
    images = open_images(config(source=paths(["a.png", name])))
    assert len(images) == 1
    assert len(images.bad) == 1


def test_a_hub_data_set_names_no_file_outside_its_folder(paths, config, tmp_path: Path) -> None:
    file = paths(["../outside.png"], "image").rename(tmp_path / "set2" / "t.parquet")
    (tmp_path / "set2" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"'\.\./outside\.png'.*data\.allow_outside"):
        open_images(config(source=f"hub:{file.parent}"))


def test_postscript_in_a_table_starts_no_program(config, tmp_path: Path, monkeypatch) -> None:
    started: list = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: started.append(arguments))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    pq.write_table(pa.table({"image": [data]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 0: not an image"):
        open_images(config(source=tmp_path / "t.parquet"))
    assert not started
