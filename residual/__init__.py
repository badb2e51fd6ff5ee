"""Residual blocks, `merge(shortcut(x), branch(x, emb))`, and their parts."""

from typing import TYPE_CHECKING

from storage.lazy import import_when_used

if TYPE_CHECKING:
    from residual.attention import CrossAttention, SelfAttention, head_count
    from residual.block import (
        Add,
        Chain,
        Concat,
        DropPath,
        Gate,
        Identity,
        LearnedScale,
        Project,
        Residual,
        ZeroConv2d,
        ZeroPad,
    )
    from residual.embedding import (
        AddEmbedding,
        FourierEmbedding,
        LabelEmbedding,
        LinearLabelEmbedding,
        SinusoidalEmbedding,
    )
    from residual.lipschitz import NormLimit, lipschitz_branch, norm_bound
    from residual.norm import FrozenBatchNorm2d, NormAct, group_count
    from residual.resample import AveragePool, FIRDown, FIRDownConv, FIRUp, Nearest, NearestConv, StridedConv
    from residual.resnet_branch import (
        basic_branch,
        bottleneck_branch,
        conv3x3,
        dense_branch,
        edsr_branch,
        highway_branch,
        preact_basic_branch,
        preact_block,
        preact_bottleneck_branch,
        projection,
        split_attention_branch,
    )
    from residual.squeeze import SplitAttention, SqueezeExcite
    from residual.unet_branch import attention_branch, unet_branch, unet_shortcut

__version__ = "0.1.0"
"""the version of the project; every other place reads it from here"""

__all__ = [
    "Add",
    "AddEmbedding",
    "AveragePool",
    "Chain",
    "Concat",
    "CrossAttention",
    "DropPath",
    "FIRDown",
    "FIRDownConv",
    "FIRUp",
    "FourierEmbedding",
    "FrozenBatchNorm2d",
    "Gate",
    "Identity",
    "LabelEmbedding",
    "LearnedScale",
    "LinearLabelEmbedding",
    "Nearest",
    "NearestConv",
    "NormAct",
    "NormLimit",
    "Project",
    "Residual",
    "SelfAttention",
    "SinusoidalEmbedding",
    "SplitAttention",
    "SqueezeExcite",
    "StridedConv",
    "ZeroConv2d",
    "ZeroPad",
    "attention_branch",
    "basic_branch",
    "bottleneck_branch",
    "conv3x3",
    "dense_branch",
    "edsr_branch",
    "group_count",
    "head_count",
    "highway_branch",
    "lipschitz_branch",
    "norm_bound",
    "preact_basic_branch",
    "preact_block",
    "preact_bottleneck_branch",
    "projection",
    "split_attention_branch",
    "unet_branch",
    "unet_shortcut",
]

import_when_used(__name__)
