"""Ray Train: one worker per machine, which starts torchrun on its GPUs.

    python examples/ray_train.py --machines 2 --gpus 8 -- --config configs/cifar10-ddpm.yaml --run /shared/runs/cifar10

Everything after the dashes goes to train.py. The run folder has to be on a disk that all machines share, since the
machine that writes it may change. After a lost machine, or a stop (exit code 75), all workers start again and resume.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PORT = 29_400
"""of torchrun on the first machine; Ray uses another one for its own process group"""


def torchrun(machines: int, gpus: int, rank: int, head: str, flags: Sequence[str]) -> list[str]:
    """The command that starts the processes of one machine."""
    where = ["--nnodes", machines, "--node_rank", rank, "--master_addr", head, "--master_port", PORT]
    return ["torchrun", *map(str, where), "--nproc_per_node", str(gpus), "--", "train.py", *flags]


def work(config: dict[str, Any]) -> None:
    """Runs on every machine. Raises CalledProcessError if the run did not end, which makes Ray start again."""
    from ray import train

    rank = train.get_context().get_world_rank()
    command = torchrun(config["machines"], config["gpus"], rank, os.environ["MASTER_ADDR"], config["flags"])
    subprocess.run(command, cwd=ROOT, check=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8, help="of each machine")
    parser.add_argument("--restarts", type=int, default=100, help="how often the run is started again")
    parser.add_argument("flags", nargs="*", help="of train.py, after two dashes")
    args = parser.parse_args(argv)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        work,
        train_loop_config={"machines": args.machines, "gpus": args.gpus, "flags": args.flags},
        scaling_config=ScalingConfig(
            num_workers=args.machines,
            use_gpu=True,
            resources_per_worker={"GPU": args.gpus},
            placement_strategy="STRICT_SPREAD",
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=args.restarts)),
    ).fit()


if __name__ == "__main__":
    main()
