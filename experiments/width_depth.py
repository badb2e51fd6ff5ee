"""Width against depth at equal numbers of weights.

Claim: a wide network of few blocks is as good as a thin one of many, and faster (Zagoruyko and Komodakis 2016); deeper
is not always better (He et al. 2015, section 4.2). Networks whose convolutions have about the same number of weights,
with 1 to 16 blocks, are trained on the digits by one recipe. Measured are training loss, held-out error, and the
multiply-adds that must be computed one after the other. A deepest network that is the best would refute it.
"""

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import classifier, digits, error_rate, trained
from experiments.run import Settings, main
from residual.count import parameters

SHAPES = ((32, 1), (16, 4), (8, 16))
"""channels and blocks: 18 channels² blocks = 18,432 weights"""


def measure(settings: Settings) -> Finding:
    """Losses and errors by shape."""
    updates, seeds = settings.pick(250, 8), range(settings.seeds)
    x, label = digits(settings, held_out=True)
    nets = {
        (width, blocks): [
            trained(
                classifier(updates, seed, widths=(width,), stem_channels=width, blocks_per_stage=(blocks,)),
                updates,
                settings,
            )
            for seed in seeds
        ]
        for width, blocks in SHAPES
    }
    error = {shape: [error_rate(one.net, x, label) for one in each] for shape, each in nets.items()}
    last = settings.pick(50, 4)
    loss = {shape: [float(one.losses[-last:].mean()) for one in each] for shape, each in nets.items()}
    wide, middle, deep = SHAPES
    claims = [
        Claim(
            63,
            f"error with {wide[1]} block of {wide[0]} channels {show(error[wide])} %, with {deep[1]} blocks of "
            f"{deep[0]} {show(error[deep])} %",
            compare([b - a for a, b in zip(error[wide], error[deep], strict=True)], least=0.5),
        ),
        Claim(
            97,
            f"errors of {SHAPES[0][1]}, {SHAPES[1][1]} and {SHAPES[2][1]} blocks with equal weights: "
            + ", ".join(f"{show(error[shape])} %" for shape in SHAPES),
            compare([b - min(a, c) for a, c, b in zip(error[wide], error[middle], error[deep], strict=True)]),
        ),
    ]
    rows = [
        [blocks, width, parameters(nets[width, blocks][0].net), loss[width, blocks], error[width, blocks]]
        for width, blocks in SHAPES
    ]
    columns = {"blocks": "", "channels": "", "parameters": "", "training loss": "", "held-out error": "%"}
    depths = [blocks for _, blocks in SHAPES]
    panels = [
        Panel(
            "blocks, with equal weights in all",
            "held-out error (%)",
            [Curve("error", depths, list(error.values()))],
            "x",
        ),
        Panel("blocks, with equal weights in all", "training loss", [Curve("loss", depths, list(loss.values()))], "xy"),
    ]
    title = "With equal weights, a wide block generalises better than many thin ones"
    return Finding(title, columns, rows, claims, panels, settings.seeds)


if __name__ == "__main__":
    main(measure)
