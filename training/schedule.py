"""The two quantities that change as training goes on, as pure functions of the images seen."""

import math

from training.config import TrainConfig


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """The learning rate of the update that starts after `images_seen` images.

    Rises linearly over `warmup_images` (the first update already moves), then stays, falls to zero at `images` along a
    line or half a cosine (Loshchilov and Hutter 2017, eq. 5), or is multiplied by `step_factor` at each milestone.
    """
    if images_seen + config.batch < config.warmup_images:
        return config.learning_rate * (images_seen + config.batch) / config.warmup_images
    progress = (images_seen - config.warmup_images) / max(config.images - config.warmup_images, 1)
    progress = min(max(progress, 0.0), 1.0)
    shares = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "step": config.step_factor ** sum(images <= images_seen for images in config.milestones_images),
    }
    return config.learning_rate * shares[config.schedule]


def ema_keep(config: TrainConfig, images_seen: int) -> float:
    """Share of the averaged weights that survives the update that ended at `images_seen` images.

    The half-life is at most `ema_rampup` times the images seen, so that the first, random weights are forgotten soon
    (Karras et al. 2022, appendix F; the half-life form of the usual decay). Nothing survives without a half-life.
    """
    if config.ema_halflife_images is None:
        return 0.0
    halflife = float(config.ema_halflife_images)
    if config.ema_rampup is not None:
        halflife = min(halflife, config.ema_rampup * images_seen)
    return 0.5 ** (config.batch / halflife)
