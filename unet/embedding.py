"""From timestep, label and augmentation to the vector that every block is conditioned on."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from residual import FourierEmbedding, LabelEmbedding, LinearLabelEmbedding, SinusoidalEmbedding
from unet.config import UNetConfig


class Embedding(nn.Module):
    """`silu(MLP(features of t) + label + emb)`: what every block is conditioned on, activated once for all.

    The label may also enter before the MLP; a description of the augmentation always does (Karras et al. 2022).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        base, width = config.time_channels or config.base_channels, config.emb_channels
        self.features: nn.Module
        if config.time_embedding in ("ddpm", "adm"):
            first, self.features = base, SinusoidalEmbedding(base, config.time_embedding)
        else:
            first = 2 * base
            self.features = FourierEmbedding(first, log=config.time_embedding == "log_fourier")
        self.label_first = config.label_embedding == "linear_first"
        self.label = _label(config, first if self.label_first else width)
        self.augment = nn.Linear(config.augment_channels, first, bias=False) if config.augment_channels else None
        self.linear1 = nn.Linear(first, width)
        self.linear2 = nn.Linear(width, width)
        self.act = nn.SiLU()

    def forward(
        self,
        t: Shaped[Tensor, "b"],
        label: Int[Tensor, "b"] | None,
        emb: Float[Tensor, "b e"] | None,
        augment: Float[Tensor, "b a"] | None,
    ) -> Float[Tensor, "b e"]:
        h = self.features(t).to(self.linear1.weight.dtype)
        if augment is not None:
            if self.augment is None:
                raise ValueError("this network takes no augmentation label (augment_channels is not set)")
            h = h + self.augment(augment)
        vector = self._vector(t, label)
        if vector is not None and self.label_first:
            h = h + vector
        h = self.linear2(self.act(self.linear1(h)))
        for late in (None if self.label_first else vector, emb):
            h = h if late is None else h + late
        return self.act(h)

    def _vector(self, t: Tensor, label: Int[Tensor, "b"] | None) -> Tensor | None:
        if self.label is None:
            if label is not None:
                raise ValueError(
                    "this network takes no labels (classes is not set): call it without, or train one with"
                )
            return None
        if label is None:
            if self.label.null is None:
                raise ValueError("this network was built without a null label: it needs a label for each image")
            label = torch.full(t.shape, self.label.null, dtype=torch.long, device=t.device)
        return self.label(label)


def _label(config: UNetConfig, width: int) -> LabelEmbedding | LinearLabelEmbedding | None:
    if config.classes is None:
        return None
    if config.label_embedding == "table":
        return LabelEmbedding(config.classes, width, config.null_label)
    first = config.label_embedding == "linear_first"
    return LinearLabelEmbedding(
        config.classes, width, config.null_label, bias=first, scale=config.classes**0.5 if first else 1.0
    )


class DivideByTime(nn.Module):
    """`x / t`, image by image: the output of score networks that are trained on Fourier features of log t."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_emb = True

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b 1"]) -> Float[Tensor, "b c h w"]:
        return x / t[:, :, None, None]
