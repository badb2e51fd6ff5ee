"""Inversion and inpainting of held-out images, as numbers.

    python -m benchmarks.steering RUN --judge CLASSIFIER --num 200

RUN is a run of a diffusion model that holds images out (data.validation), CLASSIFIER a run on the same images. Held-out
images are inverted and reconstructed without a label: the PSNR of all of them, and the lowest of one. Then the right
half of each, and after that the lower one, is drawn anew without a label: the share whose class the classifier still
recognises, against the same half filled with the mean of the training images.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion.edits import keep_pixels
from pipelines.classification import load_classifier
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from residual.weights.config import read_config
from training.data import DataConfig, Images, open_images, open_validation
from training.script import ScriptParser, command
from training.yaml_file import read_settings

BATCH = 64
HALVES = {"right": 3, "lower": 2}
"""the axis along which the second half is drawn"""
Pictures = Float[Tensor, "n c h w"]


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, measures, prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of a diffusion model")
    parser.add_argument("--judge", required=True, metavar="CLASSIFIER", help="a run of a classifier of such images")
    parser.add_argument("--num", type=int, default=200, help="held-out images")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 200], help="steps of the inversion")
    parser.add_argument("--resample", type=int, nargs="+", default=[1, 4], help="of the inpainting, with 50 steps")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 1.0], help="noise that ddim adds in inpainting")
    parser.add_argument("--seeds", type=int, default=3, help="inpaintings of each image")
    args = parser.parse_args(argv)
    if not (args.run / "config.yaml").is_file():
        raise ValueError(f"{args.run} is no run folder; give one of a diffusion model that holds images out")
    model, judge = load_model(args.run), load_classifier(args.judge)
    settings, _ = read_settings(args.run / "config.yaml", is_record=True)
    fields = {name.removeprefix("data."): value for name, value in settings.items() if name.startswith("data.")}
    config = read_config(DataConfig, fields)
    training, held_out = open_images(config), open_validation(config)
    if not isinstance(training, Images) or not isinstance(held_out, Images) or held_out.labels is None:
        raise ValueError(f"{args.run} holds no images with labels out; train it with --data.validation 0.5")
    count = min(args.num, len(held_out))
    images = _unit(held_out, count)
    labels = numbers(held_out, judge.classes)[:count]
    for steps in args.steps:
        errors = (reconstructed(model, images, steps) - images).square().flatten(1).mean(dim=1) / 4
        whole, lowest = (-10 * value.log10().item() for value in (errors.mean(), errors.max()))
        print(f"inversion, {steps} steps of euler: PSNR {whole:.1f} dB, lowest {lowest:.1f} dB, n {count}", flush=True)

    def accuracy(x: Pictures) -> float:
        return (judge.probabilities(x).argmax(dim=1) == labels).double().mean().item()

    print(f"recognised: {accuracy(images):.1%} of the images")
    mean = _unit(training, len(training)).mean(dim=0)
    for name, axis in HALVES.items():
        drawn = torch.zeros(count, 1, *model.shape[1:], dtype=torch.bool)
        drawn.chunk(2, dim=axis)[1].fill_(True)
        print(f"{name} half filled with the mean: {accuracy(torch.where(drawn, mean, images)):.1%}", flush=True)
        for resample, eta in product(args.resample, args.eta):
            shares = torch.tensor(
                [accuracy(inpainted(model, images, drawn, resample, eta, seed)) for seed in range(args.seeds)]
            )
            about = f"{name} half drawn, --resample {resample} --eta {eta:g}"
            print(f"{about}: {shares.mean():.1%} ± {shares.std():.1%}", flush=True)


def numbers(images: Images, classes: Sequence[str]) -> Int64[Tensor, "n"]:
    """The labels of images, as places in `classes`. Raises ValueError for a class that is not there."""
    assert images.labels is not None, "the caller checks it"
    names = images.classes or ()
    if lacking := [name for name in names if name not in classes]:
        raise ValueError(f"judge has no class {lacking[0]!r}; give a classifier of such images")
    return torch.tensor([classes.index(name) for name in names])[torch.from_numpy(images.labels)]


def _unit(images: Images, count: int) -> Pictures:
    return images.pixel_format.to_unit(torch.from_numpy(images.read(torch.arange(count).numpy())))


def reconstructed(model: DiffusionModel, images: Pictures, steps: int) -> Pictures:
    """Images that are drawn from the noise that they are inverted to, without a label."""
    found = []
    for part in images.split(BATCH):
        labels = None if model.null is None else [model.null] * len(part)
        *_, noise = model.inverting(part, labels, steps=steps, sampler="euler")
        found.append(model.draw(range(len(part)), labels, steps=steps, sampler="euler", noise=noise))
    return torch.cat(found)


def inpainted(
    model: DiffusionModel, images: Pictures, drawn: Bool[Tensor, "n 1 h w"], resample: int, eta: float, seed: int
) -> Pictures:
    """Images with the pixels of `drawn` drawn anew, without a label."""
    found = []
    for start in range(0, len(images), BATCH):
        numbers = range(start, min(start + BATCH, len(images)))
        labels = None if model.null is None else [model.null] * len(numbers)
        keep = keep_pixels(images[numbers.start : numbers.stop], drawn[numbers.start : numbers.stop])
        found.append(model.draw(numbers, labels, seed=seed, project=keep, resample=resample, eta=eta))
    return torch.cat(found)


if __name__ == "__main__":
    main()
