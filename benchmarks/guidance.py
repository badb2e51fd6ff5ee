"""Class accuracy, recall and Fréchet distance over the scale of guidance: figures and picture of docs/guidance.md.

    python -m benchmarks.guidance MODEL_RUN CLASSIFIER_RUN --judge JUDGE_RUN --picture docs/guidance.png

Draws images of every class in turn with classifier-free guidance, and with guidance by the classifier of noisy images,
without labels and in addition to them, at each scale and for each seed of the noise. Prints the mean and its standard
error over the seeds, and Spearman's rank correlation with the scale: of the accuracy up to its plateau (the first scale
within one percent point of the highest accuracy), of the recall over all scales. The judge has to be another classifier
than the guiding one. Real images are those that the run of the model held out.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluating.command import read_run
from metrics import frechet_distance, precision_recall
from pipelines.classification import load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from storage.write import replace_file
from tasks.judge import Judge, open_judge
from training.data import Images, open_validation
from training.options import PRECISIONS
from training.output_folder import weights_sha256
from training.precision import place
from training.processes import on_main, process_state
from training.script import ScriptParser, command

SCALES = (0.0, 0.8, 1.6, 2.4, 3.2, 4.0)
PLATEAU = 0.01
FIGURES = ("class accuracy", "recall", "Fréchet distance")
METHODS = ("classifier-free guidance", "classifier alone", "labels and classifier")
COLORS = ("#0072B2", "#E69F00", "#009E73")
Row = tuple[float, ...]
"""one value of each of FIGURES"""


@command
def main(argv: Sequence[str]) -> None:
    """Draws, compares, prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run of a diffusion model with classes, trained with label_dropout")
    parser.add_argument("classifier", help="run of a classifier of noisy images (noise.kind)")
    parser.add_argument("--judge", required=True, help="run of another classifier, trained without noise")
    parser.add_argument("--num", type=int, default=1000, help="images of each seed and scale")
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler dpmpp_2m")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the diffusion model's network")
    parser.add_argument("--picture", type=Path, help="PNG file with the curves")
    args = parser.parse_args(argv)
    guiding = load_classifier(args.classifier)
    if weights_sha256(guiding.net) == weights_sha256(load_classifier(args.judge).net):
        raise ValueError(f"judge={args.judge} is the classifier that guides; give another one")
    model = load_model(args.model)
    guided = model.classified_by(guiding)
    real = open_validation(read_run(args.model, []).data, on_main=on_main)
    if not isinstance(real, Images):
        raise ValueError(f"model={args.model} held out no images; train it with data.validation=0.5")
    judge = open_judge(args.judge, real, None, None, False)
    device = process_state().device
    place(model.net, device, args.precision)
    place(guiding.net, device)
    features = judge.features(real.pixel_format.to_unit(torch.from_numpy(real.read(np.arange(len(real))))).to(device))
    found: dict[str, list[list[Row]]] = {}
    for name in args.methods:
        found[name] = []
        for scale in args.scales:
            drawn = [draw(name, guided, scale, args.num, args.steps, seed, device) for seed in range(args.seeds)]
            found[name].append([compare(features, images, model, judge) for images in drawn])
            print(line(name, scale, found[name][-1]), flush=True)
        print(f"  {correlations(args.scales, found[name])}\n")
    drawing = f"{args.num:,} images of each of {args.seeds} seeds in {args.steps} steps, {args.precision}"
    print(f"{drawing}; {len(real):,} real images")
    if args.picture is not None:
        save_picture(args.scales, found, args.picture)


def draw(
    name: str, model: DiffusionModel, scale: float, num: int, steps: int, seed: int, device: torch.device
) -> torch.Tensor:
    """Images of the classes in turn, on the device, by one of METHODS; `model` has a classifier."""
    options: dict[str, Any] = {"guidance": dict(zip(METHODS, (scale, 0.0, 1.0), strict=True))[name]}
    if name == METHODS[0] or not scale:
        model = replace(model, classifier=None)
    else:
        options["classifier_scale"] = scale
    options |= {"sampler": "dpmpp_2m", "steps": steps, "seed": seed, "device": device}
    parts = [part.tolist() for part in torch.arange(num).split(250)]
    return torch.cat([model.draw(part, model.cycle(part), **options) for part in parts])


@torch.no_grad()
def compare(real: torch.Tensor, images: torch.Tensor, model: DiffusionModel, judge: Judge) -> Row:
    """The figures of drawn images. Raises ValueError if the judge lacks their classes."""
    if judge.probabilities is None or judge.classes is None or set(model.classes or ()) - set(judge.classes):
        raise ValueError("the judge lacks classes of the model; give a classifier of such images")
    drawn = judge.features(images)
    names = model.names(model.cycle(range(len(images)))) or []
    wanted = torch.tensor([judge.classes.index(name) for name in names], device=drawn.device)
    accuracy = (judge.probabilities(drawn).argmax(dim=1) == wanted).double().mean().item()
    return accuracy, precision_recall(real, drawn)[1], frechet_distance(real, drawn)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean over the seeds, and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def line(name: str, scale: float, rows: Sequence[Row]) -> str:
    """One row of the table."""
    cells = ["{:.3f} ± {:.3f}".format(*spread(values)) for values in zip(*rows, strict=True)]
    return f"| {name} | {scale:g} | {' | '.join(cells)} |"


def correlations(scales: Sequence[float], rows: Sequence[Sequence[Row]]) -> str:
    """Rank correlations of accuracy and recall with the scale."""
    accuracy, recall = ([spread([row[k] for row in each])[0] for each in rows] for k in (0, 1))
    plateau = next(k for k, value in enumerate(accuracy) if value >= max(accuracy) - PLATEAU) + 1
    rising = spearman(scales[:plateau], accuracy[:plateau]) if plateau > 1 else float("nan")
    falling = spearman(scales, recall)
    return f"Spearman: accuracy up to scale {scales[plateau - 1]:g} {rising:.2f}; recall {falling:.2f}"


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation. Equal values share the mean of their ranks."""
    values = torch.tensor([x, y], dtype=torch.float64)
    ranks = (values[:, :, None] - values[:, None]).sign().sum(dim=2)  # from their middle, in halves
    return torch.corrcoef(ranks)[0, 1].item()


def save_picture(scales: Sequence[float], found: dict[str, list[list[Row]]], path: Path) -> None:
    """One panel for each figure, with standard errors as bars."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(9.6, 2.8), dpi=80, layout="constrained")
    for number, (axes, figure) in enumerate(zip(sheet.subplots(1, len(FIGURES)), FIGURES, strict=True)):
        for name, rows in found.items():
            points = [spread([row[number] for row in each]) for each in rows]
            mean, error = zip(*points, strict=True)
            axes.errorbar(
                scales,
                mean,
                yerr=error,
                color=COLORS[METHODS.index(name)],
                label=name,
                marker="o",
                markersize=3,
                capsize=2,
            )
        axes.set(xlabel="scale of guidance", ylabel=figure)
        axes.grid(alpha=0.3)
    sheet.axes[0].legend(fontsize="small")
    replace_file(path, lambda new: sheet.savefig(new, format="png"), flush=False)


if __name__ == "__main__":
    main()
