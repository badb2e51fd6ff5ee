"""Forward time of a ResNet of the zoo against the same network written in plain `torch.nn` modules, side by side.

    python -m benchmarks.zoo_forward --model resnet50 --batch 4 --size 224 --pairs 40

Ours, the plain one and a second copy of ours (the A/A control) run in turn, in an order that changes each round; what
is printed is the median of the ratios within a round, with its quartiles. Nothing inside the control's spread is a win.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

import resnet
from benchmarks.forward import measure

MODELS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]


class PlainBlock(nn.Module):
    """A basic block or bottleneck, written out as in torchvision."""

    conv1: nn.Module
    conv2: nn.Module
    conv3: nn.Module
    bn1: nn.Module
    bn2: nn.Module
    bn3: nn.Module

    def __init__(
        self, c_in: int, width: int, c_out: int, stride: int, groups: int, bottleneck: bool, inplace: bool
    ) -> None:
        super().__init__()
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (c_in, width, width, c_out) if bottleneck else (c_in, c_out, c_out)
        for i, kernel in enumerate(kernels, start=1):
            here = stride if i == (2 if bottleneck else 1) else 1
            conv = nn.Conv2d(
                widths[i - 1], widths[i], kernel, here, kernel // 2, groups=groups if kernel == 3 else 1, bias=False
            )
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.relu = nn.ReLU(inplace)
        self.inplace = inplace
        self.downsample = None
        if stride > 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(c_out))
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.relu(out)))
        s = x if self.downsample is None else self.downsample(x)
        return self.relu(out.add_(s) if self.inplace else out + s)


class PlainResNet(nn.Module):
    """A torchvision ResNet, with its names."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, config: resnet.ResNetConfig, inplace: bool) -> None:
        super().__init__()
        bottleneck = config.block == "bottleneck"
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = 64
        for stage, (blocks, base) in enumerate(zip(config.blocks_per_stage, config.widths, strict=True), start=1):
            layers = []
            for i in range(blocks):
                width, c_out = base * config.group_width // 64 * config.groups, base * (4 if bottleneck else 1)
                stride = 2 if stage > 1 and i == 0 else 1
                layers.append(PlainBlock(c_in, width, c_out, stride, config.groups, bottleneck, inplace))
                c_in = c_out
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=MODELS, help="network to time")
    parser.add_argument("--batch", type=int, default=4, help="images per forward pass")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--pairs", type=int, default=40, help="rounds of the comparison")
    parser.add_argument("--threads", type=int, default=1, help="threads; one gives the steadiest verdict")
    parser.add_argument("--inplace", action="store_true", help="let the plain one overwrite its activations and sums")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    config = resnet.model_info(args.model).config
    assert isinstance(config, resnet.ResNetConfig), "MODELS lists ResNets only"
    ours, twin = (resnet.build(config).to(args.device).eval() for _ in range(2))
    plain = PlainResNet(config, args.inplace).to(args.device).eval()
    for net in (ours, twin):
        net.import_weights(plain.state_dict(), "torchvision")
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    with torch.inference_mode():
        error = (ours(x) - plain(x)).abs().max() / plain(x).std()
        times = measure([lambda: ours(x), lambda: twin(x), lambda: plain(x)], args.pairs)
    where = f"{args.device}, {args.threads} thread(s)"
    print(f"{args.model}, {args.size}x{args.size} px, batch {args.batch}, {where}")
    print(f"largest difference of the outputs: {error.item():.1e} of their standard deviation")
    for name, column in (("ours", 0), ("plain torch.nn", 2)):
        print(f"{name:>14}: {1e3 * np.median(times[:, column]) / args.batch:8.2f} ms per image")
    for name, column in (("plain / ours", 2), ("ours / ours (control)", 1)):
        low, middle, high = np.quantile(times[:, column] / times[:, 0], [0.25, 0.5, 0.75])
        print(f"{name:>22}: {middle:.3f}   quartiles {low:.3f} to {high:.3f}   over {args.pairs} rounds")


if __name__ == "__main__":
    main()
