"""Random crops of random position, area and aspect ratio, as ImageNet classifiers are trained with."""

import math

import numpy as np

AREA = 0.08, 1.0
"""smallest and largest share of the image's area"""
ASPECT = 3 / 4, 4 / 3
"""narrowest and widest width / height"""
TRIES = 10


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge, in pixels, of a random crop of an image of this size.

    Area and logarithm of the aspect ratio are uniform. A crop that exceeds the image is drawn again; after `TRIES` it
    is the largest center crop with an aspect ratio in `ASPECT` (Szegedy et al. 2015, section 6, as in torchvision).
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(*np.log(ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    narrowest, widest = ASPECT
    w, h = min(width, round(height * widest)), min(height, round(width / narrowest))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h
