"""Runs all experiments, one after the other; one that fails is reported, and the others are run.

python -m experiments [--short]
"""

import sys
import time
import traceback
from collections.abc import Sequence

from experiments.run import measurements, parse, run
from residual.names import amount
from training.script import command


@command
def main(argv: Sequence[str]) -> None:
    """Runs all; exit code 1 if one fails."""
    settings, began, failed = parse(argv, __doc__), time.perf_counter(), []
    found = measurements()
    for name, measure in found.items():
        try:
            run(name, measure, settings)
        except Exception:  # one that fails must not end the others
            traceback.print_exc()
            failed.append(name)
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{amount(len(found), 'experiment')} in {minutes:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
