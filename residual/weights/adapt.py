"""Adapts the weights of convolutions to images with another number of channels.

Both functions follow one rule: an image with fewer channels stands for its cyclic repetition to more channels, as a
grey image stands for an RGB image of three equal channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def adapt_inputs(weight: Float[Tensor, "c_out c k k2"], channels: int) -> Float[Tensor, "c_out c2 k k2"]:
    """The weight of a first convolution for `channels` inputs.

    Fewer inputs: weights of channels that the repetition makes equal are summed. More inputs: each weight is divided
    evenly among its repetitions. So the output for an image equals the old output for its repetition, and the reverse.
    """
    old = weight.shape[1]
    if channels < old:
        return torch.stack([weight[:, i::channels].sum(dim=1) for i in range(channels)], dim=1)
    copies = [len(range(i % old, channels, old)) for i in range(channels)]
    return torch.stack([weight[:, i % old] / count for i, count in enumerate(copies)], dim=1)


def adapt_outputs(weight: Float[Tensor, "c *rest"], channels: int) -> Float[Tensor, "c2 *rest"]:
    """The weight or bias of a last convolution for `channels` outputs.

    Fewer outputs: the average of the channels that the repetition makes equal. More outputs: the cyclic repetition.
    """
    old = len(weight)
    if channels < old:
        return torch.stack([weight[i::channels].mean(dim=0) for i in range(channels)])
    return torch.stack([weight[i % old] for i in range(channels)])
