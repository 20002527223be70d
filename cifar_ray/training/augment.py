"""Batched augmentation of uint8 images on the device they live on: random crop, flip and cutout in one gather."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifar_ray.config import AugmentConfig


@dataclass(frozen=True)
class Draws:
    """One random draw for a batch of B images; all tensors have shape (B,)."""

    shift_y: Tensor
    """Rows by which the crop window moves, in -crop_padding..crop_padding."""
    shift_x: Tensor
    """Columns by which the crop window moves."""
    flip: Tensor
    """Whether the image is mirrored left to right (bool)."""
    cutout_y: Tensor
    """Centre row of the blanked square."""
    cutout_x: Tensor
    """Centre column of the blanked square."""


def mirrored(config: AugmentConfig, num_images: int, seed: int, epoch: int) -> Tensor:
    """Which of the training images an epoch mirrors: (N,) booleans, the same for all who pass the same seed."""
    if config.flip == "none":
        return torch.zeros(num_images, dtype=torch.bool)
    alternating = config.flip == "alternating"
    coins = np.random.default_rng([seed, 0 if alternating else epoch]).random(num_images) < 0.5
    return torch.from_numpy(coins ^ (alternating and epoch % 2 == 0))


def draw(config: AugmentConfig, flip: Tensor, image_size: int) -> Draws:
    """Draw the random numbers of one batch from the device's global random state.

    Args:
        config: what to draw for.
        flip: (B,) booleans, which images of the batch are mirrored, see :func:`mirrored`.
        image_size: side of the images in pixels.
    """
    padding, batch_size, device = config.crop_padding, len(flip), flip.device
    shifts = torch.randint(-padding, padding + 1, (2, batch_size), device=device)
    centres = torch.randint(0, image_size, (2, batch_size), device=device)
    return Draws(shifts[0], shifts[1], flip, centres[0], centres[1])


def gather(images: Tensor, index: Tensor, draws: Draws, cutout: int, fill: Tensor) -> Tensor:
    """Take `images[index]` augmented by `draws`.

    The crop pads by reflection; the square of side `cutout` (DeVries and Taylor 2017, arXiv:1708.04552) is cut off
    at the border and takes the colour `fill`.

    Args:
        images: (N, C, H, W) uint8.
        index: (B,) int64.
        draws: the random draw of this batch.
        cutout: side of the blanked square in pixels, 0 for none.
        fill: (C,) uint8, the colour of blanked pixels.

    Returns:
        (B, C, H, W) uint8 in channels-last memory order.
    """
    height, width = images.shape[-2:]
    rows = _reflect(torch.arange(height, device=images.device) + draws.shift_y[:, None], height)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(len(index), width)
    columns = torch.where(draws.flip[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + draws.shift_x[:, None], width)  # (B, W)
    batch = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    if cutout:
        in_rows = _in_square(draws.cutout_y, cutout, height)[:, :, None]  # (B, H, 1)
        in_columns = _in_square(draws.cutout_x, cutout, width)[:, None, :]  # (B, 1, W)
        batch = torch.where((in_rows & in_columns)[..., None], fill, batch)
    return batch.permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices that lie outside 0..size-1 back inside, without repeating the border pixel."""
    index = index.abs() % max(2 * (size - 1), 1)
    return (size - 1) - ((size - 1) - index).abs()


def _in_square(centre: Tensor, side: int, size: int) -> Tensor:
    """Return (B, size) booleans: which coordinates lie in the span of `side` pixels around each centre."""
    offset = torch.arange(size, device=centre.device) - (centre[:, None] - side // 2)
    return (offset >= 0) & (offset < side)
