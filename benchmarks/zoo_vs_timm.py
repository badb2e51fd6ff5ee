"""ResNets of the zoo against timm's with the same weights, in one process.

    python -m benchmarks.zoo_vs_timm --timm PATH --what forward --batch 1 16

PATH is a clone of timm's repository; without it the installed timm is used. timm's network is measured in both layouts.
In forward passes ours is as evaluate.py places it: on a CPU in channels last, with folded norms. A training step is
forward pass, cross-entropy, backward pass and fused SGD with momentum; ours is in the layout of train.py. bf16 is
autocast with weights in float32. The process keeps freed memory, as in train.py.
"""

import argparse
import copy
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import resnet
from benchmarks.paired import CONTROL, Call, add_options, measure, start
from benchmarks.zoo_vs_plain import forward, training_step
from residual import native
from training.memory import keep_freed_memory
from training.precision import choose_memory_format, place
from training.script import ScriptParser, command

MODELS = ["resnet18", "resnet50", "resnet101", "resnext50_32x4d", "resnet50d", "seresnet50", "resnetv2_50"]
MODELS += ["resnet50_gn", "resnest50d"]
PRECISIONS = ["float32", "bf16"]
TIMM = "timm, channels last"


class Autocast(nn.Module):
    """A network under autocast to bf16 with outputs in float32, as accelerate prepares it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.net(x)
        return y.float()


@command
def main(argv: Sequence[str]) -> None:
    """Compares and prints one table for each precision, kind of work and batch."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, metavar="PATH", help="folder that contains the package timm")
    parser.add_argument("--model", default="resnet50", choices=MODELS, help="network to time")
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of work")
    parser.add_argument("--batch", nargs="+", type=int, default=[8], help="images per call")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="kinds of numbers")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    add_options(parser, rounds=20)
    args = parser.parse_args(argv)
    if min(args.batch) < 1:
        raise ValueError(f"--batch={min(args.batch)} is too small; give at least 1")
    theirs = with_random_norms(find_timm(args.timm)(args.model))
    ours = resnet.create_model(args.model)
    ours.import_weights(theirs.state_dict(), "timm")
    plan, device = start(args), torch.device(args.device)
    native.load()
    keep_freed_memory()
    x = torch.randn(max(args.batch), 3, args.size, args.size, device=device)
    for precision in args.precision:
        for what in args.what:
            arrange, work = KINDS[what]
            nets = arrange(ours, theirs, device, precision == "bf16")
            found = difference(nets["ours"], nets[TIMM], x[:1])
            print(f"{what}, {precision}: largest difference of a logit {found:.1e} standard deviations\n")
            for batch in args.batch:
                calls = {name: work(net, x[:batch]) for name, net in nets.items()}
                title = f"{args.model}, {what}, {args.size}x{args.size} px, batch {batch}, {precision}"
                print(measure(calls, plan).table(title, batch), flush=True)


def find_timm(path: Path | None) -> Callable[[str], nn.Module]:
    """timm's `create_model`, of the package in the folder `path` or of the installed one.

    Raises ValueError if there is none, or if it cannot be imported.
    """
    if path is not None and not (path / "timm" / "__init__.py").is_file():
        raise ValueError(f"--timm={path} does not contain the package timm; give a clone of its repository")
    if path is not None:
        sys.path.insert(0, str(path))
    try:
        return importlib.import_module("timm").create_model
    except ImportError as error:
        way_out = "give a clone of its repository by --timm" if path is None else "install what it needs"
        raise ValueError(f"timm cannot be imported ({error}); {way_out}") from None


def with_random_norms(net: nn.Module) -> nn.Module:
    """The network with random numbers added to its vectors: fresh norms would hide a wrong order of the weights."""
    torch.manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.ndim == 1:
            tensor += torch.rand_like(tensor)
    return net


def forward_nets(ours: nn.Module, theirs: nn.Module, device: torch.device, bf16: bool) -> dict[str, nn.Module]:
    """Networks that predict."""

    def placed() -> nn.Module:
        net = copy.deepcopy(ours).eval()
        place(net, device)
        return net

    nets = {"ours": placed(), CONTROL: placed(), "ours, norms not folded": in_layout(ours, device, torch.channels_last)}
    return with_precision(nets | their_nets(theirs, device), bf16)


def train_nets(ours: nn.Module, theirs: nn.Module, device: torch.device, bf16: bool) -> dict[str, nn.Module]:
    """Networks in training."""
    layout = choose_memory_format(device, bf16, compiled=False)
    nets = {name: in_layout(ours, device, layout) for name in ("ours", CONTROL)}
    return with_precision(nets | their_nets(theirs, device), bf16)


def their_nets(theirs: nn.Module, device: torch.device) -> dict[str, nn.Module]:
    """timm's network in both layouts."""
    layouts = {"timm": torch.contiguous_format, TIMM: torch.channels_last}
    return {name: in_layout(theirs, device, layout) for name, layout in layouts.items()}


def in_layout(net: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """A copy of a network, in a layout."""
    copied: nn.Module = copy.deepcopy(net).to(device, memory_format=layout)  # type: ignore[call-overload]
    return copied


def with_precision(nets: Mapping[str, nn.Module], bf16: bool) -> dict[str, nn.Module]:
    """The networks, under autocast if `bf16`."""
    return {name: Autocast(net) if bf16 else net for name, net in nets.items()}


def difference(ours: nn.Module, theirs: nn.Module, x: Tensor) -> float:
    """The largest difference of a logit that two networks predict, in standard deviations of the logits."""
    first, second = forward(ours, x)(), forward(theirs, x)()
    return float((first - second).abs().max() / second.std())


KINDS: Mapping[str, tuple[Callable[..., dict[str, nn.Module]], Callable[[nn.Module, Tensor], Call]]] = {
    "forward": (forward_nets, forward),
    "train": (train_nets, training_step),
}


if __name__ == "__main__":
    main()
