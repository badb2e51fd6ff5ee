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


def test_the_order_is_the_philox_permutation_of_seed_and_epoch() -> None:
    for epoch in (0, 1, 7):
        expected = np.random.Generator(np.random.Philox(key=np.array([5, epoch], np.uint64))).permutation(20)
        np.testing.assert_array_equal(index(epoch * 20, epoch * 20 + 20, 20, seed=5), expected)


def test_the_order_is_unchanged() -> None:
    """Golden: a run must resume in the same order after an upgrade of numpy."""
    assert index(0, 10, 10, seed=0).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def test_a_position_does_not_depend_on_its_neighbours() -> None:
    whole = index(0, 60, 7, seed=1)
    shuffled = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(image_index(shuffled, 7, 1), whole[shuffled])
    np.testing.assert_array_equal(np.concatenate([index(p, p + 1, 7, 1) for p in range(60)]), whole)


def test_seeds_differ() -> None:
    assert not np.array_equal(index(0, 50, 50, seed=0), index(0, 50, 50, seed=1))


def test_large_positions_are_supported() -> None:
    start = 10**12 * 3
    np.testing.assert_array_equal(np.sort(index(start, start + 3, 3, seed=0)), [0, 1, 2])


def test_invalid_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 images"):
        index(0, 1, 0, seed=0)
    with pytest.raises(ValueError, match=r"seed -1 .*positions from 0"):
        index(0, 1, 5, seed=-1)
    with pytest.raises(ValueError, match=r"seed 0 .*positions from -2"):
        index(-2, 1, 5, seed=0)


SIZES = [3, 5, 0, 4, 1, 6, 2]


def sharded(start: int, stop: int, group: int, seed: int = 1) -> np.ndarray:
    return ShardOrder(SIZES, group).index(np.arange(start, stop, dtype=np.int64), seed)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100])
def test_every_epoch_contains_each_image_of_each_shard_once(group: int) -> None:
    epochs = sharded(0, 4 * 21, group).reshape(4, 21)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(21), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("group", [1, 2, 3])
def test_groups_are_the_philox_permutations_of_their_shards(group: int) -> None:
    """Philox stream 2^64 - 1 of an epoch orders the shards, stream g the images of group g."""

    def permutation(n: int, epoch: int, stream: int) -> np.ndarray:
        key, counter = np.array([1, epoch], np.uint64), np.array([0, 0, 0, stream], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(n)

    starts = np.cumsum([0, *SIZES])
    expected: list[int] = []
    for epoch in range(3):
        shards = permutation(len(SIZES), epoch, 2**64 - 1)
        for number, first in enumerate(range(0, len(SIZES), group)):
            chosen = sorted(shards[first : first + group])
            images = [image for shard in chosen for image in range(starts[shard], starts[shard + 1])]
            expected += [images[place] for place in permutation(len(images), epoch, number)]
    assert sharded(0, 63, group).tolist() == expected


@pytest.mark.parametrize("group", [7, 100])
def test_shards_in_one_group_have_the_order_of_a_set_without_shards(group: int) -> None:
    np.testing.assert_array_equal(sharded(0, 60, group), index(0, 60, 21, seed=1))


def test_few_shards_are_needed_at_a_time() -> None:
    """Six equal shards in groups of two: each third of an epoch contains two whole shards, shuffled together."""
    order = ShardOrder([10] * 6, 2)
    epochs = order.index(np.arange(180, dtype=np.int64), 5).reshape(9, 20)
    for group in epochs:
        assert [np.count_nonzero(group // 10 == shard) for shard in np.unique(group // 10)] == [10, 10]
        assert len(set(group[:10] // 10)) == 2
    assert len({tuple(np.unique(group // 10)) for group in epochs}) > 3


def test_a_position_in_shards_does_not_depend_on_its_neighbours() -> None:
    whole = sharded(0, 63, 2)
    shuffled = np.random.default_rng(0).permutation(63)
    np.testing.assert_array_equal(ShardOrder(SIZES, 2).index(shuffled, 1), whole[shuffled])
    np.testing.assert_array_equal(np.concatenate([sharded(p, p + 1, 2) for p in range(63)]), whole)


def test_the_order_in_shards_is_unchanged() -> None:
    """Golden: a run must resume in the same order after an upgrade of numpy."""
    assert ShardOrder([4, 3, 3], 2).index(np.arange(10), 0).tolist() == [0, 8, 1, 9, 2, 7, 3, 4, 5, 6]


def test_the_window_holds_the_shards_of_this_group_and_the_next() -> None:
    order = ShardOrder(SIZES, 2)
    index = order.index(np.arange(63, dtype=np.int64), 1)
    shard = np.searchsorted(order.starts, index, side="right") - 1
    edge = 0
    for position in range(42):
        window = order.window(position, 1)
        assert len(set(window)) == len(window) <= 4
        assert shard[position] in window[:2]
        edge = next(p for p in range(position, 63) if shard[p] not in window[:2])
        assert shard[edge] in window
