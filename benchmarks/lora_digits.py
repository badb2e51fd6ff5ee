"""A diffusion model learns a new digit by LoRA, compared with fine-tuning all its weights.

    python -m benchmarks.lora_digits

The model and its data are those of `experiments.new_class`: a small U-Net that draws the digits 0 to 8 learns 9, of
which it sees nothing else. Reported are the trained parameters, the size of a checkpoint, the time of an update, and
the share of drawn digits that a classifier recognises as their label, for several seeds.
"""

import argparse
import statistics
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from experiments import new_class
from experiments.nets import Trained, classifier, trained
from experiments.run import Settings
from residual.lora import add_lora
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.memory import checkpoint_bytes
from training.step import Step
from training.units import show_size

ALSO = ("embedding.label",)
ROUNDS, UPDATES = 9, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8], help="of LoRA")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2], help="learning rates")
    parser.add_argument("--updates", type=int, nargs=2, default=[400, 150], help="of the model, and of the new digit")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of the trained networks")
    args = parser.parse_args()
    settings = Settings(seeds=args.seeds, out=args.out)
    judge = trained(classifier(200), 200, settings).net
    before = [new_class.model(settings, tuple(args.updates), seed, "before") for seed in range(args.seeds)]
    print(f"before: {shares(before, judge)}", flush=True)
    for rank in (None, *args.ranks):
        for rate in args.rates:
            models = [learn(settings, rank, seed, tuple(args.updates), rate) for seed in range(args.seeds)]
            print(f"{name(rank)}, learning rate {rate:g}: {shares(models, judge)}", flush=True)
    for rank, times in seconds_per_update(settings, [None, *args.ranks]).items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name(rank)}: {1000 * middle:.1f} ms ({1000 * low:.1f} to {1000 * high:.1f}) per update, CPU time")


def name(rank: int | None) -> str:
    return "fine-tuning" if rank is None else f"LoRA of rank {rank}"


def learn(settings: Settings, rank: int | None, seed: int, updates: tuple[int, int], rate: float) -> Trained:
    """The model that has learned the new digit."""
    run = new_class.run(updates[1], seed)
    run = replace(run, optimizer=replace(run.optimizer, learning_rate=rate))
    edit = partial(start, settings=settings, rank=rank, seed=seed, updates=updates[0])
    return trained(run, updates[1], settings, edit=edit, images=new_class.images(settings, True))


def start(net: nn.Module, settings: Settings, rank: int | None, seed: int, updates: int) -> None:
    """Gives a network the weights of the model of the old digits, and LoRA of a rank."""
    net.load_state_dict(new_class.model(settings, (updates, 0), seed, "before").net.state_dict())
    if rank is not None:
        add_lora(net, rank, also=ALSO)


def shares(models: list[Trained], judge: nn.Module) -> str:
    """The recognised drawings of the old digits and of the new one: median and range over the seeds."""
    texts = []
    for label, digits in (("0 to 8", [i % new_class.NEW for i in range(45)]), ("9", [new_class.NEW] * 45)):
        found = sorted(new_class.recognised(model, judge, digits) for model in models)
        texts.append(f"{label} {statistics.median(found):.0f} % ({found[0]:.0f} to {found[-1]:.0f})")
    return "recognised " + ", ".join(texts)


def seconds_per_update(settings: Settings, ranks: list[int | None]) -> dict[int | None, list[float]]:
    """The CPU time of an update, in turn, so that the load of the machine is the same for all."""
    times: dict[int | None, list[float]] = {rank: [] for rank in ranks}
    accelerator = make_accelerator(TrainConfig(batch=64, precision="float32", trackers=()))
    images = new_class.images(settings, True)
    for place, rank in enumerate(ranks * ROUNDS):
        run = new_class.run(150, 0)
        task = run.build(images)
        if rank is not None:
            add_lora(task.model, rank, also=ALSO)
        if place < len(ranks):
            count = sum(weight.numel() for weight in task.model.parameters() if weight.requires_grad)
            size = show_size(checkpoint_bytes(task.model, optimizer_slots=2))
            print(f"{name(rank)}: {count:,} parameters trained, checkpoint {size}")
        with closing(Step(task, images, run, accelerator)) as step:
            step.update()
            began = time.thread_time()
            for _ in range(UPDATES):
                step.update()
            times[rank].append((time.thread_time() - began) / UPDATES)
        accelerator.free_memory()
    return times


if __name__ == "__main__":
    main()
