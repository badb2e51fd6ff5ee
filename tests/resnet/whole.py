"""Checks that a network can be exported for any batch size and compiled as one graph."""

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close


def check_one_graph(net: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports `net` for batches of 1 to 256 and compiles it; both must equal it. `image` is a batch of images."""
    net = net.eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(net, (image,), dynamic_shapes={"x": {0: batch}}).module()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # otherwise the compiler traces the type checks
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in (1, 5):
            x = torch.rand(size, *image.shape[1:])
            assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)
        assert_close(compiled(image), net(image), rtol=1e-4, atol=1e-5)
