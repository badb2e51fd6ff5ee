"""The classification zoo: ResNets, their descendants and relatives as published, and their weights."""

from typing import TYPE_CHECKING

from storage.lazy import import_when_used

if TYPE_CHECKING:
    from resnet.classifier import Classifier
    from resnet.config.classifier import ClassifierConfig
    from resnet.config.densenet import DenseNetConfig
    from resnet.config.edsr import EDSRConfig
    from resnet.config.families import cifar_densenet, cifar_resnet, imagenet_resnet, wide_resnet
    from resnet.config.highway import HighwayConfig
    from resnet.config.resnet import ResNetConfig
    from resnet.densenet import DenseNet
    from resnet.edsr import EDSR
    from resnet.fpn import FPN
    from resnet.highway import HighwayNet
    from resnet.model import ResNet
    from resnet.registry import (
        NETWORKS,
        Network,
        build,
        create_model,
        from_pretrained,
        import_weights,
        likely_models,
        list_models,
        model_info,
    )
    from resnet.summary import summary

__all__ = [
    "EDSR",
    "FPN",
    "NETWORKS",
    "Classifier",
    "ClassifierConfig",
    "DenseNet",
    "DenseNetConfig",
    "EDSRConfig",
    "HighwayConfig",
    "HighwayNet",
    "Network",
    "ResNet",
    "ResNetConfig",
    "build",
    "cifar_densenet",
    "cifar_resnet",
    "create_model",
    "from_pretrained",
    "imagenet_resnet",
    "import_weights",
    "likely_models",
    "list_models",
    "model_info",
    "summary",
    "wide_resnet",
]

import_when_used(__name__)
