"""Normalisation layers by name, and the EvoNorms: normalisation and activation in one."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5
MOMENTUM = 0.1
"""Share of the newest batch in running statistics, as in `nn.BatchNorm2d`."""


def num_groups(channels: int) -> int:
    """Groups of a norm over groups of channels: 8, or fewer where they would not divide the channels."""
    groups = math.gcd(8, channels)
    # Never one channel a group: over a single pixel there would be nothing to normalise.
    return groups // 2 if groups == channels > 1 else groups


def make_norm(name: str, channels: int) -> nn.Module:
    """Normalisation layer of `CNNConfig.norm` over `channels`."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(num_groups(channels), channels)
    if name == "evonorm_s0":
        return EvoNormS0(channels)
    if name == "evonorm_b0":
        return EvoNormB0(channels)
    return nn.Identity()


class EvoNormS0(nn.Module):
    """EvoNorm-S0: x * sigmoid(v * x) / (deviation of its group of channels in its image) * weight + bias.

    Liu et al. 2020, arXiv:2004.02967. (B, C, H, W) -> (B, C, H, W). It works in float32 also where autocast
    gives it bfloat16: a variance of numbers with 8 significant bits would be mostly rounding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_groups = num_groups(channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        mean, variance = (moment.unflatten(1, (self.num_groups, -1)) for moment in _moments(y))  # (B, G, C/G, 1, 1)
        variance = _variance_of_union(mean, variance, dim=2)  # (B, G, 1, 1, 1)
        scale = self.weight.view(1, self.num_groups, -1, 1, 1) * (variance + EPS).rsqrt()  # (B, G, C/G, 1, 1)
        y = y * torch.sigmoid(y * _per_channel(self.v))
        return torch.addcmul(_per_channel(self.bias), y, scale.flatten(1, 2)).to(x.dtype)


class EvoNormB0(nn.Module):
    """EvoNorm-B0: x / max(deviation of its channel in the batch, v * x + that in its own image) * weight + bias.

    Liu et al. 2020, arXiv:2004.02967. (B, C, H, W) -> (B, C, H, W). In eval mode a running variance stands
    for that of the batch, with the conventions of `nn.BatchNorm2d`: biased for the batch at hand, unbiased where it is
    kept. It works in float32, as :class:`EvoNormS0` does.
    """

    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        mean, variance = _moments(y)
        if self.training:
            batch_variance = _variance_of_union(mean, variance, dim=0)  # (1, C, 1, 1)
            count = x.numel() // x.shape[1]
            unbiased = batch_variance.detach().flatten() * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased, MOMENTUM)
        else:
            batch_variance = _per_channel(self.running_var)
        batch_std, image_std = (batch_variance + EPS).sqrt(), (variance + EPS).sqrt()
        # max(a, b) as a + relu(b - a), whose gradient is much cheaper on a CPU.
        excess = functional.relu(torch.addcmul(image_std - batch_std, y, _per_channel(self.v)))
        return torch.addcmul(_per_channel(self.bias), y / (batch_std + excess), _per_channel(self.weight)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of each image: (B, C, H, W) -> two of (B, C, 1, 1)."""
    mean = x.mean((2, 3), keepdim=True)
    return mean, (x - mean).square().mean((2, 3), keepdim=True)  # torch.var is slow on channels-last memory


def _variance_of_union(mean: Tensor, variance: Tensor, dim: int) -> Tensor:
    """Biased variance of equally large sets taken together, from the moments of each, along `dim` (kept)."""
    return variance.mean(dim, keepdim=True) + mean.var(dim, correction=0, keepdim=True)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
