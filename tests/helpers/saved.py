"""Untrained models in folders as a final training leaves them."""

from pathlib import Path
from typing import Any

import torch
from helpers.tiny import TINY

from cifar_ray.config import TrialConfig
from cifar_ray.models.classifier import build_model
from cifar_ray.models.saved import pack_weights, save_model
from cifar_ray.results.config_json import IN_RESULTS

TINY_TRIAL = TrialConfig(model=TINY)


def save_untrained(
    folder: Path, class_names: list[str], seed: int = 0, size: int = 8, channels: int = 1, **card: Any
) -> None:
    """A model of native images of that size, whose answers differ from image to image; `card` adds to its card."""
    torch.manual_seed(seed)
    model = build_model(TINY_TRIAL, num_classes=len(class_names), channels=channels, image_size=size)
    model.normalize.mean.fill_(80.0)
    model.normalize.std.fill_(80.0)
    resize = {"channels": channels, "image_size": size, "rule": "native"}
    known: dict[str, Any] = dict.fromkeys(IN_RESULTS, 1.0)
    known |= {"class_names": class_names, "resize": resize, "seed": seed, "torch": "2.11", "metric": "accuracy"}
    save_model(folder, pack_weights(model), TINY_TRIAL, known | card)
