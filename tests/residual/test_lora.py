"""LoRA by PEFT: nothing changes at first, only the additions are trained, and merged weights give the same output."""

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import resnet
from residual import Chain, Residual, count
from residual.lora import add_lora, lora_state, merge_lora, merged
from unet import UNet, UNetConfig

TINY = UNetConfig(
    in_channels=1, out_channels=1, size=(8, 8), base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1,
    attention_levels=(1,), groups=4,
)  # fmt: skip


def shaken(net: nn.Module) -> nn.Module:
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1)
    return net.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["unet", "resnet"])
def test_training_changes_the_additions_alone_and_merging_keeps_the_output(kind: str) -> None:
    torch.manual_seed(0)
    net = shaken(UNet(TINY) if kind == "unet" else resnet.create_model("resnet20", in_channels=1, num_classes=3))
    x = torch.randn(2, 1, 8, 8)
    given = (x, torch.tensor([5.0, 900.0])) if kind == "unet" else (x,)
    before, own, parameters = net(*given), dict(net.state_dict()), count.parameters(net)
    layers = add_lora(net, rank=2)
    assert any("attn" in name for name in layers) == (kind == "unet")
    assert_close(net(*given), before, rtol=0, atol=0)
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained == set(lora_state(net))
    assert sum(tensor.numel() for tensor in lora_state(net).values()) == count.parameters(net) - parameters
    with pytest.raises(ValueError, match="LoRA already"):
        add_lora(net)
    optimizer = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(3):
        net(*given).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = net(*given).detach()
    assert (changed - before).abs().max() > 1e-3
    stored = {name: tensor.clone() for name, tensor in lora_state(net).items()}
    merge_lora(net)
    assert net.state_dict().keys() == own.keys()
    assert all(weight.requires_grad for weight in net.parameters())
    assert_close(net(*given), changed, rtol=1e-4, atol=1e-5)
    assert not lora_state(net)
    assert merged(net) is net
    other = shaken(type(net)(net.config))
    other.load_state_dict(own)
    add_lora(other, rank=2)
    other.load_state_dict(stored, strict=False)
    assert other(*given).shape == changed.shape


def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    net = UNet(TINY)
    with pytest.raises(ValueError, match="rank=0"):
        add_lora(net, rank=0)
    with pytest.raises(ValueError, match=r"rank=9 .*at most 8"):
        add_lora(net, rank=9)
    with pytest.raises(ValueError, match="head"):
        add_lora(net, also=("heads.conv",))
    for options in ({"groups": 2}, {"dilation": 2}):
        with pytest.raises(ValueError, match="has a convolution for LoRA"):
            add_lora(Residual(Chain(conv=nn.Conv2d(4, 4, 3, padding=1, **options))))
    with pytest.raises(ValueError, match="has a convolution for LoRA"):
        add_lora(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="add_lora"):
        merge_lora(net)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="peft"):
        add_lora(net)
    assert all(weight.requires_grad for weight in net.parameters())
