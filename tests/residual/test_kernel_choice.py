"""When the kernel replaces PyTorch's operations in NormAct. No test needs Triton: a stub stands for the kernel."""

import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.testing import assert_close

from residual import NormAct, kernel_choice


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RESIDUAL_TRITON", raising=False)
    loader = kernel_choice._triton_kernel
    loader.cache_clear()
    yield
    loader.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Lets a stub of the kernel serve the CPU; the list receives the `silu` of every call."""
    seen: list[bool] = []

    def stub(x, weight, bias, scale, shift, groups, eps, silu) -> Tensor:
        seen.append(silu)
        h = F.group_norm(x, groups, weight, bias, eps)
        if scale is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h) if silu else h

    monkeypatch.setattr("residual.norm.KERNEL_DEVICES", {"cpu"})
    monkeypatch.setattr(kernel_choice, "_triton_kernel", lambda device: stub)
    return seen


def plain(node: NormAct, x: Tensor, emb: Tensor | None = None) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("residual.norm.KERNEL_DEVICES", set())
        return node(x, emb)


@pytest.mark.parametrize("emb_channels", [None, 5])
@pytest.mark.parametrize(("act", "silu"), [(nn.SiLU, True), (None, False), (nn.ReLU, False)])
def test_ordinary_calls_use_the_kernel(calls: list[bool], emb_channels, act, silu) -> None:
    node, x = NormAct(8, emb_channels, groups=4, act=act), torch.randn(2, 8, 3, 3)
    emb = None if emb_channels is None else torch.randn(2, emb_channels)
    assert_close(node(x, emb), plain(node, x, emb))
    assert calls == [silu]


def test_hooks_of_the_activation_run(calls: list[bool]) -> None:
    node, x, seen = NormAct(8), torch.randn(2, 8, 3, 3), []
    assert node.act is not None
    handle = node.act.register_forward_hook(lambda module, args, out: seen.append(out))
    y = node(x)
    assert (calls, len(seen)) == ([False], 1)
    assert_close(y, plain(node, x))
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    node(x)
    handle.remove()
    node(x)
    assert calls == [False, False, True]


def test_function_transforms_use_plain_operations(calls: list[bool]) -> None:
    node, x = NormAct(8), torch.randn(3, 2, 8, 3, 3)
    weights = dict(node.named_parameters())

    def loss(weights, x) -> Tensor:
        return functional_call(node, weights, (x,)).square().mean()

    gradients = vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    expected = torch.autograd.grad(plain(node, x[1]).square().mean(), list(node.parameters()))
    assert_close([gradient[1] for gradient in gradients.values()], list(expected))
    jvp(node, (x[0],), (x[0],))
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(node(forward_ad.make_dual(x[0], x[1]))).tangent is not None
    assert calls == []


def test_traced_networks_and_other_tensors_use_plain_operations(calls: list[bool]) -> None:
    node, x = NormAct(8), torch.randn(2, 8, 3, 3)
    exported = torch.export.export(node, (x,), strict=False).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(node, x, check_trace=False)
    for network in (exported, traced):
        assert_close(network(x), plain(node, x))
    assert NormAct(8)(torch.empty(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert calls == []


def test_the_switch_turns_the_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUAL_TRITON", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_choice.kernel_for(torch.ones(1)) is None


def test_other_values_of_the_switch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUAL_TRITON", "off")
    with pytest.raises(ValueError, match=r"RESIDUAL_TRITON='off'.*0"):
        kernel_choice.kernel_for(torch.ones(1))


def test_missing_triton_is_a_warning_and_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "residual.norm_triton", raising=False)
    with pytest.warns(UserWarning, match=r"PyTorch's operations.*triton"):
        assert kernel_choice.kernel_for(torch.ones(1)) is None
    assert kernel_choice.kernel_for(torch.ones(1)) is None  # without another warning


def test_old_triton_is_a_warning_and_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("triton")
    old.__version__ = "3.5.1"  # type: ignore[attr-defined]
    old.language = ModuleType("triton.language")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", old)
    monkeypatch.setitem(sys.modules, "triton.language", old.language)
    monkeypatch.delitem(sys.modules, "residual.norm_triton", raising=False)
    with pytest.warns(UserWarning, match=r"PyTorch's operations.*3\.5\.1.*3\.6"):
        assert kernel_choice.kernel_for(torch.ones(1)) is None


def test_kernels_that_cannot_be_compiled_are_a_warning_and_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("residual.norm_triton")

    def norm_act(*arguments: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    broken.norm_act = norm_act  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "residual.norm_triton", broken)
    with pytest.warns(UserWarning, match=r"PyTorch's operations.*Failed to find C compiler\.$"):
        assert kernel_choice.kernel_for(torch.ones(1)) is None
