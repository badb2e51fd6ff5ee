"""What all classifiers of the zoo have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from residual.weights.keymap import Difference
from residual.weights.layout import Layout, read_state
from residual.weights.pretrained import Pretrained
from resnet.checks import check_images
from resnet.layouts import export_weights, import_weights, without_prefix


class Classifier(Pretrained):
    """Levels of features, their mean over all pixels, and a linear map to one logit per class.

    A subclass makes `levels`, each of which takes the output of the one before, and `fc`.
    """

    hub_tags = ("image-classification",)
    layouts: ClassVar[Mapping[str, Layout]] = {}
    """names under which other libraries have these weights"""
    levels: nn.ModuleList
    fc: nn.Linear

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.total_stride: int = config.feature_info[-1][1]
        # what makes of a timestep the vector that the levels are conditioned on, if they are
        self.embedding: nn.Module | None = None

    def forward(self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"] | None = None) -> Float[Tensor, "b classes"]:
        """Logits of images `x`, normalised by `mean` and `std`; `t` is their timestep if the network takes one.

        Raises ValueError for another number of channels, for images smaller than the total stride, and for a timestep
        that is missing or not taken.
        """
        return self.fc(self.forward_features(x, t=t).mean(dim=(2, 3)))

    def forward_features(
        self, x: Float[Tensor, "b c h w"], levels: Sequence[int] | None = None, t: Shaped[Tensor, "b"] | None = None
    ) -> Any:
        """The last feature map, or the list of those of the asked `levels` (0 is the stem's), as in `feature_info`.

        Levels after the last that is asked are not computed. Raises ValueError as the network itself does, and for a
        level that there is not.
        """
        check_images(x, self.config.in_channels, self.total_stride)
        emb, last = self._embed(t), len(self.levels) - 1
        if wrong := [level for level in levels or () if not 0 <= level <= last]:
            raise ValueError(f"levels={list(levels or ())}: there is no level {wrong[0]}, only 0 to {last}")
        wanted = (last,) if levels is None else levels
        found: dict[int, Tensor] = {}
        for index, level in enumerate(self.levels):
            if len(found) == len(set(wanted)):
                break
            x = level(x, emb)
            if index in wanted:
                found[index] = x
        return found[last] if levels is None else [found[level] for level in levels]

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of the output of each level."""
        return list(self.config.feature_info)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.config.in_channels

    @property
    def outline(self) -> dict[str, str]:
        """What a summary has a line for, and the name of its module."""
        embedding = {} if self.embedding is None else {"embedding": "embedding"}
        levels = {f"stage {i}" if i else "stem": f"levels.{i}" for i in range(len(self.levels))}
        return embedding | levels | {"classifier": "fc"}

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, which the classifier works on."""
        return self.fc.in_features

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Mean of each channel of the training images in [0, 1], to be taken off the images; None if unknown."""
        return self.config.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        """Standard deviation of each channel, to divide by after that; None if unknown."""
        return self.config.std

    def get_classifier(self) -> nn.Linear:
        """The map from features to logits."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier for so many classes in the place of the old one. Raises ValueError for less than 1."""
        self.config = replace(self.config, num_classes=num_classes)
        old = self.fc.weight
        self.fc = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype)

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None) -> list[str]:
        """Take the weights of a state dict, or of a safetensors file of one, in another library's layout.

        Without `layout` it is found by the names. A first convolution for another number of channels is adapted, and a
        classifier for another number of classes is left out, ours staying as it is: the lines that are returned say so,
        none if the weights fit as they are. Raises ValueError for an unknown layout, where that library's network
        cannot express this one, with the difference (and the models that fit) if names or shapes are others, and for a
        pickle.
        """
        given = without_prefix(read_state(state_dict))
        try:
            found, lines = import_weights(self.layouts, self.config, given, self.state_dict(), layout)
        except Difference as error:
            from resnet.registry import likely_models  # it knows the networks, and they are made of this class

            names = likely_models(given)
            raise ValueError(f"{error}; {names[0]!r} has such weights" if names else str(error)) from None
        self.load_state_dict(found, assign=self.fc.weight.is_meta)
        return lines

    def export_weights(self, layout: str) -> dict[str, Tensor]:
        """The weights as a state dict in another library's layout: the exact inverse of `import_weights`.

        Raises ValueError for an unknown layout, and, with the reason, where that library's network cannot express this
        one.
        """
        return export_weights(self.layouts, self.config, self.state_dict(), layout)

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self.embedding is None:
            if t is not None:
                raise ValueError("this network takes no timestep: it was built with noise=False")
            return None
        if t is None:
            raise ValueError("this network is conditioned on the noise level (noise=True): give it the timesteps")
        return self.embedding(t)


def init_weights(module: nn.Module) -> None:
    """He initialisation of every convolution: variance 2 / (kernel area × channels out), for `Module.apply`.

    He et al. 2015b, eq. 15 ("fan out"), as torchvision and timm do. Norms start at one and zero, as torch makes them.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def zero_init(module: nn.Module) -> None:
    """Let what is last in a branch, a norm or a convolution, start at zero."""
    with torch.no_grad():
        module.weight.zero_()  # type: ignore[operator]
