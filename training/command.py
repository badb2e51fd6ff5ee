"""What `train.py` does with its command line: trains, or reports what would be trained."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

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
from training.script import require_printed
from training.stop import EXIT_CODE


def run(runs: Mapping[str, type[Run]], argv: Sequence[str], default: Path) -> None:
    """From the command line to a finished run folder. Raises ValueError for settings that do not fit."""
    parsed = parse(runs, argv, default)
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
