"""A chain that recomputes activations in the backward pass: less memory for more time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from residual.block import Chain


class Recomputed(Chain):
    """A chain that stores only the input of each node and recomputes the node's activations in the backward pass.

    Gradients are equal to the last bit, and so are the running statistics of batch norms, which count the batch in the
    first pass only. Batch norms are found when the chain is built: a node may not be replaced after that.
    """

    def __init__(self, **nodes: nn.Module | None) -> None:
        super().__init__(**nodes)
        self._options: dict[str, dict[str, Any]] = {}
        for name, node in self.named_children():
            norms = [part for part in node.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
            self._options[name] = {"context_fn": partial(_contexts, norms)} if norms else {}

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, emb)
        for name, node in self.named_children():
            inputs = (x, emb) if name in self._conditioned else (x,)
            x = checkpoint(node, *inputs, use_reentrant=False, **self._options[name])
        return x


def _contexts(norms: Sequence[_BatchNorm]) -> Any:
    """The contexts of the first pass and of the recomputation."""
    return nullcontext(), _statistics_unchanged(norms)


@contextmanager
def _statistics_unchanged(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms use the batch's statistics without updating their running ones."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
