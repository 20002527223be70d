"""How accurate models stay where images are worse than those they learnt from.

The idea is that of Hendrycks & Dietterich (2019, "Benchmarking neural network robustness to common corruptions and
perturbations"): the same test images under corruptions of rising severity. Theirs are fifteen, in five severities, made
for 224 pixels. These are eight in three, most of them torchvision's transforms, whose sizes go by the side of the
images, so that they do something to 8 pixels as to 160: numbers are comparable within a run, not with ImageNet-C.
Augmentation may have shown some of it to a model before: crops shift.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from cifar_ray.data.decode import Images
from cifar_ray.data.stratified import SPLIT_SEED
from cifar_ray.models.classifier import Classifier
from cifar_ray.results.records import CLEAN, SEVERITIES, Row
from cifar_ray.training.loop import eval_model

CHUNK = 100  # images that are corrupted at a time: some of it is done in floats and on padded images


def _noise(images: Tensor, sigma: float) -> Tensor:
    return v2.GaussianNoise(sigma=sigma)(images)


def _blur(images: Tensor, share: float) -> Tensor:
    sigma, side = share * images.shape[-1], images.shape[-1]
    size = 2 * min(math.ceil(3 * sigma), side - 1) + 1
    # Rows, then columns: the same as both at once, but for rounding, and many times as fast on large images.
    return functional.gaussian_blur(
        functional.gaussian_blur(images, [size, 1], [sigma, sigma]), [1, size], [sigma, sigma]
    )


def _jpeg(images: Tensor, quality: float) -> Tensor:
    # By Pillow: torchvision's own encoder is deprecated.
    compressed = []
    for image in images:
        file = io.BytesIO()
        functional.to_pil_image(image).save(file, "JPEG", quality=int(quality))
        compressed.append(functional.pil_to_tensor(Image.open(file)))
    return torch.stack(compressed)


def _pixelation(images: Tensor, share: float) -> Tensor:
    side = images.shape[-1]
    small = functional.resize(images, [max(min(side, 2), round(share * side))] * 2, antialias=True)
    return functional.resize(small, [side, side], InterpolationMode.NEAREST)


def _moved(images: Tensor, angle: float, right: float, down: float) -> Tensor:
    """Turned by degrees and shifted by pixels; what comes into view repeats the edge."""
    side = images.shape[-1]
    # A quarter of the side is enough for what turns by 30 degrees or shifts by 18 % of it.
    padded = functional.pad(images, [side // 4 + 1] * 4, padding_mode="edge")
    moved = functional.affine(padded, angle, [right, down], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)
    return functional.center_crop(moved, [side, side])


def _shift(images: Tensor, share: float) -> Tensor:
    """A quarter of the images each to the right, to the left, down and up."""
    moved, pixels = torch.empty_like(images), share * images.shape[-1]
    for place, (right, down) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
        moved[place::4] = _moved(images[place::4], 0.0, right * pixels, down * pixels)
    return moved


def _rotation(images: Tensor, degrees: float) -> Tensor:
    """Every other image to the right, the rest to the left."""
    moved = torch.empty_like(images)
    for place, sign in enumerate((1, -1)):
        moved[place::2] = _moved(images[place::2], sign * degrees, 0.0, 0.0)
    return moved


@dataclass(frozen=True)
class Corruption:
    """Something that images suffer from."""

    apply: Callable[[Tensor, float], Tensor]
    """Takes images (N, C, S, S) uint8 and one of:"""
    amounts: tuple[float, float, float]
    """One of each severity."""


HOW = {
    "noise": Corruption(_noise, (0.05, 0.1, 0.2)),
    "blur": Corruption(_blur, (0.02, 0.04, 0.06)),
    "contrast": Corruption(functional.adjust_contrast, (0.7, 0.5, 0.3)),
    "brightness": Corruption(functional.adjust_brightness, (1.25, 1.5, 2.0)),
    "jpeg": Corruption(_jpeg, (50, 25, 10)),
    "pixelation": Corruption(_pixelation, (0.75, 0.5, 0.25)),
    "shift": Corruption(_shift, (0.06, 0.12, 0.18)),
    "rotation": Corruption(_rotation, (10.0, 20.0, 30.0)),
}
"""How each of `records.CORRUPTIONS` is made, by its name, with its severities:

- `noise`: Gaussian, its standard deviation as a share of the range from black to white.
- `blur`: Gaussian, its standard deviation as a share of the side.
- `contrast`: what is left of it, around each image's mean.
- `brightness`: factor of every pixel.
- `jpeg`: quality that images are compressed with.
- `pixelation`: share of the side that images are shrunk to, and enlarged from without smoothing.
- `shift`: share of the side, to one of the four sides.
- `rotation`: degrees, in one of the two directions.
"""


def corrupt(images: Tensor, corruption: str, severity: int) -> Tensor:
    """Corrupt images.

    Args:
        images: (N, C, S, S) uint8 with 1 or 3 channels. They are corrupted on the CPU, the same way every time.
        corruption: of :data:`HOW`.
        severity: of `records.SEVERITIES`.

    Returns:
        (N, C, S, S) uint8.
    """
    of_name = HOW[corruption]
    amount = of_name.amounts[severity - 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SPLIT_SEED)
        return torch.cat([of_name.apply(chunk, amount) for chunk in images.split(CHUNK)])


def score_corrupted(
    networks: Mapping[str, Classifier], test: Images, corruption: str, device: torch.device
) -> list[Row]:
    """Accuracy of models under one corruption in all its severities, or without any (:data:`CLEAN`).

    Args:
        networks: by name.
        test: the images.
        corruption: its name.
        device: of the networks.

    Returns:
        Parts of rows of robustness.csv: `model`, `corruption`, `severity`, `n`, `accuracy`.
    """
    images = torch.tensor(test.images)
    labels = torch.tensor(test.labels, device=device)
    rows: list[Row] = []
    for severity in (0,) if corruption == CLEAN else SEVERITIES:
        corrupted = (images if corruption == CLEAN else corrupt(images, corruption, severity)).to(device)
        for name, network in networks.items():
            right = (eval_model(network, corrupted).argmax(1) == labels).sum().item()
            rows.append(
                {
                    "model": name,
                    "corruption": corruption,
                    "severity": severity,
                    "n": len(labels),
                    "accuracy": right / len(labels),
                }
            )
    return rows
