"""Run by torchrun in two processes: all that tests of two processes need, in one launch."""

import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.training import toy
from tests.training.toy import BATCH, Tight, ToyEvaluation, ToyTask, config, images, loop, resolved, train
from training.data import DataConfig, DataLost, ImageSet, image_index, open_images
from training.freeze import freeze
from training.processes import gather, leave_processes, on_main, process_state
from training.run_folder import RunFolder
from training.state import state_tensors
from training.step import Step
from training.task import EvaluationContext

LOGGED = {"log_every_images": 4 * BATCH, "eval_every_images": 5 * BATCH, "checkpoint_every_images": 3 * BATCH}
AVERAGES = {"halflife_images": 30, "more_halflife_images": (16,), "power_widths": (0.1,)}
STOPS = [1, 2, 5, 7]


def main(out: Path) -> None:
    rank = process_state().process_index
    train(out / "plain")
    train(out / "parts", micro_batch=2)
    train(out / "straight", ToyTask(dropout=0.3), micro_batch=2)
    train(out / "halved", Tight(2 if rank == 1 else BATCH, dropout=0.3))
    report(out / f"too_large{rank}.txt", lambda: train(out / "too large", Tight(0 if rank == 1 else BATCH)))
    train(out / "halves", ToyTask(dropout=0.3), micro_batch=2, images=6 * BATCH)
    train(out / "halves", ToyTask(dropout=0.3), micro_batch=2)
    train(out / "logged", **LOGGED)
    for update, before in zip(STOPS, [0, *STOPS], strict=False):
        task = ToyTask()
        task.signal_at = (update - before, signal.SIGTERM) if rank == update % 2 else (-1, 0)
        train(out / "logged in pieces", task, **LOGGED)
    train(out / "logged in pieces", **LOGGED)
    toy.ToyEvaluation, evaluation = Failing, toy.ToyEvaluation
    train(out / "failing", eval_every_images=2 * BATCH)
    toy.ToyEvaluation = evaluation
    train(out / "elastic")
    average(out, rank)
    task = ToyTask()
    freeze(task.model, ["first.*"])
    train(out / "frozen", task)

    task = ToyTask(dropout=0.3)
    task.signal_at = (4, signal.SIGTERM) if rank == 1 else (-1, 0)
    stopped = train(out / "stopped", task, micro_batch=2)
    (out / f"stopped{rank}.txt").write_text(f"{stopped.finished} {len(task.batches)}")
    train(out / "stopped", ToyTask(dropout=0.3), micro_batch=2)

    report(out / f"lost{rank}.txt", lambda: train(out / "lost", ToyTask(dropout=0.3), Losing(rank), micro_batch=2))
    train(out / "lost", ToyTask(dropout=0.3), micro_batch=2)

    streamed = unreadable(out / "unreadable", [2, 6])
    report(out / f"unreadable{rank}.txt", lambda: train(out / "streamed", pictures=streamed))

    task = ToyTask()
    task.spoil_at = (4,) if rank == 1 else ()
    report(out / f"diverged{rank}.txt", lambda: train(out / "diverged", task, max_skipped=0))
    skip(out, rank)
    (out / "not a run").mkdir(exist_ok=True)
    (out / "not a run" / "file").write_text("")
    report(out / f"refused{rank}.txt", lambda: RunFolder(out / "not a run").open(config(), resolved(config())))
    nothing = DataConfig(source=str(out / "nothing"), cache=out / "cache")
    report(out / f"no_images{rank}.txt", lambda: open_images(nothing, on_main=on_main))
    leave_processes()


class Failing(ToyEvaluation):
    """Fails on one process, while the other one waits for it: in `gather`, in `on_main`, in `interrupted`."""

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float]:
        rank = context.accelerator.process_index
        if (context.images_seen, rank) in {(16, 1), (32, 1), (48, 0)}:
            raise RuntimeError("injected")
        if context.images_seen == 32:
            on_main(lambda: None)
        elif context.images_seen == 48:
            context.interrupted()
        return {"ranks": float(sum(gather([rank])))}


def unreadable(folder: Path, positions: list[int]) -> ImageSet:
    """24 pictures in three classes, of which one may be unreadable, but those at these positions of the run are."""

    def write() -> None:
        broken = image_index(np.array(positions), 24, 0)
        for number in range(24):
            path = folder / "abc"[number // 8] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 9 * number, np.uint8)).save(path)
            if number in broken:
                path.write_bytes(b"no image")

    on_main(write)
    return open_images(DataConfig(source=str(folder), stream=True, size=8, channels=1, max_bad=1))


class Losing:
    """The images of the toy, of which rank 1 cannot read those of the fifth update."""

    def __init__(self, rank: int) -> None:
        self._images, self._rank = images(), rank

    def __getattr__(self, name: str) -> object:
        return getattr(self._images, name)

    def take(self, position: np.ndarray, seed: int, out: np.ndarray) -> np.ndarray:
        if self._rank == 1 and position[0] >= 4 * BATCH:
            raise DataLost("shard 7 has disappeared")
        return self._images.take(position, seed, out)


def skip(out: Path, rank: int) -> None:
    """The state of each process before and after an update that is not finite on the second one."""
    task = ToyTask()
    task.spoil_at = (4,) if rank == 1 else ()
    runner = loop(out / "skipped", task)
    runner.begin()
    results = [runner.step.update() for _ in range(3)]
    before = everything(runner.step)
    results.append(runner.step.update())
    skipped, loss = [result.skipped for result in results], results[-1].loss
    torch.save((skipped, loss, before, everything(runner.step)), out / f"skipped{rank}.pt")
    runner.step.close()
    runner.folder.close()


def everything(step: Step) -> dict[str, torch.Tensor]:
    """Copies of weights, buffers, averages and optimizer."""
    files = state_tensors(step)
    return {f"{file}.{name}": value.clone() for file, tensors in files.items() for name, value in tensors.items()}


def average(out: Path, rank: int) -> None:
    """Each process's averages after ten updates, and what they should be."""
    runner = loop(out / "average", ToyTask(), **AVERAGES)
    runner.begin()
    start = {name: value.detach().double() for name, value in runner.step.trained.named_parameters()}
    expected = {average: dict(start) for average in runner.step.averages}
    for _ in range(10):
        runner.step.update()
        for average, keep in runner.step.settings.ema.decays(runner.step.images_seen, BATCH).items():
            for name, value in runner.step.trained.named_parameters():
                expected[average][name] = keep * expected[average][name] + (1 - keep) * value.detach().double()
    found = {
        f"{average}.{name}": value.detach().contiguous()
        for average, ema in runner.step.averages.items()
        for name, value in ema.model.named_parameters()
    }
    save_file(found, out / f"average{rank}.safetensors")
    state = {f"{average}.{name}": value.contiguous() for average, of in expected.items() for name, value in of.items()}
    save_file(state, out / f"expected{rank}.safetensors")
    runner.step.close()


def report(path: Path, function) -> None:
    try:
        function()
    except ValueError as error:
        path.write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
