"""How a run is trained; what it is trained on is the data's config, and what is trained is the task's."""

from dataclasses import dataclass
from typing import Literal

MAX_BATCH = 2**24
"""more is a slip of the pen; every process draws the random numbers of the whole batch"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, optimizer, averaging, and what is due when. Time is counted in images seen."""

    images: int = 200_000
    """length of the run, in images seen (rounded up to whole batches)"""
    batch: int = 128
    """images per optimizer update, over all processes"""
    micro_batch: int | None = None
    """images per forward pass on each process, if a whole share of the batch does not fit; null: no accumulation"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or stochastic gradient descent with momentum"""
    learning_rate: float = 2e-4
    """peak learning rate"""
    warmup_images: int = 10_000
    """the learning rate rises linearly over these first images"""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """the learning rate after the warm-up: constant, falling to zero at the end of the run, or in steps"""
    milestones_images: tuple[int, ...] = ()
    """images seen at which the schedule `step` multiplies the learning rate by step_factor"""
    step_factor: float = 0.1
    """what the learning rate is multiplied by at each milestone"""
    weight_decay: float = 0.0
    """how strongly weights are drawn to zero: beside the gradient with AdamW, as a part of it with SGD"""
    decay_vectors: bool = True
    """whether weights of one axis decay too, which are those of norms, and biases"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the running mean and of the running square of the gradients"""
    momentum: float = 0.9
    """SGD's decay of the running sum of the gradients; 0: none is kept"""
    nesterov: bool = False
    """SGD looks one step ahead along the running sum (Sutskever et al. 2013)"""
    max_grad_norm: float | None = 1.0
    """largest norm of the gradient, longer ones are scaled down; null: never"""
    ema_halflife_images: int | None = 500_000
    """images over which a weight's share in the averaged (EMA) model halves; null: the weights as they are"""
    ema_rampup: float | None = 0.05
    """keeps the half-life below this share of the images seen so far (Karras et al. 2022); null: always the full one"""
    log_every_images: int = 2_000
    """images between two lines of the log"""
    eval_every_images: int = 50_000
    """images between two evaluations of the averaged model (the end of the run is always evaluated)"""
    checkpoint_every_images: int = 50_000
    """images between two checkpoints (the end of the run is always saved)"""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """arithmetic of the forward and backward pass; auto: bf16 where the hardware has it, else float32"""
    compile: bool = False
    """compile the model with torch.compile"""
    seed: int = 0
    """of the initial weights, the order of the images, and every random number of the training"""
    trackers: tuple[str, ...] = ("tensorboard",)
    """where accelerate sends the log besides log.jsonl: tensorboard, wandb, trackio, ..."""
    keep_last: int = 2
    """newest checkpoints that are kept, at least 2"""
    keep_every_images: int | None = None
    """keep the first checkpoint after each multiple of this permanently; a multiple of checkpoint_every_images.
    null: keep none"""

    def __post_init__(self) -> None:
        _require(1 <= self.batch <= MAX_BATCH, self, "batch", f"give 1 to {MAX_BATCH:,}")
        _require(0 <= self.seed < 2**64, self, "seed", "give 0 or more, below 2^64")
        for name in ("images", "log_every_images", "eval_every_images", "checkpoint_every_images"):
            _require(getattr(self, name) >= 1, self, name, "give at least 1")
        halflife = self.ema_halflife_images
        _require(halflife is None or halflife >= 1, self, "ema_halflife_images", "give at least 1, or null")
        for name in ("warmup_images", "weight_decay"):
            _require(getattr(self, name) >= 0, self, name, "give 0 or more")
        _require(self.micro_batch is None or self.micro_batch >= 1, self, "micro_batch", "give at least 1, or null")
        _require(self.learning_rate > 0, self, "learning_rate", "give a rate above 0")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(two, self, "betas", "give two numbers in [0, 1)")
        _require(0 <= self.momentum < 1, self, "momentum", "give at least 0 and below 1")
        with_momentum = self.optimizer == "sgd" and self.momentum > 0
        _require(with_momentum or not self.nesterov, self, "nesterov", "it needs train.optimizer=sgd with momentum")
        self._check_steps()
        _require(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            self,
            "max_grad_norm",
            "give a norm above 0, or null for no clipping",
        )
        _require(self.ema_rampup is None or self.ema_rampup > 0, self, "ema_rampup", "give a share above 0, or null")
        _require(
            self.keep_last >= 2,
            self,
            "keep_last",
            "keep at least 2 checkpoints, so that one is left if the other is bad",
        )
        every, interval = self.keep_every_images, self.checkpoint_every_images
        remedy = f"give a multiple of train.checkpoint_every_images={interval}, or null"
        _require(every is None or (every >= 1 and every % interval == 0), self, "keep_every_images", remedy)

    def _check_steps(self) -> None:
        rising = list(self.milestones_images) == sorted({max(1, images) for images in self.milestones_images})
        _require(rising, self, "milestones_images", "give numbers of images from 1 on, each larger than the one before")
        steps, given = self.schedule == "step", bool(self.milestones_images)
        _require(steps == given, self, "milestones_images", "they belong to train.schedule=step, which needs some")
        _require(0 < self.step_factor < 1, self, "step_factor", "give a number between 0 and 1")

    @property
    def optimizer_slots(self) -> int:
        """Numbers that the optimizer keeps for each weight."""
        return {"adamw": 2, "sgd": int(self.momentum > 0)}[self.optimizer]

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole run."""
        return -(-self.images // self.batch)

    def is_permanent(self, images: int) -> bool:
        """Whether the checkpoint that was written after `images` images is never removed."""
        return self.keep_every_images is not None and images % self.keep_every_images < self.batch

    def accumulation(self, processes: int) -> int:
        """Micro-batches per update on each of `processes` processes. Raises ValueError if they do not fill a batch."""
        if self.batch % processes:
            raise ValueError(
                f"train.batch={self.batch} cannot be shared by {processes} processes; give a multiple of {processes}"
            )
        share = self.batch // processes
        if share % (micro_batch := self.micro_batch or share):
            raise ValueError(
                f"train.micro_batch={micro_batch} does not divide the {share} images of each of {processes} "
                f"process{'es' if processes > 1 else ''}; "
                f"give a divisor of {share}, such as {_divisor_below(share, micro_batch)}"
            )
        return share // micro_batch


def _require(rule: bool, config: TrainConfig, name: str, remedy: str) -> None:
    if not rule:
        raise ValueError(f"train.{name}={getattr(config, name)} is out of range; {remedy}")


def _divisor_below(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
