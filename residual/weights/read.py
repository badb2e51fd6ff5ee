"""Reads tensors from safetensors files and model folders, and checks their values."""

import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from residual.names import amount, shorten
from residual.weights.note import note
from storage.read import open_regular, parse_json, read_json, require_regular

COUNTERS = ("n_averaged", "num_updates", "initted", "step")
"""tensors of one number that wrappers of averaged models (torch's AveragedModel, ema-pytorch, …) add at the top"""
PROFILED = ("total_ops", "total_params")
"""counters that the profiler thop adds to every module"""
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""parts of names from torch's wrappers of single blocks: compiled, sharded, recomputed"""
TRACKED = "num_batches_tracked"
"""the counter of a batch norm, whose weights are integers"""
VARIANCE = "running_var"
"""the variance of a batch norm, the only tensor that must not be negative"""
MAX_WEIGHT = 1e18
"""largest magnitude of a weight: the sum of the squares of some larger ones exceeds the largest float32, 3.4e38"""
FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
"""types of numbers that weights may have in a file"""
_SHARD = re.compile(r"\d+-of-\d+$")
_LFS = b"version https://git-lfs"
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


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
        _check_names(path, state)
    except (SafetensorError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # Checked only now: a valid safetensors file may begin with the same bytes, as the length of its header.
        with path.open("rb") as file:
            head = file.read(len(_LFS))
        if head == _LFS:
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull there") from None
        if head.startswith(_PICKLES):
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
    `stem`.fp16.safetensors. A note names what was read if there is a choice. Raises ValueError if there are none, if
    there are several variants and no other file, if the index is damaged or names a file outside the folder, and as
    `read_weights` does.
    """
    plain = folder / f"{stem}.safetensors"
    index = plain.with_name(f"{plain.name}.index.json")
    files = re.compile(
        re.escape(stem) + r"\.([\w-]+)\.safetensors|" + re.escape(plain.name) + r"\.index\.([\w-]+)\.json"
    )
    variants = {
        found[1] or found[2]: path for path in sorted(folder.iterdir()) if (found := files.fullmatch(path.name))
    }
    variants = {name: path for name, path in variants.items() if not _SHARD.search(name)}
    if whole := [path for path in (plain, index) if path.exists()]:
        if rest := [path.name for path in (*whole[1:], *variants.values())]:
            note(f"{folder}: {whole[0].name} is read; other weights beside it are not: {shorten(rest)}")
        return read_weights(plain) if whole[0] == plain else _read_shards(index)
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
    others = [path.name for path in sorted(folder.glob("*.safetensors")) if path.exists()]
    raise ValueError(f"no {plain.name} in {folder}" + (f", only {shorten(others)}; rename it" if others else ""))


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


def _check_names(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a file has no tensors, or two of one name, of which the library returns the last one."""
    with open_regular(path) as file:
        (size,) = struct.unpack("<Q", file.read(8))
        names = [name for name, _ in parse_json(file.read(size), make_object=list) if name != "__metadata__"]
    if not names:
        raise ValueError("no tensors")
    if len(names) > len(state):
        raise ValueError(f"{len(names)} tensors with {len(state)} names")


def usable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those of another precision as float32, about which a note is given.

    Raises ValueError, with the name, for tensors that are empty or no floating point numbers, and for NaN, infinity,
    numbers above `MAX_WEIGHT`, and a negative variance. Counters may be integers.
    """
    result, cast = dict(state), dict[torch.dtype, int]()
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS or tensor.layout is not torch.strided:
            is_integer = not (tensor.is_floating_point() or tensor.is_complex())
            if is_integer and (tensor.numel() == 1 or name.endswith(TRACKED)):
                continue
            kind = _type(tensor.dtype) if tensor.layout is torch.strided else "sparse"
            raise ValueError(f"{name} has {kind} numbers; weights are float32, float16 or bfloat16")
        if tensor.numel() == 0:
            raise ValueError(f"{name} has no numbers, its shape is {tuple(tensor.shape)}; save the weights again")
        if tensor.dtype is not torch.float32:
            cast[tensor.dtype] = cast.get(tensor.dtype, 0) + 1
            result[name] = tensor.float()
        if not tensor.is_meta:
            low, high = (number.item() for number in result[name].aminmax())
            least = 0.0 if name.endswith(VARIANCE) else -MAX_WEIGHT
            if not least <= low <= high <= MAX_WEIGHT:  # NaN and infinity, too
                found = f"{name} has numbers from {low:g} to {high:g}"
                rule = f"they should be from {least:g} to {MAX_WEIGHT:g}"
                raise ValueError(f"{found}; {rule}: take an earlier checkpoint, or save it again")
    for dtype, count in cast.items():
        note(f"{count} of {len(state)} tensors are {_type(dtype)} and are converted to float32")
    return result


def plain_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names that they have in the network itself, and one message per change.

    A prefix that all names share comes off, such as `module.` (DataParallel), `_orig_mod.` (torch.compile) or that of
    the attribute that holds the network, and so do the counters and the parts of names that wrappers add.
    """
    found, messages = dict(state), list[str]()
    counters = [name for name in found if name in COUNTERS or name.rpartition(".")[2] in PROFILED]
    if (counters := [name for name in counters if found[name].numel() == 1]) and len(found) > len(counters):
        messages.append(f"{shorten(counters, 4)}: left out, not a weight but a counter")
        found = {name: tensor for name, tensor in found.items() if name not in set(counters)}
    prefix = ""
    while len(firsts := {name.partition(".")[0] for name in found}) == 1 and all("." in name for name in found):
        first = f"{firsts.pop()}."
        prefix += first
        found = {name.removeprefix(first): tensor for name, tensor in found.items()}
        if len(found) == 1:
            break
    if prefix:
        messages.append(f"all names begin with {prefix}, which is left out")
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): found[name] for name in found}
    if len(plain) == len(found) and plain.keys() != found.keys():
        wrappers = sorted(WRAPPERS & {part for name in found for part in name.split(".")})
        renamed = amount(len(plain.keys() - found.keys()), "name")
        messages.append(f"{' or '.join(wrappers)} is left out of {renamed}")
        found = plain
    return found, messages


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
