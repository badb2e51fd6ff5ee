"""Training and test error of plain and residual networks by depth.

Claim: deeper plain networks have a higher error than shallower ones, on training images too, so it is not overfitting;
with shortcuts deeper networks train as well (He et al. 2015, figures 1 and 6). Measured are losses and errors of
networks of 8, 20 and 56 layers, all with batch norms, after the same updates. A plain network of 56 layers that trains
as well as one of 20 would refute it.
"""

from experiments.finding import Claim, Curve, Finding, Panel, compare, show
from experiments.nets import Trained, digits, error_rate, resnet
from experiments.run import Settings, main

KINDS = {"plain": "none", "residual": "A"}
LAST = 20
"""updates whose mean loss is the final one"""


def measure(settings: Settings) -> Finding:
    """Final losses, and errors of both halves of the digits, by kind and depth."""
    depths, seeds = settings.pick((8, 20, 56), (4, 8)), range(settings.seeds)
    shallow, deep = depths[-2:]
    nets = {
        (kind, depth): [resnet(depth, seed, settings, shortcut=shortcut) for seed in seeds]
        for kind, shortcut in KINDS.items()
        for depth in depths
    }
    loss = {key: [final_loss(one) for one in each] for key, each in nets.items()}
    error = {
        held_out: {
            key: [error_rate(one.net, *digits(settings, held_out)) for one in each] for key, each in nets.items()
        }
        for held_out in (False, True)
    }
    rows = [[*key, loss[key], error[False][key], error[True][key]] for key in nets]

    def differences(found: dict[tuple[str, int], list[float]], kind: str) -> list[float]:
        """Deep minus shallow, per seed."""
        return [b - a for a, b in zip(found[kind, shallow], found[kind, deep], strict=True)]

    def text(found: dict[tuple[str, int], list[float]], kind: str, unit: str = "") -> str:
        values = (f"{show(found[kind, depth])}{unit} with {depth} layers" for depth in (shallow, deep))
        return f"{kind}: {', '.join(values)}"

    listed = "; ".join(
        f"{kind} {depth}: {show([100 - e for e in found])} %" for (kind, depth), found in error[True].items()
    )
    gained = [plain - residual for plain, residual in zip(loss["plain", deep], loss["residual", deep], strict=True)]
    claims = [
        Claim(3, f"training loss, {text(loss, 'plain')}", compare(differences(loss, "plain"))),
        Claim(40, f"test error, {text(error[True], 'plain', ' %')}", compare(differences(error[True], "plain"))),
        Claim(
            93,
            f"training error, {text(error[False], 'plain', ' %')}; {text(error[False], 'residual', ' %')}",
            compare(differences(error[False], "plain")),
        ),
        Claim(97, f"test error, {text(error[True], 'residual', ' %')}", compare(differences(error[True], "residual"))),
        Claim(76, f"accuracy on held-out digits: {listed}", compare(gained)),
    ]
    panels = [
        Panel(
            "layers",
            f"error of {'held-out' if held_out else 'training'} digits (%)",
            [Curve(kind, depths, [each[kind, depth] for depth in depths]) for kind in KINDS],
        )
        for held_out, each in error.items()
    ]
    columns = {"network": "", "layers": "", "final loss": "", "training error": "%", "test error": "%"}
    title = f"Final loss with {deep} layers: " + ", ".join(f"{kind} {show(loss[kind, deep])}" for kind in KINDS)
    return Finding(title, columns, rows, claims, panels, settings.seeds)


def final_loss(one: Trained) -> float:
    """The mean training loss of the last updates."""
    return float(one.losses[-LAST:].mean())


if __name__ == "__main__":
    main(measure)
