"""Compiles `kernels.c` with the machine's C compiler and loads it: faster operations for the CPU, off until `load`."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from residual.kernel_choice import computed_now

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"),
)
MAX_CHANNELS = 16_384
"""more would not fit on the stack of a thread"""
POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES = {
    "norm_act": (*[POINTER] * 6, *[SIZE] * 5, FLOAT, INT, INT, INT),
    "norm_act_backward": (*[POINTER] * 10, *[SIZE] * 5, INT, INT, INT),
    "dropout": (*[POINTER] * 2, *[SIZE] * 3, FLOAT, INT, INT),
}
"""functions of `kernels.c`, and the types of their arguments"""

library: ctypes.CDLL | None = None
"""the compiled functions; None: the operations of PyTorch are used"""


def load() -> str:
    """Switches the kernels on, in this process. Returns a line: that they are used, or why not.

    They are compiled once per machine, which takes seconds, and kept in the user's cache folder (`XDG_CACHE_HOME`, or
    ~/.cache). Without a compiler (`CC`, or `cc`) PyTorch's operations are used. `RESIDUAL_KERNELS=0` keeps them off.
    Raises ValueError for other values than 0 and 1.
    """
    global library
    wanted = os.environ.get("RESIDUAL_KERNELS", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"RESIDUAL_KERNELS={wanted!r} in the environment: give 1, or 0 for PyTorch's operations")
    if wanted == "0":
        library = None
        return "CPU kernels: off (RESIDUAL_KERNELS=0)"
    if library is None:
        try:
            library = _declared(_cached() or _compiled())
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return f"CPU kernels: not used ({' '.join(str(error).split())[:200]}); PyTorch's operations are slower"
    return "CPU kernels: used"


def unload() -> None:
    """Switches the kernels off: PyTorch's operations are used."""
    global library
    library = None


def fits(x: Tensor) -> bool:
    """Whether the kernels are on and take this tensor: on the CPU, float32 or bf16, channels last, not empty.

    Networks that are compiled, exported or traced, and `torch.func`, keep PyTorch's operations, which they transform.
    """
    return (
        library is not None
        and computed_now(x)  # first: a compiler would break its graph at the others
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] <= MAX_CHANNELS
        and not x.is_neg()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def call(name: str, tensors: Iterable[Tensor], sizes: Iterable[int], *numbers: float) -> None:
    """Calls a kernel with the addresses of the tensors, the sizes, the numbers and the number of threads."""
    pointers = (tensor.data_ptr() for tensor in tensors)
    getattr(library, name)(*pointers, *sizes, *numbers, torch.get_num_threads())


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


def _cached() -> ctypes.CDLL | None:
    """The library from the cache folder. The name of its file has the hash of its content: damage is noticed."""
    folder = _folder()
    for path in sorted(folder.glob(f"{_key()}-*.so")) if folder is not None else ():
        if path.stem.endswith(_hash(path.read_bytes())):
            return ctypes.CDLL(str(path))
    return None


def _compiled() -> ctypes.CDLL:
    """The library, compiled now and kept in the cache folder if it can be written."""
    command = shlex.split(os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise ValueError(f"no C compiler {os.environ.get('CC') or 'cc'!r}; install one or set CC")
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch, "kernels.so")
        done = subprocess.run(
            [*command, *FLAGS, str(SOURCE), "-o", str(built), "-lm"], capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            raise ValueError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        loaded = ctypes.CDLL(str(built))
        if (folder := _folder()) is not None:
            try:
                kept = Path(tempfile.mkdtemp(dir=folder), "kernels.so")
                shutil.copyfile(built, kept)
                os.replace(kept, folder / f"{_key()}-{_hash(built.read_bytes())}.so")
                kept.parent.rmdir()
            except OSError:
                pass  # a full disk: the next process compiles again
    return loaded


def _folder() -> Path | None:
    """The user's cache folder, created if missing; None if only others own it or it cannot be written."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root, "residual-diffusion")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return None
    private = state.st_uid == os.getuid() and not state.st_mode & 0o022
    return folder if private and os.access(folder, os.W_OK) else None


def _key() -> str:
    """A hash of all that the compiled code depends on: the source, the compiler's command and the processor."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    found = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    parts = (SOURCE.read_text(), os.environ.get("CC", ""), *FLAGS, platform.machine(), *found)
    return _hash("\n".join(parts).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
