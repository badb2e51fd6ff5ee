import numpy as np
import pytest

from training.data import image_index


def index(start: int, stop: int, n: int, seed: int) -> np.ndarray:
    return image_index(np.arange(start, stop, dtype=np.int64), n, seed)


def test_every_epoch_is_another_permutation() -> None:
    epochs = index(0, 4 * 50, 50, seed=3).reshape(4, 50)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(50), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_it_is_the_philox_permutation_of_seed_and_epoch() -> None:
    for epoch in (0, 1, 7):
        expected = np.random.Generator(np.random.Philox(key=np.array([5, epoch], np.uint64))).permutation(20)
        np.testing.assert_array_equal(index(epoch * 20, epoch * 20 + 20, 20, seed=5), expected)


def test_the_order_stays_what_it_was() -> None:
    """Golden: a run must resume in the same order after an upgrade of numpy."""
    assert index(0, 10, 10, seed=0).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def test_a_position_does_not_depend_on_its_neighbours() -> None:
    whole = index(0, 60, 7, seed=1)
    shuffled = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(image_index(shuffled, 7, 1), whole[shuffled])
    np.testing.assert_array_equal(np.concatenate([index(p, p + 1, 7, 1) for p in range(60)]), whole)


def test_seeds_differ() -> None:
    assert not np.array_equal(index(0, 50, 50, seed=0), index(0, 50, 50, seed=1))


def test_far_positions_work() -> None:
    start = 10**12 * 3
    np.testing.assert_array_equal(np.sort(index(start, start + 3, 3, seed=0)), [0, 1, 2])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images: there must be at least one"):
        index(0, 1, 0, seed=0)
    with pytest.raises(ValueError, match="seed -1 and positions from 0 on must not be negative"):
        index(0, 1, 5, seed=-1)
    with pytest.raises(ValueError, match="seed 0 and positions from -2 on must not be negative"):
        index(-2, 1, 5, seed=0)
