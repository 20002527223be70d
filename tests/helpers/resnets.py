"""Small ResNet problems: random weights as if they were pretrained, and configurations that use them."""

from typing import Any

import numpy as np
import torch
from helpers.tiny import arrays

from cifar_ray.config import AugmentConfig, OptimizerConfig, ResNetConfig, TrialConfig
from cifar_ray.training.device_data import DeviceData

SIZE = 32


def random_weights(backbone: str = "resnet18", seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict as torchvision's, without its classifier; the statistics of batch norm are not those of a start."""
    from torchvision.models import get_model

    torch.manual_seed(seed)
    model = get_model(backbone, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


def resnet_config(augment: AugmentConfig = AugmentConfig(), lr: float = 0.02, **model: Any) -> TrialConfig:
    return TrialConfig(
        family="resnet",
        model=ResNetConfig(**{"backbone": "resnet18", "weights": "IMAGENET1K_V1", **model}),
        image_size=SIZE,
        optimizer=OptimizerConfig(name="sgd", lr=lr),
        augment=augment,
        batch_size=8,
    )


def small_data(num_train: int = 16, num_val: int = 7, channels: int = 3) -> DeviceData:
    return DeviceData.from_arrays(arrays(num_train, num_val, channels=channels), 2, torch.device("cpu"))
