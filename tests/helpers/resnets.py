"""Small problems of transfer learning: random weights as if they were pretrained, and what uses them."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import arrays
from torch import nn

from cifar_ray.config import AugmentConfig, BackboneConfig, OptimizerConfig, TrialConfig, family_of
from cifar_ray.models.families import backbones, make_backbone
from cifar_ray.training.device_data import DeviceData

SIZE = 32

SMALLEST = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_small",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "shufflenetv2": "shufflenet_v2_x0_5",
    "swin_transformer": "swin_t",
    "vgg": "vgg11_bn",
    "vision_transformer": "vit_b_16",
}
"""A backbone of each family."""

ALL_BACKBONES = [
    name if name in SMALLEST.values() else pytest.param(name, marks=pytest.mark.slow) for name in backbones()
]
"""For tests of each one; those of one of each family are not slow."""


def random_network(backbone: str, seed: int = 0) -> nn.Module:
    """torchvision's network, for images of `SIZE`; the statistics of batch norm are not those of a start."""
    from torchvision.models import get_model

    torch.manual_seed(seed)
    model: nn.Module = get_model(backbone, weights=None, **({"image_size": SIZE} if "vit_" in backbone else {}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def random_weights(backbone: str = "resnet18", seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict as torchvision's, without its classifier."""
    state, known = random_network(backbone, seed).state_dict(), make_backbone(backbone, SIZE).network.state_dict()
    return {name: state[name].numpy() for name in known}


def resnet_config(augment: AugmentConfig = AugmentConfig(), lr: float = 0.02, **model: Any) -> TrialConfig:
    return backbone_config(model.pop("backbone", "resnet18"), augment, lr, **model)


def backbone_config(
    backbone: str, augment: AugmentConfig = AugmentConfig(), lr: float = 0.02, **model: Any
) -> TrialConfig:
    chosen = BackboneConfig(**{"backbone": backbone, "weights": "IMAGENET1K_V1", **model})
    return TrialConfig(
        family=family_of(chosen.backbone) or "unknown",
        model=chosen,
        image_size=SIZE,
        optimizer=OptimizerConfig(name="sgd", lr=lr),
        augment=augment,
        batch_size=8,
    )


def small_data(num_train: int = 16, num_val: int = 7, channels: int = 3) -> DeviceData:
    return DeviceData.from_arrays(arrays(num_train, num_val, channels=channels), 2, torch.device("cpu"))
