import copy
import threading
import time

import numpy as np
import pytest
import torch

from training.data import BatchReader, Images, image_index


@pytest.fixture
def images(pixels) -> Images:
    return Images(pixels(0, 11, 1, 2, 3), np.arange(11) % 4)


def positions(start: int, stop: int) -> np.ndarray:
    return image_index(np.arange(start, stop, dtype=np.int64), 11, 9)


def test_updates_follow_the_order_over_epochs(images: Images) -> None:
    reader = BatchReader(images, seed=9, batch=6)
    for update in range(5):  # 30 positions, 11 images
        indices = positions(update * 6, update * 6 + 6)
        image, label, vector, numbers = reader.get(update)
        np.testing.assert_array_equal(numbers, indices)
        np.testing.assert_array_equal(image.numpy(), images.read(indices))
        assert label is not None
        assert images.labels is not None
        np.testing.assert_array_equal(label.numpy(), images.labels[indices])
        assert label.dtype == torch.int64
        assert vector is None


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), (2, 3), (3, 1), (6, None)])
def test_micro_batches_of_all_ranks_form_the_global_batch(images: Images, ranks: int, micro_batch: int | None) -> None:
    readers = [BatchReader(images, 9, 6, rank, ranks, micro_batch) for rank in range(ranks)]
    for update in range(3):
        micro_batches = [reader.get(update, index)[0] for reader in readers for index in range(reader.micro_batches)]
        np.testing.assert_array_equal(
            torch.cat(micro_batches).numpy(), images.read(positions(update * 6, update * 6 + 6))
        )


def test_updates_can_be_read_in_any_order(images: Images) -> None:
    reader = BatchReader(images, 9, 4)
    for update in (7, 8, 2, 2):
        np.testing.assert_array_equal(reader.get(update)[0].numpy(), images.read(positions(update * 4, update * 4 + 4)))


def test_a_batch_is_a_copy(images: Images) -> None:
    reader = BatchReader(images, 9, 4)
    first = reader.get(0)[0]
    kept = first.clone()
    reader.get(1)
    reader.get(2)
    torch.testing.assert_close(first, kept)


def test_a_thread_reads_the_next_micro_batch_ahead(images: Images) -> None:
    asked: list[tuple[list[int], bool]] = []
    read = Images.read

    def spy(indices, out=None):
        asked.append((indices.tolist(), threading.current_thread() is threading.main_thread()))
        return read(images, indices, out)

    watched = copy.copy(images)  # readers of earlier tests may still use `images`
    watched.read = spy
    reader = BatchReader(watched, 9, 4, micro_batch=2)
    reader.get(0, 0)
    deadline = time.monotonic() + 10
    while len(asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    reader.close()
    assert asked == [(positions(0, 2).tolist(), False), (positions(2, 4).tolist(), False)]


def test_the_time_waited_is_measured(images: Images, monkeypatch) -> None:
    gate = threading.Event()
    read = Images.read
    monkeypatch.setattr(Images, "read", lambda *a: (gate.wait(), read(*a))[1])
    threading.Timer(0.2, gate.set).start()
    reader = BatchReader(images, 9, 4)
    reader.get(0)
    assert 0.1 < reader.waited_seconds < 5


def test_an_error_in_the_thread_is_raised(images: Images, monkeypatch) -> None:
    def broken(*_):
        raise OSError("disk gone")

    reader = BatchReader(images, 9, 4)
    monkeypatch.setattr(Images, "read", broken)
    with pytest.raises(OSError, match="disk gone"):
        reader.get(0)


def test_unlabelled_images_have_no_labels(pixels) -> None:
    assert BatchReader(Images(pixels(0, 4, 1, 2, 2)), 0, 2).get(0)[1] is None


def test_batches_that_are_not_divisible_are_an_error(images: Images) -> None:
    with pytest.raises(ValueError, match=r"batch 6 .* 1 images on 4 processes.*train\.micro_batch"):
        BatchReader(images, 0, 6, 0, ranks=4)
    with pytest.raises(ValueError, match=r"batch 6 .* 4 images on 1 processes"):
        BatchReader(images, 0, 6, micro_batch=4)
    with pytest.raises(ValueError, match=r"rank 2 .*0\.\.1"):
        BatchReader(images, 0, 6, rank=2, ranks=2)


@pytest.mark.gpu
def test_images_arrive_on_the_device(images: Images) -> None:
    image, label, _ = BatchReader(images, 9, 4, device="cuda").get(0)
    assert image.is_cuda
    assert label is not None
    assert label.is_cuda
    np.testing.assert_array_equal(image.cpu().numpy(), images.read(positions(0, 4)))
