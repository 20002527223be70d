"""A convolutional network from scratch, its architecture given by :class:`~cifar_ray.config.CNNConfig`."""

import math

from torch import Tensor, nn

from cifar_ray.config import CNNConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish, "silu": nn.SiLU, "gelu": nn.GELU}


def make_norm(name: str, channels: int) -> nn.Module:
    """Normalisation over `channels`; group norm uses 8 groups, or fewer where they would not divide the channels."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        groups = math.gcd(8, channels)
        return nn.GroupNorm(groups // 2 if groups == channels > 1 else groups, channels)
    return nn.Identity()


class ConvBlock(nn.Module):
    """One convolution with its normalisation, activation, pooling and dropout: (B, C, H, W) -> (B, D, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, pool: bool, config: CNNConfig) -> None:
        super().__init__()
        placement = config.norm_placement
        # A bias in front of a mean-subtracting norm would have no effect.
        needs_bias = config.norm == "none" or placement != "before_activation"
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=needs_bias)
        activation = ACTIVATIONS[config.activation]()
        norm = make_norm(config.norm, in_channels if placement == "before_conv" else out_channels)
        pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        around_norm = pooling + [norm] if config.pool_placement == "before_norm" else [norm] + pooling
        if placement == "before_activation":
            layers = [conv, *around_norm, activation]
        elif placement == "after_activation":
            layers = [conv, activation, *around_norm]
        else:
            # Pooling follows the convolution here: in front of it, the first block would see a quarter of the image.
            layers = [norm, conv, *pooling, activation]
        if config.dropout > 0:
            layers.append(nn.Dropout2d(config.dropout))
        self.layers = nn.Sequential(*layers)
        self.residual = config.residual and not pool and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class CNN(nn.Module):
    """Stages of blocks, global pooling, and a linear classifier: (B, C, H, W) floats -> logits (B, num_classes)."""

    def __init__(self, config: CNNConfig, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        size = image_size
        for width, num_blocks, kernel_size in zip(config.widths, config.blocks, config.kernel_sizes, strict=True):
            for index in range(num_blocks):
                pool = index == 0 and size >= 2
                blocks.append(ConvBlock(channels, width, kernel_size, pool, config))
                channels = width
                size = size // 2 if pool else size
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1) if config.head_pool == "avg" else nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)  # (B, D, H', W')
        x = self.pool(x).flatten(1)  # (B, D)
        return self.classifier(self.dropout(x))
