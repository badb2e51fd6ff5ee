import torch

from training.data import PixelFormat, augment
from training.random import GlobalRandom


def random(batch: int = 8, part: slice = slice(None), update: int = 0) -> GlobalRandom:
    return GlobalRandom(0, update, "augment", batch, part, "cpu")


def test_bytes_become_minus_one_to_one() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = augment(image, PixelFormat(), random(1), flip=False)[0]
    assert result.dtype == torch.float32
    assert (result.min(), result.max()) == (-1, 1)
    torch.testing.assert_close(
        result.double().ravel(), torch.arange(256, dtype=torch.float64) * 2 / 255 - 1, rtol=0, atol=1e-7
    )
    assert image.ravel().tolist() == list(range(256))


def test_flip_mirrors_left_to_right_where_the_coin_says() -> None:
    image = torch.randint(256, (64, 3, 4, 5), dtype=torch.uint8)
    coins = random(64).uniform() < 0.5
    assert 10 < coins.sum() < 54
    expected = torch.where(coins[:, None, None, None], image.flip(3), image).float() / 127.5 - 1
    torch.testing.assert_close(augment(image, PixelFormat(), random(64), flip=True)[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(
        augment(image, PixelFormat(), random(64), flip=False)[0], image.float() / 127.5 - 1, rtol=0, atol=0
    )


def test_parts_of_a_batch_are_flipped_as_the_whole() -> None:
    image = torch.randint(256, (8, 1, 2, 3), dtype=torch.uint8)
    whole = augment(image, PixelFormat(), random(), flip=True)[0]
    parts = [slice(0, 3), slice(3, 8)]
    pieces = [augment(image[part], PixelFormat(), random(part=part), flip=True)[0] for part in parts]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=0)


def test_non_leaky_changes_are_told_and_others_are_not():
    image = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    changed, told = augment(image, PixelFormat(), random(64), flip=False, non_leaky_probability=0.5)
    assert told is not None
    assert told.shape == (64, 9)
    untouched = (told == 0).all(dim=1)
    assert 0 < untouched.sum() < 32
    plain, silence = augment(image, PixelFormat(), random(64), flip=False)
    assert silence is None
    torch.testing.assert_close(changed[untouched], plain[untouched], rtol=0, atol=0)
    assert not torch.isclose(changed[~untouched], plain[~untouched]).all()
