"""Gradients through many layers, with and without shortcuts, at initialisation.

Claim: in a plain chain of layers with slope 0.5 the gradient vanishes as 0.5^L; with shortcuts it is 1.5^L (He et al.
2016, eq. 4 and 5). Measured are these chains, then the gradient at the input of every block of real networks. A factor
of 3,325 is an explosion, not health; and with batch norms plain networks had healthy gradients already (He et al. 2015,
section 4.1). The claim is refuted for real networks if the gradients of plain ones do not vanish.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.finding import Claim, Curve, Finding, Panel, holds, show
from experiments.nets import classifier, digits, trained
from experiments.run import Settings, main
from residual import Residual
from residual.probes.gradients import gradient_norms, input_gradients
from residual.probes.robustness import batch_norm_statistics

LENGTH = 20
KINDS = {"plain": "none", "residual": "A"}
NORMS = {"no norms": "frozen", "batch norms": "batch"}  # fresh frozen batch norms are the identity


def measure(settings: Settings) -> Finding:
    """The chains of slopes, and the gradients of fresh networks by depth."""
    chains = {name: chain(block) for name, block in (("plain", lambda f: f), ("residual", Residual))}
    depths = settings.pick((8, 20, 56), (8, 14))
    rows: list[list[float | str | list[float]]] = []
    rows += [[f"chain of {LENGTH} slopes of 0.5", name, LENGTH, value, value] for name, value in chains.items()]
    norms = {
        (what, kind, depth): [fresh_norms(depth, norm, shortcut, seed, settings) for seed in range(settings.seeds)]
        for what, norm in NORMS.items()
        for kind, shortcut in KINDS.items()
        for depth in depths
    }
    ratios = {key: [each[0] / each[-1] for each in found] for key, found in norms.items()}
    for (what, kind, depth), found in norms.items():
        firsts = [each[0] for each in found]
        rows.append([f"ResNet, {what}", kind, depth, firsts, ratios[what, kind, depth]])
    deepest = depths[-1]

    def claimed(what: str) -> str:
        pair = (f"{kind} {show(ratios[what, kind, deepest])}" for kind in KINDS)
        return f"{what}, {deepest} layers: first over last block, " + ", ".join(pair)

    plain, shortcuts = (ratios["batch norms", kind, deepest] for kind in KINDS)
    claims = [
        Claim(17, f"0.5^{LENGTH} = {chains['plain']:.3g}", holds(chains["plain"] == 0.5**LENGTH)),
        Claim(
            18,
            f"1.5^{LENGTH} = {chains['residual']:.2f}, an explosion",
            holds(abs(chains["residual"] / 1.5**LENGTH - 1) < 1e-12, limit=True),
        ),
        Claim(
            33,
            f"gradients reach the first block, in plain networks too: {claimed('batch norms')}",
            holds(min(shortcuts) > 0.1, limit=min(plain) > 0.1),
        ),
        Claim(
            41,
            f"vanishing in fresh plain networks: {claimed('no norms')}; {claimed('batch norms')}",
            holds(min(plain) < 0.1),
        ),
    ]
    curves = [
        Curve(f"{kind}, {what}", list(range(1, len(found[0]) + 1)), list(zip(*found, strict=True)))
        for (what, kind, depth), found in norms.items()
        if depth == deepest
    ]
    panel = Panel("block", "norm of the gradient at its input", curves, "y")
    columns = {"network": "", "shortcuts": "", "layers": "", "gradient at the first block": "", "first over last": ""}
    title = (
        f"Shortcuts keep gradients alive in chains of slopes; fresh networks of {deepest} layers differ by their norms"
    )
    return Finding(title, columns, rows, claims, [panel], settings.seeds)


def chain(block: type[Residual] | object) -> float:
    """The gradient through `LENGTH` linear maps with slope 0.5, each made a block by `block`."""
    assert callable(block)
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(LENGTH)]
    for layer in layers:
        nn.init.constant_(layer.weight, 0.5)
    model = nn.Sequential(*map(block, layers)).eval()
    return input_gradients(model, torch.ones(1, 1, dtype=torch.float64), lambda y: y[:, 0]).item()


def fresh_norms(depth: int, norm: str, shortcut: str, seed: int, settings: Settings) -> list[float]:
    """The mean norm of the gradient at the input of each block of a fresh network, normalised by its batch."""
    blocks = (depth - 2) // 2
    net = trained(classifier(0, seed, blocks_per_stage=(blocks,), norm=norm, shortcut=shortcut), 0, settings).net
    x, label = digits(settings, held_out=False, count=256)
    if norm == "batch":
        net.load_state_dict(batch_norm_statistics(net, [x]), strict=False)
    names = [f"levels.1.{i}" for i in range(blocks)]
    return mean_norms(net, x, label, names)


def mean_norms(net: nn.Module, x: Tensor, label: Tensor, names: list[str]) -> list[float]:
    """The mean norm of the gradient of the cross-entropy at the input of each block."""
    loss = partial(F.cross_entropy, target=label, reduction="none")
    return [float(norm.mean()) for norm in gradient_norms(net, x, loss, names).values()]


if __name__ == "__main__":
    main(measure)
