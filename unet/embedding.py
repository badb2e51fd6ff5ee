"""What the U-Nets take beside the image: times, and the embedding of time, label and augmentation label."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from residual import FourierEmbedding, LabelEmbedding, LinearLabelEmbedding, SinusoidalEmbedding
from unet.config import TimeEmbedding, UNetConfig

_FEATURES: Mapping[TimeEmbedding, Callable[[int], nn.Module]] = {
    "ddpm": partial(SinusoidalEmbedding, convention="ddpm"),
    "adm": partial(SinusoidalEmbedding, convention="adm"),
    "fourier": FourierEmbedding,
    "log_fourier": partial(FourierEmbedding, log=True),
}


def per_image(t: Shaped[Tensor, "#b"] | Shaped[Tensor, ""] | float, x: Float[Tensor, "b c h w"]) -> Shaped[Tensor, "b"]:
    """One time per image, on the device of the images, from one for all of them or one each."""
    if isinstance(t, Tensor) and t.shape == x.shape[:1]:
        return t
    t = torch.as_tensor(t, device=x.device)
    if t.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(f"times or labels of shape {tuple(t.shape)} for {len(x)} images; give one, or one for each")
    return t.expand(len(x))


def label_per_image(
    label: Int[Tensor, "#b"] | Int[Tensor, ""] | int | None, x: Float[Tensor, "b c h w"]
) -> Int[Tensor, "b"] | None:
    """One label per image, as `per_image` gives one time; None if there is none."""
    if label is None:
        return None
    label = per_image(label, x)
    if label.dtype is torch.bool or label.is_floating_point():
        raise ValueError(f"labels are the numbers of classes, not {label.dtype}; give whole numbers")
    return label.long()


def check_images(x: Float[Tensor, "b c h w"], channels: int) -> None:
    """Raises ValueError unless these are images of floating point numbers with this number of channels."""
    if x.dim() != 4 or not x.is_floating_point():
        kind = f"{x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(
            f"images are floats in about [-1, 1] with four axes (batch, channels, height, width), not {kind}"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"images with {x.shape[1]} channels, but this network takes {channels} (in_channels); convert the images, "
            "or build the network with in_channels, to which weights can be adapted (unet.adapt)"
        )


class Embedding(nn.Module):
    """`silu(MLP(features of t) + label + emb)`, activated once for all blocks.

    The label may also enter before the MLP; the augmentation label always does (Karras et al. 2022).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        first, width = config.time_features, config.emb_channels
        self.features: nn.Module = _FEATURES[config.time_embedding](first)
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
            h = h + self.augment(augment.to(h.dtype))
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


class LogVariance(nn.Module):
    """u(t): the logarithm of the expected loss at a noise level (Karras et al. 2024).

    `fourier` makes features of the time, `linear` one number of them. The training loss is `exp(-u) · loss + u`.
    Sampling does not use it.
    """

    def __init__(self, fourier: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.fourier = fourier
        self.linear = linear

    def forward(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        return self.linear(self.fourier(t).to(self.linear.weight.dtype))[:, 0]


class DivideByTime(nn.Module):
    """`x / t` per image: the output of score networks that are trained on Fourier features of log t."""

    def forward(self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        return x / t.to(x.dtype)[:, None, None, None]
