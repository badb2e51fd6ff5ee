"""Less memory for more time: activations that are computed again in the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from residual.block import Chain


class RecomputedChain(Chain):
    """A chain that keeps what goes into each of its nodes, and recomputes in the backward pass what is within."""

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        for name, node in self.named_children():
            x = recompute(node, *((x, emb) if name in self._conditioned else (x,)), module=node)
        return x


def recompute(call: Callable[..., Tensor], *inputs: Tensor | None, module: nn.Module) -> Tensor:
    """`call(*inputs)`, keeping the inputs instead of the activations, for a call that works with parts of `module`.

    Gradients are the same to the last bit, and so are the running statistics of batch norms: these count the batch in
    the first pass only.
    """
    if not torch.is_grad_enabled():
        return call(*inputs)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    again: dict[str, Any] = {"context_fn": lambda: (nullcontext(), _not_counting(norms))} if norms else {}
    return checkpoint(call, *inputs, use_reentrant=False, **again)


@contextmanager
def _not_counting(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms use the batch's statistics, but do not take them into their running ones."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
