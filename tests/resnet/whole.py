"""A network as one graph: exported for any batch, compiled without a break."""

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close


def check_one_graph(net: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports `net` with a batch of 1 to 256 and compiles it whole; both compute what it does. `image` has a batch."""
    net = net.eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(net, (image,), dynamic_shapes={"x": {0: batch}}).module()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in (1, 5):
            x = torch.rand(size, *image.shape[1:])
            assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)
        assert_close(compiled(image), net(image), rtol=1e-4, atol=1e-5)
