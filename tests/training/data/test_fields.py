"""Sets whose images have a condition, static fields or a vector: in memory, in the cache and streamed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from training.data import BatchReader, Images, StreamedImages
from training.data.cache import build as building
from training.data.cache.files import damage, load_cache
from training.data.cache.open import find_cache
from training.data.sources.records import Item, Records, Source

COUNT = 7
COLUMNS = ("strain", "porosity")
STATIC = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
VECTORS = np.random.default_rng(1).normal(size=(COUNT, 2)).astype(np.float32)
ARRAYS = np.random.default_rng(2).integers(0, 256, (COUNT, 3, 2, 2), np.uint8)


def source(bad: int | None = None, **fields: object) -> Source:
    """Seven pictures of three channels, the item `bad` unreadable."""
    items = [
        Item(f"image {i}", b"no picture" if i == bad else image.transpose(1, 2, 0)) for i, image in enumerate(ARRAYS)
    ]
    records = Records(
        sizes=[COUNT],
        load=lambda shard: items,
        labels=list(range(COUNT)),
        classes=None,
        pixel_format=PixelFormat(),
        stamp=lambda: [COUNT],
        **fields,
    )
    return Source("memory", "memory", [bad, list(fields)], lambda: records)


def whole(**fields: object) -> Images:
    return Images(ARRAYS, np.arange(COUNT), **fields)


def test_a_batch_has_the_vectors_of_its_images() -> None:
    images = whole(vectors=VECTORS, vector_columns=COLUMNS)
    for update in range(2):
        image, label, vector, _ = BatchReader(images, 3, 4).get(update)
        assert label is not None
        torch.testing.assert_close(image, torch.from_numpy(ARRAYS)[label])
        torch.testing.assert_close(vector, torch.from_numpy(VECTORS)[label], rtol=0, atol=0)


def test_a_part_has_the_vectors_of_its_images() -> None:
    part = whole(vectors=VECTORS, vector_columns=COLUMNS, conditions=1, static=STATIC).part(np.array([4, 1]))
    np.testing.assert_array_equal(part.vectors, VECTORS[[4, 1]])
    assert (part.conditions, part.vector_columns) == (1, COLUMNS)
    np.testing.assert_array_equal(part.static, STATIC)


def test_the_fingerprint_has_conditions_static_fields_and_vectors() -> None:
    vectors = {"vectors": VECTORS, "vector_columns": COLUMNS}
    sets = [
        whole(),
        whole(conditions=1),
        whole(conditions=2),
        whole(static=STATIC),
        whole(static=STATIC + 1),
        whole(static=STATIC.reshape(2, 2, 2)[:1]),
        whole(**vectors),
        whole(vectors=VECTORS + 1, vector_columns=COLUMNS),
        whole(vectors=VECTORS, vector_columns=COLUMNS[::-1]),
        whole(**vectors, conditions=1, static=STATIC),
    ]
    prints = [each.fingerprint for each in sets] + [each.part(np.arange(3)).fingerprint for each in sets]
    assert len(set(prints)) == len(prints)


def test_a_set_without_them_has_the_fingerprint_of_earlier_versions() -> None:
    found = Images(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), np.array([0, 1])).fingerprint
    assert found == "626e6ce61cc804f32e2f59e0a86c82776c742e94c578852d2d95556430991e14"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conditions": 3}, "conditions 3 of 3 channels"),
        ({"conditions": -1}, "conditions -1"),
        ({"static": STATIC[:, :1]}, r"data\.static .*1 x 2 .*2 x 2"),
        ({"vectors": VECTORS}, r"\(7, 2\) .*vector_columns \[\]"),
        ({"vector_columns": COLUMNS}, r"no vectors .*strain"),
        ({"vectors": VECTORS[1:], "vector_columns": COLUMNS}, r"\(6, 2\) for 7 images"),
    ],
)
def test_parts_that_do_not_fit_the_images_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole(**fields)


def test_the_summary_names_them() -> None:
    text = str(whole(conditions=1, static=STATIC, vectors=VECTORS, vector_columns=COLUMNS))
    assert "with a condition of 1 channel, 2 static fields, vectors of strain, porosity" in text


def test_a_cache_has_the_vectors_of_its_readable_images(tmp_path: Path, capsys) -> None:
    given = source(bad=3, conditions=1, vectors=VECTORS, vector_columns=COLUMNS)
    folder = find_cache(given, Preprocessing(), tmp_path, 1)
    images, kept = load_cache(folder, STATIC), [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(images.read(np.arange(6)), ARRAYS[kept])
    np.testing.assert_array_equal(images.vectors, VECTORS[kept])
    assert (images.conditions, images.vector_columns) == (1, COLUMNS)
    fields = {"conditions": 1, "static": STATIC, "vectors": VECTORS[kept], "vector_columns": COLUMNS}
    expected = Images(ARRAYS[kept], np.array(kept), tuple(map(str, range(COUNT))), **fields)
    assert images.fingerprint == expected.fingerprint


def test_an_interrupted_build_has_the_same_vectors(tmp_path: Path, monkeypatch, capsys) -> None:
    given = source(bad=1, vectors=VECTORS, vector_columns=COLUMNS)
    append, left = building.PixelFile.append, [4]

    def interrupted(file, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        append(file, *arguments)

    monkeypatch.setattr(building, "SAVE_SECONDS", 0)
    monkeypatch.setattr(building.PixelFile, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_cache(given, Preprocessing(), tmp_path, 1)
    left[0] = COUNT
    folder = find_cache(given, Preprocessing(), tmp_path, 1)
    assert left[0] == COUNT - 2
    np.testing.assert_array_equal(load_cache(folder).vectors, np.delete(VECTORS, 1, axis=0))


def test_vectors_are_compared_with_their_checksum(tmp_path: Path, capsys) -> None:
    folder = find_cache(source(vectors=VECTORS, vector_columns=COLUMNS), Preprocessing(), tmp_path, 0)
    assert not damage(folder)
    data = bytearray((folder / "vectors.npy").read_bytes())
    data[-1] ^= 4
    (folder / "vectors.npy").write_bytes(data)
    assert "vectors.npy" in damage(folder)
    again = find_cache(source(vectors=VECTORS, vector_columns=COLUMNS), Preprocessing(), tmp_path, 0)
    np.testing.assert_array_equal(load_cache(again).vectors, VECTORS)


def test_a_cache_without_them_is_as_in_earlier_versions(tmp_path: Path) -> None:
    folder = find_cache(source(), Preprocessing(), tmp_path, 0)
    info = json.loads((folder / "cache.json").read_text())
    assert not {"conditions", "vector_columns"} & info.keys()
    assert sorted(path.name for path in folder.iterdir()) == ["cache.json", "images.bin", "labels.npy"]
    assert load_cache(folder).conditions == 0


def test_streamed_images_have_the_same() -> None:
    given = source(conditions=1, vectors=VECTORS, vector_columns=COLUMNS)
    preprocessing = Preprocessing(size=(2, 2), channels=3)
    images = StreamedImages(given, preprocessing, 1, 0, static=STATIC)
    assert (images.conditions, images.vector_columns) == (1, COLUMNS)
    assert images.static is STATIC
    image, label, vector, _ = BatchReader(images, 3, 4).get(1)
    assert label is not None
    torch.testing.assert_close(image, torch.from_numpy(ARRAYS)[label])
    torch.testing.assert_close(vector, torch.from_numpy(VECTORS)[label], rtol=0, atol=0)
    others = [source(), source(conditions=1), source(vectors=VECTORS, vector_columns=COLUMNS)]
    prints = {StreamedImages(each, preprocessing, 1, 0).fingerprint for each in others}
    prints.add(StreamedImages(source(), preprocessing, 1, 0, static=STATIC).fingerprint)
    prints.add(images.fingerprint)
    assert len(prints) == 5
