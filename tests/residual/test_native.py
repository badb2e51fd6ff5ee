"""The compiled functions of the CPU: equal to PyTorch's operations, and optional."""

import copy
import os
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import unet
from residual import NormAct, native
from residual.norm import Dropout

LAST = torch.channels_last


@pytest.fixture(scope="module")
def library() -> object:
    """The compiled functions, from the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESIDUAL_KERNELS")
        native.load()  # compiles, if this is the first time
        native.unload()
        line, found = native.load(), native.library
    native.unload()
    if found is None:
        pytest.skip(line)
    return found


@pytest.fixture
def kernels(library: object, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Switches the compiled functions on; the names of those that are called."""
    called: list[str] = []
    call = native.call

    def record(name: str, *args: object) -> None:
        called.append(name)
        call(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "library", library)
    monkeypatch.setattr(native, "call", record)
    return called


def outputs(node: nn.Module, *inputs: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, gradients of the inputs and gradients of the parameters."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=leaves[0].dtype is torch.bfloat16):
        y = node(*leaves)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(x.grad for x in leaves), *(p.grad for p in node.parameters())]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("dtype", "act"),
    [*((dtype, act) for dtype in (torch.float32, torch.bfloat16) for act in (nn.SiLU, None)), (torch.float32, nn.ReLU)],
)
@pytest.mark.parametrize("emb_channels", [5, None])
def test_norm_act_equals_the_plain_path(kernels: list[str], dtype, act, emb_channels) -> None:
    node = NormAct(24, emb_channels, groups=6, act=act)
    for weight in node.parameters():
        nn.init.normal_(weight)
    x = (2 * torch.randn(3, 24, 5, 30) + 1).to(dtype).contiguous(memory_format=LAST)
    inputs, dy = (x,) if emb_channels is None else (x, torch.randn(3, 5)), torch.randn(x.shape)
    fast = outputs(copy.deepcopy(node), *inputs, dy=dy)
    assert kernels == ["norm_act", "norm_act_backward"]
    assert fast[0].dtype == dtype
    assert fast[0].is_contiguous(memory_format=LAST)
    native.unload()
    exact = outputs(copy.deepcopy(node).double(), *(i.double() for i in inputs), dy=dy.to(dtype).double())
    if dtype is torch.float32:
        assert_close([f.double() for f in fast], exact, rtol=1e-5, atol=2e-5)
        return
    plain = outputs(copy.deepcopy(node), *inputs, dy=dy)  # rounds to bf16 between norm, scale, shift and activation
    for f, p, e in zip(fast, plain, exact, strict=True):
        assert (f.double() - e).norm() <= (p.double() - e).norm() + 1e-4 * e.norm()


def test_a_first_pixel_far_from_the_others_costs_no_accuracy(kernels: list[str]) -> None:
    x = (0.1 + 1e-3 * torch.randn(1, 4, 128, 128)).contiguous(memory_format=LAST)
    x[:, :, 0, 0] = 1000.0
    exact = F.group_norm(x.double(), 2)
    y = NormAct(4, groups=2, act=None)(x).double()
    assert kernels == ["norm_act"]
    assert (y - exact).norm() <= 5e-4 * exact.norm()


@pytest.mark.parametrize("bits", [-1, 0x7FFFFFFF])
def test_weights_that_are_not_numbers_give_no_numbers(kernels: list[str], bits: int) -> None:
    node = NormAct(8, groups=2)
    node.weight.data.view(torch.int32).fill_(bits)
    assert node(torch.randn(2, 8, 3, 3).bfloat16().contiguous(memory_format=LAST)).isnan().all()
    assert kernels == ["norm_act"]


def test_silu_far_below_zero_is_zero(kernels: list[str]) -> None:
    node = NormAct(2, groups=1)
    node.bias.data = torch.tensor([-1e30, -100.0])
    x = torch.randn(1, 2, 3, 3).contiguous(memory_format=LAST).requires_grad_()
    y = node(x)
    y.sum().backward()
    assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-20)
    assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-20)


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_embedding_of_the_image_itself_counts_once(kernels: list[str], create_graph: bool) -> None:
    node, start = NormAct(8, 8, groups=2), torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST)

    def gradients() -> list[Tensor]:
        x = start.clone().requires_grad_()
        y = node(x, x.mean(dim=(2, 3)) @ torch.full((8, 8), 0.3))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=create_graph)
        return [first, torch.autograd.grad(first.square().sum(), x)[0]] if create_graph else [first]

    fast = gradients()
    assert "norm_act" in kernels
    native.unload()
    assert_close(fast, gradients(), rtol=1e-3, atol=1e-3)


def test_saved_tensors_may_return_in_another_layout(kernels: list[str]) -> None:
    node, start = NormAct(8, groups=2), torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST)

    def gradient() -> Tensor:
        x = start.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.contiguous(), lambda tensor: tensor):
            return torch.autograd.grad(node(x).square().sum(), x)[0]

    fast = gradient()
    assert kernels == ["norm_act", "norm_act_backward"]
    native.unload()
    assert_close(fast, gradient(), rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_fit_keep_the_plain_path(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_CHANNELS", 7)
    NormAct(8, groups=2)(torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST))
    assert kernels == []


def test_another_value_of_the_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUAL_KERNELS", "off")
    with pytest.raises(ValueError, match=r"RESIDUAL_KERNELS='off'.*0"):
        native.load()


def test_a_large_mean_costs_no_accuracy(kernels: list[str]) -> None:
    x = (1000 + torch.randn(2, 8, 16, 16)).contiguous(memory_format=LAST)
    assert_close(NormAct(8, groups=2, act=None)(x), F.group_norm(x.double(), 2).float(), rtol=0, atol=2e-4)
    assert kernels == ["norm_act"]


def test_extreme_and_missing_values(kernels: list[str]) -> None:
    node, x = NormAct(2, groups=1), torch.zeros(2, 2, 2, 1).contiguous(memory_format=LAST)
    x[1, 0, 0, 0] = float("nan")
    node.bias.data = torch.tensor([-500.0, 500.0])
    y = node(x)
    assert_close(y[0, :, 0, 0], torch.tensor([0.0, 500.0]))
    assert y[1].isnan().all()


def test_several_threads_give_the_same_bits(kernels: list[str]) -> None:
    node, x, dy = NormAct(32), torch.randn(5, 32, 4, 4).contiguous(memory_format=LAST), torch.randn(5, 32, 4, 4)
    one, threads = outputs(copy.deepcopy(node), x, dy=dy), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_close(outputs(node, x, dy=dy), one, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)
    assert len(kernels) == 4


@pytest.mark.parametrize("frozen", ["input", "weights"])
def test_frozen_parts_need_no_gradient(kernels: list[str], frozen: str) -> None:
    node, x = NormAct(8, groups=2).requires_grad_(frozen == "input"), torch.randn(2, 8, 3, 3)
    x = x.contiguous(memory_format=LAST).requires_grad_(frozen == "weights")
    node(x).square().sum().backward()
    fast = [leaf.grad for leaf in (x, *node.parameters())]
    assert kernels == ["norm_act", "norm_act_backward"]
    native.unload()
    x.grad = None
    node.zero_grad()
    node(x).square().sum().backward()
    assert_close(fast, [leaf.grad for leaf in (x, *node.parameters())], rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_equal_the_plain_path(kernels: list[str]) -> None:
    node, x = NormAct(8, groups=2), torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST).requires_grad_()

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(node(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), node.weight)[0]

    fast = penalty()
    assert "norm_act" in kernels
    native.unload()
    assert_close(fast, penalty(), rtol=1e-4, atol=1e-4)


def test_transforms_keep_the_plain_path_and_checkpoints_do_not(kernels: list[str]) -> None:
    node, x = NormAct(8, groups=2), torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST)
    torch.func.vmap(torch.func.grad(lambda row: node(row[None]).sum()))(x)
    torch.func.jvp(node, (x,), (x,))
    NormAct(8, groups=2).double()(x.double())
    NormAct(8, groups=2)(x.contiguous())
    assert kernels == []
    checkpoint(node, x.requires_grad_(), use_reentrant=False).sum().backward()
    assert kernels == ["norm_act", "norm_act", "norm_act_backward"]


def test_a_compiled_network_is_one_graph_of_plain_operations(kernels: list[str], monkeypatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler would trace the type checks, too
    torch.compiler.reset()
    net, x = nn.Sequential(NormAct(8), nn.Conv2d(8, 8, 1), Dropout(0.5), NormAct(8)), torch.randn(2, 8, 3, 3)
    torch.compile(net, backend=backend)(x.contiguous(memory_format=LAST))
    assert len(graphs) == 1
    assert kernels == []


def test_hooks_of_the_activation_are_called(kernels: list[str]) -> None:
    node, x, seen = NormAct(8, groups=2), torch.randn(2, 8, 3, 3).contiguous(memory_format=LAST), []
    silu = node(x)
    assert node.act is not None
    node.act.register_forward_hook(lambda module, args, y: seen.append(y))
    assert_close(node(x), silu, rtol=1e-5, atol=1e-6)
    assert len(seen) == 1
    assert kernels == ["norm_act", "norm_act"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_a_share_and_keeps_the_mean(kernels: list[str], dtype: torch.dtype) -> None:
    node, x = Dropout(0.25), torch.randn(8, 64, 32, 32).to(dtype).contiguous(memory_format=LAST).requires_grad_()
    y = node(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    dropped = gradient == 0
    assert kernels == ["dropout", "dropout"]
    assert y.is_contiguous(memory_format=LAST)
    assert abs(dropped.double().mean() - 0.25) < 5 * (0.25 * 0.75 / x.numel()) ** 0.5
    assert_close(y, torch.where(dropped, 0, x / 0.75))
    assert_close(gradient[~dropped], torch.full_like(gradient[~dropped], 1 / 0.75))


def test_dropout_of_nearly_everything(kernels: list[str]) -> None:
    assert not Dropout(1 - 1e-12)(torch.ones(2, 4, 3, 3).contiguous(memory_format=LAST)).any()
    assert kernels == ["dropout"]


def test_dropout_masks_are_independent_and_repeat_with_the_generator(kernels: list[str]) -> None:
    node, x = Dropout(0.5), torch.ones(1, 4, 256, 256).contiguous(memory_format=LAST)
    state = torch.get_rng_state()
    first, second = (node(x).permute(0, 2, 3, 1).flatten() - 1 for _ in range(2))  # -1 or 1, in the order of memory
    torch.set_rng_state(state)
    assert_close(node(x).permute(0, 2, 3, 1).flatten() - 1, first, rtol=0, atol=0)
    for shifted in (second, *(first.roll(lag) for lag in (1, 2, 4, 16, 64, 1024))):
        assert abs((first * shifted).mean()) < 5 * x.numel() ** -0.5


def test_dropout_keeps_the_plain_path_outside_training_and_of_transforms(kernels: list[str]) -> None:
    x = torch.ones(2, 4, 3, 3).contiguous(memory_format=LAST)
    assert_close(Dropout(0.5).eval()(x), x)
    assert_close(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    given = x.clone(memory_format=torch.preserve_format)
    assert Dropout(0.5, inplace=True)(given) is given
    Dropout(0.5)(x.contiguous().double())
    torch.func.vmap(Dropout(0.5), randomness="different")(x)
    assert kernels == []


def test_a_unet_in_bf16_is_no_less_accurate(kernels: list[str]) -> None:
    net = unet.create_model("iddpm-cifar10", base_channels=16, blocks_per_level=1, dropout=0.0).to(memory_format=LAST)
    for weight in net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    x, t = torch.randn(2, 3, 32, 32).contiguous(memory_format=LAST), torch.tensor([3, 800])

    def run(bf16: bool) -> tuple[Tensor, Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = net(x, t)
        y.float().square().mean().backward()
        return y.detach().float(), torch.cat([w.grad.flatten() for w in net.parameters()])  # type: ignore[union-attr]

    fast, fast32 = run(bf16=True), run(bf16=False)
    assert len(kernels) > 60
    native.unload()
    plain, exact = run(bf16=True), run(bf16=False)
    for i in range(2):  # output, gradients
        assert_close(fast32[i], exact[i], rtol=1e-3, atol=1e-5)
        errors = [((found[i] - exact[i]).norm() / exact[i].norm()).item() for found in (fast, plain)]
        assert errors[0] < 1.2 * errors[1] + 1e-3
        assert errors[0] < (0.02, 0.05)[i]


FAKE = """import shutil, sys
open("{log}", "a").write("x")
shutil.copyfile("{built}", sys.argv[sys.argv.index("-o") + 1])
"""


@pytest.fixture
def compiler(library: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a compiler that copies the library; the file with an x for each call."""
    log, script = tmp_path / "log", tmp_path / "cc.py"
    script.write_text(FAKE.format(log=log, built=library._name))  # type: ignore[attr-defined]
    monkeypatch.setenv("CC", f"{sys.executable} {script}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RESIDUAL_KERNELS")
    monkeypatch.setattr(native, "library", None)
    return log


def test_compiled_once_and_again_if_the_file_is_damaged(compiler: Path, tmp_path: Path) -> None:
    for _ in range(2):
        native.unload()
        assert native.load() == "CPU kernels: used"
    assert compiler.read_text() == "x"
    (kept,) = (tmp_path / "cache" / "residual-diffusion").iterdir()
    kept.write_bytes(b"other data")
    native.unload()
    assert native.load() == "CPU kernels: used"
    assert compiler.read_text() == "xx"


@pytest.mark.parametrize("case", ["a file", "open to others"])
def test_without_a_cache_folder_of_ones_own_every_process_compiles(compiler: Path, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "cache" / "residual-diffusion"
    folder.parent.mkdir()
    if case == "a file":
        folder.write_text("other data")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    for _ in range(2):
        native.unload()
        assert native.load() == "CPU kernels: used"
    assert compiler.read_text() == "xx"
    assert case == "a file" or not list(folder.iterdir())


@pytest.mark.parametrize(("command", "message"), [("no-such-compiler", "no-such-compiler"), ("false", "exit code 1")])
def test_without_a_compiler_the_plain_path_is_used(compiler: Path, monkeypatch, command: str, message: str) -> None:
    monkeypatch.setenv("CC", command)
    line = native.load()
    assert message in line
    assert "\n" not in line
    assert native.library is None


def test_the_kernels_can_be_switched_off(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["RESIDUAL_KERNELS"] == "0"
    assert "RESIDUAL_KERNELS=0" in native.load()
    assert native.library is None
