"""Distillation of a trained diffusion model into a student that draws in one to four steps (Song et al. 2023)."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion import Condition, Denoiser, DPMSolverPP2M, NetworkDenoiser, clipped, drop_labels
from diffusion.formulations import DDPM
from pipelines.diffusion import DiffusionModel, Network
from pipelines.diffusion_folder import load_model
from tasks.comparison import QualityConfig
from tasks.denoising import DiffusionAugment, DiffusionBatch, DiffusionConfig, DiffusionTask
from tasks.grid_evaluation import GridEvaluation, SampleConfig
from tasks.inputs import require_pixels, require_plain
from tasks.quality import Quality, open_quality, require_validation
from training.data import ImageSet
from training.output_folder import weights_sha256
from training.precision import choose_precision, place
from training.processes import process_state
from training.random import GlobalRandom
from training.run import Run
from training.settings import require
from training.task import Evaluation
from unet import build

MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What the student learns from its teacher."""

    steps: int = 4
    """noise levels at which the student learns: those of the sampler euler_ancestral with so many steps, and with each
    number of steps that divides it"""
    substeps: int = 4
    """steps of the teacher, by dpmpp_2m, from one of these levels to the next"""
    jump: int = 1
    """levels that the teacher goes down before the student goes on: 1 is consistency distillation (Song et al. 2023,
    algorithm 2); as many as `steps`: the teacher goes to the image (Luhman and Luhman 2021)"""
    guidance: float = 1.0
    """strength of the labels in the teacher; the student has it without guidance (Meng et al. 2023)"""
    label_dropout: float = 0.1
    """share of images without a label, if the teacher was trained with such"""

    def __post_init__(self) -> None:
        require(1 <= self.steps <= MAX_STEPS, self, "steps", f"give 1 to {MAX_STEPS:,}")
        require(1 <= self.substeps <= MAX_STEPS, self, "substeps", f"give 1 to {MAX_STEPS:,}")
        require(1 <= self.jump <= self.steps, self, "jump", f"give 1 to distillation.steps, {self.steps}")
        require(0 <= self.label_dropout < 1, self, "label_dropout", "give a share of at least 0, below 1")


class DistillationTask(DiffusionTask):
    """Distillation as a task of the training loop: the student is a denoiser of which one evaluation is an image."""

    def __init__(
        self,
        student: DiffusionModel,
        teacher: Denoiser,
        config: DistillationConfig,
        evaluations: tuple[Evaluation, ...] = (),
    ) -> None:
        super().__init__(student, DiffusionConfig(label_dropout=config.label_dropout), DiffusionAugment(), evaluations)
        self.teacher, self.distillation = clipped(teacher) if student.formulation.clips_x0 else teacher, config
        self.times = student.formulation.times(config.steps * config.substeps, "trailing")

    def loss(self, model: nn.Module, batch: DiffusionBatch, random: GlobalRandom) -> Float[Tensor, "b"]:
        """The squared difference of the student's images at two noise levels, between which the teacher makes steps.

        At the lower one the student is constant. If that is the image itself, it is the teacher's.
        """
        formulation, config, times = self.diffusion.formulation, self.distillation, self.times.to(batch.image.device)
        place, noise, label = random.integers(config.steps), random.normal(*self.shape), self._labels(batch, random)
        student = NetworkDenoiser(model, formulation)
        start = times[place * config.substeps]
        x = formulation.level(start).noisy(batch.image, noise)
        image = student(x, start, Condition(label=label))
        target = x.clone()
        with torch.no_grad():
            for k in range(config.steps):
                rows = (place == k).nonzero().flatten()
                end = min(k + config.jump, config.steps) * config.substeps
                if len(rows):
                    predict = partial(self._predict, None if label is None else label[rows])
                    chain = times[k * config.substeps : end + 1]
                    *_, target[rows] = DPMSolverPP2M()(predict, formulation, x[rows], chain, [])
            after = place + config.jump
            if (goes_on := after < config.steps).any():
                lower = times[after.clamp(max=config.steps - 1) * config.substeps]
                its = student(target, lower, Condition(label=label))
                target = torch.where(goes_on[:, None, None, None], its, target)
        return (image - target).square().mean(dim=(1, 2, 3))

    def _predict(self, label: Tensor | None, x: Tensor, time: Tensor) -> Tensor:
        """The teacher's images for noisy images of one time."""
        return self.teacher(x, time.expand(len(x)), Condition(label=label))

    def _labels(self, batch: DiffusionBatch, random: GlobalRandom) -> Tensor | None:
        trained = self.diffusion
        if trained.classes is None or trained.null is None:
            return batch.label if trained.classes is not None else None
        assert batch.label is not None, "the images were checked when the task was built"
        return drop_labels(batch.label, random.uniform(), self.config.label_dropout, null=trained.null)


@dataclass(frozen=True, kw_only=True)
class DistillationRun(Run[DistillationTask]):
    """Distils a diffusion model into one that draws in few steps."""

    teacher: str
    """the trained diffusion model: run folder, model folder or id on the hub. The student starts with its weights"""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    sample: SampleConfig = field(
        default_factory=lambda: SampleConfig(steps=2, sampler="euler_ancestral"), metadata={"may_change": True}
    )
    quality: QualityConfig = field(
        default_factory=lambda: QualityConfig(steps=2, sampler="euler_ancestral"), metadata={"may_change": True}
    )

    def __post_init__(self) -> None:
        require_pixels(self.data.autoencoder)
        require_validation(self.quality, self.data)

    @cached_property
    def loaded(self) -> DiffusionModel:
        """The teacher. Raises ValueError if it cannot be opened, or a student cannot learn from it."""
        try:
            model = load_model(self.teacher)
            if isinstance(model.formulation, DDPM) and model.formulation.prediction == "epsilon":
                raise ValueError("it predicts the noise, from which no image follows in one step; give one of v or x0")
            if model.upscale is not None:
                raise ValueError("it enlarges images, which students do not learn; give one that draws from noise")
            if model.inputs is not None or model.pixel_format.limit != 1:
                raise ValueError("it has conditions or standardised values, which students do not learn; give another")
            if model.net.config.learned_variance:
                raise ValueError("it has a learned variance, which a student has no use for; train one without")
            guidance = self.distillation.guidance
            steps = self.distillation.steps * self.distillation.substeps
            model.check(steps=steps, sampler="euler", guidance=guidance)
        except ValueError as error:
            raise ValueError(f"teacher={self.teacher}: {error}") from None
        return model

    def outline(self) -> Network:
        """The network on the meta device."""
        config = self.loaded.net.config
        with torch.device("meta"):
            return build(config)

    def build(self, images: ImageSet) -> DistillationTask:
        """The task, with a student that has the teacher's weights. Raises ValueError for images of another kind."""
        require_plain(images, self.data.missing)
        teacher = self.loaded
        for name in ("shape", "pixel_format", "classes"):
            if name == "classes" and teacher.classes is None:
                continue
            if (its := getattr(teacher, name)) != (given := getattr(images, name)):
                raise ValueError(
                    f"teacher={self.teacher} has {name}={its}, but the images of {self.data.source} have {given}; "
                    "give those on which it was trained"
                )
        student = replace(teacher, net=deepcopy(teacher.net), class_counts=images.class_counts)
        device, foundation = process_state().device, weights_sha256(teacher.net)
        place(teacher.net.requires_grad_(False), device, choose_precision(self.train.precision, device)[0])
        for name, config in (("sample", self.sample), ("quality", self.quality)):
            try:
                student.check(sampler=config.sampler, steps=config.steps, guidance=config.guidance)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        evaluations: list[Evaluation] = [GridEvaluation(student, self.sample, self.train.eval_every_images)]
        if (quality := self.open_quality(student, images)) is not None:
            evaluations.append(quality)
        denoise = teacher.denoiser(guidance=self.distillation.guidance)
        task = DistillationTask(student, denoise, self.distillation, tuple(evaluations))
        task.foundation = foundation
        return task

    def open_quality(self, model: DiffusionModel, training: ImageSet) -> Quality | None:
        """The metrics of `model`; None without a judge. Raises ValueError for images that it cannot compare."""
        return open_quality(model, self.quality, self.data, training, self.train.eval_every_images)
