"""`train.compile`: what is compiled, where the code is kept, and what happens without a compiler."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch._inductor.exc import InductorError
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.testing import assert_close

from residual import Chain, Residual
from tests.training.toy import BATCH, ToyTask, accelerator, config, train
from training import compile as compiling
from training.cli import parse
from training.compile import CACHE, code_folder, compile_for_drawing, compile_network, explain_compile_error
from training.config import TrainConfig
from training.run import Run
from training.units import show_size
from training.yaml_file import write_yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by torch.compile itself


@pytest.fixture
def graphs(monkeypatch, tmp_path) -> Iterator[list[int]]:
    """The numbers of operations of the graphs that torch.compile makes; they run as they are."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        found.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    monkeypatch.setenv(CACHE, str(tmp_path / "code"))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield found


def block(width: int) -> Residual:
    return Residual(Chain(conv=nn.Conv2d(width, width, 3, padding=1), inner=Residual(nn.SiLU())))


class Settings(Run):
    """The settings that all tasks have."""

    def build(self, images: object) -> object:
        raise NotImplementedError


@pytest.mark.parametrize(("given", "expected"), [("true", "full"), ("false", "off"), ("off", "off")])
def test_true_is_full_and_false_is_off(tmp_path, given, expected):
    run = parse({"settings": Settings}, ["--train.compile", given])
    assert run.run.train.compile == expected
    path = tmp_path / "run.yaml"
    for text in (f"train: {{compile: {given}}}\n", write_yaml(run.resolved)):
        path.write_text(text)
        assert parse({"settings": Settings}, ["--config", str(path)]).run == run.run


def test_equal_blocks_share_their_code(graphs):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *map(block, (4, 4, 4)), nn.Conv2d(4, 2, 1), *map(block, (2, 2)))
    x = torch.randn(2, 3, 8, 8)
    expected = network(x)
    compile_network(network, TrainConfig(compile="regional"))
    assert_close(network(x), expected)
    assert len(graphs) == 2
    assert list(network.state_dict()) == list(nn.Sequential(*network).state_dict())


def test_no_block_is_left_out_when_all_differ(graphs):
    network = nn.ModuleList(Residual(nn.Linear(width, width)) for width in range(1, 11))
    compile_network(network, TrainConfig(compile="regional"))
    for width, each in enumerate(network, 1):
        each(torch.randn(1, width))
    assert len(graphs) == 10


def test_a_network_without_blocks_cannot_be_compiled_by_blocks():
    with pytest.raises(ValueError, match=r"train\.compile=regional: .*no residual blocks; use full or off"):
        compile_network(nn.Linear(1, 1), TrainConfig(compile="regional"))


class Blocks(ToyTask):
    """Two equal residual blocks, which type checks do not hinder."""

    def __init__(self) -> None:
        super().__init__()
        self.model.norm = nn.Sequential(block(8), block(8))


def test_a_run_compiled_by_blocks_shows_the_time_of_its_first_update(tmp_path, graphs, capsys):
    compiled, plain = Blocks(), Blocks()
    compiled.model.load_state_dict(plain.model.state_dict())
    train(tmp_path / "a", compiled, images=3 * BATCH, compile="regional")
    printed = capsys.readouterr().out
    assert f"train.compile=regional: compiled code is kept in {tmp_path / 'code'}" in printed
    assert "train.compile=regional: the first update, with compilation, took " in printed
    assert len(graphs) == 2, "the test of the compiler, and both blocks"
    train(tmp_path / "b", plain, images=3 * BATCH)
    assert_close(compiled.model.state_dict(), plain.model.state_dict())
    rows = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert ["first_update_seconds" in row for row in rows] == [True, False, False, False]
    assert ["images_per_second" in row for row in rows] == [False, True, True, False], "the first is not timed"


def fail(error: Exception) -> object:
    def compile_nothing(function: object, **options: object) -> object:
        def call(x: Tensor) -> Tensor:
            raise error

        return call

    return compile_nothing


@pytest.mark.parametrize("mode", ["full", "regional"])
@pytest.mark.parametrize(
    "error",
    [
        InductorError(RuntimeError("InvalidCxxCompiler: No working C++ compiler found"), None),
        RuntimeError("Cannot find a working triton installation"),
        OSError(28, "No space left on device"),
        ImportError("cannot import name 'ASTSource' from 'triton.compiler'"),
    ],
)
def test_without_a_compiler_nothing_starts(monkeypatch, tmp_path, mode, error):
    monkeypatch.setattr(torch, "compile", fail(error))
    monkeypatch.setenv(CACHE, str(tmp_path))
    with pytest.raises(ValueError, match=rf"train\.compile={mode}: .*for cpu.*install.*train\.compile=off"):
        accelerator(config(compile=mode))
    accelerator(config(compile="off"))


def test_an_error_of_the_compiler_in_an_update_is_one_line():
    error = InductorError(RuntimeError("CppCompileError"), None)
    text = r"train\.compile=full: the network.*CppCompileError.*train\.compile=off"
    with pytest.raises(ValueError, match=text), explain_compile_error(*TrainConfig(compile="full").compile_option):
        raise error
    for other in (RuntimeError("shapes differ"), InductorError(torch.OutOfMemoryError("CUDA out of memory"), None)):
        with pytest.raises(type(other)), explain_compile_error(*TrainConfig(compile="full").compile_option):
            raise other


def test_the_code_is_kept_in_the_caches_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert code_folder() == (tmp_path / "residual-diffusion/compiled", [])
    monkeypatch.setenv(CACHE, default_cache_dir())  # as torch itself does
    assert code_folder() == (tmp_path / "residual-diffusion/compiled", [])
    monkeypatch.setenv(CACHE, str(tmp_path / "other"))
    assert code_folder() == (tmp_path / "other", [])


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only", "full", "/proc/code"])
def test_a_folder_that_takes_no_code_is_replaced_with_a_line(monkeypatch, tmp_path, kind):
    folder = {"below a file": tmp_path / "a file/code", "/proc/code": Path("/proc/code")}.get(kind, tmp_path / kind)
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(CACHE, str(folder))
    if kind == "full":
        monkeypatch.setattr(compiling, "free_bytes", lambda folder: 3 << 20)
    if kind == "read-only":
        monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: (_ for _ in ()).throw(PermissionError(13, "refused")))
    found, (line,) = code_folder()
    assert found == tmp_path / f"residual-diffusion-{os.getuid()}" / "compiled"
    assert str(found) in line
    assert f"because {folder}" in line
    assert f"set {CACHE}" in line
    assert kind != "full" or show_size(3 << 20) in line


@pytest.mark.slow
def test_a_second_process_finds_the_code_of_the_first(tmp_path):
    """Also if entries of the cache are damaged, or are other data; and without a compiler there is one line."""
    script = """
import sys, torch
from training.compile import require_compiler
require_compiler("train.compile=full", "give train.compile=off", torch.device("cpu"))
print(dict(torch._dynamo.utils.counters["inductor"]))
"""
    environment = os.environ | {CACHE: str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        command, more = [sys.executable, "-c", script], environment | changes
        return subprocess.run(command, env=more, capture_output=True, text=True, timeout=600, cwd=tmp_path)

    assert "'fxgraph_cache_miss': 1" in run().stdout
    assert "'fxgraph_cache_hit': 1" in run().stdout
    for path in (tmp_path / "fxgraph").rglob("*"):
        if path.is_file():
            path.write_bytes(b"other data")
    assert run().returncode == 0
    assert "train.compile=full" in run(CXX="/bin/false").stderr


def test_graphs_that_draw_on_cuda_return_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the replayed graph writes its output to the same memory each time."""
    memory, asked = torch.zeros(2), dict[str, object]()

    def stand_in(call: object, **options: object) -> object:
        asked.update(options)
        return lambda x: memory.copy_(x)

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(compiling, "use_when_compiled", lambda _: None)
    net = nn.Identity()
    compile_for_drawing(net, torch.device("cuda"))
    first, second = net(torch.ones(2)), net(torch.full((2,), 2.0))
    assert asked == {"dynamic": False, "mode": "reduce-overhead"}
    assert_close((first, second), (torch.ones(2), torch.full((2,), 2.0)))
