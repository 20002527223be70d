"""Batched augmentation of uint8 images on the device they live on.

Random crop, flip and cutout are one gather. What else there is comes from torchvision: operations on colours and
geometry, then mixing of images and labels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ray.config import AugmentConfig

NUM_GROUPS = 8
"""Parts of a batch that draw an operation and a colour jitter of their own.

torchvision's transforms draw once for all that they are given. One image at a time varies most, and leaves `small-cnn`
81 to 92 % of its training speed (32 pixels, batches of 64 and 128, one CPU thread: `randaugment` 81 to 84, the others
86 to 92); 8 groups leave 94 to 100 %. On a GPU the time goes with the number of calls, whatever they are given (not
measured), and there a step is short. So the number is fixed: each image of a batch of 8 has draws of its own, and a
large batch takes no more calls.
"""


class Augmentation:
    """All that an :class:`~cifar_ray.config.AugmentConfig` does to the images of a batch, and to their labels.

    It draws from torch's global random state: that of the device for crop and cutout, that of the CPU for all else.

    Args:
        config: what to do.
        fill: (C,) uint8, the colour of blanked pixels.
        num_groups: parts of a batch that draw an operation and a colour jitter of their own; more than images are one
            for each.
    """

    def __init__(self, config: AugmentConfig, fill: Tensor, num_groups: int = NUM_GROUPS) -> None:
        self.config, self.fill, self.num_groups = config, fill, num_groups
        self._operations, self._mix = _transforms(config, fill)

    def images(self, images: Tensor, index: Tensor, flip: Tensor) -> Tensor:
        """Take `images[index]` with all but the mixing; arguments as of :func:`gather` and :func:`draw`.

        Returns:
            (B, C, H, W) uint8 in channels-last memory order.
        """
        draws = draw(self.config, flip, images.shape[-1])
        batch = gather(images, index, draws, self.config.cutout, self.fill)
        if self._operations is None:
            return batch
        groups = [self._operations(group) for group in batch.chunk(self.num_groups)]
        return torch.cat(groups).contiguous(memory_format=torch.channels_last)

    def mix(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix each image with the one before it in the batch, the first with the last, all in the same proportion.

        Args:
            images: (B, C, H, W) uint8.
            labels: (B,) int64.
            num_classes: how many there are.

        Returns:
            Images as they were given, and labels as float shares of the classes (B, num_classes) that sum to one;
            without mixing both as they are.
        """
        if self._mix is None:
            return images, labels
        mixed, shares = self._mix(images.float(), functional.one_hot(labels, num_classes))
        # Models take uint8; what rounding changes is less than what reading an image from JPEG does.
        return mixed.round().to(torch.uint8).contiguous(memory_format=torch.channels_last), shares


def _transforms(config: AugmentConfig, fill: Tensor) -> tuple[nn.Module | None, nn.Module | None]:
    """Operations on images, and mixing of a batch; None where there is nothing to do."""
    if config.policy == config.mix == "none" and not config.color_jitter:
        return None, None
    from torchvision.transforms import v2  # takes two seconds, which other trials need not pay

    operations: list[nn.Module] = []
    colour = fill.tolist()
    if config.policy == "trivialaugment":
        operations.append(v2.TrivialAugmentWide(fill=colour))
    elif config.policy == "randaugment":
        operations.append(v2.RandAugment(fill=colour))
    if jitter := config.color_jitter:
        operations.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    mix: nn.Module | None = None
    if config.mix == "mixup":
        mix = v2.MixUp(alpha=config.mix_alpha)
    elif config.mix == "cutmix":
        mix = v2.CutMix(alpha=config.mix_alpha)
    return nn.Sequential(*operations) if operations else None, mix


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
