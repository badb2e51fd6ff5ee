"""Two processes of which the second one hangs in its fifth update; run by `test_watchdog.py` in torchrun.

`hung_rank.py OUT LIMIT_S HANG_S`. The second one writes into OUT/hung when it began to hang, in seconds of the clock.
"""

import sys
import time
from pathlib import Path

from torch import Tensor, nn

from tests.training.toy import ToyTask, train
from training.processes import process_state
from training.random import GlobalRandom
from training.task import Batch

UPDATE = 5


class Hung(ToyTask):
    """Hangs for so many seconds in one update."""

    def __init__(self, note: Path, seconds: float) -> None:
        super().__init__()
        self.note, self.hang_s = note, seconds

    def loss(self, model: nn.Module, batch: Batch, random: GlobalRandom) -> Tensor:
        if random.update == UPDATE - 1:
            self.note.write_text(str(time.time()))
            time.sleep(self.hang_s)
        return super().loss(model, batch, random)


if __name__ == "__main__":
    out, limit_s, hang_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    hangs = process_state().process_index == 1
    train(out / "run", Hung(out / "hung", hang_s) if hangs else ToyTask(), hang_seconds=limit_s)
