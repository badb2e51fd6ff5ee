"""Residual blocks, `merge(shortcut(x), branch(x, emb))`, and their parts."""

from residual.attention import SelfAttention, head_count
from residual.block import Chain, Residual
from residual.branch import attention_branch, unet_branch, unet_shortcut
from residual.conv import ZeroConv2d
from residual.embedding import AddEmbedding, FourierEmbedding, LabelEmbedding, LinearLabelEmbedding, SinusoidalEmbedding
from residual.merge import Add
from residual.norm import NormAct, group_count
from residual.resample import AveragePool, FIRDown, FIRDownConv, FIRUp, Nearest, NearestConv, StridedConv
from residual.shortcut import Identity, Project

__all__ = [
    "Add",
    "AddEmbedding",
    "AveragePool",
    "Chain",
    "FIRDown",
    "FIRDownConv",
    "FIRUp",
    "FourierEmbedding",
    "Identity",
    "LabelEmbedding",
    "LinearLabelEmbedding",
    "Nearest",
    "NearestConv",
    "NormAct",
    "Project",
    "Residual",
    "SelfAttention",
    "SinusoidalEmbedding",
    "StridedConv",
    "ZeroConv2d",
    "attention_branch",
    "group_count",
    "head_count",
    "unet_branch",
    "unet_shortcut",
]
