"""Run by torchrun: train.py once for each list of arguments, without a start of the processes for each."""

import json
import sys

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import train
from training import command


def stay(accelerator: Accelerator, exit_code: int) -> None:
    """In place of the end of the process: only the memory of a run is released."""
    assert exit_code == 0
    accelerator.free_memory()
    AcceleratorState._reset_state()
    GradientState._reset_state()


if __name__ == "__main__":
    *earlier, last = json.loads(sys.argv[1])
    leave = command.leave_processes
    command.leave_processes = stay
    for arguments in earlier:
        train.main(arguments)
    command.leave_processes = leave
    train.main(last)
