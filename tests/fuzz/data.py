"""Inputs of a run's data: pictures, and folders, tables and arrays of them."""

import csv
import io
import json
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from PIL import Image, features

from pictures.decode import decode
from pictures.preprocessing import Preprocessing
from tests.fuzz.boundary import OUTSIDE, SCRATCH, Case, Entry, Kind, Link
from tests.fuzz.mutate import NAMES, TEXTS, damaged_bytes, damaged_json, damaged_png, dumped, odd_entries
from training.data.config import DataConfig
from training.data.decode import attempt
from training.data.open import open_images, open_validation
from training.data.sources.records import Item
from training.data.validate import validate

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".tif",
    ".webp",
    ".bmp",
    ".PNG",
    ".jp2",
    ".tga",
    ".txt",
    "",
    ".npy",
    ".svg",
)
DTYPES = ("|u1", "<u2", ">u2", "<f4", ">f4", "<f8", "<f2", "|b1", "<c8", "|O", "<U4", "<M8[s]", "|V8", "<i8", "|S3")
SHAPES = (
    "(3, 8, 8)",
    "(8, 8, 3)",
    "(8, 8)",
    "(1, 8, 8)",
    "()",
    "(0, 8, 8)",
    "(3, 8, 0)",
    "(192,)",
    "(3, 100000, 100000)",
    "(1, 1, 99999999999999999999)",
    "(-3, 8, -8)",
    "(3, 8, 8.0)",
    "(2, 3, 8, 8)",
    "(3, (8,), 8)",
    "(True, 8, 8)",
    "[3, 8, 8]",
)


def pixels(*shape: int) -> np.ndarray:
    """The same few pixels each time, uint8."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@cache
def pictures() -> dict[str, bytes]:
    """A valid picture of every format that Pillow writes here, by its name, and of many modes."""
    grey, rgb, rgba = (Image.fromarray(pixels(*shape)) for shape in ((9, 8), (9, 8, 3), (9, 8, 4)))
    deep = Image.fromarray(pixels(9, 8).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    found: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, pages: int = 1, **options: Any) -> None:
        file = io.BytesIO()
        if pages > 1:
            options |= {"save_all": True, "append_images": [Image.fromarray(255 - pixels(9, 8, 3))] * (pages - 1)}
        image.copy().save(file, kind, **options)  # `save` leaves options in the image
        found[name] = file.getvalue()

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        add(f"png {mode}", rgba.convert(mode), "PNG")
    add("png 16", deep, "PNG")
    add("png exif", rgb, "PNG", exif=exif)
    add("apng", rgb, "PNG", pages=2)
    add("png transparent", grey, "PNG", transparency=3)
    for mode in ("L", "RGB", "CMYK"):
        add(f"jpeg {mode}", rgb.convert(mode), "JPEG")
    add("jpeg progressive", rgb, "JPEG", progressive=True, exif=exif)
    add("mpo", rgb, "MPO", pages=2)
    add("gif", rgb.convert("P"), "GIF", pages=2)
    for name, image in (("L", grey), ("RGB", rgb), ("16", deep), ("1", grey.convert("1"))):
        add(f"tiff {name}", image, "TIFF")
    for way in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        add(f"tiff {way}", rgb, "TIFF", compression=way)
    add("tiff pages", rgb, "TIFF", pages=2)
    add("webp", rgb, "WEBP", lossless=True)
    add("webp animated", rgba, "WEBP", pages=2)
    for kind, image in (("BMP", rgb), ("DIB", grey), ("PPM", rgb), ("TGA", rgba), ("PCX", rgb), ("ICO", rgba)):
        add(kind.lower(), image, kind)
    add("pgm", grey, "PPM")
    add("pgm 16", deep, "PPM")
    add("pbm", grey.convert("1"), "PPM")
    add("tga rle", rgb, "TGA", compression="tga_rle")
    add("bmp palette", rgb.convert("P"), "BMP")
    for kind in ("EPS", "PDF", "SGI", "IM", "SPIDER", "MSP", "DDS", "ICNS", "XBM"):  # none of them is decoded
        add(
            kind.lower(),
            {"SPIDER": grey.convert("F"), "MSP": grey.convert("1"), "XBM": grey.convert("1")}.get(kind, rgb),
            kind,
        )
    if features.check("jpg_2000"):
        add("jp2", rgb, "JPEG2000")
    if features.check("avif"):
        add("avif", rgb, "AVIF")
    found["ppm text"] = b"P3 2 1 255 1 2 3 4 5 6"
    found["svg"] = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    found["ps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n"
    return found


@st.composite
def damaged_picture(draw: DrawFn) -> bytes:
    """A picture of any format after edits, two in one file, or one under another's header."""
    data = pictures()[draw(st.sampled_from(sorted(pictures())))]
    match draw(st.sampled_from(("edits", "edits", "chunks", "join", "whole", "head"))):
        case "chunks":
            names = [name for name in pictures() if "png" in name]
            return draw(damaged_png(pictures()[draw(st.sampled_from(names))]))
        case "join":
            return data + pictures()[draw(st.sampled_from(sorted(pictures())))]
        case "head":
            other = pictures()[draw(st.sampled_from(sorted(pictures())))]
            return data[: draw(st.integers(0, 30))] + other[draw(st.integers(0, 30)) :]
        case "whole":
            return data
    return draw(damaged_bytes(data))


def any_picture() -> SearchStrategy[bytes]:
    """A picture that may be damaged."""
    return st.one_of(st.sampled_from(sorted(pictures().values())), damaged_picture())


def preprocessing() -> SearchStrategy[dict[str, Any]]:
    """The settings of the decoding."""
    return st.fixed_dictionaries(
        {
            "size": st.sampled_from((None, (8, 8), (5, 7), (1, 1))),
            "channels": st.sampled_from((None, 1, 3)),
            "bits": st.sampled_from((8, 8, 16)),
        }
    )


def use_picture(folder: Path, options: Mapping[str, Any]) -> None:
    """Decodes one file, as a path and as bytes, and as a source does."""
    file, settings = folder / "picture", Preprocessing(**options)
    _, reason, _ = attempt(Item("picture", file), preprocessing=settings)
    image = decode(file, settings)
    assert isinstance(reason, np.ndarray), f"the source refuses what `decode` takes: {reason}"
    assert image.ndim == 3
    assert image.dtype == settings.pixel_format.stored
    assert settings.size in (None, image.shape[1:])
    assert settings.channels in (None, len(image))
    if file.is_file():
        np.testing.assert_array_equal(decode(file.read_bytes(), settings), image)


def use_data(folder: Path, options: Mapping[str, Any]) -> None:
    """Validates a set of images, or opens it and reads some: what `train.py` does before the first update."""
    fields = dict(options)
    root, mode = folder.parent, fields.pop("mode", "open")
    where = str(folder / fields.pop("source", "")).replace("OUTSIDE", str(root / OUTSIDE))
    for name in ("label_file", "static"):
        if fields.get(name):
            fields[name] = folder / fields[name]
    if str(fields.get("condition")).startswith("HERE"):
        fields["condition"] = fields["condition"].replace("HERE", str(folder))
    if mode != "stream":
        fields["cache"] = root / SCRATCH
    config = DataConfig(source=where, stream=mode == "stream", **fields)
    if mode == "validate":
        validate(config)
        return
    images = open_images(config)
    str(images)
    for each in (images, open_validation(config)):
        if each is None:
            continue
        out = np.empty((min(len(each), 4), *each.shape), each.pixel_format.stored)
        numbers = each.take(np.arange(len(out)), 0, out)
        assert np.isfinite(out).all(), "values that are not finite"
        if each.labels is not None:
            assert each.classes is not None
            labels = each.labels[numbers]
            assert 0 <= labels.min() <= labels.max() < len(each.classes), f"labels {labels} of {each.classes}"


def data_options(**more: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    """The settings of a source; most examples have the size and the channels that streaming needs."""
    required = {
        "mode": st.sampled_from(("open", "open", "stream", "validate")),
        "size": st.sampled_from(((8, 8), (8, 8), (8, 8), None)),
        "channels": st.sampled_from((3, 3, 1, None)),
        "max_bad": st.sampled_from((100, 0, 1)),
    }
    rare = {
        "split": st.sampled_from(("train", "test", "\x1b[2J", "no such")),
        "labels": st.sampled_from((True, False)),
        "crop": st.sampled_from(("stretch", "random")),
        "validation": st.sampled_from((0.5, 0.01, "test", "val")),
    }
    usual = st.fixed_dictionaries(required)
    return st.one_of(usual, usual, usual, st.fixed_dictionaries(required, optional=rare | more))


@st.composite
def names(draw: DrawFn, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """The path of a file, in up to two folders, some of them classes or splits."""
    folders = draw(st.lists(st.sampled_from((*NAMES, "cat", "dog", "test", "00000")), max_size=2))
    return "/".join((*folders, draw(st.sampled_from(("0", "1", "2", *NAMES))) + draw(st.sampled_from(suffixes))))


@st.composite
def folders(draw: DrawFn) -> Case:
    """A folder of pictures, good and bad, links and pipes, with odd names, in class folders or none."""
    tree: dict[str, bytes | Link | Entry] = {}
    good = [(f"{name}/{i}.png", pictures()["png RGB"]) for name in ("cat", "dog") for i in range(2)]
    tree |= dict(good[: draw(st.integers(0, 4))])
    for _ in range(draw(st.integers(1, 5))):
        tree[draw(names())] = draw(st.one_of(any_picture(), odd_entries()))
    options = draw(data_options(condition=st.sampled_from(("HERE/dog", "HERE", "HERE/no such", "\0"))))
    if "condition" in options and "cat/0.png" in tree:
        options["source"] = "cat"
    return Case(tree, options)


@st.composite
def labelled(draw: DrawFn) -> Case:
    """A folder of pictures, and a file of labels in one of the forms that people use."""
    files = [f"{i}.png" for i in range(4)] + draw(st.lists(names((".png",)), max_size=2))
    tree: dict[str, bytes | Link | Entry] = dict.fromkeys(files, pictures()["png RGB"])
    key = draw(st.sampled_from(("file_name", "image", "path", "id", "filename")))
    label = draw(st.sampled_from(("label", "class", "labels", "target", "")))
    values = draw(
        st.lists(st.sampled_from((0, 1, 2, -1, 10**9, "cat", "0.0", None, 0.5, [1], "\x1b[1m", True)), min_size=1)
    )
    shown = [
        draw(st.sampled_from((name, name, name, f"./{name}", name.replace("/", "\\"), "../x.png"))) for name in files
    ]
    rows: list[Any] = [{key: name, label: values[i % len(values)]} for i, name in enumerate(shown)]
    kind = draw(st.sampled_from(("jsonl", "csv", "tsv", "dataset.json")))
    if kind == "jsonl":
        damaged = draw(st.one_of(st.just(rows), damaged_json(rows)))
        text = b"\n".join(map(dumped, damaged if isinstance(damaged, list) else [damaged]))
    elif kind == "dataset.json":
        document = {"labels": [[name, values[i % len(values)]] for i, name in enumerate(shown)]}
        text = dumped(draw(st.one_of(st.just(document), damaged_json(document))))
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, [key, label], delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue().encode("utf-8", "surrogateescape")
    if draw(st.booleans()):
        text = draw(damaged_bytes(text))
    place = {"jsonl": "metadata.jsonl", "csv": "metadata.csv", "tsv": "labels.tsv"}.get(kind, kind)
    tree[place] = draw(st.one_of(st.just(text), st.just(text), st.just(text), odd_entries()))
    options = draw(data_options(vector_columns=st.sampled_from(((label,), (key,), ("no such",)))))
    if options.get("labels") is not False and draw(st.booleans()):
        options["label_file"] = place
    return Case(tree, options)


@st.composite
def npy(draw: DrawFn) -> bytes:
    """An array file: its header written with odd dtypes and shapes, or its bytes edited, or data that do not fit it."""
    if draw(st.booleans()):
        file = io.BytesIO()
        np.save(file, pixels(*draw(st.sampled_from(((3, 8, 8), (1, 8, 8), (8, 8), (8, 8, 3))))))
        return draw(damaged_bytes(file.getvalue())) if draw(st.booleans()) else file.getvalue()
    descr, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    order = draw(st.sampled_from(("False", "True", "None", "1")))
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header = draw(
        st.sampled_from((header, header, header, header + "x" * 70_000, "[" * 3000, "{}", "__import__('os')"))
    )
    text = header.encode() + b"\n"
    version = draw(st.sampled_from(((1, 0), (2, 0), (3, 0), (9, 9))))
    size = struct.pack("<I", len(text)) if version != (1, 0) else struct.pack("<H", len(text) & 65535)
    body = draw(
        st.sampled_from((pixels(192 * 8).tobytes(), b"", b"\0" * 192, b"\xff" * 2000, np.zeros(999, "f4").tobytes()))
    )
    return b"\x93NUMPY" + bytes(version) + size + text + body


@st.composite
def arrays(draw: DrawFn) -> Case:
    """A folder of arrays, or one file of many, also as .npz."""
    options = draw(
        data_options(
            range=st.sampled_from(((0.0, 1.0), (-1e30, 1e30), (0.0, 255.0))),
            axes=st.sampled_from(("chw", "hwc")),
            condition=st.sampled_from(((0,), (2, 0), (9,), "images", "HERE/all.npy", "HERE")),
            static=st.sampled_from(("0.npy", "all.npz")),
            vector_columns=st.sampled_from((("labels",), ("names",), ("no such",))),
        )
    )
    options.pop("crop", None)
    whole = io.BytesIO()
    match draw(st.sampled_from(("folder", "folder", "npy", "npz"))):
        case "folder":
            count = draw(st.integers(1, 3))
            tree: dict[str, Any] = {f"{i}.npy": draw(st.one_of(npy(), npy(), odd_entries())) for i in range(count)}
            return Case(tree, options)
        case "npy":
            np.save(whole, pixels(5, 3, 8, 8))
            file = draw(st.one_of(npy(), damaged_bytes(whole.getvalue(), 1)))
            return Case({"all.npy": file}, options | {"source": "all.npy"})
    kept: dict[str, Any] = {"images": pixels(5, 8, 8, 3), "labels": np.arange(5), "names": np.array(list("abcde"))}
    save = draw(st.sampled_from((np.savez, np.savez_compressed)))
    save(whole, **{name: kept[name] for name in draw(st.lists(st.sampled_from(sorted(kept)), min_size=1))})
    data = draw(st.one_of(st.just(whole.getvalue()), damaged_bytes(whole.getvalue())))
    return Case({"all.npz": data}, options | {"source": "all.npz"})


COLUMNS: dict[str, Callable[[], SearchStrategy[Any]]] = {
    "bytes": any_picture,
    "path": lambda: st.sampled_from(
        ("0.png", "./0.png", f"../{OUTSIDE}/file", "/etc/passwd", "missing.png", "", "pipe", *TEXTS)
    ),
    "struct": lambda: st.fixed_dictionaries(
        {
            "bytes": st.one_of(st.none(), any_picture()),
            "path": st.sampled_from((None, "0.png", "/etc/passwd", "x", "pipe")),
        }
    ),
    "int": lambda: st.sampled_from((0, 1, 2, -1, 10**12)),
    "float": lambda: st.sampled_from((0.0, 1.0, 0.5, float("nan"))),
    "text": lambda: st.sampled_from(("cat", "dog", *TEXTS)),
    "list": lambda: st.lists(st.integers(0, 255), max_size=3),
    "null": st.none,
    "bool": st.booleans,
}


@st.composite
def tables(draw: DrawFn) -> Case:
    """Tables whose columns have any type, nulls and odd values; good ones, wrong ones, and damaged ones."""
    tree: dict[str, Any] = {"0.png": pictures()["png RGB"], "pipe": Entry.PIPE}
    kind = draw(st.sampled_from(("parquet", "parquet", "arrow", "stream")))
    end = "parquet" if kind == "parquet" else "arrow"
    for number in range(draw(st.integers(1, 2))):
        count = draw(st.sampled_from((0, 1, 3, 5)))
        columns = {}
        for name, usual in (("image", ["bytes", "path", "struct"]), ("label", ["int", "text"])):
            column = draw(st.sampled_from((*usual * 8, *COLUMNS)))
            cells = COLUMNS[column]() if draw(st.booleans()) else st.one_of(COLUMNS[column](), st.none())
            columns[name] = [draw(cells) for _ in range(count)]
        columns |= draw(st.sampled_from(({}, {}, {"other": list(range(count))}, {"img": [b""] * count})))
        if draw(st.integers(0, 9)) == 0:
            columns.pop(draw(st.sampled_from(sorted(columns))))
        table = pa.table({name: _column(values) for name, values in columns.items()})
        hints = draw(st.sampled_from((None, None, {"image": {"_type": "Image"}}, {"image": {"_type": "X"}}, [], "x")))
        if hints is not None:
            info = json.dumps({"info": {"features": hints}})
            table = table.replace_schema_metadata({"huggingface": draw(st.sampled_from((info, info, "{", "[]")))})
        data = written(table, kind)
        if draw(st.integers(0, 2)) == 0:
            data = draw(damaged_bytes(data))
        tree[f"{number}.{end}"] = draw(st.one_of(st.just(data), st.just(data), st.just(data), odd_entries()))
    options = draw(
        data_options(
            image_column=st.sampled_from(("image", "label", "no such", "\x1b[2J")),
            label_column=st.sampled_from(("label", "image", "no such")),
            allow_outside=st.booleans(),
            stream_shards=st.sampled_from((1, 2)),
            stream_parts=st.sampled_from((1, 2)),
            condition=st.sampled_from(("label", "other", "img", "no such")),
            vector_columns=st.sampled_from((("label",), ("other",), ("image",), ("no such",))),
        )
    )
    place = draw(st.sampled_from((f"0.{end}", f"*.{end}")))
    return Case(tree, options | {"source": place})


def _column(values: list[Any]) -> Any:
    values = [value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in values]
    return pa.array(values)


def written(table: Any, kind: str) -> bytes:
    """The bytes of a table as parquet, or as arrow's file or stream format."""
    file = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=2)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


def picture_cases() -> SearchStrategy[Case]:
    """One picture, or what is in its place, and how it is decoded."""
    content = st.one_of(damaged_picture(), damaged_picture(), damaged_picture(), odd_entries())
    return st.builds(lambda data, options: Case({"picture": data}, options), content, preprocessing())


def kinds() -> dict[str, Callable[[], Kind]]:
    """Makes the kinds of this file, by name."""
    return {
        "pictures": lambda: Kind(picture_cases(), use_picture, 150),
        "folders": lambda: Kind(folders(), use_data, 40),
        "label files": lambda: Kind(labelled(), use_data, 40),
        "arrays": lambda: Kind(arrays(), use_data, 50),
        "tables": lambda: Kind(tables(), use_data, 40),
    }
