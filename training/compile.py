"""Compilation by torch.compile: of which parts, where the code is kept, and errors in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from residual.block import Residual
from residual.kernel_choice import use_when_compiled
from storage.show import printable
from training.config import TrainConfig
from training.data.cache.place import default_caches, temporary_caches, write_fault
from training.disk_space import free_bytes
from training.memory import is_out_of_memory
from training.units import show_size

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""torch's variable for the folder of compiled code"""
CODE_BYTES = 256 << 20
"""free space that the folder needs: more than the code of a large network"""
KINDS_OF_BLOCKS = 256
"""of one network; torch's own limit of 8 would leave the further ones uncompiled"""


def require_compiler(option: str, otherwise: str, device: torch.device) -> list[str]:
    """Chooses the folder of compiled code, and compiles one operation as a test. Returns lines to print.

    `option` requests compilation, such as "train.compile=full"; `otherwise` is what to do without. Raises ValueError,
    with both, if code for `device` cannot be compiled.
    """
    folder, lines = code_folder()
    os.environ[CACHE] = str(folder)
    with explain_compile_error(option, otherwise, f"code for {device.type}", anything=True):
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(8, device=device))
    return [*lines, printable(f"{option}: compiled code is kept in {folder}")]


def code_folder() -> tuple[Path, list[str]]:
    """The folder of compiled code, and lines to print: that of `CACHE`, by default `compiled` in the default caches.

    If nothing can be written there, it is in the temporary folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    caches, given = default_caches(), os.environ.get(CACHE)
    if given == default_cache_dir():  # torch sets it itself
        given = None
    folder = Path(given).absolute() if given else caches / "compiled" if caches else None
    fault = "there is no home folder" if folder is None else write_fault(folder)
    if folder is not None and not fault and (free := free_bytes(folder)) < CODE_BYTES:
        fault = f"{folder} has {show_size(free)} left, less than {show_size(CODE_BYTES)}"
    if folder is not None and not fault:
        return folder, []
    folder = temporary_caches() / "compiled"
    return folder, [printable(f"compiled code: {folder}, because {fault}; set {CACHE} to a folder that is kept")]


def compile_network(network: nn.Module, config: TrainConfig) -> None:
    """Compiles a network in place, as `train.compile` specifies; the names of its weights stay.

    Of several residual blocks with equal parts and shapes, one is compiled. Code is compiled in the first forward and
    backward pass, for a fixed shape. Raises ValueError for regional compilation of a network without residual blocks.
    """
    use_when_compiled(next(network.parameters()).device)
    if config.compile == "full":
        network.compile(mode="reduce-overhead" if config.cuda_graphs else None, dynamic=False)
    elif config.compile == "regional":
        if not (blocks := list(_outermost(network, Residual))):
            raise ValueError("train.compile=regional: the network has no residual blocks; use full or off")
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS_OF_BLOCKS)
        for block in blocks:
            block.compile(dynamic=False)


def compile_for_drawing(network: nn.Module, device: torch.device) -> None:
    """Compiles a network in place, for inputs of fixed shapes and without gradients.

    On a CPU its weights become constants of the code, whose layout the compiler chooses (`freezing`). On CUDA its
    kernels are recorded once for each shape and replayed (CUDA graphs); outputs are copied, because the next replay
    overwrites them.
    """
    torch._inductor.config.freezing = device.type == "cpu"
    if device.type != "cuda":
        network.compile(dynamic=False)
        return
    use_when_compiled(device)
    network.compile(dynamic=False, mode="reduce-overhead")
    replay: Any = network._compiled_call_impl
    network._compiled_call_impl = lambda *inputs, **options: replay(*inputs, **options).clone()


@contextmanager
def explain_compile_error(
    option: str, otherwise: str, what: str = "the network", anything: bool = False
) -> Iterator[None]:
    """Raises ValueError with `option` and `otherwise` if compilation fails inside the block.

    With `anything` every error counts, not only those that come from the compiler.
    """
    try:
        yield
    except Exception as error:
        from_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        if not anything and (not from_compiler or is_out_of_memory(error)):
            raise
        reason = str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0]
        tools = "a C++ compiler (or CXX) on a CPU, Triton on a GPU"
        text = f"{option}: {what} cannot be compiled ({reason}); install {tools}, or {otherwise}"
        raise ValueError(text) from error


def _outermost(module: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """The modules of a kind that are in no other one of that kind."""
    for child in module.children():
        if isinstance(child, kind):
            yield child
        else:
            yield from _outermost(child, kind)
