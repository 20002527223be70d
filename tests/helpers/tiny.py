"""Tiny problems for the training loop, and a model that notes what it is given."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_ray.config import CNNConfig, LRScheduleConfig, OptimizerConfig, TrialConfig
from cifar_ray.results.records import Row
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Ranks, Training

CPU = torch.device("cpu")
TINY = CNNConfig(widths=[8, 8], blocks=[1, 1], kernel_sizes=[3, 3])
SMOOTH = CNNConfig(widths=[8, 8], blocks=[1, 1], kernel_sizes=[3, 3], norm="group", activation="gelu")


def arrays(num_train: int = 64, num_val: int = 33, size: int = 8, channels: int = 1) -> dict[str, np.ndarray]:
    """Images that are brighter at the left (class 0) or at the right (class 1), under noise."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        images = rng.integers(0, 150, (count, channels, size, size))
        for side in (0, 1):
            columns = slice(0, size // 2) if side == 0 else slice(size // 2, size)
            images[labels == side, :, :, columns] += 90
        return images.astype(np.uint8), labels.astype(np.int64)

    train_images, train_labels = split(num_train)
    val_images, val_labels = split(num_val)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "val_images": val_images,
        "val_labels": val_labels,
    }


def device_data(**sizes: int) -> DeviceData:
    return DeviceData.from_arrays(arrays(**sizes), 2, CPU)


def imbalanced_data() -> DeviceData:
    """Data of which one training image in seven is of class 1."""
    given = arrays(num_train=128)
    keep = np.flatnonzero((given["train_labels"] == 0) | (np.arange(128) % 14 == 1))
    given["train_images"], given["train_labels"] = given["train_images"][keep], given["train_labels"][keep]
    return DeviceData.from_arrays(given, 2, CPU)


def misleading_data() -> DeviceData:
    """Data whose validation labels are swapped: the more a model learns, the worse it does there."""
    data = device_data()
    return replace(data, val_labels=1 - data.val_labels)


def tiny_config(**changes: Any) -> TrialConfig:
    return replace(TrialConfig(model=TINY, batch_size=16, optimizer=OptimizerConfig(lr=0.05)), **changes)


def schedule(name: str) -> LRScheduleConfig:
    return LRScheduleConfig(name=name)  # type: ignore[arg-type]


def without_times(history: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in history]


def weights_equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Recorder(nn.Module):
    """Learns nothing, but keeps the first pixel of every image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images[:, 0, 0, 0].tolist())
        return self.weight.expand(len(images), 2)


def numbered_data(count: int) -> DeviceData:
    """Data in which every pixel of image i is i."""
    data = device_data()
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    return replace(data, train_images=images, train_labels=torch.arange(count) % 2)


def recorded_batches(count: int, batch_size: int, order: Tensor, ranks: Ranks = Ranks()) -> list[list[int]]:
    experiment = Experiment(tiny_config(batch_size=batch_size), seed=0, max_epochs=1)
    training = Training(experiment, numbered_data(count), ranks=ranks)
    training.parallel = recorder = Recorder()
    training.train_batches(order, epoch=1)
    return recorder.seen


def random_images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
