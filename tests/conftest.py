"""Makes the suite's type checker importable by the name that pyproject.toml gives it, and seeds every test."""

import pytest
import torch

import tests.typecheck  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it in the same process."""
    torch.manual_seed(0)
