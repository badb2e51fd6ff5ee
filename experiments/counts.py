"""Shapes and numbers of parameters of published networks.

Claim: the published tables of parameters, and the formulas of basic blocks, bottlenecks and shortcuts. Measured are the
counts of the networks of the zoo, built without memory, against the published numbers. Another count would refute it.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

import resnet
from experiments.finding import Claim, Curve, Finding, Panel, holds
from experiments.nets import replace_parts
from experiments.run import Settings, main
from residual import Residual, basic_branch, bottleneck_branch, conv3x3, projection
from residual.count import multiply_adds, on_meta, parameters
from resnet import create_model, model_info

RESNETS = {  # item: name, blocks per stage, parameters, entries of torchvision's state dict
    45: ("resnet18", (2, 2, 2, 2), 11_689_512, 122),
    46: ("resnet34", (3, 4, 6, 3), 21_797_672, 218),
    47: ("resnet50", (3, 4, 6, 3), 25_557_032, 320),
    48: ("resnet101", (3, 4, 23, 3), 44_549_160, 626),
    49: ("resnet152", (3, 8, 36, 3), 60_192_808, 932),
}
OTHERS = {  # item: names and parameters
    38: {"preact_resnet1001": 10_327_706},
    61: {"resnext50_32x4d": 25_028_904, "resnext29_8x64d": 34_426_698},
    62: {"densenet121": 7_978_856, "densenet_bc_100_12": 769_162},
    63: {"wide_resnet50_2": 68_883_240, "wrn_28_10": 36_479_194},
    64: {"seresnet50": 28_088_024},
    65: {"resnest50d": 27_483_240},
}
UNITS = {"resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 33, "resnet152": 50}
SHORTCUTS = {"A": 269_722, "B": 272_474, "C": 283_962}


def measure(settings: Settings) -> Finding:
    """Counts of networks, blocks and shortcuts."""
    claims, rows = [], list[list[str | float]]()
    for item, (name, blocks, count, entries) in RESNETS.items():
        net = on_meta(partial(create_model, name))
        found = parameters(net), len(net.state_dict())
        rows.append([name, count, found[0]])
        config = model_info(name).config
        assert isinstance(config, resnet.ResNetConfig)
        text = f"{name}: {found[0]:,} parameters in {found[1]} entries, blocks {list(config.blocks_per_stage)}"
        claims.append(Claim(item, text, holds(found == (count, entries) and config.blocks_per_stage == blocks)))
    for item, published in OTHERS.items():
        counts = {name: parameters(on_meta(partial(create_model, name))) for name in published}
        rows += [[name, published[name], count] for name, count in counts.items()]
        text = ", ".join(f"{name}: {count:,} parameters" for name, count in counts.items())
        claims.append(Claim(item, text, holds(counts == published)))
    counts = {name: parameters(on_meta(partial(with_shortcut, name))) for name in SHORTCUTS}
    rows += [[f"resnet20, shortcuts {name}", SHORTCUTS[name], count] for name, count in counts.items()]
    net50 = on_meta(partial(create_model, "resnet50"))
    units = {
        name: sum(isinstance(m, Residual) for m in on_meta(partial(create_model, name)).modules()) for name in UNITS
    }
    macs = multiply_adds(net50, torch.empty(1, 3, 224, 224, device="meta"))
    basic, bottleneck = formulas(20)
    narrow = weights(bottleneck_branch(256, 64, 256)), weights(basic_branch(64, 64))
    kinds = {name: model_info(name).config.block for name in UNITS}  # type: ignore[union-attr]
    sizes = {side: conv3x3(1, 1)(torch.zeros(1, 1, side, side)).shape[-1] for side in (1, 7, 8, 32, 33)}
    assert isinstance(net50, resnet.Classifier)
    levels = net50.feature_info
    claims += [
        Claim(
            6,
            f"a 3×3 convolution with padding 1 keeps sides {list(sizes)}",
            holds(all(a == b for a, b in sizes.items())),
        ),
        Claim(
            7,
            f"resnet50: channels and total stride by level {levels}",
            holds(levels == [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]),
        ),
        Claim(
            14,
            f"residual blocks: {listed(units)}; ResNet-34 has 16 blocks of two layers, not 34",
            holds(units["resnet34"] == 34),
        ),
        Claim(
            43,
            f"weights of a bottleneck 256-64-256: {narrow[0]:,}, of a basic block of 64: {narrow[1]:,}",
            holds(narrow == (69_632, 73_728)),
        ),
        Claim(44, f"blocks by depth: {listed(kinds)}", holds([*kinds.values()] == ["basic"] * 2 + ["bottleneck"] * 3)),
        Claim(50, f"resnet50 at 224 px: {macs / 1e9:.3f}·10⁹ multiply-adds", holds(abs(macs / 1e9 - 4.089) < 5e-4)),
        Claim(
            85,
            f"9 (c c' + c'²) of a basic block and c m + 9 m² + m c', m = c'/4, of a bottleneck: {basic} and "
            f"{bottleneck} of 20 random widths agree",
            holds(basic == bottleneck == 20),
        ),
        Claim(86, f"resnet20 with shortcuts {listed(counts)}", holds(counts == SHORTCUTS)),
    ]
    names = [str(row[0]) for row in rows[:5]]
    curves = [
        Curve(name, names, [float(row[i]) / 1e6 for row in rows[:5]]) for i, name in ((1, "published"), (2, "built"))
    ]
    panel = Panel("network", "parameters (millions)", curves)
    columns = {"network": "", "published": "parameters", "built": "parameters"}
    return Finding("Networks have exactly their published numbers of parameters", columns, rows, claims, [panel])


def listed(values: Mapping[str, object]) -> str:
    """Names with values in one line."""
    return ", ".join(
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}" for name, value in values.items()
    )


def weights(branch: nn.Module) -> int:
    """The number of weights of the convolutions of a branch."""
    return sum(module.weight.numel() for module in branch.modules() if isinstance(module, nn.Conv2d))


def formulas(count: int) -> tuple[int, int]:
    """How many of `count` random pairs of widths have the weights that the formulas give, per kind of block."""
    basic = bottleneck = 0
    for c, c_out in (4 * torch.randint(1, 64, (count, 2))).tolist():
        m = c_out // 4
        basic += weights(basic_branch(c, c_out)) == 9 * c * c_out + 9 * c_out**2
        bottleneck += weights(bottleneck_branch(c, m, c_out)) == c * m + 9 * m**2 + m * c_out
    return basic, bottleneck


def with_shortcut(name: str) -> nn.Module:
    """ResNet-20 with the shortcuts of an option: zeros (A), projections where shapes change (B), everywhere (C)."""
    net = create_model("resnet20", shortcut="B" if name == "C" else name)
    if name == "C":
        replace_parts(net, lambda channels: projection(channels, channels, norm=nn.BatchNorm2d), "shortcut")
    return net


if __name__ == "__main__":
    main(measure)
