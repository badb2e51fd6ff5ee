"""Scores of an ensemble against the truth, per channel: the numbers that are logged, and a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metrics import crps, ensemble_rmse, power_spectrum, rank_histogram, spectrum_error, spread_skill
from training.curves import PANEL_INCHES, figure_class, save_sheet

IN_LEGEND = 8
"""channels; of more, the lines have no names"""


@dataclass(frozen=True, eq=False)
class EnsembleScores:
    """What `metrics` computes of an ensemble."""

    crps: Float[Tensor, "c"]
    """in the units of each channel, as are `rmse` and `deviation`"""
    rmse: Float[Tensor, "c"]
    """of the mean of the members"""
    deviation: Float[Tensor, "c"]
    """standard deviation of the truth"""
    spread_skill: Float[Tensor, "c"] | None = None
    """None of a single member, as are the ranks"""
    ranks: Float[Tensor, "c ranks"] | None = None
    spectrum: Float[Tensor, "c waves"] | None = None
    """of the members; None if every field of the truth has missing values"""
    truth_spectrum: Float[Tensor, "c waves"] | None = None

    @property
    def figures(self) -> dict[str, float]:
        """Numbers over all channels, which are free of units, and those of each channel, in units.

        Over the channels `crps` and `rmse` are the mean in deviations of the truth, `spread_skill` is the mean, and
        `spectrum_error` the largest.
        """
        found = {"crps": (self.crps / self.deviation).mean(), "rmse": (self.rmse / self.deviation).mean()}
        each = {"crps": self.crps, "rmse": self.rmse}
        if self.spread_skill is not None:
            found["spread_skill"], each["spread_skill"] = self.spread_skill.mean(), self.spread_skill
        if self.spectrum is not None and self.truth_spectrum is not None:
            each["spectrum_error"] = spectrum_error(self.spectrum, self.truth_spectrum)
            found["spectrum_error"] = each["spectrum_error"].max()
        found |= {f"{name}_{c}": value for name, values in each.items() for c, value in enumerate(values)}
        return {name: float(value) for name, value in found.items()}

    def draw(self, picture: Path) -> None:
        """Draws ranks, spectra, spread and error of each channel into the PNG file `picture`.

        Nothing is drawn without matplotlib, which is reported.
        """
        if (new_figure := figure_class()) is None:
            return
        panels = [self._draw_error]
        if self.spectrum is not None:
            panels.append(self._draw_spectrum)
        if self.ranks is not None:
            panels += [self._draw_spread, self._draw_ranks]
        columns = min(2, len(panels))
        width, height = PANEL_INCHES
        sheet = new_figure(figsize=(columns * width, -(-len(panels) // columns) * height), layout="constrained")
        for number, panel in enumerate(panels, start=1):
            axes = sheet.add_subplot(-(-len(panels) // columns), columns, number)
            panel(axes)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize="small")
        save_sheet(sheet, picture)

    def _draw_error(self, axes: Any) -> None:
        """Both scores in deviations of the truth, with their values in units below."""
        places = torch.arange(len(self.crps))
        rows = {"CRPS": self.crps, "RMSE of the mean": self.rmse}
        for shift, (name, values) in zip((-0.2, 0.2), rows.items(), strict=True):
            axes.bar((places + shift).tolist(), (values / self.deviation).tolist(), 0.4, label=name)
        texts = [f"{c}\n{score:.3g}\n{error:.3g}" for c, (score, error) in enumerate(zip(*rows.values(), strict=True))]
        self._name_channels(axes, texts, "channel, CRPS and RMSE in units")
        axes.set(ylabel="deviations of the truth")

    def _draw_spread(self, axes: Any) -> None:
        assert self.spread_skill is not None, "the caller checks it"
        axes.bar(range(len(self.spread_skill)), self.spread_skill.tolist(), 0.6)
        axes.axhline(1, color="black", linestyle="--")
        self._name_channels(axes, [f"{c}\n{value:.2f}" for c, value in enumerate(self.spread_skill)], "channel")
        axes.set(ylabel="spread / error (1: calibrated)")

    def _draw_spectrum(self, axes: Any) -> None:
        assert self.spectrum is not None, "the caller checks it"
        assert self.truth_spectrum is not None, "the caller checks it"
        for c, (drawn, true) in enumerate(zip(self.spectrum, self.truth_spectrum, strict=True)):
            numbers = true.nonzero()[:, 0]
            axes.plot(numbers, drawn[numbers] / true.sum(), color=f"C{c}", label=self._name(c))
            axes.plot(numbers, true[numbers] / true.sum(), color=f"C{c}", linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="cycles along the shorter side (dashed: truth)")
        axes.set(ylabel="share of the variance of the truth")

    def _draw_ranks(self, axes: Any) -> None:
        assert self.ranks is not None, "the caller checks it"
        count = self.ranks.shape[1]
        for c, shares in enumerate(self.ranks):
            axes.plot(range(count), (count * shares).tolist(), color=f"C{c}", marker=".", label=self._name(c))
        axes.axhline(1, color="black", linestyle="--")
        axes.set(xlabel="members below the truth", ylabel="frequency (1: calibrated)", ylim=(0, None))

    def _name(self, channel: int) -> str | None:
        return f"channel {channel}" if len(self.crps) <= IN_LEGEND else None

    def _name_channels(self, axes: Any, texts: list[str], title: str) -> None:
        if len(texts) <= IN_LEGEND:
            axes.set_xticks(range(len(texts)), texts, fontsize="small")
        axes.set(xlabel=title)


def score_ensemble(
    members: Float[Tensor, "m _ _ _ _"],
    truth: Float[Tensor, "n c h w"],
    periodic: tuple[bool, bool] = (False, False),
    seed: int = 0,
) -> EnsembleScores:
    """All scores that so many members have; `periodic` as in `metrics.power_spectrum`, `seed` of equal ranks.

    Fields with missing values have no spectrum. Raises ValueError as `metrics.crps` does, and for a channel of the
    truth that is constant.
    """
    found = {"crps": crps(members, truth), "rmse": ensemble_rmse(members, truth), "deviation": _deviation(truth)}
    if constant := [c for c, deviation in enumerate(found["deviation"].tolist()) if not deviation > 0]:
        raise ValueError(f"channels {constant} of the truth are constant, so nothing can be scored; leave them out")
    if len(members) > 1:
        found["spread_skill"] = spread_skill(members, truth)
        found["ranks"] = rank_histogram(members, truth, torch.Generator().manual_seed(seed))
    whole = truth.isfinite().flatten(start_dim=1).all(dim=1)
    if whole.any():
        found["spectrum"] = power_spectrum(members[:, whole].flatten(0, 1), periodic)
        found["truth_spectrum"] = power_spectrum(truth[whole], periodic)
    return EnsembleScores(**found)


def _deviation(truth: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    channels = (channel.double()[~channel.isnan()] for channel in truth.unbind(dim=1))
    return torch.stack([values.std(correction=0) for values in channels])
