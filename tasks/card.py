"""What a model card adds to the description of a model: its run, with figures and settings, and its licence."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from storage.read import is_regular
from storage.show import markdown, printable
from tasks.grid_evaluation import GridEvaluation
from tasks.report import FIGURES
from training.output_folder import model_home
from training.run_facts import RunFacts, read_facts
from training.task import limits_of
from training.yaml_file import read_yaml, write_yaml

LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
NO_LICENCE = re.compile(r"^# license:.*\n", re.MULTILINE)
"""the line of a card that stands for a missing one"""
SEEDS = ("train.seed", "quality.seed", "ensemble.seed")


def check_licence(licence: str | None) -> None:
    """Raises ValueError for what is no identifier of a licence."""
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ValueError(f"license={licence!r} is no identifier of a licence; give one such as apache-2.0 or cc-by-4.0")


def complete_card(card: str, model: str, images_seen: int | None, licence: str | None, is_main: bool = True) -> str:
    """`card` with `licence` in its YAML header, and with sections about the run of `model`, if it has one.

    The figures are those of the evaluation after `images_seen` images; they are left out unless the weights are those
    of the main average (`is_main`), which was evaluated.
    """
    if licence is not None:
        card = NO_LICENCE.sub("", card)
        head, _, text = card.removeprefix("---\n").partition("---\n") if card.startswith("---\n") else ("", "", card)
        card = f'---\n{head}license: "{licence}"\n---\n{text if head else chr(10) + text}'
    home = model_home(model)
    if home is None or not is_regular(home / "config.yaml"):
        return card
    facts = read_facts(home)
    figures = _figures(facts, images_seen) if is_main else []
    return "\n".join([card.rstrip("\n"), "", *figures, *_training(facts, read_yaml(home / "config.yaml"))]) + "\n"


def _figures(facts: RunFacts, images_seen: int | None) -> list[str]:
    """A table of what was measured after so many images, with the floors."""
    found = {
        name: value for name, points in facts.log.figures.items() for images, value in points if images == images_seen
    }
    rows = []
    for name, value in found.items():
        figure = FIGURES.get(name)
        if figure is None or figure.dashed or name in GridEvaluation.figures:
            continue
        beside = [f"{other} {found[other]:.4g}" for other in limits_of(figure, FIGURES) if other in found]
        cells = (name, f"{value:.4g}", ", ".join(beside), figure.axis)
        rows.append(f"| {' | '.join(map(markdown, cells))} |")
    if not rows:
        return []
    count = [f"{found['quality_images']:,.0f} images were compared."] if "quality_images" in found else []
    held_out = markdown(str(facts.settings.get("data.validation")))
    lines = ["## Figures", "", f"Of the held-out images (data.validation: {held_out}). {' '.join(count)}".rstrip(), ""]
    return [*lines, "| figure | value | floor or baseline | unit |", "|---|---|---|---|", *rows, ""]


def _training(facts: RunFacts, settings: Mapping[str, Any]) -> list[str]:
    """Data, seeds, command and settings. The settings are indented, so that no Markdown in them takes effect."""
    seeds = [f"{name} {facts.settings[name]}" for name in SEEDS if name in facts.settings]
    shown = {name: _without_folders(value) for name, value in settings.items() if name != "format_version"}
    return [
        "## Training",
        "",
        f"- data: {markdown(str(_without_folders(facts.settings.get('data.source'))))}",
        f"- images seen: {facts.log.images_seen:,}",
        f"- seeds: {markdown(', '.join(seeds))}",
        "",
        "This command repeats the training:",
        "",
        "    python train.py --config config.yaml --run NEW",
        "",
        "where `config.yaml` holds these settings, of whose absolute paths only the last part is shown:",
        "",
        *(f"    {printable(line)}" for line in write_yaml(shown).splitlines()),
    ]


def _without_folders(value: Any) -> Any:
    """Settings in which each absolute path, also one from a home folder (~), is its last part."""
    if isinstance(value, Mapping):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if not isinstance(value, str):
        return value
    is_path = value.startswith("~") or PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return PureWindowsPath(value).name if is_path else value
