"""The sum that everything here is made of: `y = merge(shortcut(x), branch(x, emb))`."""

from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from residual.merge import Add
from residual.shortcut import Identity

C = TypeVar("C", bound="Chain")


def takes_emb(module: nn.Module) -> bool:
    """Whether a module is called as `module(x, emb)` rather than `module(x)`: its attribute `takes_emb` says so."""
    return bool(getattr(module, "takes_emb", False))


class Chain(nn.Module):
    """Modules one after the other, each under its name; `emb` goes only to those that take it.

    A node takes the embedding if its attribute `takes_emb` is true. That is read once, here, so a node that is put in
    later must be of the same kind as the one it replaces. Nodes that are `None` are left out.

    Raises ValueError for a name that `nn.Module` already uses (`half`, `type`, …).
    """

    def __init__(self, **nodes: nn.Module | None) -> None:
        super().__init__()
        for name, node in nodes.items():
            if hasattr(self, name):
                raise ValueError(f"a node cannot be called {name!r}: every torch module has an attribute of that name")
            if node is not None:
                self.add_module(name, node)
        self._conditioned = frozenset(name for name, node in self.named_children() if takes_emb(node))
        self.takes_emb = bool(self._conditioned)

    def then(self: C, **nodes: nn.Module | None) -> C:
        """These nodes and then those: `branch.then(se=SqueezeExcite(64))`."""
        return type(self)(**dict(self.named_children()), **nodes)

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        for name, node in self._modules.items():
            x = node(x, emb) if name in self._conditioned else node(x)  # type: ignore[misc]
        return x


class Residual(nn.Module):
    """A residual block: `merge(shortcut(x), branch(x, emb))` (He et al. 2015, eq. 1 and 2).

    The shortcut is the identity and the merge a plain sum unless others are given. What both paths share (a common
    pre-activation, say) stands before the block in a `Chain`.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, merge: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = Identity() if shortcut is None else shortcut
        self.merge = Add() if merge is None else merge
        self.takes_emb = takes_emb(branch)

    def parts(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> tuple[Tensor, Tensor]:
        """What the merge is given: the shortcut's output `s` and the branch's output `f`."""
        return self.shortcut(x), self.branch(x, emb) if self.takes_emb else self.branch(x)

    def forward(self, x: Tensor, emb: Float[Tensor, "b e"] | None = None) -> Tensor:
        return self.merge(*self.parts(x, emb))
