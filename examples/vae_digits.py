"""A variational autoencoder (Kingma and Welling 2014) of handwritten digits, built from `Residual` blocks alone.

    pip install -e . scikit-learn
    python examples/vae_digits.py

Prints the loss before and after, and draws a few digits in characters; half a minute on two CPU cores.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from residual import AveragePool, Chain, Nearest, NormAct, Project, Residual, unet_branch, unet_shortcut


def block(c_in: int, c_out: int, resample: type[nn.Module] | None = None) -> Residual:
    """A residual block without an embedding, which may halve or double the size."""
    first, second = (None, None) if resample is None else (resample(), resample())
    return Residual(unet_branch(c_in, c_out, resample=first), unet_shortcut(c_in, c_out, second))


class VAE(nn.Module):
    """Digits of 8x8 px to `latent` numbers and back."""

    def __init__(self, width: int = 32, latent: int = 8) -> None:
        super().__init__()
        self.latent = latent
        down = {"down1": block(width, width, AveragePool), "down2": block(width, 2 * width, AveragePool)}
        up = {"up1": block(2 * width, width, Nearest), "up2": block(width, width, Nearest)}
        self.encoder = Chain(stem=Project(1, width), **down, norm=NormAct(2 * width), flat=nn.Flatten())
        self.moments = nn.Linear(2 * width * 4, 2 * latent)
        self.decoder = Chain(
            stem=nn.Linear(latent, 2 * width * 4), square=nn.Unflatten(1, (2 * width, 2, 2)), **up, norm=NormAct(width)
        )
        self.head = Project(width, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the pixels, (b, 1, 8, 8)."""
        return self.head(self.decoder(z))

    def forward(self, x: Tensor) -> Tensor:
        """The negative evidence lower bound of each image, in nats, shape (b,)."""
        mean, log_var = self.moments(self.encoder(x)).chunk(2, dim=1)
        logits = self.decode(mean + torch.randn_like(mean) * (0.5 * log_var).exp())
        likelihood = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(1, 2, 3))
        return likelihood + 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps")
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    train, test = images[:1500], images[1500:]
    vae = VAE()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    print(f"before: {vae(test).mean().item():.2f} nats per held-out digit")
    for _ in range(steps):
        loss = vae(train[torch.randint(len(train), (128,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after:  {vae(test).mean().item():.2f} nats per held-out digit")
    drawn = (vae.decode(torch.randn(5, vae.latent)).sigmoid()[:, 0] * 4.99).int()
    for rows in drawn.unbind(1):
        print("   ".join("".join(2 * " .:#@"[p] for p in row) for row in rows.tolist()))


if __name__ == "__main__":
    main()
