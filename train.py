"""Train a model: `python train.py --config configs/digits.yaml`.

Several processes: `accelerate launch train.py ...`, or `torchrun ... -- train.py ...` (the dashes, so that torchrun
does not take `--run` for a flag of its own). Every setting of the YAML file can be changed by a flag such as
`--train.images 2e5`; `--help` lists them, `--validate` looks at every image, `--dry-run` shows what would be trained,
`--profile` where the time goes.
The same command resumes a run that was interrupted.

After SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or SIGHUP to any of its processes it finishes the current update, saves, and
exits with code 75. A second Ctrl-C ends it at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.script import command

if TYPE_CHECKING:
    from training.run import Run

DEFAULT = Path(__file__).with_name("configs") / "digits.yaml"


@command
def main(argv: Sequence[str], runs: "Mapping[str, type[Run]] | None" = None) -> None:
    """Trains. A script of your own may call it with `runs`, the tasks by name: `RUNS` of `tasks` and more."""
    from tasks import RUNS  # here, so that a package that is not installed is one line
    from training.command import run

    run(RUNS if runs is None else runs, argv, DEFAULT)


if __name__ == "__main__":
    main()
