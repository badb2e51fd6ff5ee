"""The classification zoo: ResNets and their descendants as published, and their weights."""

from resnet.config import ResNetConfig
from resnet.densenet import DenseNet, DenseNetConfig
from resnet.edsr import EDSR, EDSRConfig
from resnet.families import cifar_densenet, cifar_resnet, imagenet_resnet, preact_imagenet_resnet, resnest, wide_resnet
from resnet.fpn import FPN, fpn
from resnet.highway import HighwayConfig, HighwayNet
from resnet.model import ResNet
from resnet.registry import build, create_model, entry, list_models, model_config, register_model, summary
from resnet.summary import summarize

__all__ = [
    "EDSR",
    "FPN",
    "DenseNet",
    "DenseNetConfig",
    "EDSRConfig",
    "HighwayConfig",
    "HighwayNet",
    "ResNet",
    "ResNetConfig",
    "build",
    "cifar_densenet",
    "cifar_resnet",
    "create_model",
    "entry",
    "fpn",
    "imagenet_resnet",
    "list_models",
    "model_config",
    "preact_imagenet_resnet",
    "register_model",
    "resnest",
    "summarize",
    "summary",
    "wide_resnet",
]
