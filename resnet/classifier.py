"""Base class of the classifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, overload

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from residual.weights.adapt import adapt_inputs
from residual.weights.keymap import Difference, export_state, import_state
from residual.weights.layout import Layout, read_state
from residual.weights.pretrained import Pretrained
from residual.weights.read import plain_names
from resnet.checks import check_images
from resnet.config.classifier import ClassifierConfig
from resnet.layouts import (
    CLASSIFIER,
    STEM,
    likely_layout,
    require_layout,
    weight_names,
    with_counters,
)


class Classifier(Pretrained):
    """Levels of features, their mean over all pixels, and a linear map to one logit per class.

    A subclass builds `levels`, each of which takes the output of the one before, and `fc`.
    """

    hub_tags = ("image-classification",)
    layouts: ClassVar[Mapping[str, Layout]] = {}
    """layouts of other libraries, by name"""
    config: ClassifierConfig
    levels: nn.ModuleList
    fc: nn.Linear
    embedding: nn.Module | None
    """maps timesteps to the embedding that conditions the levels; None for a network without timesteps"""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.min_size_px = config.min_size_px
        self.embedding = None

    def forward(self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"] | None = None) -> Float[Tensor, "b classes"]:
        """Logits of images `x` that are normalised by `config.mean` and `config.std`; `t`: timesteps, if conditioned.

        Raises ValueError for a wrong number of channels, for images smaller than the total stride, and for timesteps
        that are missing or unexpected.
        """
        return self.fc(self.forward_features(x, t=t).mean(dim=(2, 3)))

    @overload
    def forward_features(
        self, x: Float[Tensor, "b c h w"], levels: None = None, t: Shaped[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h2 w2"]: ...

    @overload
    def forward_features(
        self, x: Float[Tensor, "b c h w"], levels: Sequence[int], t: Shaped[Tensor, "b"] | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]: ...

    def forward_features(
        self, x: Float[Tensor, "b c h w"], levels: Sequence[int] | None = None, t: Shaped[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h2 w2"] | list[Float[Tensor, "b _ _ _"]]:
        """The last feature map, or a list of those of the given `levels` (0: the stem), as in `feature_info`.

        Levels after the last one given are not computed. Raises ValueError as `forward` does, and for an unknown level.
        """
        check_images(x, self.config.in_channels, self.min_size_px)
        emb, last = self._embed(t), len(self.levels) - 1
        if wrong := [level for level in levels or () if not 0 <= level <= last]:
            raise ValueError(f"levels={list(levels or ())}: there is no level {wrong[0]}, only 0 to {last}")
        wanted = (last,) if levels is None else levels
        found: dict[int, Tensor] = {}
        for index, level in enumerate(self.levels[: max(wanted, default=-1) + 1]):
            x = level(x, emb)
            if index in wanted:
                found[index] = x
        return found[last] if levels is None else [found[level] for level in levels]

    @property
    def feature_info(self) -> list[tuple[int, int]]:
        """Channels and total stride of the output of each level."""
        return list(self.config.feature_info)

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, the input of the classifier."""
        return self.fc.in_features

    def get_classifier(self) -> nn.Linear:
        """The map from features to logits."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a fresh one for `num_classes`. Raises ValueError for less than 1."""
        self.config = replace(self.config, num_classes=num_classes)
        old = self.fc.weight
        self.fc = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype)

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str | None = None) -> list[str]:
        """Loads weights in another library's layout, from a state dict or a safetensors file.

        Without `layout`, the layout that has most of the names is used. A first convolution for another number of
        channels is adapted; a classifier that is missing, or has another number of classes, is not loaded. Returns one
        message per such change. Raises ValueError for an unknown layout, for a config that the layout cannot express,
        for names or shapes that do not fit (with the difference), and for a pickle.
        """
        try:
            return load_weights(self, read_state(state_dict), layout)
        except Difference as error:
            raise ValueError(f"{error}; resnet.likely_models(state_dict) lists the models that it fits") from None

    def export_weights(self, layout: str) -> dict[str, Tensor]:
        """The weights as a state dict in another library's layout. The exact inverse of `import_weights`.

        Raises ValueError for an unknown layout and for a config that the layout cannot express.
        """
        chosen = require_layout(self.layouts, layout, self.config)
        return export_state(chosen.places(self.config), chosen.table, self.state_dict())

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self.embedding is None:
            if t is not None:
                raise ValueError("this network takes no timesteps: it was built with noise=False")
            return None
        if t is None:
            raise ValueError("this network is conditioned on the noise level (noise=True): give it the timesteps")
        return self.embedding(t)


def load_weights(net: Classifier, given: Mapping[str, Tensor], layout: str | None) -> list[str]:
    """As `Classifier.import_weights`, but raises `Difference` for names or shapes that do not fit."""
    given, messages = plain_names(given)
    ours = net.state_dict()
    if given.keys() == ours.keys():
        raise ValueError("the weights have our own names: load them by load_state_dict")
    name = likely_layout(net.layouts, net.config, given, ours) if layout is None else layout
    chosen = require_layout(net.layouts, name, net.config)
    names = weight_names(chosen, net.config, ours)
    theirs, kept = with_counters(chosen.clean(given), names.values()), dict[str, Tensor]()
    stem, new = theirs.get(names[STEM]), ours[STEM].shape[1]
    if stem is not None and stem.dim() == 4 and (old := stem.shape[1]) != new:
        theirs[names[STEM]] = adapt_inputs(stem, new)
        how = "summed" if new < old else "shared"
        messages.append(f"{names[STEM]}: {old} input channels adapted to {new}; weights are {how}")
    head = [names[name] for name in CLASSIFIER]
    if not theirs.keys() & set(head):
        kept = {name: ours.pop(name) for name in CLASSIFIER}
        messages.append(f"{' and '.join(head)}: not in the file, which has no classifier; it starts fresh")
    elif head[0] in theirs and (classes := len(theirs[head[0]])) != len(net.fc.weight):
        kept = {name: ours.pop(name) for name in CLASSIFIER}
        theirs = {name: tensor for name, tensor in theirs.items() if name not in head}
        lost = f"not loaded, {classes} classes in the file and {len(net.fc.weight)} in this network"
        messages.append(f"{' and '.join(head)}: {lost}")
    found = import_state(chosen.places(net.config), chosen.table, theirs, ours)
    net.load_state_dict(found | kept, assign=net.fc.weight.is_meta)
    return messages


def init_weights(module: nn.Module) -> None:
    """He initialisation of convolutions, for `Module.apply`: variance 2 / (kernel area × output channels).

    He et al. 2015b, eq. 15 ("fan out"), as in torchvision and timm. Norms keep torch's ones and zeros.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
