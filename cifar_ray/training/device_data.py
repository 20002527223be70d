"""Training and validation images on the device that trains."""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifar_ray.files import checksum


@dataclass(frozen=True)
class DeviceData:
    """Training and validation images on one device; images (N, C, H, W) uint8, labels (N,) int64."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    num_classes: int
    mean: Tensor
    """(C,) mean of the training pixels, 0..255."""
    std: Tensor
    """(C,) standard deviation of the training pixels, never 0."""
    balanced_weights: Tensor
    """(num_classes,) weight of each class under which all have the same share of the training images."""

    @functools.cached_property
    def images_key(self) -> str:
        """Checksum of all images."""
        return "-".join(checksum(images.cpu().numpy()) for images in (self.train_images, self.val_images))

    @property
    def fill(self) -> Tensor:
        """(C,) uint8: the mean colour, of pixels that an augmentation blanks."""
        return self.mean.round().to(torch.uint8)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], num_classes: int, device: torch.device) -> "DeviceData":
        """Put the arrays `train_images`, `train_labels`, `val_images`, `val_labels` on `device`.

        On a CPU nothing is copied: arrays in Ray's object store stay shared between processes.
        """
        with warnings.catch_warnings():
            # The object store's arrays are read-only, and nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        pixels = tensors["train_images"]
        # A thousand images at a time: as floats, all of them would be four times the data.
        sums = [_channel_sums(part) for part in pixels.split(1000)]
        total = torch.stack(sums).sum(0) / (pixels.numel() // pixels.shape[1])  # (2, C)
        std = (total[1] - total[0] ** 2).clamp(min=0).sqrt()
        counts = torch.bincount(tensors["train_labels"], minlength=num_classes)
        return cls(
            **tensors,
            num_classes=num_classes,
            mean=total[0].float(),
            std=std.clamp(min=1.0).float(),
            balanced_weights=len(pixels) / (num_classes * counts.clamp(min=1)),  # scikit-learn's "balanced"
        )


def _channel_sums(images: Tensor) -> Tensor:
    """Sum and sum of squares of each channel: (2, C) float64."""
    pixels = images.double()
    return torch.stack([pixels.sum((0, 2, 3)), (pixels**2).sum((0, 2, 3))])
