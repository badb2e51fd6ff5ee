"""Write the report of a run again, report.html in its folder, and print its speed.

python -m tasks.report RUN
"""

from collections.abc import Sequence
from pathlib import Path

from tasks.accuracy import AccuracyEvaluation
from tasks.enlargement import EnlargementEvaluation
from tasks.ensemble import Ensemble
from tasks.grid_evaluation import GridEvaluation
from tasks.quality import Quality
from tasks.regression import ErrorEvaluation
from training.run_facts import read_facts
from training.run_report import write_report
from training.script import ScriptParser, command
from training.task import Figure

EVALUATIONS = (Quality, Ensemble, AccuracyEvaluation, EnlargementEvaluation, ErrorEvaluation, GridEvaluation)
FIGURES: dict[str, Figure] = {name: figure for kind in EVALUATIONS for name, figure in kind.figures.items()}
"""the numbers of all evaluations"""


@command
def main(argv: Sequence[str]) -> None:
    """Writes the page."""
    parser = ScriptParser(prog="python -m tasks.report", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of train.py, finished or in progress")
    run = parser.parse_args(argv).run
    facts = read_facts(run)
    if (speed := facts.log.speed) is not None:
        low, middle, high = speed
        print(f"images per second: {middle:.0f} (quartiles {low:.0f} to {high:.0f})")
    if seconds := facts.log.training_seconds:
        print(f"seconds of training: {seconds:.0f}")
        print(f"waiting for data: {facts.log.waiting_seconds / seconds:.2%}")
    if losses := facts.log.curves.get("loss"):
        print(f"loss: {losses[0][1]:.4f} at {losses[0][0]:,} images, {losses[-1][1]:.4f} at {losses[-1][0]:,}")
    print(f"report: {write_report(run, FIGURES)}")


if __name__ == "__main__":
    main()
