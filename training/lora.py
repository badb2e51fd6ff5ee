"""LoRA as a setting of a run: low-rank additions to a trained network are trained, its own weights are frozen."""

from dataclasses import dataclass

from torch import nn

from residual.count import parameters
from residual.lora import add_lora, lora_state
from residual.names import amount
from training.random import seeded
from training.settings import require


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to the convolutions of a trained network, attention included (Hu et al. 2022), by PEFT."""

    rank: int | None = None
    """LoRA: train additions of this rank only, beside the frozen weights of `init`; needs the extra [lora]. null: train
    the weights themselves"""
    alpha: float | None = None
    """the additions are multiplied by alpha / rank. null: by 1"""
    also: tuple[str, ...] = ()
    """layers whose own weights are trained, too: embedding.label, if there are new classes"""

    def __post_init__(self) -> None:
        require(self.rank is None or self.rank >= 1, self, "rank", "give at least 1, or null for no LoRA")
        require(self.alpha is None or self.alpha > 0, self, "alpha", "give a number above 0, or null")
        for name in ("alpha", "also"):
            require(self.rank is not None or not getattr(self, name), self, name, "it is for LoRA; give lora.rank, too")


def adapt(model: nn.Module, config: LoraConfig, seed: int) -> list[str]:
    """Adds LoRA to a model and freezes its own weights. Returns messages to print; none without a rank.

    Raises ValueError as `add_lora` does.
    """
    if config.rank is None:
        return []
    try:
        with seeded(seed, "lora"):
            layers = add_lora(model, config.rank, config.alpha, config.also)
    except ValueError as error:
        raise ValueError(f"lora: {error}") from None
    trained = sum(tensor.numel() for tensor in lora_state(model).values())
    where = f"rank {config.rank} in {amount(len(layers), 'convolution')}"
    also = f", and {', '.join(config.also)}" if config.also else ""
    return [f"lora: {trained:,} of {parameters(model):,} parameters are trained: {where}{also}"]
