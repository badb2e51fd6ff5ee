"""Features of real images in a file, with everything that they depend on."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage.read import require_regular
from storage.write import create_new, replace_file

MAX_SHOWN = 80
"""characters of a value in a message"""
Pair = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""features of held-out images, and of training images"""


def read_reference(path: Path, facts: Mapping[str, str], shape: tuple[int, int]) -> Pair | None:
    """The features in a file that was made with these facts; None if there is no file.

    Raises ValueError for a file with other facts, with the first one that differs; for features of another shape
    (n, d) or that are not finite; for another kind of file; and for a folder into which no file can be written.
    """
    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise ValueError(
                f"quality.reference={path} cannot be written: there is no folder {str(path.parent)!r}; give another"
            )
        try:
            create_new(trial := path.with_name(f"tmp-{path.name}"))
            trial.unlink()
        except OSError as error:
            raise ValueError(
                f"quality.reference={path} cannot be written: {error.strerror}; give another file"
            ) from None
        return None
    require_regular(path)
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            for name, value in facts.items():
                if (other := found.get(name, "nothing")[:MAX_SHOWN]) != value:
                    raise ValueError(f"was made with {name}={other}, but now it is {value}")
            real, training = file.get_tensor("held_out"), file.get_tensor("training")
            if any(each.shape != shape or each.dtype != torch.float32 for each in (real, training)):
                raise ValueError(f"has other features than float32 of shape {shape}")
            if not (real.isfinite().all() and training.isfinite().all()):
                raise ValueError("has features that are not finite")
    except (SafetensorError, ValueError) as error:
        reason = f"is damaged or no such file ({error})" if isinstance(error, SafetensorError) else error
        raise ValueError(f"quality.reference={path} {reason}; give another file, or remove this one") from None
    return real, training


def write_reference(path: Path, facts: Mapping[str, str], features: Pair) -> None:
    """Writes the file, atomically."""
    tensors = dict(zip(("held_out", "training"), (each.contiguous() for each in features), strict=True))
    replace_file(path, lambda new: save_file(tensors, new, dict(facts)))
