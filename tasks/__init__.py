"""Tasks: one file per trainable thing. `RUNS` names the dataclass that describes a run of each."""

from tasks.classification import ClassificationRun
from tasks.diffusion import DiffusionRun
from tasks.distillation import DistillationRun
from tasks.regression import RegressionRun
from tasks.superresolution import SuperResolutionRun
from training.run import Run

RUNS: dict[str, type[Run]] = {
    "diffusion": DiffusionRun,
    "classification": ClassificationRun,
    "superresolution": SuperResolutionRun,
    "distillation": DistillationRun,
    "regression": RegressionRun,
}

__all__ = ["RUNS", "ClassificationRun", "DiffusionRun", "DistillationRun", "RegressionRun", "SuperResolutionRun"]
