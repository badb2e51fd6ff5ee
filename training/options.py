"""Options of several commands. Needs no PyTorch, so that a command line shows them at once."""

from typing import Literal, get_args

Precision = Literal["auto", "bf16", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EMA_HELP = (
    "another average of the run: a number below 1 is a width (relative standard deviation), reconstructed from the "
    "snapshots of ema.power_widths; from 1 it is a half-life in images that the run tracked"
)
