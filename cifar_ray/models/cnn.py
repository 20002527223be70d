"""A convolutional network from scratch, its architecture given by :class:`~cifar_ray.config.CNNConfig`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ray.config import CNNConfig
from cifar_ray.errors import InputError
from cifar_ray.models.norms import make_norm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish, "silu": nn.SiLU, "gelu": nn.GELU}


class ConvBlock(nn.Module):
    """One convolution with its normalisation, activation, pooling and dropout: (B, C, H, W) -> (B, D, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, pool: bool, config: CNNConfig) -> None:
        super().__init__()
        evonorm = config.norm.startswith("evonorm")  # normalisation and activation in one
        placement = "before_activation" if evonorm else config.norm_placement
        # A bias in front of a mean-subtracting norm would have no effect; EvoNorms subtract no mean.
        needs_bias = config.norm == "none" or evonorm or placement != "before_activation"
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=needs_bias)
        activation: list[nn.Module] = [] if evonorm else [ACTIVATIONS[config.activation]()]
        norm = make_norm(config.norm, in_channels if placement == "before_conv" else out_channels)
        pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        around_norm = pooling + [norm] if config.pool_placement == "before_norm" else [norm] + pooling
        if placement == "before_activation":
            layers = [conv, *around_norm, *activation]
        elif placement == "after_activation":
            layers = [conv, *activation, *around_norm]
        else:
            # Pooling follows the convolution here: in front of it, the first block would see a quarter of the image.
            layers = [norm, conv, *pooling, *activation]
        if config.dropout > 0:
            layers.append(nn.Dropout2d(config.dropout))
        self.layers = nn.Sequential(*layers)
        self.residual = config.residual and not pool and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class PatchWhitening(nn.Module):
    """Whitens 2x2 patches: (B, C, H, W) -> (B, 8 C, H - 1, W - 1).

    Half of the filters are the principal directions of the patches, each scaled to unit variance, and the other half
    are their negatives, since an activation follows. Only the bias trains (Jordan 2024, arXiv:2404.00498).
    """

    SIDE = 2
    EPS = 5e-4
    """Added to the variances: directions that hardly vary are noise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels * self.SIDE**2, self.SIDE)
        self.conv.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Make the filters for the patches of normalised images (N, C, H, W)."""
        moments: list[Tensor] = []
        for images in x.split(100):
            patches = functional.unfold(images, self.SIDE).double()  # (B, C * 4, patches)
            moments.append((patches @ patches.mT).sum(0) / patches.shape[2])
        covariance = torch.stack(moments).sum(0) / len(x)  # (C * 4, C * 4)
        variances, directions = torch.linalg.eigh(covariance)  # ascending; in columns
        filters = (directions / (variances + self.EPS).sqrt()).T.flip(0).view(-1, *self.conv.weight.shape[1:])
        self.conv.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def make_pool(name: str) -> nn.Module:
    """Pooling of `CNNConfig.head_pool`: (B, C, H, W) -> (B, C, 1, 1), or unchanged where all pixels are kept."""
    if name == "flatten":
        return nn.Identity()
    return nn.AdaptiveAvgPool2d(1) if name == "avg" else nn.AdaptiveMaxPool2d(1)


class CNN(nn.Module):
    """Stages of blocks, then pooling and dense layers: (B, C, H, W) floats -> logits (B, num_classes)."""

    def __init__(self, config: CNNConfig, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        size = image_size
        self.whitening: PatchWhitening | None = None
        if config.whitening:
            if image_size < PatchWhitening.SIDE:
                raise InputError(f"model/whitening: needs images of {PatchWhitening.SIDE} pixels or more")
            self.whitening = PatchWhitening(channels)
            self.activation = ACTIVATIONS[config.activation]()
            channels, size = self.whitening.conv.out_channels, image_size - PatchWhitening.SIDE + 1
        for width, num_blocks, kernel_size in zip(config.widths, config.blocks, config.kernel_sizes, strict=True):
            for index in range(num_blocks):
                pool = index == 0 and size >= 2
                blocks.append(ConvBlock(channels, width, kernel_size, pool, config))
                channels = width
                size = size // 2 if pool else size
        self.blocks = nn.Sequential(*blocks)
        self.pool = make_pool(config.head_pool)
        num_features = channels * size**2 if config.head_pool == "flatten" else channels
        hidden: list[nn.Module] = []
        if config.head_hidden:
            hidden = [nn.Linear(num_features, config.head_hidden), ACTIVATIONS[config.activation]()]
            num_features = config.head_hidden
        self.hidden = nn.Sequential(*hidden)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(num_features, num_classes)
        for module in self.blocks.modules():
            # On no device there is nothing to draw, and torch would import its compiler to find out: two seconds.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if config.init == "dirac":
                    nn.init.dirac_(module.weight.data[: module.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        if self.whitening is not None:
            x = self.activation(self.whitening(x))
        x = self.blocks(x)  # (B, D, H', W')
        x = self.pool(x).flatten(1)  # (B, D)
        x = self.hidden(x)
        return self.classifier(self.dropout(x))
