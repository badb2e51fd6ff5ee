"""The classification zoo: ResNets and their descendants as published, and their weights."""

from resnet.config import ResNetConfig
from resnet.model import ResNet
from resnet.registry import build, create_model, entry, list_models, model_config, register_model

__all__ = [
    "ResNet",
    "ResNetConfig",
    "build",
    "create_model",
    "entry",
    "list_models",
    "model_config",
    "register_model",
]
