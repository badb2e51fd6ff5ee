"""What each block of a trained network adds to the classification.

Claim: branches point down the loss, every block adds to the margin, and late blocks correct hard examples, as in
boosting (Jastrzębski et al. 2018; Huang et al. 2018). Measured are the cosine of branch and negative gradient, the
margin and the loss when all later blocks are removed, for pre-activation networks of 20 layers on held-out digits.
Cosines of trained networks that are not above those of fresh ones would refute it.
"""

import statistics
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from experiments.finding import Claim, Curve, Finding, Panel, compare, limited, show
from experiments.nets import block_names, cross_entropy, digits, resnet
from experiments.run import Settings, main
from residual.probes.gradients import alignment
from residual.probes.lesions import margin, truncations
from residual.probes.robustness import batch_norm_statistics


def measure(settings: Settings) -> Finding:
    """Cosines, margins and losses by depth."""
    depth, seeds = settings.pick(20, 8), range(settings.seeds)
    x, label = digits(settings, held_out=True, count=settings.pick(512, 64))
    loss = cross_entropy(label)
    cosines, margins, gains = (dict[str, list[list[float]]]() for _ in range(3))
    for state, updates in (("fresh", 0), ("trained", None)):
        for seed in seeds:
            net = resnet(depth, seed, settings, updates=updates, block="preact_basic").net
            if state == "fresh":
                net.load_state_dict(batch_norm_statistics(net, [x]), strict=False)
            names = block_names(net)
            cosines.setdefault(state, []).append(means(alignment(net, x, loss, names)))
            margins.setdefault(state, []).append(means(truncations(net, x, partial(margin, label=label), names)))
    for seed in seeds:
        net = resnet(depth, seed, settings, block="preact_basic").net
        by_block = torch.stack(list(truncations(net, x, loss, names).values()))
        drops = by_block[:-1] - by_block[1:]
        hard = by_block[0].argsort(descending=True)[: len(x) // 10]
        gains.setdefault("hardest tenth", []).append(drops[:, hard].mean(dim=1).tolist())
        gains.setdefault("all", []).append(drops.mean(dim=1).tolist())
    aligned = {state: [statistics.mean(each) for each in found] for state, found in cosines.items()}
    steps = [[b - a for a, b in pairwise(each)] for each in margins["trained"]]
    rising = [sum(step > 0 for step in each) / len(each) for each in steps]
    total = {name: [sum(each) for each in found] for name, found in gains.items()}
    claims = [
        Claim(
            21,
            f"mean cosine of branch and descent over {len(names)} blocks: fresh {show(aligned['fresh'])}, trained "
            f"{show(aligned['trained'])}",
            compare([b - a for a, b in zip(aligned["fresh"], aligned["trained"], strict=True)]),
        ),
        Claim(81, f"mean cosine of trained branches: {show(aligned['trained'])}", compare(aligned["trained"])),
        Claim(
            22,
            f"share of blocks that raise the margin: {show(rising)}; margin behind the "
            f"first block {show([each[0] for each in margins['trained']])}, the last "
            f"{show([each[-1] for each in margins['trained']])}",
            limited(compare([each[-1] - each[0] for each in margins["trained"]]), min(rising) < 1),
        ),
        Claim(
            31,
            f"loss that the blocks after the first remove: hardest tenth {show(total['hardest tenth'])}, all "
            f"{show(total['all'])}",
            compare([a - b for a, b in zip(total["hardest tenth"], total["all"], strict=True)]),
        ),
    ]
    blocks = list(range(1, len(names) + 1))
    panels = [
        Panel(
            "block",
            "cosine of branch and -gradient",
            [Curve(state, blocks, list(zip(*found, strict=True))) for state, found in cosines.items()],
        ),
        Panel(
            "last block that is kept",
            "margin (logits)",
            [Curve(state, blocks, list(zip(*found, strict=True))) for state, found in margins.items()],
        ),
        Panel(
            "block",
            "loss that it removes",
            [Curve(name, blocks[1:], list(zip(*found, strict=True))) for name, found in gains.items()],
        ),
    ]
    rows = [
        [
            i + 1,
            [each[i] for each in cosines["fresh"]],
            *([each[i] for each in found["trained"]] for found in (cosines, margins)),
        ]
        for i in range(len(names))
    ]
    columns = {"block": "", "cosine, fresh": "", "cosine, trained": "", "margin up to here": "logits"}
    return Finding(claims[0].measured, columns, rows, claims, panels, settings.seeds)


def means(values: dict[str, Tensor]) -> list[float]:
    """The mean over the images, by block."""
    return [float(each.mean()) for each in values.values()]


if __name__ == "__main__":
    main(measure)
