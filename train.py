"""Train a model: `python train.py --config configs/digits.yaml`.

Several processes: `accelerate launch train.py ...`, or `torchrun ... -- train.py ...` (the dashes, so that torchrun
does not take `--run` for a flag of its own). Every setting of the YAML file can be changed by a flag such as
`--train.images 2e5`; `--help` lists them, `--validate` looks at every image, `--dry-run` shows what would be trained.
The same command goes on with a run that was interrupted.

Asked to stop by SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or SIGHUP to any of its processes, it saves after the current update
and exits with code 75; a second Ctrl-C ends it at once.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tasks import RUNS
from training.accelerator import leave_processes, make_accelerator, on_main
from training.cli import command, parse
from training.data import open_images
from training.data.validate import validate
from training.freeze import freeze
from training.loop import fit
from training.memory import require_memory
from training.report import report
from training.run_folder import RunFolder
from training.stop import EXIT_CODE

DEFAULT = Path(__file__).with_name("configs") / "digits.yaml"


@command
def main(argv: Sequence[str]) -> None:
    """From the command line to a finished run folder."""
    order = parse(RUNS, argv, DEFAULT)
    run = order.run
    if order.validate:
        on_main(lambda: validate(run.data))
        leave_processes()
        return
    accelerator = make_accelerator(run.train)
    require_memory(run.outline, run.freeze, accelerator.device, run.train.optimizer_slots)
    folder = RunFolder(order.folder)
    resumes = on_main(lambda: folder.has_checkpoint) and not order.fresh
    if not resumes:
        run.check_start()
    images = open_images(run.data, on_main=on_main)
    accelerator.print(f"data: {images}")
    task = run.build(images)
    for line in [] if resumes else run.start(task):
        accelerator.print(line)
    if frozen := freeze(task.model, run.freeze):
        accelerator.print(frozen)
    exit_code = 0
    if order.dry_run:
        if accelerator.is_main_process:
            print(report(order.resolved, task, run.train, len(images), accelerator.num_processes))
    else:
        with closing(folder):
            folder.open(order.resolved, order.fresh)
            if not fit(task, images, run.train, folder, accelerator):
                exit_code = EXIT_CODE
    leave_processes(accelerator, exit_code)


if __name__ == "__main__":
    main()
