"""Seams of fields that are drawn in overlapping windows, by a network that was trained on patches.

    python -m benchmarks.windows

Trains a small U-Net on random squares of 16 px of Gaussian fields of 64x64 px, with the positions of their pixels, and
draws fields of 4x4 squares in windows with several overlaps. For each it prints the mean absolute difference of
neighbouring pixels across the borders of windows, divided by that elsewhere: 1 without seams. Means and standard
deviations are over groups of fields. Beside it stand those of fields of the law, and the standard deviation of pixels.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.gaussian_fields import GaussianFields
from diffusion import EDM
from diffusion.windows import cover
from pictures.units import Units
from pipelines.diffusion import DiffusionModel
from tasks.denoising import DiffusionAugment
from tasks.diffusion import DiffusionRun
from tasks.grid_evaluation import SampleConfig
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import DataConfig, Images
from training.ema import EmaConfig
from training.optimizer import AdamW
from training.schedule import Cosine
from training.script import ScriptParser, command
from training.step import Step
from unet import UNetConfig

SIDE, PATCH = 64, 16
BATCH = 32
LAW = GaussianFields(size=(SIDE, SIDE), means=(0.0,), deviations=(1.0,), lengths=(8.0,))
UNET = UNetConfig(base_channels=24, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(), groups=8)


@command
def main(argv: Sequence[str]) -> None:
    """Trains, draws, measures, prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1500, help="of the training, with 32 squares each")
    parser.add_argument("--num", type=int, default=16, help="fields in a group")
    parser.add_argument("--groups", type=int, default=4, help="groups of fields")
    parser.add_argument("--overlap", type=int, nargs="+", default=[0, 4, 8], help="pixels that windows share")
    parser.add_argument("--steps", type=int, default=18, help="steps of Heun's method")
    args = parser.parse_args(argv)
    for name in ("updates", "num", "groups", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)} measures nothing; give at least 1")
    started = time.monotonic()
    model = trained(args.updates)
    print(f"trained in {time.monotonic() - started:.0f} s")
    print("| fields | jumps across borders / inside | standard deviation |\n|---|---|---|")
    true = LAW.draw(args.num * args.groups, torch.Generator().manual_seed(1)).float()
    print(row("of the law", true.chunk(args.groups), args.overlap[-1]), flush=True)
    for overlap in args.overlap:
        drawn = [
            model.in_windows(overlap).draw(range(k * args.num, (k + 1) * args.num), None, steps=args.steps)
            for k in range(args.groups)
        ]
        print(row(f"drawn, --overlap {overlap}", drawn, overlap), flush=True)


def trained(updates: int) -> DiffusionModel:
    """The model of patches after so many updates."""
    fields = LAW.draw(2000, torch.Generator().manual_seed(0)).float().numpy()
    images = Images(fields, pixel_format=Units(mean=(0.0,), std=(1.0,), transform=("none",)))
    run = DiffusionRun(
        data=DataConfig(source="digits"),
        model=UNET,
        objective=EDM(sigma_data=1.0),
        augment=DiffusionAugment(crop_px=PATCH, crop_positions="plane"),
        sample=SampleConfig(num=0),
        train=TrainConfig(images=updates * BATCH, batch=BATCH, trackers=()),
        optimizer=AdamW(learning_rate=2e-3),
        schedule=Cosine(warmup_images=10 * BATCH),
        ema=EmaConfig(halflife_images=updates * BATCH // 20),
    )
    task = run.build(images)
    with closing(Step(task, images, run, make_accelerator(run.train))) as step:
        for _ in range(updates):
            step.update()
        task.model.load_state_dict(step.ema.model.state_dict())
    task.model.eval()
    return task.diffusion


def row(name: str, groups: Sequence[Float[Tensor, "n c h w"]], overlap: int) -> str:
    """A row of the table: mean and standard deviation over the groups."""
    places = cover(SIDE, PATCH, overlap)[0]
    ratio = torch.tensor([seams(fields, places, places) for fields in groups])
    deviation = torch.stack([fields.std() for fields in groups])
    found = (f"{values.mean():.3f} ± {values.std():.3f}" for values in (ratio, deviation))
    return f"| {name} | {' | '.join(found)} |"


def seams(fields: Float[Tensor, "n c h w"], rows: Int[Tensor, "a w1"], columns: Int[Tensor, "b w2"]) -> float:
    """The mean absolute difference of neighbouring pixels across the borders of windows, divided by that elsewhere.

    `rows` and `columns` are the pixels of windows, as `cover` gives them.
    """
    across, inside = list[Tensor](), list[Tensor]()
    for axis, pixels in ((2, rows), (3, columns)):
        jumps = fields.diff(dim=axis).abs().movedim(axis, 0)
        border = torch.zeros(len(jumps) + 1, dtype=torch.bool)
        border[torch.cat([pixels[:, 0], (pixels[:, -1] + 1) % (len(jumps) + 1)])] = True
        across.append(jumps[border[1:]].flatten())
        inside.append(jumps[~border[1:]].flatten())
    return (torch.cat(across).mean() / torch.cat(inside).mean()).item()


if __name__ == "__main__":
    main()
