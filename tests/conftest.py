"""Enables the checks of shapes, and seeds every test."""

import gc
import os

import pytest
import torch

from tests.typecheck import check_shapes

os.environ["RESIDUAL_KERNELS"] = (
    "0"  # numbers that do not depend on a compiler; tests/residual/test_native.py has them on
)
check_shapes()
gc.disable()  # until the end of the collection


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it in the same process."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """The collection imports a million objects that are no garbage, and does not search them."""
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _freeze_earlier_objects() -> None:
    """The objects of the tests before, such as the modules that they imported, are searched for garbage only once."""
    gc.collect()
    gc.freeze()
