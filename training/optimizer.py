"""The optimizers: what they keep for each weight, and which weights they let decay."""

import torch
from torch import Tensor, nn

from training.config import TrainConfig


def make_optimizer(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `weights` that the config describes.

    Without `decay_vectors` only weights of two axes or more decay: neither norms nor biases (He et al. 2019, section
    3.1).
    """
    groups = [{"params": weights, "weight_decay": config.weight_decay}]
    if not config.decay_vectors:
        groups[0]["params"] = [weight for weight in weights if weight.ndim > 1]
        groups.append({"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def new_slots(weight: nn.Parameter, config: TrainConfig) -> dict[str, Tensor]:
    """What the optimizer keeps for a weight after its first step, all zero: memory for a checkpoint's values."""
    zero = {"step": torch.zeros((), dtype=torch.float32, device=weight.device)} if config.optimizer == "adamw" else {}
    names = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[config.optimizer][
        : config.optimizer_slots
    ]
    return zero | {name: torch.zeros_like(weight) for name in names}
