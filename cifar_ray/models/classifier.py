"""Models: every one takes uint8 images and carries its own input normalisation."""

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ray.config import BackboneConfig, ModuleConfig, TrialConfig
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.cnn import CNN
from cifar_ray.models.module import make_network
from cifar_ray.models.pretrained import normalisation

NUM_WHITENED = 2000
"""Training images, at most, of whose patches the whitening filters are made."""


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
    """Normalisation, resize and network in one: uint8 images (B, C, H, W) -> logits (B, num_classes).

    It computes in its precision, and its logits are float32 in any. In eval mode with test-time augmentation
    (`TrialConfig.tta`), what it does takes twice as long.
    """

    def __init__(
        self, normalize: Normalize, network: nn.Module, image_size: int, tta: str, precision: str = "fp32"
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.image_size = image_size
        """Side of the network's images in pixels; others are resized to it."""
        self.tta = tta
        self.precision = precision
        """`fp32` or `bf16`, see `TrialConfig.precision`."""
        self.built_in = isinstance(network, CNN | BackboneNet)
        """Whether the network is not the user's own, of which nothing is known."""

    @property
    def memory_format(self) -> torch.memory_format:
        """In which order weights and images are kept; `view`, which many a network has, needs the plain one."""
        return torch.channels_last if self.built_in else torch.contiguous_format

    @property
    def eval_batch_size(self) -> int:
        """Images that the network takes at a time where no gradients are needed: fewer of large ones."""
        return max(1, min(500, 500 * 96**2 // self.image_size**2))

    def inputs(self, images: Tensor) -> Tensor:
        """What the network is given: normalised floats (B, C, S, S)."""
        x = self.normalize(images)
        size = self.image_size
        if x.shape[-1] != size:
            # Antialiasing matters only where pixels are merged, and is slow.
            x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=x.shape[-1] > size)
        # A copy: images of one channel are of both orders at once, and convolutions take them for the other one.
        return x if self.built_in else x.clone(memory_format=torch.contiguous_format)

    def autocast(self) -> AbstractContextManager[object]:
        """In this context modules compute in the model's precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.normalize.mean.device.type, torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast():
            x = self.inputs(images)
            logits: Tensor = self.network(x).float()
            if self.training or self.tta == "none":
                return logits
            return (logits + self.network(x.flip(-1)).float()) / 2

    def unfreeze(self, epoch: int, max_epochs: int) -> bool:
        """Let that train which does in `epoch` (from 1); return whether that changes anything."""
        return isinstance(self.network, BackboneNet) and self.network.unfreeze(epoch, max_epochs)

    @torch.no_grad()
    def initialize(
        self, mean: Tensor, std: Tensor, images: Tensor, pretrained: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Set what comes from the training images, or load pretrained weights.

        Args:
            mean: (C,) of the training pixels, 0..255.
            std: (C,) standard deviation of them.
            images: (N, C, H, W) uint8, the training images.
            pretrained: backbone weights, which go with the normalisation that they were trained with.
        """
        if pretrained is not None:
            assert isinstance(self.network, BackboneNet)
            self.network.load_backbone(pretrained)
            colours = torch.tensor(normalisation(self.network.config), device=mean.device) * 255  # (2, 3)
            mean, std = colours if len(mean) == 3 else colours.mean(1, keepdim=True)
        self.normalize.mean.copy_(mean.view(1, -1, 1, 1))
        self.normalize.std.copy_(std.view(1, -1, 1, 1))
        if isinstance(self.network, CNN) and self.network.whitening is not None:
            # From all over the training images, which may be in the order of their classes.
            self.network.whitening.fit(self.inputs(images[:: -(-len(images) // NUM_WHITENED)]))


def build_model(config: TrialConfig, *, num_classes: int, channels: int, image_size: int) -> Classifier:
    """Build an untrained model from its configuration; weights come from torch's global random state.

    The normalisation is the identity, whitening filters are random, and pretrained weights are zeros, until
    :meth:`Classifier.initialize` or a checkpoint sets them.

    Raises:
        InputError: the network cannot take such images, or is the user's own and cannot be built.
    """
    size = config.image_size or image_size
    network: nn.Module
    if isinstance(config.model, BackboneConfig):
        network = BackboneNet(config.model, num_classes, size)
    elif isinstance(config.model, ModuleConfig):
        network = make_network(config.model, num_classes, channels, size)
    else:
        network = CNN(config.model, num_classes, channels, size)
    return Classifier(Normalize(channels), network, size, config.tta, config.precision)


def count_params(model: nn.Module) -> int:
    """Number of parameters (buffers such as running statistics not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether this machine's `cpu` or `cuda` computes in bfloat16, rather than in something else in its place."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux, where PyTorch itself does not tell
        return False
    return bool(words & {"avx512_bf16", "amx_bf16"})
