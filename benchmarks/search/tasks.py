"""What searches are measured on: which images, how long a trial is, how many trials there are.

The test splits of the data are not read. What a search finds is trained again and scored on the *holdout*: training
images that neither trained nor chose anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from cifar_ray.config import Task, TrialConfig
from cifar_ray.data.decode import Images, take_images
from cifar_ray.data.splits import load_data
from cifar_ray.data.stratified import stratified_split
from cifar_ray.models.classifier import has_bf16
from cifar_ray.search.space import Space, load_space


@dataclass(frozen=True)
class SearchTask:
    """Images, and the length of trials and searches on them."""

    name: str
    num_train: int
    num_val: int
    num_holdout: int
    max_epochs: int
    num_trials: int
    """Of a search."""
    num_table: int
    """Configurations in its recorded table."""
    num_channels: int = 3
    num_classes: int = 10
    image_size: int = 32

    @property
    def task(self) -> Task:
        """What search spaces look at."""
        return Task(
            num_classes=self.num_classes,
            channels=self.num_channels,
            image_size=self.image_size,
            num_train=self.num_train,
            device="cpu",
            flips=("none",) if self.name == "digits" else Task.flips,
        )

    @property
    def space(self) -> Space:
        """What is searched. In bf16 where a run would find that it pays: not on 8x8 pixels."""
        return replace(load_space("cnn"), precision="bf16" if self.image_size > 8 and has_bf16("cpu") else "fp32")

    @property
    def default_params(self) -> dict[str, Any]:
        """Parameters of trial 0."""
        return self.space.default_params(self.task)

    @property
    def default_config(self) -> TrialConfig:
        """Trial 0."""
        return self.space.default_config(self.task)


TASKS = {
    "digits": SearchTask("digits", 200, 298, 299, 30, 50, 1000, num_channels=1, image_size=8),
    "cifar": SearchTask("cifar", 2000, 500, 5000, 9, 24, 250),
    "pets": SearchTask("pets", 1200, 300, 1000, 10, 30, 0, num_classes=9),
}
"""By name. `digits` trains on as many images as the README's run; `pets` is looked at once, at the end."""


@cache
def load_images(source: str, image_size: int) -> Images:
    """All images of a data set that are not of its test split."""
    splits = load_data(source, image_size=image_size)
    pool = Images(
        np.concatenate([splits.train.images, splits.val.images]),
        np.concatenate([splits.train.labels, splits.val.labels]),
    )
    return pool


@cache
def load_splits(task: SearchTask, source: str, seed: int) -> dict[str, Images]:
    """`train`, `val` and `holdout`, stratified, disjoint, drawn by `seed`; `source` is for `load_data`."""
    pool = load_images(source, task.image_size)
    order = np.random.RandomState(seed).permutation(len(pool.labels))  # of numpy's streams the one that stays
    pool = take_images(pool, order)
    splits: dict[str, Images] = {}
    for name, number in (("holdout", task.num_holdout), ("val", task.num_val), ("train", task.num_train)):
        left, taken = stratified_split(pool.labels, number, min_left=0)
        splits[name] = take_images(pool, taken)
        pool = take_images(pool, left)
    return splits


def training_arrays(splits: dict[str, Images]) -> dict[str, np.ndarray]:
    """What a training sees: no holdout."""
    return {f"{name}_{what}": getattr(splits[name], what) for name in ("train", "val") for what in ("images", "labels")}
