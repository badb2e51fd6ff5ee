"""The type checker of the suite: it is on, in every module that states shapes."""

import sys
from importlib.machinery import SourceFileLoader

import pytest
import torch
from jaxtyping import TypeCheckError

from residual.embedding import SinusoidalEmbedding
from tests.typecheck import modules_with_shapes


def test_a_wrong_shape_is_an_error():
    with pytest.raises(TypeCheckError, match="SinusoidalEmbedding"):
        SinusoidalEmbedding(8)(torch.zeros(2, 3))


def test_every_imported_module_with_shapes_is_checked():
    imported = [name for name in modules_with_shapes() if name in sys.modules]
    assert "residual.embedding" in imported
    assert [name for name in imported if type(sys.modules[name].__loader__) is SourceFileLoader] == []
