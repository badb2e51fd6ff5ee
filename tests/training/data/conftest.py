from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data import DataConfig


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataConfig]:
    """A config whose cache lies in the test's own folder."""
    return lambda **fields: DataConfig(
        cache=tmp_path / "cache", **{k: v if k != "source" else str(v) for k, v in fields.items()}
    )


@pytest.fixture(scope="session")
def pixels() -> Callable[..., np.ndarray]:
    """Random pixels, (h, w) or (h, w, channels) uint8, from a seed."""
    return lambda seed, *shape: np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def save() -> Callable[..., np.ndarray]:
    """Write pixels to an image file, folders included."""

    def write(file: Path, array: np.ndarray, **options: Any) -> np.ndarray:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file, **options)
        return array

    return write


@pytest.fixture
def png() -> Callable[..., bytes]:
    """The bytes of a PNG file with these pixels."""

    def encode(array: np.ndarray) -> bytes:
        file = BytesIO()
        Image.fromarray(array).save(file, "png")
        return file.getvalue()

    return encode
