"""Peak signal-to-noise ratio and structural similarity of enlarged images, on all processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pictures.grid import draw_grid
from pictures.pixel_format import BYTES
from pipelines.superresolution import Upscaler, as_bytes, middles, shrunk
from residual.names import amount
from residual.resample import bicubic
from storage.write import replace_file
from training.data import ImageSet
from training.processes import gather, process_state
from training.task import Evaluation, EvaluationContext, Figure

SHOWN = 4
"""images of which a picture shows the middle"""
LEVELS = 255.0
"""range of luminance for the peak signal"""
MOST_DB = 100.0
"""peak signal-to-noise ratio of equal images, so that the mean over images stays finite; it is the highest"""
WINDOW_PX = 11
"""of structural similarity"""
Row = tuple[int, dict[str, float], UInt8[np.ndarray, "4 h w c"] | None]
"""number of an image, its figures, and its middle: small, enlarged by the bicubic filter, by the model, and original"""


def luminance(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Y of ITU-R BT.601 (16 to 235) of RGB images in [-1, 1], as MATLAB's rgb2ycbcr; greys from 0 to 255."""
    if image.shape[1] == 1:
        return (image + 1) * (LEVELS / 2)
    factors = torch.tensor([65.481, 128.553, 24.966], device=image.device)[:, None, None]
    return 16 + (factors * (image + 1) / 2).sum(dim=1, keepdim=True)


def similarities(made: Float[Tensor, "1 c h w"], image: Float[Tensor, "1 c h w"], border_px: int) -> dict[str, float]:
    """Both figures of an image in [-1, 1], of luminance rounded as pictures are, without a border of so many pixels.

    The peak signal-to-noise ratio is at most `MOST_DB`.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    inner = slice(border_px, -border_px or None)
    ours, theirs = (luminance(as_bytes(each))[..., inner, inner] for each in (made, image))
    return {
        "psnr": min(peak_signal_noise_ratio(ours, theirs, data_range=LEVELS).item(), MOST_DB),
        "ssim": float(structural_similarity_index_measure(ours, theirs, data_range=LEVELS)),
    }


@torch.no_grad()
def measure(
    upscaler: Upscaler,
    images: ImageSet,
    interrupted: Callable[[], object] = lambda: False,
    count: int | None = None,
) -> tuple[dict[str, float], list[Row]] | None:
    """The figures of a model and of the bicubic filter: means over the images, each shrunk and enlarged again; over the
    first `count` of them, if given.

    Also one row per image, whose picture the first `SHOWN` have. Images are cropped on the right and below until the
    scale divides their size. Call it on every process; all call `interrupted()` equally often. None if it was true.
    """
    state, scale = process_state(), upscaler.scale
    rows = list[Row]()
    count = len(images) if count is None else min(count, len(images))
    for first in range(0, count, state.num_processes):
        if interrupted():
            return None
        if (number := first + state.process_index) >= count:
            continue
        stored = np.empty((1, *images.shape), images.pixel_format.stored)
        images.read(np.array([number]), stored)
        height, width = (side - side % scale for side in images.shape[1:])
        image = images.pixel_format.to_unit(torch.from_numpy(stored).to(state.device))[..., :height, :width]
        low = shrunk(image, scale)
        made, base = upscaler.enlarge(low, number), bicubic(low, (height, width))
        figures = similarities(made, image, scale)
        figures |= {f"bicubic_{name}": value for name, value in similarities(base, image, scale).items()}
        rows.append((number, figures, middles(low, base, made, image) if number < SHOWN else None))
    rows = sorted(gather(rows), key=lambda row: row[0])
    return {name: float(np.mean([row[1][name] for row in rows])) for name in rows[0][1]}, rows


def check_measurable(images: ImageSet, channels: int, scale: int) -> None:
    """Raises ValueError for held-out images that cannot be compared: of another kind than the model's, or too small."""
    found, height, width = images.shape
    counted = amount(found, "channel")
    if images.pixel_format != BYTES or found != channels:
        raise ValueError(
            f"images of data.validation have {counted} of {images.pixel_format.dtype}, but the model "
            f"enlarges 8-bit pictures of {channels}; set data.channels={channels} and data.bits=8"
        )
    if min(height, width) < (least := WINDOW_PX + 3 * scale):
        raise ValueError(
            f"images of data.validation have {height} x {width} px, too few to compare; give {least} or more"
        )


@dataclass(frozen=True)
class EnlargementEvaluation(Evaluation):
    """Likeness of enlarged held-out images, beside the bicubic filter; and a picture of some."""

    make: Callable[[nn.Module], Upscaler]
    """the model that enlarges by this network"""
    scale: int
    images: ImageSet
    every_images: int
    count: int | None = None
    """images that are enlarged, the first ones; None: all"""
    name: ClassVar[str] = "enlargement"
    figures: ClassVar[Mapping[str, Figure]] = {
        "psnr": Figure("peak signal-to-noise ratio of luminance (dB)", best="highest"),
        "bicubic_psnr": Figure("peak signal-to-noise ratio of luminance (dB)", dashed=True),
        "ssim": Figure("structural similarity of luminance"),
        "bicubic_ssim": Figure("structural similarity of luminance", dashed=True),
    }

    @property
    def conditions(self) -> dict[str, Any]:
        """The images, and how much smaller they are given."""
        return {"data": self.images.fingerprint, "scale": self.scale, "count": self.count}

    def run(self, model: nn.Module, context: EvaluationContext) -> dict[str, float] | None:
        """See `measure`; also writes `context.folder`/<images seen>.png."""
        found = measure(self.make(model), self.images, context.interrupted, self.count)
        if found is None:
            return None
        figures, rows = found
        if context.accelerator.is_main_process:
            context.folder.mkdir(parents=True, exist_ok=True)
            pictures = np.concatenate([row[2] for row in rows if row[2] is not None])
            grid = draw_grid(pictures, columns=4)
            replace_file(context.folder / f"{context.images_seen:09d}.png", grid.save, flush=False)
            context.log_image("enlarged", np.asarray(grid.convert("RGB")))
        return figures
