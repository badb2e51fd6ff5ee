"""Training settings. Data settings are in `DataConfig`, model settings in the task."""

from dataclasses import dataclass
from typing import Literal

from residual.names import amount
from training.options import Precision
from training.processes import TIMEOUT
from training.settings import require, setting

MAX_BATCH = 2**24
"""A larger value is almost certainly a typo. Every rank draws random numbers for the whole global batch."""
MAX_IMAGES = 10**15
"""A larger value is almost certainly a typo."""

MIN_HANG_SECONDS = 1.0
"""A process may wait that long for its turn on a processor that others use, too."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batches, precision, and intervals. Time is counted in images seen."""

    images: int = setting(200_000, may_change=True)
    """length of the run, in images seen (rounded up to whole batches)"""
    batch: int = 128
    """images per optimizer update, over all ranks"""
    micro_batch: int | None = setting(None, may_change=True)
    """images per forward pass on each rank; smaller than its share of the batch: gradient accumulation. null: none"""
    seed: int = 0
    """of the initial weights, the order of the images, and all random numbers of the training"""
    precision: Precision = "auto"
    """precision of the forward and backward pass. auto: bf16 if the hardware supports it, else float32"""
    compile: Literal["off", "regional", "full"] | bool = setting("off", may_change=True)
    """torch.compile of the whole network (full, true), or of its residual blocks, of which equal ones share their code
    (regional: compiles in less time); off, false: none"""
    cuda_graphs: bool = setting(False, may_change=True)
    """with compile=full: record the kernels of a GPU once and replay them; one process, no gradient accumulation"""
    log_every_images: int = setting(2_000, may_change=True)
    """images between two lines of the log"""
    eval_every_images: int = setting(50_000, may_change=True)
    """images between two evaluations of the averaged model; the end of the run is always evaluated"""
    checkpoint_every_images: int = setting(50_000, may_change=True)
    """images between two checkpoints; the end of the run is always saved"""
    keep_last: int = setting(2, may_change=True)
    """number of newest checkpoints that are kept, at least 2"""
    keep_every_images: int | None = setting(None, may_change=True)
    """keep the first checkpoint after each multiple of this permanently; a multiple of checkpoint_every_images.
    null: keep none"""
    hang_seconds: float = setting(600.0, may_change=True)
    """with several processes: seconds for which the others wait if one makes no progress in an update; then they end.
    Reading images, the first update, evaluations and checkpoints do not count"""
    max_skipped: int = setting(10, may_change=True)
    """updates in a row that may be skipped because their loss or gradient is not finite; then the run goes back to an
    earlier checkpoint, once, and after as many again it stops. 0: it stops at the first one"""
    trackers: tuple[str, ...] = setting(("tensorboard",), may_change=True)
    """accelerate's trackers that receive the log, in addition to log.jsonl: tensorboard, wandb, trackio, ..."""

    def __post_init__(self) -> None:
        require(1 <= self.batch <= MAX_BATCH, self, "batch", f"give 1 to {MAX_BATCH:,}")
        require(0 <= self.seed < 2**64, self, "seed", "give 0 or more, below 2^64")
        require(1 <= self.images <= MAX_IMAGES, self, "images", f"give 1 to {MAX_IMAGES:,}")
        for name in ("log_every_images", "eval_every_images", "checkpoint_every_images"):
            require(getattr(self, name) >= 1, self, name, "give at least 1")
        require(self.micro_batch is None or self.micro_batch >= 1, self, "micro_batch", "give at least 1, or null")
        if isinstance(self.compile, bool):
            object.__setattr__(self, "compile", "full" if self.compile else "off")
        require(self.compile == "full" or not self.cuda_graphs, self, "cuda_graphs", "it needs train.compile=full")
        require(self.keep_last >= 2, self, "keep_last", "give at least 2, so that one is left if the other is damaged")
        limit = TIMEOUT.total_seconds()
        way_out = f"give {MIN_HANG_SECONDS:g} to {limit:,.0f}, after which a process that waits fails anyway"
        require(MIN_HANG_SECONDS <= self.hang_seconds <= limit, self, "hang_seconds", way_out)
        require(0 <= self.max_skipped < 2**31, self, "max_skipped", "give 0 or more")
        every, interval = self.keep_every_images, self.checkpoint_every_images
        is_multiple = every is None or (every >= 1 and every % interval == 0)
        way_out = f"give a multiple of train.checkpoint_every_images={interval}, or null"
        require(is_multiple, self, "keep_every_images", way_out)
        way_out = f"a run of train.images={self.images} does not reach it; give at most that, or null"
        require(every is None or every <= self.images, self, "keep_every_images", way_out)

    @property
    def compile_option(self) -> tuple[str, str]:
        """The setting that requests compilation, and what to do without it; see `training/compile.py`."""
        return f"train.compile={self.compile}", "give train.compile=off"

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole run."""
        return -(-self.images // self.batch)

    def is_permanent(self, images: int) -> bool:
        """Whether the checkpoint that was written after `images` images is never removed."""
        return self.keep_every_images is not None and images % self.keep_every_images < self.batch

    def accumulation(self, processes: int) -> int:
        """Micro-batches per update on each of `processes` ranks. Raises ValueError if they do not fill a batch."""
        if self.batch % processes:
            raise ValueError(
                f"train.batch={self.batch} cannot be shared by {processes} processes; give a multiple of {processes}"
            )
        share = self.batch // processes
        if share % (micro_batch := self.micro_batch or share):
            fitting = next(number for number in range(min(share, micro_batch), 0, -1) if share % number == 0)
            raise ValueError(
                f"train.micro_batch={micro_batch} does not divide the {amount(share, 'image')} of each of "
                f"{amount(processes, 'process')}; "
                f"give a divisor of {share}, such as {fitting}"
            )
        return share // micro_batch
