"""Parts of published networks: the order of a basic block, initialisation, conditioning, pyramids, exact statistics.

Claim: basic blocks end in an activation after the sum (He et al. 2015); He initialisation keeps the variance through
ReLU layers (He et al. 2015b); a timestep scales and shifts features (Dhariwal and Nichol 2021); attention is a branch
of the same sum (Vaswani et al. 2017); a pyramid adds lateral connections (Lin et al. 2017); true averages of batch-
norm statistics are better than running ones (Wu and Johnson 2021). Measured are these parts, built by the library,
and errors of networks of 8 layers with both statistics. Another order, number or variance would refute it.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import resnet
from experiments import nets
from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.nets import cross_entropy, digits
from experiments.run import Settings, main
from residual import NormAct, Residual, SelfAttention
from residual.count import on_meta, parameters
from residual.probes.robustness import batch_norm_statistics
from residual.probes.visit import evaluate
from resnet.classifier import init_weights
from training.random import seeded
from unet import build, list_presets, preset

FPN_PARAMETERS = 3_344_384
DEPTH, WIDTH = 20, 64


def measure(settings: Settings) -> Finding:
    """One claim per part."""
    seeds = range(settings.seeds)
    block = next(module for module in resnet.create_model("resnet18").modules() if isinstance(module, Residual))
    order = [name for name, _ in block.branch.named_children()]
    variances = [through_layers(seed) for seed in seeds]
    kept = [each[-1] / each[0] for each in variances]
    unets = [on_meta(partial(build, preset(name))) for name in list_presets()[: settings.pick(8, 1)]]
    attentions, wrapped = (sum(counts) for counts in zip(*map(attention_branches, unets), strict=True))
    pyramid = pyramid_parameters()
    film = conditioning_error()
    running, exact = zip(*(statistics_losses(seed, settings) for seed in seeds), strict=True)
    claims = [
        Claim(
            42,
            f"{', '.join(order)}, then the sum and {type(block.merge.act).__name__}",
            holds(order == ["conv1", "bn1", "act1", "conv2", "bn2"] and isinstance(block.merge.act, nn.ReLU)),
        ),
        Claim(
            72,
            f"variance behind {DEPTH} layers of ReLU and convolution over that before: {show(kept)}",
            holds(all(0.1 < each < 10 for each in kept)),
        ),
        Claim(59, f"the node is (1 + scale) norm(x) + shift, to {film:.0e}", holds(film < 1e-5)),
        Claim(
            67,
            f"{wrapped} of {attentions} attentions of published U-Nets are in the branch of a Residual",
            holds(wrapped == attentions > 0),
        ),
        Claim(68, f"the pyramid adds {pyramid:,} parameters to ResNet-50", holds(pyramid == FPN_PARAMETERS)),
        Claim(
            79,
            f"held-out loss with running statistics {show(running)}, with true averages {show(exact)}",
            compare([a - b for a, b in zip(running, exact, strict=True)]),
        ),
    ]
    layers = list(range(DEPTH + 1))
    behind = list(zip(*variances, strict=True))
    curves = [Curve("He initialisation", layers, behind), Curve("constant", layers, [1.0] * len(layers))]
    panel = Panel("layer", "variance of the features", curves, "y")
    rows = [[layer, [each[layer] for each in variances]] for layer in layers]
    columns = {"layer": "", "variance": ""}
    return Finding("He initialisation keeps the variance", columns, rows, claims, [panel], settings.seeds)


def through_layers(seed: int) -> list[float]:
    """The variance of random images behind each of several pairs of ReLU and convolution, without edges."""
    with seeded(seed, "parts"):
        x, found = torch.randn(8, WIDTH, 16, 16), [1.0]
        for _ in range(DEPTH):
            layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular", bias=False)
            init_weights(layer)
            with torch.no_grad():
                x = layer(x.relu())
            found.append(float(x.square().mean()))
    return found


def attention_branches(net: nn.Module) -> tuple[int, int]:
    """The number of attentions in a network, and of those in the branch of a residual block."""
    attentions = {module for module in net.modules() if isinstance(module, SelfAttention)}
    blocks = [module for module in net.modules() if isinstance(module, Residual)]
    inside = {part for block in blocks for part in block.branch.modules()}
    return len(attentions), len(attentions & inside)


def pyramid_parameters() -> int:
    """The parameters that a feature pyramid adds to ResNet-50, which it uses without its classifier."""
    net = on_meta(lambda: resnet.build(resnet.imagenet_resnet(50)))
    return parameters(resnet.FPN(net)) - parameters(net.levels)


def conditioning_error() -> float:
    """The largest difference of a conditioned norm and its formula."""
    node, x, emb = NormAct(32, 16, act=None).eval(), torch.randn(4, 32, 8, 8), torch.randn(4, 16)
    assert node.project is not None
    with torch.no_grad():
        for weight in node.parameters():
            nn.init.normal_(weight)
        scale, shift = node.project(emb)[:, :, None, None].chunk(2, dim=1)
        normed = F.group_norm(x, node.num_groups, node.weight, node.bias, node.eps)
        return float((node(x, emb) - ((1 + scale) * normed + shift)).abs().max())


def statistics_losses(seed: int, settings: Settings) -> tuple[float, float]:
    """The loss of held-out digits with running statistics, and with averages over all training digits."""
    net = nets.resnet(8, seed, settings).net
    x, label = digits(settings, held_out=True)
    before = float(evaluate(net, x, cross_entropy(label)).mean())
    train, _ = digits(settings, held_out=False)
    net.load_state_dict(batch_norm_statistics(net, train.split(64)[:-1]), strict=False)
    return before, float(evaluate(net, x, cross_entropy(label)).mean())


if __name__ == "__main__":
    main(measure)
