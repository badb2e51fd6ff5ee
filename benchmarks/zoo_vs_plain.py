"""ResNets of the zoo against the same networks in plain `torch.nn` modules, which overwrite activations and sums.

    python -m benchmarks.zoo_vs_plain --model resnet50 --what forward train --batch 4

The plain network has the same weights. In forward passes ours is as evaluate.py places it: on a CPU in channels last,
with folded norms. The plain network is measured in both layouts. A training step is forward pass,
cross-entropy, backward pass and fused SGD with momentum, both in NCHW. With --out-of-place the plain network keeps its
activations, as that of the zoo does. The process keeps freed memory, as in train.py.
"""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import resnet
from benchmarks.paired import CONTROL, Call, add_options, measure, start
from training.memory import keep_freed_memory
from training.precision import place
from training.script import ScriptParser, command

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


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=MODELS, help="network to time")
    parser.add_argument("--what", nargs="+", choices=["forward", "train"], default=["forward", "train"])
    parser.add_argument("--batch", type=int, default=4, help="images per call")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--out-of-place", action="store_true", help="let the plain network keep its activations")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    add_options(parser, rounds=40)
    args = parser.parse_args(argv)
    plan = start(args)
    keep_freed_memory()
    config = resnet.model_info(args.model).config
    assert isinstance(config, resnet.ResNetConfig), "MODELS lists ResNets only"
    plain = PlainResNet(config, not args.out_of_place).to(args.device)
    ours = {name: zoo_copy(config, plain) for name in ("ours", CONTROL)}
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    for what in args.what:
        if what == "train":
            calls = {name: training_step(net, x) for name, net in (ours | {"plain torch.nn": plain}).items()}
        else:
            placed = {name: copy.deepcopy(net).eval() for name, net in ours.items()}
            for net in placed.values():
                place(net, torch.device(args.device))
            last: nn.Module = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            others: dict[str, nn.Module] = {"plain torch.nn": plain, "plain torch.nn, channels last": last}
            nets = placed | {"ours as it is": ours["ours"]} | others
            calls = {name: forward(net, x) for name, net in nets.items()}
        title = f"{args.model}, {what}, {args.size}x{args.size} px, batch {args.batch}"
        print(measure(calls, plan).table(title, args.batch), flush=True)


def zoo_copy(config: resnet.ResNetConfig, plain: PlainResNet) -> nn.Module:
    """The network of the zoo with the weights of the plain one."""
    net = resnet.build(config).to(plain.fc.weight.device)
    net.import_weights(plain.state_dict(), "torchvision")
    return net


def forward(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A forward pass in eval mode, of images in the layout of the weights."""
    x = in_layout_of(net, x)

    @torch.inference_mode()
    def call() -> Tensor:
        return net.eval()(x)

    return call


def in_layout_of(net: nn.Module, x: Tensor) -> Tensor:
    """Images in the layout of the weights of a network."""
    last = next(net.parameters()).is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def training_step(net: nn.Module, x: Tensor) -> Call:
    """A training step with fused SGD, on images in the layout of the weights."""
    x = in_layout_of(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    label = torch.arange(len(x), device=x.device)

    def call() -> None:
        nn.functional.cross_entropy(net.train()(x), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


if __name__ == "__main__":
    main()
