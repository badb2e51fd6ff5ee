"""Seams of fields that are drawn in overlapping windows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def seams(fields: Float[Tensor, "n c h w"], rows: Int[Tensor, "a w1"], columns: Int[Tensor, "b w2"]) -> float:
    """The mean absolute difference of neighbouring pixels across the borders of windows, divided by that elsewhere.

    `rows` and `columns` are the pixels of windows, as `cover` gives them.
    """
    across, inside = list[Tensor](), list[Tensor]()
    for axis, pixels in ((2, rows), (3, columns)):
        jumps = fields.diff(dim=axis).abs().movedim(axis, 0)
        border = torch.zeros(len(jumps) + 1, dtype=torch.bool)
        border[torch.cat([pixels[:, 0], (pixels[:, -1] + 1) % (len(jumps) + 1)])] = True
        across.append(jumps[border[1:]].flatten())
        inside.append(jumps[~border[1:]].flatten())
    return (torch.cat(across).mean() / torch.cat(inside).mean()).item()
