"""What samplers and guidance have to choose from. Needs no PyTorch, so that a command line shows it at once."""

import math
from typing import Literal, get_args

SamplerName = Literal["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler", "heun", "euler_ancestral"]
SAMPLER_NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
STEPS = 50
"""of a sampler, unless others are given"""
STRETCH = 10
"""steps after which resampling adds noise again"""
ALL_LEVELS = (0.0, math.inf)
