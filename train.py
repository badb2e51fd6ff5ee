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
from contextlib import closing
from pathlib import Path

from tasks import RUNS
from training.accelerator import make_accelerator, show
from training.cli import parse
from training.data import open_images
from training.data.validate import validate
from training.loop import fit
from training.memory import require_memory
from training.processes import leave_processes, on_main, process_state
from training.report import Outlook, report
from training.run import Run
from training.run_folder import RunFolder
from training.script import command, require_printed
from training.stop import EXIT_CODE

DEFAULT = Path(__file__).with_name("configs") / "digits.yaml"


@command
def main(argv: Sequence[str], runs: Mapping[str, type[Run]] = RUNS) -> None:
    """From the command line to a finished run folder. A script of your own may call it with more tasks in `runs`."""
    parsed = parse(runs, argv, DEFAULT)
    run = parsed.run
    if parsed.validate:
        on_main(lambda: validate(run.data))
        require_printed()
        leave_processes()
        return
    require_memory(run.outline, run.freeze, process_state().device, run.optimizer.slots, len(run.ema.names))
    accelerator = make_accelerator(run.train)

    for line in parsed.notes:
        show(accelerator, line)
    folder = RunFolder(parsed.folder)
    resumes = on_main(lambda: folder.has_checkpoint) and not parsed.fresh
    if not resumes:
        run.check_init()
    images = open_images(run.data, on_main=on_main, batch=run.train.batch)
    show(accelerator, f"data: {images}")
    task = run.build(images)
    for line in [] if resumes else run.load_init(task):
        show(accelerator, line)
    for line in run.freeze_weights(task.model):
        show(accelerator, line)
    exit_code = 0
    outlook = Outlook(task, run, images, accelerator.device, accelerator.num_processes)
    if parsed.dry_run:
        accelerator.print(report(parsed.resolved, outlook, *outlook.measure(accelerator, folder.samples)))
        require_printed()
    else:
        for line in on_main(outlook.warnings):
            show(accelerator, line)
        with closing(folder):
            folder.open(run, parsed.resolved, parsed.fresh)
            if not fit(task, images, run, folder, accelerator, parsed.profile):
                exit_code = EXIT_CODE
    leave_processes(accelerator, exit_code)


if __name__ == "__main__":
    main()
