"""Networks that only predict: batch norms become part of the convolutions before them."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from residual.block import Chain
from residual.kernel_choice import hooked
from residual.norm import FrozenBatchNorm2d


def fold_norms(network: nn.Module) -> None:
    """Multiplies batch norms in eval mode into the convolutions directly before them in a `Chain`, in place.

    The convolutions gain a bias, and the norms become `nn.Identity`: names and values of the weights change. Norms and
    convolutions with hooks stay.
    """
    for chain in [module for module in network.modules() if isinstance(module, Chain)]:
        nodes = list(chain.named_children())
        for (name, conv), (norm_name, norm) in pairwise(nodes):
            averaged = isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)
            if type(conv).forward is nn.Conv2d.forward and averaged and not hooked(conv) and not hooked(norm):
                setattr(chain, name, fuse_conv_bn_eval(conv.eval(), norm.eval()))  # type: ignore[type-var,arg-type]
                setattr(chain, norm_name, nn.Identity())
