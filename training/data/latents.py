"""Latents in the place of pictures: the autoencoder of the settings, and what the cache stores."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from pictures.autoencoder import Autoencoder, load_autoencoder
from pictures.pixel_format import BYTES, PixelFormat
from pictures.preprocessing import Preprocessing
from residual.weights.pretrained import local_folder
from storage.write import expand_home
from training.processes import process_state

LATENTS = PixelFormat(dtype="float32", low=-1, high=1, file="npy")
"""how latents are stored; their range is unknown, and not used"""


def open_autoencoder(name: str, preprocessing: Preprocessing) -> Autoencoder:
    """The autoencoder that `data.autoencoder` names.

    Raises ValueError if there is none, and if it does not take pictures of this size with so many channels.
    """
    assert preprocessing.size is not None, "DataConfig requires it"
    assert preprocessing.channels is not None, "DataConfig requires it"
    try:
        autoencoder = load_autoencoder(find_folder(name))
        autoencoder.check(preprocessing.channels, *preprocessing.size)
    except ValueError as error:
        raise ValueError(f"data.autoencoder {name!r}: {error}") from None
    return autoencoder


def find_folder(name: str) -> Path:
    """The folder that `data.autoencoder` names, or that of OWNER/NAME[@REVISION] on the hub, downloaded."""
    folder = expand_home("data.autoencoder", Path(name))
    return folder if folder.is_dir() else local_folder(name)


def encode(autoencoder: Autoencoder, pixels: UInt8[np.ndarray, "c h w"]) -> Float32[np.ndarray, "d h2 w2"]:
    """The latents of one picture, computed on the device of this process.

    Raises ValueError if they are not finite.
    """
    picture = BYTES.to_unit(torch.from_numpy(pixels)[None].to(process_state().device))
    latents = autoencoder.encode(picture)[0].cpu().numpy()
    if not np.isfinite(latents).all():
        raise ValueError("data.autoencoder gives latents that are not finite; give another autoencoder")
    return latents


def chained(digest: str, pixels: UInt8[np.ndarray, "c h w"]) -> str:
    """SHA-256 (hexadecimal) of all pixels so far, from that of the pictures before, by which a build can resume."""
    return hashlib.sha256(digest.encode() + pixels.tobytes()).hexdigest()
