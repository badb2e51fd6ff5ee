"""Optimizers: their settings, how they are made, and the tensors that they keep for each weight."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.muon import MuonAdamW
from training.settings import require

MAX_RATE = 1e3
"""A larger learning rate or weight decay is almost certainly a typo."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """The settings of an optimizer. Entries of `OPTIMIZERS` derive from this class."""

    learning_rate: float = 2e-4
    """peak learning rate"""
    weight_decay: float = 0.0
    """weight decay: decoupled for AdamW and Muon, L2 penalty for SGD"""
    decay_vectors: bool = True
    """apply weight decay to parameters with one axis, too: biases, and scales and shifts of norms"""
    max_grad_norm: float | None = 1.0
    """gradient clipping: maximum norm of the gradient of all weights. null: no clipping"""

    def __post_init__(self) -> None:
        require(0 < self.learning_rate <= MAX_RATE, self, "learning_rate", f"give a rate above 0, at most {MAX_RATE:g}")
        require(0 <= self.weight_decay <= MAX_RATE, self, "weight_decay", f"give 0 to {MAX_RATE:g}")
        norm = self.max_grad_norm
        require(norm is None or norm > 0, self, "max_grad_norm", "give a norm above 0, or null for no clipping")

    @property
    def slots(self) -> int:
        """Tensors of the size of a weight that are kept for each weight of two axes or more."""
        weight = nn.Parameter(torch.empty(1, 1, device="meta"))
        return sum(value.shape == weight.shape for value in self.new_state(weight).values())

    @abstractmethod
    def make(self, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these weights."""

    @abstractmethod
    def new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Zeros of the shapes that the optimizer keeps for a weight, by name; a checkpoint is read into them."""

    def groups(self, weights: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups. Without `decay_vectors` only weights of two axes or more decay (He et al. 2019, 3.1)."""
        if self.decay_vectors:
            return [{"params": weights, "weight_decay": self.weight_decay}]
        return [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the running means of the gradient and of its square"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(0 <= beta < 1 for beta in self.betas), self, "betas", "give two numbers in [0, 1)")

    def make(self, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(weights), lr=self.learning_rate, betas=self.betas, fused=True)

    def new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=weight.device)
        return {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for weights of two axes or more, AdamW for the others."""

    momentum: float = 0.95
    """Muon: decay rate of the running mean of the gradient"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, self, "momentum", "give at least 0 and below 1")

    def make(self, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return MuonAdamW(self.groups(weights), lr=self.learning_rate, betas=self.betas, momentum=self.momentum)

    def new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(weight)} if weight.ndim > 1 else super().new_state(weight)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    """decay rate of the running sum of gradients. 0: no momentum"""
    nesterov: bool = False
    """Nesterov momentum (Sutskever et al. 2013)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, self, "momentum", "give at least 0 and below 1")
        require(self.momentum > 0 or not self.nesterov, self, "nesterov", "it needs momentum above 0")

    def make(self, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.groups(weights), lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, fused=True
        )

    def new_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(weight)} if self.momentum > 0 else {}


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "muon": Muon, "sgd": SGD}
"""kind -> settings; may be extended before a command line is parsed"""
