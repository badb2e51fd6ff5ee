"""What `evaluate.py` does with its options: evaluates a model or images, and prints figures."""

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import nn

from evaluating.options import ALLOWED, OWN, USAGE, Request
from pictures.units import AnyFormat, Units
from pipelines.classification import DESCRIPTION_FILE as CLASSIFIER
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DESCRIPTION_FILE as DIFFUSION
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.folder import refuse_checkpoint
from pipelines.regression import DESCRIPTION_FILE as REGRESSION
from pipelines.regression import RegressionModel, load_regression
from pipelines.superresolution import Upscaler, diffusion_upscaler, is_edsr, load_upscaler
from residual.names import amount, require_known
from storage.read import is_regular
from storage.show import printable
from tasks import RUNS
from tasks.accuracy import accuracy
from tasks.class_outcome import ClassCounter
from tasks.classification import ClassificationRun, as_trained
from tasks.comparison import Comparison, class_names
from tasks.diffusion import DiffusionRun
from tasks.distillation import DistillationRun
from tasks.drawn_images import are_images, open_drawn
from tasks.enlargement import EnlargementEvaluation, check_measurable
from tasks.enlargement import measure as measure_enlarged
from tasks.ensemble import Ensemble, closed_axes, require_cached, score_drawn, score_prediction
from tasks.likelihood import Bits, bits_per_dimension, describe_noise
from tasks.quality import Quality
from tasks.regression import RegressionRun
from tasks.report import FIGURES
from tasks.superresolution import SuperResolutionRun
from training.averages import Average, RunAverages, load_average
from training.cli import Schema, all_settings, parse, settings_parser
from training.curves import draw_histograms
from training.data import DataConfig, Images, ImageSet, open_images, open_validation
from training.flags import read_flags
from training.memory import explain_out_of_memory
from training.precision import place
from training.processes import leave_processes, on_main, process_state
from training.progress import Bar
from training.run_report import use_commands
from training.script import require_printed, show_next
from training.settings import plain
from training.task import plan_line
from training.yaml_file import flat, read_settings

Figures = dict[str, float]
DrawingRun = DiffusionRun | DistillationRun
AnyRun = DrawingRun | ClassificationRun | SuperResolutionRun | RegressionRun
OF_MODELS = (DIFFUSION, CLASSIFIER, REGRESSION, "model_index.json", "scheduler_config.json", "config.json")
"""files by which a model folder is known"""
TOO_LARGE = (
    "give a smaller --quality.batch, --ensemble.batch, --quality.judge_size or --classification.validation_batch"
)
BASELINES = {
    name for kind in (EnlargementEvaluation, Quality) for name, figure in kind.figures.items() if figure.dashed
}
"""figures of what a model is compared with"""
NEEDS_CLASSES = ("inception_score", "class_accuracy")
"""metrics that need the judge's probabilities of classes"""


@dataclass(frozen=True)
class Evaluated:
    """How a model, or images, are evaluated."""

    measure: Callable[[Any], Figures | None]
    """the figures of a model; of images, those of all"""
    about: Callable[[Figures], list[str]]
    """lines about what was evaluated, from the figures"""
    remark: Callable[[str, float], str]
    """what is printed after a figure, from its name and value"""
    digits: str = ".4f"
    """format of the figures"""


def run(request: Request) -> None:
    """Evaluates, and prints one line per figure. Raises ValueError for what cannot be evaluated."""
    given, chosen, likelihood = request.given, request.ema, request.likelihood
    kind, run = kind_of(given), read_run(given, request.flags)
    if kind == "drawn" and chosen:
        raise ValueError(f"ema={chosen[0]:g} chooses an average of a run, but {given} holds images; leave it out")
    if likelihood and (kind == "drawn" or not isinstance(run, DrawingRun)):
        raise ValueError(f"likelihood is that of a diffusion model, which {given} is not; leave it out")
    if likelihood and len(chosen) > 1:
        raise ValueError(f"likelihood is computed of one average, but ema gives {len(chosen)}; give one")
    averages: list[Average | None] = [RunAverages(given).choose(value) for value in chosen] or [None]
    load = _loader(run)
    model: Any = None
    rows, is_main = list[Figures](), process_state().is_main_process
    with explain_out_of_memory(f"the evaluation of {given}", TOO_LARGE):
        if kind == "drawn":
            evaluated = _drawn(given, run)
        else:
            model = load_average(load, given, averages[0])
            run = _in_units(given, run, model)
            evaluated = _likelihood(given, run, model, request.other) if likelihood else _evaluated(given, run, model)
        for average in Bar(averages, unit="average", disable=None if is_main and len(averages) > 1 else True):
            found = evaluated.measure(load_average(load, given, average) if rows else model)
            assert found is not None, "no interrupt callback was given"
            rows.append(found)
    about = evaluated.about(rows[0])
    if is_main:
        if model is not None:
            print(f"model: {printable(given)} at {model.images_seen or 0:,} images seen")
        print("\n".join(about))
        if len(rows) > 1:
            print("\n".join(_table(averages, rows, evaluated.digits)))
        else:
            if averages[0] is not None:
                print(f"ema: {averages[0].about}")
            for name, value in rows[0].items():
                print(f"{name}: {value:{evaluated.digits}}{evaluated.remark(name, value)}")
        require_printed()
    if wrong := [(name, value) for row in rows for name, value in row.items() if not math.isfinite(value)]:
        name, value = wrong[0]
        if name in BASELINES:
            raise ValueError(f"{given}: {name} is {value}, whatever the model; give other images in data.validation")
        raise ValueError(f"{given}: {name} is {value}; its model is damaged or diverged, so train it again")
    if (config := _config_of(given)) is not None or kind != "drawn":
        show_next(next_command(run, Path(given) if config is None else config.parent))
    leave_processes()


def next_command(run: AnyRun, folder: Path) -> str | None:
    """The command that uses a model that was evaluated, quoted for a shell; None without a folder of it."""
    if not folder.is_dir():
        return None
    place, task = shlex.quote(str(folder)), next(name for name, kind in RUNS.items() if isinstance(run, kind))
    commands = use_commands(dict(flat({"task": task, **plain(run)})), place)
    return next((command for command in commands if "sample.py" in command), f"python demo.py {place}")


def _place(net: nn.Module) -> None:
    """Moves a network to the device of this process."""
    for line in place(net, process_state().device):
        _print_once(line)


@cache
def _print_once(line: str) -> None:
    if process_state().is_main_process:
        print(printable(line))


def _loader(run: AnyRun) -> Callable[..., Any]:
    """What loads the models of a run."""
    if isinstance(run, DrawingRun):
        return load_model
    if isinstance(run, RegressionRun):
        return load_regression
    return load_classifier if isinstance(run, ClassificationRun) else load_upscaler


def _in_units(given: str, run: AnyRun, model: Any) -> AnyRun:
    """The settings of a run, with the units of its model for images of another source that are to be standardised.

    Their own statistics would give them other values than the network was trained with.
    """
    units = getattr(model, "pixel_format", None)
    if run.data.normalisation != "mean_std" or run.data.mean is not None or not isinstance(units, Units):
        return run
    if _config_of(given) is not None and not _is_moved(run.data, read_run(given, []).data):
        return run
    parts: list[AnyFormat] = [units]
    if isinstance(model, DiffusionModel | RegressionModel) and model.inputs is not None and model.inputs.channels:
        parts.append(model.inputs.pixel_format)
    mean, std, transform = (sum((getattr(part, name) for part in parts), ()) for name in ("mean", "std", "transform"))
    return replace(run, data=replace(run.data, mean=mean, std=std, transform=transform))


def _evaluated(given: str, run: AnyRun, model: Any) -> Evaluated:
    """How the models of a run are evaluated."""
    if isinstance(run, DiffusionRun) and model.upscale is not None:
        return _enlargement(given, run, model, lambda each: diffusion_upscaler(each, options=run.sample.options))
    if isinstance(run, DiffusionRun) and run.ensemble.members is not None:
        return _ensemble(given, run, model)
    if isinstance(run, DrawingRun):
        if model.inputs is not None and model.inputs.channels:
            raise ValueError(f"{given} draws images for conditions; give --ensemble.members, such as 8")
        return _quality(given, run, model)
    if isinstance(run, RegressionRun):
        return _error(given, run)
    return (
        _accuracy(given, run, model)
        if isinstance(run, ClassificationRun)
        else _enlargement(given, run, model, lambda each: each)
    )


def _held_out(given: str, run: AnyRun) -> ImageSet:
    if (images := open_validation(run.data, on_main=on_main)) is None:
        raise ValueError(f"no images were held out of {given}; give --data.validation, such as test or 0.2")
    return images


def _enlargement(given: str, run: AnyRun, model: Any, upscaling: Callable[[Any], Upscaler]) -> Evaluated:
    """How models that enlarge pictures are evaluated; `upscaling` makes an upscaler of one."""
    images, upscaler = _held_out(given, run), upscaling(model)
    upscaler.check()
    check_measurable(images, upscaler.channels, upscaler.scale)

    def measure(model: Any) -> Figures | None:
        _place(model.net)
        found = measure_enlarged(upscaling(model), images)
        return None if found is None else found[0]

    about = f"images: {images}, enlarged {upscaler.scale} times from the bicubic filter of Pillow"
    return Evaluated(measure, lambda found: [about], lambda name, value: " dB" if name.endswith("psnr") else "")


def _error(given: str, run: RegressionRun) -> Evaluated:
    """How regressions are evaluated."""
    images, picture = _held_out(given, run), _picture_of(given)

    def measure(model: RegressionModel) -> Figures | None:
        _place(model.net)
        scores = score_prediction(model, images)
        on_main(lambda: scores.draw(picture))
        return scores.figures

    about = f"images: {images}; see {printable(str(picture))}"
    return Evaluated(measure, lambda found: [about], lambda name, value: "", ".4g")


def _ensemble(given: str, run: DiffusionRun, model: DiffusionModel) -> Evaluated:
    """How models are evaluated that draw ensembles for conditions."""
    ensemble = Ensemble(model, run.ensemble, _held_out(given, run), run.train.eval_every_images)
    picture = _picture_of(given)

    def measure(model: DiffusionModel) -> Figures | None:
        for net in (model.net, *ensemble.model.networks):
            _place(net)
        scores = ensemble.measure(model.net)
        assert scores is not None, "no interrupt callback was given"
        on_main(lambda: scores.draw(picture))
        return scores.figures

    drawn = f"drawn: {ensemble.about}, seed {run.ensemble.seed}; see {printable(str(picture))}"
    about = [f"images: {ensemble.pairs}", drawn]
    return Evaluated(measure, lambda found: about, lambda name, value: "", ".4g")


def _picture_of(given: str) -> Path:
    """The picture of the scores of ensembles and predictions."""
    return _folder_of(given) / "samples" / "ensemble.png"


def _accuracy(given: str, run: ClassificationRun, classifier: ImageClassifier) -> Evaluated:
    """How classifiers of a run are evaluated."""
    images = _held_out(given, run)
    images = as_trained(classifier.shape, classifier.pixel_format, classifier.classes, images)

    folder, lines = _folder_of(given) / "evaluation", list[str]()

    def measure(model: ImageClassifier) -> Figures | None:
        _place(model.net)
        counter = ClassCounter()
        found = accuracy(model, images, run.classification.validation_batch, counter=counter)
        outcome = counter.outcome(model.classes, model.pixel_format)
        if not lines:  # of several averages the first one
            on_main(lambda: outcome.write(folder, model.images_seen or 0))
            lines.append(f"worst classes: {', '.join(outcome.worst())}")
            lines.append(f"confusions and mistakes: {folder}")
        return found

    def right(name: str, value: float) -> str:
        count = len(images)
        return f" ({round(value * count):,} of {count:,})" if name.startswith("top") else ""

    return Evaluated(measure, lambda found: [f"images: {images}", *map(printable, lines)], right)


def _quality(given: str, run: DrawingRun, model: DiffusionModel) -> Evaluated:
    """How diffusion models of a run are evaluated."""
    trained_on = _training_images(given, run)
    if model.classes == tuple(map(str, range(len(trained_on.classes or ())))):  # a folder of diffusers has no names
        model = replace(model, classes=trained_on.classes)
    quality = run.open_quality(model, trained_on)
    assert quality is not None, "a judge was given"
    lines = []
    if run.quality.seconds is not None:
        _place(model.net)
        config = _config_of(given)
        folder = Path(given) if config is None else config.parent
        lines.append(plan_line(quality, quality.plan(model.net, folder / "samples", record=False), images=0))

    def measure(model: DiffusionModel) -> Figures | None:
        _place(model.net)
        return quality.measure(model.net)

    return _compared(lines, measure, quality.comparison)


def _likelihood(given: str, run: AnyRun, model: DiffusionModel, other: str | None) -> Evaluated:
    """How the likelihood under a diffusion model is evaluated. Raises ValueError for images of another kind."""
    assert isinstance(run, DrawingRun), "checked above"
    if model.upscale is not None:
        raise ValueError(f"likelihood is that of images alone, but {given} enlarges small ones; leave it out")
    held_out, config = open_validation(run.data, on_main=on_main), _config_of(given)
    sets: dict[str, ImageSet] = {} if held_out is None else {"held out": held_out}
    if config is not None:
        sets["training"] = open_images(read_run(given, []).data, on_main=on_main)
    if other is not None:
        data = replace(run.data, source=other, split="train", validation=None, label_file=None, labels=False)
        sets["other"] = open_images(data, on_main=on_main)
    if not sets:
        raise ValueError(f"{given} held out no images; give --data.validation, such as 0.5, or --other IMAGES")
    picture, errors = _folder_of(given) / "samples" / "likelihood.png", Figures()

    def measure(model: DiffusionModel) -> Figures:
        _place(model.net)
        found: dict[str, Bits] = {}
        for name, images in sets.items():
            if not isinstance(images, Images):
                raise ValueError("likelihood needs images in a cache, but data.stream is true; give false")
            found[name] = bits_per_dimension(model, images, run.quality, f"the images of {name!r}")
        on_main(lambda: draw_histograms(found, "bits per dimension", picture))
        errors.update({name: float(bits.std(ddof=1) / len(bits) ** 0.5) for name, bits in found.items()})
        return {name: float(bits.mean()) for name, bits in found.items()}

    def about(found: Figures) -> list[str]:
        quality = run.quality
        drawn = f"{quality.steps} steps, seed {quality.seed}, {describe_noise(model.pixel_format)}"
        return [f"images: {name}: {images}" for name, images in sets.items()] + [f"likelihood: {drawn}; see {picture}"]

    def remark(name: str, value: float) -> str:
        count = min(len(sets[name]), run.quality.num or len(sets[name]))
        return f" ± {errors[name]:.4f} bits per dimension (n {count:,})"

    return Evaluated(measure, about, remark)


def _drawn(given: str, run: AnyRun) -> Evaluated:
    """How images are evaluated that were drawn before."""
    if not isinstance(run, DrawingRun):
        raise ValueError(f"{given} holds images, but its run draws none; move them out of its folder")
    if isinstance(run, DiffusionRun) and run.ensemble.members is not None:
        return _drawn_ensembles(given, run, run.ensemble.members)
    training, held_out = _training_images(given, run), open_validation(run.data, on_main=on_main)
    if not (isinstance(held_out, Images) and isinstance(training, Images)):
        raise ValueError("images are compared from a cache, but data.stream is true; give false")
    images = open_drawn(Path(given), run.data, held_out)
    comparison = Comparison(run.quality, held_out, training, images)
    drawn = comparison.drawn
    assert drawn is not None, "the images were given"
    line = f"drawn: {printable(given)}, {images}"
    return _compared([line], lambda _: comparison.compare(comparison.features(drawn), class_names(drawn)), comparison)


def _drawn_ensembles(given: str, run: DiffusionRun, members: int) -> Evaluated:
    """How ensembles are evaluated that were drawn before, for conditions in the order of the held-out pairs."""
    held_out, picture = require_cached(_held_out(given, run)), _picture_of(given)
    images = open_drawn(Path(given), run.data, held_out)
    closed = closed_axes(run.model, run.augment.crop_positions == "periodic_width")

    def measure(_: None) -> Figures:
        scores = on_main(lambda: score_drawn(images, held_out, members, closed))
        on_main(lambda: scores.draw(picture))
        return scores.figures

    lines = [f"drawn: {printable(given)}, {images}; see {printable(str(picture))}", f"images: {held_out}"]
    return Evaluated(measure, lambda found: lines, lambda name, value: "", ".4g")


def _training_images(given: str, run: DrawingRun) -> ImageSet:
    """The images that the model was trained on. Raises ValueError without a judge, or if some would be held out."""
    if run.quality.judge is None:
        raise ValueError(
            f"quality.judge is null, but the metrics of {given} need one; give --quality.judge RUN, a run of train.py "
            "--task classification on such images, or a file of TorchScript"
        )
    own = run.data
    if _config_of(given) is not None:
        own, part = read_run(given, []).data, run.data.validation
        other_split = isinstance(part, str) and part != own.split
        if not (part == own.validation or other_split or _is_moved(run.data, own)):
            raise ValueError(
                f"data.validation={part} is not what the run held out (data.validation={own.validation}), so "
                "some of these images were trained on; leave it out, or give --data.source OTHER"
            )
    return open_images(own, on_main=on_main)


def _compared(lines: list[str], measure: Callable[[Any], Figures | None], comparison: Comparison) -> Evaluated:
    """An evaluation whose figures are printed with their floors."""
    config, n = comparison.config, len(comparison)

    def about(found: Figures) -> list[str]:
        more = [
            f"images: {comparison.held_out}",
            f"compared: {amount(n, 'image')} of each set, seed {config.seed}, by {config.judge} "
            f"({comparison.judge.num_features} features)",
        ]
        if left_out := [name for name in NEEDS_CLASSES if name not in found]:
            no_classes = comparison.judge.classes is None
            reason = "the judge gives no probabilities" if no_classes else "the judge lacks their classes"
            more.append(f"left out: {', '.join(left_out)}, because {reason}")
        return lines + more

    def remark(name: str, value: float) -> str:
        floor = f"floor {floors[name]:.4f}, " if name in (floors := comparison.floors) else ""
        return f" ({floor}n {n:,}, seed {config.seed})"

    return Evaluated(measure, about, remark)


def _table(averages: Sequence[Average | None], rows: Sequence[Figures], digits: str) -> list[str]:
    """One line for each average, with the best one marked."""
    name = next(name for name in rows[0] if name in FIGURES and FIGURES[name].best)
    best = FIGURES[name].choose(range(len(rows)), key=lambda row: rows[row][name])
    lines = [["ema", "images seen", "error", *rows[0]]]
    for average, row in zip(averages, rows, strict=True):
        assert average is not None, "there are several"
        values = (f"{value:{digits}}" for value in row.values())
        lines.append([average.name, f"{average.images:,}", f"{average.error:.2%}", *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    return [f"{text}  best" if number == best + 1 else text for number, text in enumerate(texts)]


def kind_of(given: str) -> Literal["model", "drawn"]:
    """Whether a run or model is given, or images. Raises ValueError for neither, and for a checkpoint."""
    path = Path(given)
    refuse_checkpoint(path)
    if is_regular(path / "config.yaml") or any(is_regular(path / name) for name in OF_MODELS):
        return "model"
    if os.path.lexists(path):
        if are_images(path):
            return "drawn"
    elif given.count("/") == 1 and path.suffix != ".npz" and not given.startswith((".", "/", "~")):
        return "model"  # on the hub
    raise ValueError(
        f"{given!r} is neither a run folder (with config.yaml), nor a model folder ({DIFFUSION}, {CLASSIFIER} or "
        f"diffusers' files), nor a folder or .npz file of images; {USAGE}"
    )


def print_completion(shell: str) -> NoReturn:
    """Prints the code by which a shell completes the flags, and exits. Raises ValueError as `completion` does."""
    settings = {name: leaf for name, leaf in all_settings(RUNS).items() if name.startswith(ALLOWED)}
    p = settings_parser("evaluate.py", settings, OWN)
    p.add_argument("given", metavar="RUN_OR_MODEL")
    p.print_completion(shell)


def settings_help(request: Request) -> list[str]:
    """The settings that can be changed, with those of the run."""
    given = request.given
    kind_of(given)
    config = _config_of(given)
    file = {"task": _task_of(given)} if config is None else read_settings(config)[0]
    run = RUNS[require_known("task", str(file.pop("task", None)), RUNS)]
    return Schema(run, file, read_flags(request.flags)[1], config).fields(*ALLOWED)


def _config_of(given: str) -> Path | None:
    """The settings of the run that is given, or in whose folder that is which is given; None if there is no run."""
    path = Path(given).absolute()
    return next((config for folder in (path, path.parent) if is_regular(config := folder / "config.yaml")), None)


def _folder_of(given: str) -> Path:
    """Where pictures of an evaluation are written: the folder of the run or model; here, for a model on the hub."""
    config = _config_of(given)
    return config.parent if config is not None else Path(given) if Path(given).is_dir() else Path()


def _task_of(given: str) -> str:
    for name, task in ((CLASSIFIER, "classification"), (REGRESSION, "regression")):
        if is_regular(Path(given, name)):
            return task
    return "superresolution" if is_edsr(given) else "diffusion"


def read_run(given: str, flags: Sequence[str]) -> AnyRun:
    """The settings of a run, changed by `flags`; without a run, those that `flags` state. Raises ValueError for others.

    The images that the run held out, and its label file, belong to its own source and split: of another one all images
    are evaluated, unless `flags` name a part.
    """
    config = _config_of(given)
    settings = read_flags(flags)[1]
    if "data.autoencoder" in settings:
        raise ValueError(
            f"data.autoencoder={settings['data.autoencoder']} is for training; pictures are compared, leave it out"
        )
    if config is None and "data.source" not in settings:
        kind_of(given)  # has an error of its own for what is nothing
        raise ValueError(
            f"{given} belongs to no run; give the images that it is compared with: --data.source SOURCE "
            "--data.validation SPLIT_OR_SHARE"
        )
    base = ["--task", _task_of(given), "--fresh"] if config is None else ["--config", str(config)]
    parsed = parse(RUNS, [*base, *([] if config is None else ["--run", str(config.parent)]), *flags])
    run = parsed.run
    if not isinstance(run, AnyRun):
        raise ValueError(f"{given} is a run of {parsed.task}, for which no evaluation is known")
    run = replace(run, data=replace(run.data, autoencoder=None))  # pictures are compared, also of latents
    if config is None:
        return run
    own_data = parse(RUNS, ["--config", str(config), "--run", str(config.parent)]).run.data
    moved = _is_moved(run.data, own_data)
    if (moved or run.data.split != own_data.split) and "data.validation" not in settings:
        run = replace(run, data=replace(run.data, validation=run.data.split))
    condition = run.data.condition
    if moved and isinstance(condition, str) and "data.condition" not in settings and os.path.lexists(condition):
        raise ValueError(f"data.condition={condition} belongs to the images of {given}; give --data.condition, too")
    if moved and "data.label_file" not in settings:
        run = replace(run, data=replace(run.data, label_file=None))
    return run


def _is_moved(data: DataConfig, own: DataConfig) -> bool:
    """Whether the images have another source than those of the run."""
    return os.path.realpath(os.path.expanduser(data.source)) != os.path.realpath(os.path.expanduser(own.source))
