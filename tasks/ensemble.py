"""Scores of the ensembles that a diffusion model draws for the conditions of held-out pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pictures.units import Units
from pipelines.diffusion import DiffusionModel, Network
from pipelines.drawn import gather_drawn, require_finite
from pipelines.inputs import Inputs
from pipelines.regression import RegressionModel
from residual.names import amount
from tasks.budget import seconds_per_image
from tasks.comparison import names_for
from tasks.ensemble_scores import EnsembleScores, score_ensemble
from tasks.inputs import PREDICTED, given_of
from training.data import Images, ImageSet
from training.data.statistics import far_channels
from training.processes import gather, on_main, process_state
from training.settings import require
from training.task import Evaluation, EvaluationContext, Figure
from unet import EDM2Config, UNetConfig

ERROR, RATIO = "error (standard deviations of the truth)", "spread / error (1: calibrated)"
PERIODIC = {"periodic": (True, True), "periodic_width": (False, True)}
"""axes that are closed, by the padding of the network"""


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Ensembles that are drawn for the conditions of the held-out pairs of data.validation, and scored."""

    members: int | None = None
    """members of each ensemble; a single one has an error, but no spread. null: no ensembles"""
    num: int | None = 64
    """pairs at most, the first that are held out; null: all"""
    steps: int = 18
    """steps of the sampler"""
    sampler: str | None = None
    """as in sample.sampler"""
    guidance: float = 1.0
    """strength of labels and numbers: 1 as trained"""
    seed: int = 1
    """of the noise: the members are those of sample.py --condition --members with this seed"""
    batch: int = 64
    """images per forward pass on each process"""

    def __post_init__(self) -> None:
        require(self.members is None or self.members >= 1, self, "members", "give at least 1, such as 8, or null")
        require(self.num is None or self.num >= 1, self, "num", "give at least 1, or null")
        require(self.batch >= 1, self, "batch", "give at least 1")
        require(self.seed >= 0, self, "seed", "give 0 or more")

    @property
    def options(self) -> dict[str, Any]:
        """Those of `DiffusionModel.check`."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}


class Ensemble(Evaluation):
    """Draws `config.members` images for each held-out pair, and scores them against its target (`EnsembleScores`).

    Member j of pair k is image number k · members + j of the seed. Raises ValueError for options that do not suit the
    model, and for pairs of another kind than those that it was trained with.
    """

    name: ClassVar[str] = "ensemble"
    figures: ClassVar[Mapping[str, Figure]] = {
        "crps": Figure(ERROR, best="lowest"),
        "rmse": Figure(ERROR),
        "spread_skill": Figure(RATIO),
        "spectrum_error": Figure("largest relative error of the spectrum", log=True),
    }

    def __init__(self, model: DiffusionModel, config: EnsembleConfig, held_out: ImageSet, every_images: int) -> None:
        assert config.members is not None, "the caller checks it"
        self.model, self.config, self.members, self.every_images = model, config, config.members, every_images
        try:
            model.check(**config.options)
        except ValueError as error:
            raise ValueError(f"ensemble: {error}") from None
        pairs = require_pairs(model, held_out)
        self.pairs = pairs.part(np.arange(min(len(pairs), config.num or len(pairs))))
        names = names_for(model, self.pairs)
        self._labels = None if names is None else [(model.classes or ()).index(name) for name in names]

    @property
    def about(self) -> str:
        """What is drawn."""
        sampler = self.config.sampler or self.model.default_sampler
        return (
            f"{amount(self.members, 'member')} for each of {amount(len(self.pairs), 'pair')} in {self.config.steps} "
            f"{sampler} steps"
        )

    @torch.no_grad()
    def plan(self, model: nn.Module, folder: Path, record: bool = True) -> tuple[str, float]:
        """What is drawn, and how long it takes; see `Evaluation`."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        config, ranks = self.config, process_state().num_processes
        share = -(-len(self.pairs) * self.members // ranks)
        batch = min(config.batch, share)
        options = {"sampler": config.sampler, "guidance": config.guidance}
        denoising = replace(self.model, net=model).denoising
        each = seconds_per_image(denoising, self._labels_of(range(batch)), batch, config.steps, self._given, **options)
        return f"drawing {self.about}", each * share

    @property
    def conditions(self) -> dict[str, Any]:
        """The pairs, the number of members, and the options of the sampler."""
        return {
            "data": self.pairs.fingerprint,
            "members": self.members,
            "seed": self.config.seed,
            **self.config.options,
        }

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """The scores of the weights of `model`, and their picture `context.folder`/ensemble-<images seen>.png; None if
        `context.interrupted()` was true."""
        assert isinstance(model, Network), "the averaged model is a copy of the trained one"
        scores = self.measure(model, context.interrupted)
        if scores is None:
            return None
        on_main(lambda: scores.draw(context.folder / f"ensemble-{context.images_seen:09d}.png"))
        return scores.figures

    @torch.no_grad()
    def measure(self, net: Network, interrupted: Callable[[], object] = lambda: False) -> EnsembleScores | None:
        """The scores of a network. The processes share the drawing; the result is the same on each of them."""
        state, model, config = process_state(), replace(self.model, net=net), self.config
        count, drawn = len(self.pairs) * self.members, list[tuple[int, np.ndarray]]()
        for numbers, step, x in model.draw_share(
            count,
            self._labels_of,
            batch=config.batch,
            rank=state.process_index,
            ranks=state.num_processes,
            given=self._given,
            seed=config.seed,
            device=state.device,
            **config.options,
        ):
            if interrupted():
                return None
            if step == config.steps:
                require_finite(numbers, x, config.guidance)
                drawn += zip(numbers, as_floats(model.pixel_format.from_unit(x.float())), strict=True)
        images = torch.from_numpy(np.stack(gather_drawn(drawn, count, gather)))
        members = images.unflatten(0, (len(self.pairs), self.members)).transpose(0, 1)
        return score_ensemble(members, truth_of(model, self.pairs), periodic_axes(model), config.seed)

    def _pairs_of(self, numbers: Sequence[int]) -> np.ndarray:
        """The pair of each image number; the first one follows the last one."""
        return np.array(numbers) // self.members % len(self.pairs)

    def _labels_of(self, numbers: Sequence[int]) -> list[int] | None:
        return None if self._labels is None else [self._labels[pair] for pair in self._pairs_of(numbers)]

    def _given(self, numbers: Sequence[int]) -> dict[str, Any]:
        return given_of(self.model.inputs, self.pairs, self._pairs_of(numbers))


@torch.no_grad()
def score_prediction(model: RegressionModel, held_out: ImageSet) -> EnsembleScores:
    """The scores of the predictions of all held-out pairs, each an ensemble of one member. Call it on every process.

    Raises ValueError as `Ensemble` does.
    """
    pairs, state, found = require_pairs(model, held_out), process_state(), list[tuple[int, np.ndarray]]()
    mine = np.arange(state.process_index, len(pairs), state.num_processes)
    for start in range(0, len(mine), PREDICTED):
        numbers = mine[start : start + PREDICTED]
        given = {"image": None, "vector": None} | given_of(model.inputs, pairs, numbers)
        x = model.predict(**given, count=len(numbers), size=model.shape[1:], device=state.device)
        found += zip(numbers.tolist(), as_floats(model.pixel_format.from_unit(x)), strict=True)
    images = torch.from_numpy(np.stack(gather_drawn(found, len(pairs), gather)))
    return score_ensemble(images[None], truth_of(model, pairs), periodic_axes(model))


def score_drawn(
    images: Images, held_out: Images, members: int, closed: tuple[bool, bool] = (False, False)
) -> EnsembleScores:
    """The scores of ensembles that were drawn before: image k · members + j is member j of pair k.

    `closed` are the `closed_axes` of the network. Raises ValueError for images that are no ensembles of the first
    pairs.
    """
    count, rest = divmod(len(images), members)
    if rest or count > len(held_out):
        raise ValueError(
            f"ensemble.members={members} for each of {amount(len(held_out), 'pair')} at most do not give "
            f"{amount(len(images), 'drawn image')}; give the --members and the pairs with which they were drawn"
        )
    drawn = torch.from_numpy(as_floats(images.read(np.arange(len(images))))).unflatten(0, (count, members))
    channels = held_out.shape[0] - held_out.conditions
    truth = torch.from_numpy(as_floats(held_out.read(np.arange(count))[:, :channels]))
    return score_ensemble(drawn.transpose(0, 1), truth, closed)


def truth_of(model: DiffusionModel | RegressionModel, pairs: Images) -> Float[Tensor, "n c h w"]:
    """The targets of pairs, in units; NaN where they are missing."""
    return torch.from_numpy(as_floats(pairs.read(np.arange(len(pairs)))[:, : model.shape[0]]))


def periodic_axes(model: DiffusionModel | RegressionModel) -> tuple[bool, bool]:
    """See `closed_axes`."""
    return closed_axes(model.net.config, model.inputs is not None and model.inputs.periodic_width)


def closed_axes(config: UNetConfig | EDM2Config, periodic_patches: bool) -> tuple[bool, bool]:
    """Whether height and width are closed, by the padding of the network or by its patches."""
    padding = "periodic_width" if periodic_patches else getattr(config, "padding", "zeros")
    return PERIODIC.get(padding, (False, False))


def as_floats(values: np.ndarray) -> np.ndarray:
    """Values as float32, or as float64 if they need it."""
    return values.astype(np.result_type(values.dtype, np.float32))


def require_cached(pairs: ImageSet) -> Images:
    """Raises ValueError for pairs that are streamed."""
    if not isinstance(pairs, Images):
        raise ValueError("ensembles are scored with images in a cache, but data.stream is true; give false")
    return pairs


def require_pairs(model: DiffusionModel | RegressionModel, held_out: ImageSet) -> Images:
    """Raises ValueError for pairs that are streamed, or whose targets or conditions are of another kind than those of
    the model."""
    pairs = require_cached(held_out)
    channels = pairs.shape[0] - pairs.conditions
    inputs = model.inputs or Inputs()
    numbers = () if inputs.numbers is None else inputs.numbers.names
    for name, given, wanted in (
        ("target channels", channels, model.shape[0]),
        ("height x width", pairs.shape[1:], model.shape[1:]),
        ("data.condition channels", pairs.conditions, inputs.channels),
        ("data.vector_columns", pairs.vector_columns, numbers),
    ):
        if given != wanted:
            raise ValueError(
                f"images of data.validation have the {name} {given}, but the model was trained with {wanted}; give "
                "images as in its training"
            )
    if isinstance(units := model.pixel_format, Units):
        for channel, mean in far_channels(units, pairs):
            raise ValueError(
                f"images of data.validation are {mean:.3g} standard deviations from the mean of the training in "
                f"channel {channel}, on average; give images in the units of its training"
            )
    return pairs
