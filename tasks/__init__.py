"""What can be trained: one file per task. `RUNS` names the dataclass that describes a run of each."""

from tasks.diffusion import DiffusionRun

RUNS = {"diffusion": DiffusionRun}

__all__ = ["RUNS", "DiffusionRun"]
