"""Reads tensors from safetensors files and model folders, and checks their values."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from residual.names import shorten
from storage.read import read_json, require_regular

COUNTERS = ("n_averaged", "num_updates", "initted", "step")
"""tensors of one number that wrappers of averaged models (torch's AveragedModel, ema-pytorch, …) add at the top"""
TRACKED = "num_batches_tracked"
"""the counter of a batch norm, whose weights are integers"""
_SHARD = re.compile(r"\d+-of-\d+$")
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class WeightsNote(UserWarning):
    """What was chosen, converted or left out while weights were read."""


def note(text: str) -> None:
    """Reports what was chosen, converted or left out while weights were read."""
    warnings.warn(text, WeightsNote, stacklevel=3)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as `usable` returns them.

    Raises ValueError if the file is missing, not regular, damaged, or a pickle, and as `usable` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise ValueError(f"no weights at {path}")
    require_regular(path)
    try:
        state = load_file(path)
    except (SafetensorError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # Checked only now: a valid safetensors file may begin with the same bytes, as the length of its header.
        with path.open("rb") as file:
            head = file.read(2)
        if head in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which could run code, and is not opened; save a plain state dict first: "
                "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')"
            ) from None
        raise ValueError(f"{path} is not a complete safetensors file ({error}): copy or save it again") from None
    try:
        return usable(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_folder_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of a model folder, whose file of weights is called `stem`.safetensors.

    They may be in several files, with the index `stem`.safetensors.index.json, or in a variant, such as
    `stem`.fp16.safetensors; a note says which variant was read. Raises ValueError if there are none, if there are
    several variants and no other file, if the index is damaged or names a file outside the folder, and as
    `read_weights` does.
    """
    plain = folder / f"{stem}.safetensors"
    if plain.exists():
        return read_weights(plain)
    if (index := plain.with_name(f"{plain.name}.index.json")).exists():
        return _read_shards(index)
    files = re.compile(
        re.escape(stem) + r"\.([\w-]+)\.safetensors|" + re.escape(plain.name) + r"\.index\.([\w-]+)\.json"
    )
    variants = {
        found[1] or found[2]: path for path in sorted(folder.iterdir()) if (found := files.fullmatch(path.name))
    }
    variants = {name: path for name, path in variants.items() if not _SHARD.search(name)}
    if len(variants) > 1:
        raise ValueError(
            f"{folder} holds only variants of its weights: {', '.join(variants)}; "
            f"rename the file of one to {plain.name}, or leave the others out"
        )
    if variants:
        (name, path) = variants.popitem()
        note(f"{folder}: the weights of the variant {name} are read, as there are no others")
        return _read_shards(path) if path.suffix == ".json" else read_weights(path)
    if pickles := [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]:
        raise ValueError(
            f"no {plain.name} in {folder}, only {shorten(pickles)}: a pickle, which could run code, and is not opened; "
            "open it with the library that wrote it, and save it with safe_serialization=True"
        )
    if shards := [path.name for path in sorted(folder.iterdir()) if _SHARD.search(path.stem)]:
        raise ValueError(f"{folder} holds {shards[0]} and others, but not their index {index.name}: copy it, too")
    raise ValueError(f"no {plain.name} in {folder}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{index}: weight_map should name the file of each tensor")
    state: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: weight_map names {name!r}, which is not a file of this folder")
        state |= read_weights(index.with_name(name))
    if missing := [name for name in files if name not in state]:
        raise ValueError(f"{index} names tensors that its files lack: {shorten(missing, 4)}")
    return state


def usable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those of less than 32 bits as float32, about which a note is given.

    Raises ValueError, with the name, for tensors that are not floating point numbers, and for NaN or infinity in one.
    Counters may be integers.
    """
    result, cast = dict(state), dict[torch.dtype, int]()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            if tensor.is_complex() or (tensor.numel() != 1 and not name.endswith(TRACKED)):
                raise ValueError(f"{name} has {_type(tensor.dtype)} numbers; weights are float32, float16 or bfloat16")
            continue
        if tensor.dtype.itemsize < 4:
            cast[tensor.dtype] = cast.get(tensor.dtype, 0) + 1
            result[name] = tensor.float()
        if not tensor.is_meta and not torch.isfinite(result[name]).all():
            raise ValueError(f"{name} has NaN or infinite numbers; take an earlier checkpoint, or save it again")
    for dtype, count in cast.items():
        note(f"{count} of {len(state)} tensors are {_type(dtype)} and are converted to float32")
    return result


def plain_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names that they have in the network itself, and one message per change.

    A prefix that all names share comes off, such as `module.` (DataParallel), `_orig_mod.` (torch.compile) or that of
    the attribute that holds the network, and so does a lone counter of a wrapper.
    """
    found, messages = dict(state), list[str]()
    if counters := [name for name in found if name in COUNTERS and found[name].numel() == 1 and len(found) > 1]:
        messages.append(f"{', '.join(counters)}: left out, a counter of the wrapper")
        found = {name: tensor for name, tensor in found.items() if name not in counters}
    prefix = ""
    while len(firsts := {name.partition(".")[0] for name in found}) == 1 and all("." in name for name in found):
        first = f"{firsts.pop()}."
        prefix += first
        found = {name.removeprefix(first): tensor for name, tensor in found.items()}
        if len(found) == 1:
            break
    if prefix:
        messages.append(f"all names begin with {prefix}, which is left out")
    return found, messages


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
