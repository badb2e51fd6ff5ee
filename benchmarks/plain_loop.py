"""The recipe of diffusers' `train_unconditional.py`, as a plain loop around the network of a config of ours.

    python -m benchmarks.plain_loop --config configs/cifar10-16px.yaml --images 60000 --out FOLDER --data.source SOURCE

Noise prediction on the linear schedule of 1000 timesteps, mean squared error, AdamW with betas 0.95 and 0.999 and
weight decay 1e-6, 500 updates of warm-up and a cosine to zero, gradient norm at most 1, and `EMAModel` with power 3/4:
the defaults of that script. Images, labels and network are those of the config, so that only the recipe differs from a
run of train.py. FOLDER becomes a model folder with the averaged weights, which evaluate.py reads.

Settings of train.py, such as --data.source, change the config. With --unet2d the network is diffusers' own,
`UNet2DModel`, with the same layers. With --seconds the loop lasts that long, and the cosine falls with the time.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.functional import mse_loss

import unet
from diffusion import DDPM
from storage.write import replace_folder
from tasks import RUNS
from tasks.denoising import DiffusionConfig, DiffusionTask
from tasks.diffusion import DiffusionRun
from training.cli import parse
from training.data import Images, open_images
from training.processes import on_main
from training.script import ScriptParser, command


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, trains, writes the model folder."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = ScriptParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--config", required=True, help="config whose images and network are used")
    parser.add_argument("--unet2d", action="store_true", help="train diffusers' UNet2DModel")
    parser.add_argument("--images", type=int, default=60_000, help="training images to show")
    parser.add_argument("--seconds", type=float, help="length in time, instead of --images")
    parser.add_argument("--batch", type=int, default=16, help="images of an update")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak of the cosine")
    parser.add_argument("--warmup", type=int, default=500, help="updates")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args, settings = parser.parse_known_args(argv)

    run = parse(RUNS, ["--config", args.config, "--run", str(args.out), *settings]).run
    if not (isinstance(run, DiffusionRun) and isinstance(run.model, unet.UNetConfig)):
        raise ValueError(f"{args.config} has no U-Net that diffusers has, too; give a config with model.kind=unet")
    images = open_images(run.data, on_main=on_main)
    assert isinstance(images, Images)
    objective = DDPM(schedule="linear", prediction="epsilon")
    run = replace(run, objective=objective, diffusion=DiffusionConfig(label_dropout=0))
    run = replace(run, train=replace(run.train, seed=args.seed), sample=replace(run.sample, guidance=1))
    task = run.build(images)
    ours = task.model
    assert isinstance(ours, unet.UNet), "of a UNetConfig"
    theirs = UNet2DModel(**unet.diffusers_config(ours.config)) if args.unet2d else None
    train(args, images, (ours if theirs is None else theirs).to(args.device).train())
    if theirs is not None:
        ours.import_weights(theirs.cpu().state_dict(), layout="diffusers")
    save(task, args.out)


def train(args: argparse.Namespace, images: Images, net: nn.Module) -> None:
    """Trains `net`, which has the averaged weights then."""
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    torch.manual_seed(args.seed)
    began, updates, batches = time.monotonic(), args.images // args.batch, epochs(images, args.batch, args.seed)
    update, progress = 0, 0.0
    while progress < 1:
        batch = next(batches)
        x0 = images.pixel_format.to_unit(torch.from_numpy(images.read(batch)).to(args.device))
        label = None if images.labels is None else torch.from_numpy(images.labels[batch]).to(args.device)
        noise, timesteps = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=args.device)
        noisy = scheduler.add_noise(x0, noise, timesteps)
        with torch.autocast(args.device, torch.bfloat16):
            predicted = net(noisy, timesteps, label)
        loss = mse_loss((predicted.sample if isinstance(net, UNet2DModel) else predicted).float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * share(update, args.warmup, progress)
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        update += 1
        progress = (time.monotonic() - began) / args.seconds if args.seconds else update / updates
        if update % 100 == 0:
            print(f"{update * args.batch:,} images: loss={loss.item():.3g}", flush=True)
    print(f"finished: {update * args.batch:,} images in {time.monotonic() - began:.0f} s")
    average.copy_to(net.parameters())


def share(update: int, warmup: int, progress: float) -> float:
    """The share of the peak learning rate: diffusers' cosine with a linear warm-up. `progress` is that of the loop."""
    if update < warmup:
        return update / warmup
    begun = progress * warmup / max(update, 1)
    return 0.5 * (1 + math.cos(math.pi * (progress - begun) / (1 - begun)))


def epochs(images: Images, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the images of each update: random permutations, one after the other."""
    random, left = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, random.permutation(len(images))])
        yield left[:batch]
        left = left[batch:]


def save(task: DiffusionTask, folder: Path) -> None:
    """Writes the model folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(folder, lambda new: task.save(task.model.cpu(), new))


if __name__ == "__main__":
    main()
