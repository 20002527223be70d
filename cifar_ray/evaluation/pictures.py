"""Thumbnails of the images that a report shows, so that it needs no data set."""

import numpy as np
import torch
from torch.nn import functional

from cifar_ray.data.stratified import SPLIT_SEED

MAX_THUMBNAIL = 96
"""Side of a thumbnail in pixels, at most; smaller images stay as they are."""

NUM_SAMPLES, MAX_SAMPLED_CLASSES = 5, 20
"""Training images of each class, and of how many classes: of more the first ones."""


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Square images (N, C, S, S) uint8, shrunk to :data:`MAX_THUMBNAIL` pixels a side where they are larger."""
    if images.shape[-1] <= MAX_THUMBNAIL:
        return images
    size = (MAX_THUMBNAIL, MAX_THUMBNAIL)
    small = functional.interpolate(torch.from_numpy(images), size=size, mode="bilinear", antialias=True)
    return small.numpy()


def sample_indices(labels: np.ndarray) -> np.ndarray:
    """Which training images (K,) are shown, class by class; the same ones for the same labels (N,)."""
    rng = np.random.RandomState(SPLIT_SEED)
    of_classes = [np.flatnonzero(labels == label) for label in np.unique(labels)[:MAX_SAMPLED_CLASSES]]
    return np.concatenate([np.sort(rng.permutation(of_class)[:NUM_SAMPLES]) for of_class in of_classes])
