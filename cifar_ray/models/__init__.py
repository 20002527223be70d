"""Models: every one takes uint8 images and carries its own input normalisation."""

import torch
from torch import Tensor, nn

from cifar_ray.config import TrialConfig
from cifar_ray.models.cnn import CNN


class Normalize(nn.Module):
    """uint8 images (B, C, H, W) to floats with zero mean and unit deviation per channel of the training images."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"the model takes uint8 images (0..255), not {images.dtype}")
        return (images.to(self.mean.dtype) - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation and network in one: uint8 images (B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))


def build_model(config: TrialConfig, *, num_classes: int, channels: int, image_size: int) -> Classifier:
    """Build an untrained model from its configuration; weights come from torch's global random state.

    The normalisation is the identity until its buffers are set from data or loaded from a checkpoint.
    """
    network = CNN(config.model, num_classes, channels, image_size)
    return Classifier(Normalize(channels), network)


def count_params(model: nn.Module) -> int:
    """Number of parameters (buffers such as running statistics not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())
