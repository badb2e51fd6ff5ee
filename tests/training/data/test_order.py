import numpy as np
import pytest

from training.data import image_index
from training.data.order import ShardOrder


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


SIZES = [3, 5, 0, 4, 1, 6, 2]


def blocked(start: int, stop: int, group: int, seed: int = 1) -> np.ndarray:
    return ShardOrder(SIZES, group).index(np.arange(start, stop, dtype=np.int64), seed)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100])
def test_every_epoch_shows_each_image_of_each_block_once(group: int) -> None:
    epochs = blocked(0, 4 * 21, group).reshape(4, 21)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(21), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("group", [7, 100])
def test_blocks_in_one_group_are_shown_in_the_order_of_a_set_without_blocks(group: int) -> None:
    np.testing.assert_array_equal(blocked(0, 60, group), index(0, 60, 21, seed=1))


def test_few_blocks_are_needed_at_a_time() -> None:
    """Groups of two of six equal blocks: each third of an epoch shows two whole blocks, mixed."""
    order = ShardOrder([10] * 6, 2)
    epochs = order.index(np.arange(180, dtype=np.int64), 5).reshape(9, 20)
    for group in epochs:
        assert [np.count_nonzero(group // 10 == block) for block in np.unique(group // 10)] == [10, 10]
        assert len(set(group[:10] // 10)) == 2
    assert len({tuple(np.unique(group // 10)) for group in epochs}) > 3


def test_a_blocked_position_does_not_depend_on_its_neighbours() -> None:
    whole = blocked(0, 63, 2)
    shuffled = np.random.default_rng(0).permutation(63)
    np.testing.assert_array_equal(ShardOrder(SIZES, 2).index(shuffled, 1), whole[shuffled])
    np.testing.assert_array_equal(np.concatenate([blocked(p, p + 1, 2) for p in range(63)]), whole)


def test_the_blocked_order_stays_what_it_was() -> None:
    """Golden: a run must resume in the same order after an upgrade of numpy."""
    assert ShardOrder([4, 3, 3], 2).index(np.arange(10), 0).tolist() == [0, 8, 1, 9, 2, 7, 3, 4, 5, 6]


def test_the_window_holds_the_blocks_of_this_group_and_the_next() -> None:
    order = ShardOrder(SIZES, 2)
    index = order.index(np.arange(63, dtype=np.int64), 1)
    block = np.searchsorted(order.starts, index, side="right") - 1
    edge = 0
    for position in range(42):
        window = order.window(position, 1)
        assert len(set(window)) == len(window) <= 4
        assert block[position] in window[:2]
        edge = next(p for p in range(position, 63) if block[p] not in window[:2])
        assert block[edge] in window
