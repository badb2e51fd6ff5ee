import numpy as np
import pytest

from training.data import Images
from training.data.sources.labels import MAX_CLASSES, number_labels


def test_images_from_arrays(pixels) -> None:
    array, labels = pixels(0, 6, 3, 4, 5), np.array([0, 2, 1, 2, 0, 0], np.int32)
    images = Images(array, labels, ("a", "b", "c"))
    assert (len(images), images.shape, images.classes, images.bad) == (6, (3, 4, 5), ("a", "b", "c"), ())
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    indices = np.array([5, 0, 0, 3])
    np.testing.assert_array_equal(images.read(indices), array[indices])
    out = np.zeros((4, 3, 4, 5), np.uint8)
    assert images.read(indices, out) is out
    np.testing.assert_array_equal(out, array[indices])


def test_read_returns_a_copy(pixels) -> None:
    array = pixels(0, 3, 1, 2, 2)
    kept = array.copy()
    Images(array).read(np.array([0]))[:] = 0
    np.testing.assert_array_equal(array, kept)


def test_labels_without_names_are_their_own_names(pixels) -> None:
    assert Images(pixels(0, 3, 1, 2, 2), np.array([0, 4, 1])).classes == ("0", "1", "2", "3", "4")
    unlabelled = Images(pixels(0, 3, 1, 2, 2))
    assert unlabelled.labels is None
    assert unlabelled.classes is None


@pytest.mark.parametrize("index", [-1, 3])
def test_an_image_number_out_of_range_is_an_error(index: int, pixels) -> None:
    with pytest.raises(IndexError, match=rf"{min(index, 0)}\.\.{max(index, 0)} outside 0\.\.2"):
        Images(pixels(0, 3, 1, 2, 2)).read(np.array([0, index]))


def test_invalid_sets_are_errors(pixels) -> None:
    array = pixels(0, 3, 1, 2, 2)
    with pytest.raises(ValueError, match="empty"):
        Images(array[:0])
    with pytest.raises(ValueError, match="2 class names but no labels"):
        Images(array, None, ("a", "b"))
    with pytest.raises(ValueError, match=r"label 2 of image 1 .*0\.\.1.*data\.label_column"):
        Images(array, np.array([0, 2, 3]), ("a", "b"))
    with pytest.raises(ValueError, match=r"label -1 of image 2 .*negative"):
        Images(array, np.array([0, 2, -1]))
    with pytest.raises(ValueError, match=r"label 100000 of image 1 .*too large"):
        Images(array, np.array([0, MAX_CLASSES, 1]))
    with pytest.raises(ValueError, match=r"float64 .*uint8"):
        Images(array.astype(np.float64))


def test_the_fingerprint_changes_with_all_content_and_with_nothing_else(pixels) -> None:
    array, labels = pixels(0, 4, 1, 2, 2), np.array([0, 1, 1, 0])
    changed = array.copy()
    changed[2, 0, 1, 1] ^= 1
    prints = [
        Images(array).fingerprint,
        Images(array, labels).fingerprint,
        Images(array, labels, ("a", "b")).fingerprint,
        Images(array, labels[::-1].copy() ^ 1, ("a", "b")).fingerprint,
        Images(changed, labels).fingerprint,
        Images(array.reshape(4, 1, 1, 4), labels).fingerprint,
    ]
    assert prints[3] != prints[2]
    assert len(set(prints)) == len(prints)
    assert Images(array.copy(), labels.astype(np.int32)).fingerprint == prints[1]


def test_class_names_are_numbered_in_sorted_order() -> None:
    numbers, classes = number_labels(["dog", "cat", "dog", "ant"], None)
    assert numbers.tolist() == [2, 1, 2, 0]
    assert classes == ("ant", "cat", "dog")
