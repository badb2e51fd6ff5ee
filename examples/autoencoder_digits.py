"""An `AutoencoderKL` of diffusers for handwritten digits, small enough to be trained here.

    pip install -e ".[train]"
    python examples/autoencoder_digits.py autoencoder
    python train.py --data.autoencoder autoencoder --data.size 8 --data.channels 1 --run runs/latents

Digits of 8x8 px become latents of 4x4 px with two channels, half as many values. The loss is the squared error of the
pixels and a little of the divergence from a normal distribution (Rombach et al. 2022, appendix G). The mean and the
standard deviation of the latents of each channel are written into the config, as `latents_mean` and `latents_std`.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from sklearn.datasets import load_digits

DIVERGENCE = 1e-5
"""weight of the divergence"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    net = AutoencoderKL(
        1, 1, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (16, 32),
        latent_channels=2, norm_num_groups=8, mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.steps)
    for _ in range(args.steps):
        x = images[torch.randint(len(images), (64,))]
        posterior = net.encode(x).latent_dist
        error = (net.decode(posterior.sample()).sample - x).square().mean()
        (error + DIVERGENCE * posterior.kl().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        posterior = net.eval().encode(images).latent_dist
        for name, latents in (("mean", posterior.mean), ("sample", posterior.sample())):
            error = (net.decode(latents).sample - images).square().mean().sqrt()
            print(f"decoded from the {name} of the posterior: an error of {error / 2:.1%} of the range (RMS)")
        spread = posterior.std.mean() / posterior.mean.std()
        print(f"standard deviation of the posterior: {spread:.1%} of that of its means")
    mean, std = posterior.mean.mean((0, 2, 3)), posterior.mean.std((0, 2, 3))
    net.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    net.save_pretrained(args.folder)
    print(f"autoencoder: {args.folder}")


if __name__ == "__main__":
    main()
