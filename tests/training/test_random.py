import pytest
import torch
from torch.testing import assert_close

from training.random import GlobalRandom, mix, seed_device, seeded


def draw(part: slice, update: int = 3, stream: str = "task", seed: int = 0) -> list[torch.Tensor]:
    random = GlobalRandom(seed, update, stream, 12, part, "cpu")
    return [random.normal(3, 4, 4), random.uniform(), random.integers(1000), random.normal()]


@pytest.mark.parametrize("pieces", [1, 2, 3, 6, 12])
def test_slices_are_the_whole_batch(pieces):
    size = 12 // pieces
    parts = [draw(slice(first, first + size)) for first in range(0, 12, size)]
    for whole, *cut in zip(draw(slice(0, 12)), *parts, strict=True):
        assert_close(torch.cat(cut), whole, rtol=0, atol=0)


def test_what_is_drawn():
    random = GlobalRandom(0, 0, "task", 50_000, slice(None), "cpu")
    normal, uniform, integers = random.normal(), random.uniform(), random.integers(5)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert integers.dtype == torch.int64
    assert integers.unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("other", [{"update": 4}, {"stream": "augment"}, {"seed": 1}])
def test_seed_update_and_stream_matter(other):
    whole = slice(0, 12)
    assert not torch.equal(draw(whole)[0], draw(whole, **other)[0])


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(slice(0, 12))
    assert torch.equal(torch.rand(3), expected)


def test_seed_device_is_manual_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_device(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_mix_is_a_fixed_function_of_all_its_words():
    seeds = {mix(0), mix(1), mix(0, 1), mix(0, "a"), mix(0, "b"), mix(0, 1, "a"), mix(0, "a", 1), mix(2**40)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert mix(0, 1, "task") == 1542911330, "a changed mix would silently change every resumed run"


def test_seeded_starts_equal_and_leaves_no_trace():
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    with seeded(0, "model"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with seeded(0, "model"):
        assert torch.equal(torch.rand(3), first)


def test_stratified_numbers_fall_into_different_parts_and_belong_to_the_image():
    whole, part = (GlobalRandom(0, 3, "task", 1000, piece, "cpu") for piece in (slice(None), slice(200, 500)))
    drawn = whole.stratified()
    assert (drawn.dtype, sorted((drawn * 1000).long().tolist())) == (torch.float32, [*range(1000)])
    assert torch.equal(part.stratified(), drawn[200:500])
    assert not torch.equal(whole.stratified(), drawn)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 3.0])
def test_beta_numbers_have_their_mean_and_variance(concentration):
    drawn = GlobalRandom(0, 0, "task", 20_000, slice(None), "cpu").beta(concentration)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.05)


def test_beta_numbers_belong_to_the_image_and_are_drawn_anew_each_time():
    whole, part = (GlobalRandom(0, 3, "task", 8, piece, "cpu") for piece in (slice(None), slice(2, 5)))
    first = whole.beta(1.0)
    assert torch.equal(part.beta(1.0), first[2:5])
    assert not torch.equal(whole.beta(1.0), first)
