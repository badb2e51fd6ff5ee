"""The recipe of diffusers' `train_unconditional.py`, as a plain loop around the network of a config of ours.

    python -m benchmarks.plain_loop --config configs/cifar10-16px.yaml --images 60000 --learning-rate 1e-4 --out FOLDER

Noise prediction on the linear schedule of 1000 timesteps, mean squared error, AdamW with betas 0.95 and 0.999 and weight
decay 1e-6, 500 updates of warm-up and a cosine to zero, gradient norm at most 1, and `EMAModel` with power 3/4: the
defaults of that script. Images, labels and network are those of the config, so that only the recipe differs from a run
of train.py. FOLDER becomes a model folder with the averaged weights, which evaluate.py reads.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

from diffusion import DDPM
from storage.write import replace_folder
from tasks import RUNS
from tasks.diffusion import DiffusionConfig, DiffusionRun
from training.cli import parse
from training.data import Images, open_images
from training.processes import on_main
from training.script import ScriptParser, command


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, trains, writes the model folder."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config whose images and network are used")
    parser.add_argument("--images", type=int, default=60_000, help="training images to show")
    parser.add_argument("--batch", type=int, default=16, help="images of an update")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak of the cosine")
    parser.add_argument("--warmup", type=int, default=500, help="updates")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args(argv)

    run = parse(RUNS, ["--config", args.config, "--run", str(args.out)]).run
    assert isinstance(run, DiffusionRun)
    objective = DDPM(schedule="linear", prediction="epsilon")
    train = replace(run.train, seed=args.seed)
    plain = DiffusionConfig(label_dropout=0)
    run = replace(run, objective=objective, diffusion=plain, train=train, quality=replace(run.quality, judge=None))
    images = open_images(run.data, on_main=on_main)
    assert isinstance(images, Images)
    task = run.build(images)
    net, updates = task.model.train(), args.images // args.batch
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=args.warmup, num_training_steps=updates)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    torch.manual_seed(args.seed)
    numbers = np.random.default_rng(args.seed)
    order = np.concatenate([numbers.permutation(len(images)) for _ in range(-(-args.images // len(images)))])
    for update in range(updates):
        batch = order[update * args.batch : (update + 1) * args.batch]
        x0 = images.pixel_format.to_unit(torch.from_numpy(images.read(batch)))
        label = None if images.labels is None else torch.from_numpy(images.labels[batch])
        noise, timesteps = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        noisy = scheduler.add_noise(x0, noise, timesteps)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            predicted = net(noisy, timesteps, label)
        loss = mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        if update % (5000 // args.batch) == 0:
            print(f"{update * args.batch:,} images: loss={loss.item():.3g}", flush=True)
    average.copy_to(net.parameters())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(args.out, lambda new: task.save(net, new))


if __name__ == "__main__":
    main()
