"""What can be trained: one file per task. `RUNS` names the dataclass that describes a run of each."""

from tasks.classification import ClassificationRun
from tasks.diffusion import DiffusionRun

RUNS = {"diffusion": DiffusionRun, "classification": ClassificationRun}

__all__ = ["RUNS", "ClassificationRun", "DiffusionRun"]
