"""Report of a run's log: speed, the loss, and a picture of it.

    python -m benchmarks.run_report runs/cifar10

Prints the images per second (median and quartiles of the log's lines), the seconds of training (without evaluations and
checkpoints), the share of time spent waiting for data and the last loss; draws the loss over the images seen into
RUN/loss.png.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from training.script import ScriptParser, command


@command
def main(argv: Sequence[str]) -> None:
    """Reads the log, prints, draws."""
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of train.py")
    run = parser.parse_args(argv).run
    if not (run / "log.jsonl").is_file():
        raise ValueError(f"no log.jsonl in {run}; give a run folder of train.py")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    if not lines:
        raise ValueError(f"{run / 'log.jsonl'} has no line with a loss yet")
    low, middle, high = np.quantile([line["images_per_second"] for line in lines], [0.25, 0.5, 0.75])
    waited = np.median([line["data_wait"] for line in lines])
    print(f"images per second: {middle:.0f}   quartiles {low:.0f} to {high:.0f}   over {len(lines)} lines of the log")
    images = np.diff([0, *(line["images"] for line in lines)])
    print(f"seconds of training: {sum(images / [line['images_per_second'] for line in lines]):.0f}")
    print(f"waiting for data: {waited:.2%}")
    first, last = lines[0], lines[-1]
    print(f"loss: {first['loss']:.4f} at {first['images']:,} images, {last['loss']:.4f} at {last['images']:,}")

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([line["images"] for line in lines], [line["loss"] for line in lines])
    axes.set(xlabel="images seen", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(run / "loss.png", dpi=120)
    print(f"curve: {run / 'loss.png'}")


if __name__ == "__main__":
    main()
