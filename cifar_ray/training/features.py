"""Features of a frozen backbone: computed once, kept on disk, and shared by all that train heads on them."""

import fcntl
import hashlib
import io
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_ray.config import BackboneConfig, TrialConfig
from cifar_ray.files import cache_folder, read_json, write_bytes, write_json
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import Classifier
from cifar_ray.training.augment import Augmentation, mirrored

FORMAT = 2
"""To be raised when the same images and weights would give other features."""


@dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of the images of a run: float16, D values an image."""

    train: list[Tensor]
    """One (N, D) for each version of the training images."""
    val: Tensor
    """(M, D)."""
    images_per_s: float
    """Of the backbone, when it computed them."""


def head_features(
    model: Classifier, config: TrialConfig, train_images: Tensor, val_images: Tensor, images_key: str, fill: Tensor
) -> Features:
    """Return what the head of `model` trains on and is validated with; what nobody has computed yet, is computed.

    Features lie in the user cache folder, from where every process of a machine maps them into its memory. Processes
    that need the same ones at the same time wait for the first of them.

    Args:
        model: with its pretrained weights.
        config: that of the model; its `feature_views` and `augment` make the versions of the training images.
        train_images: (N, C, H, W) uint8.
        val_images: (M, C, H, W) uint8.
        images_key: a checksum of them.
        fill: (C,) uint8, the colour of cutout.
    """
    assert isinstance(config.model, BackboneConfig)
    of_all = [FORMAT, images_key, _weights_key(model), config.model.backbone, config.model.stem, config.image_size]
    of_all.append(model.precision)
    model.eval()
    rates: list[float] = []

    def features(images: Tensor, view: int, *what: Any) -> Tensor:
        key = hashlib.sha256(json.dumps([*of_all, *what]).encode()).hexdigest()
        with torch.random.fork_rng(), torch.inference_mode():
            batches = _batches(model, config, images, fill, view)
            array, images_per_s = _kept(cache_folder() / "features", key, model, batches)
        rates.append(images_per_s)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
            return torch.from_numpy(array).to(images.device)

    train = [features(train_images, 0, "train")]
    for view in range(1, config.model.feature_views):
        train.append(features(train_images, view, "train", view, asdict(config.augment)))
    return Features(train, features(val_images, 0, "val"), sum(rates) / len(rates))


def _batches(model: Classifier, config: TrialConfig, images: Tensor, fill: Tensor, view: int) -> Iterator[Tensor]:
    """Version `view` of the images in batches (B, C, H, W); 0 is as they are."""
    torch.manual_seed(view)
    # These may come class by class: in groups, a class would be told by its operation.
    augmentation = Augmentation(config.augment, fill, num_groups=len(images))
    flip = mirrored(config.augment, len(images), seed=0, epoch=view).to(images.device)
    for index in torch.arange(len(images), device=images.device).split(model.eval_batch_size):
        if view:
            yield augmentation.images(images, index, flip[index])
        else:
            yield images[index].contiguous(memory_format=torch.channels_last)


def _kept(folder: Path, key: str, model: Classifier, batches: Iterator[Tensor]) -> tuple[np.ndarray, float]:
    """The features under that key, as they are mapped from disk, and how many images a second computing them took."""
    folder.mkdir(parents=True, exist_ok=True)
    path, about = folder / f"{key}.npy", folder / f"{key}.json"
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it however this process ends
        if not path.exists():
            began = time.perf_counter()
            array = _compute(model, batches)
            write_json(about, {"images_per_s": len(array) / (time.perf_counter() - began)})
            data = io.BytesIO()
            np.save(data, array)
            write_bytes(path, data.getvalue())
    return np.load(path, mmap_mode="r"), float(read_json(about)["images_per_s"])


def _compute(model: Classifier, batches: Iterator[Tensor]) -> np.ndarray:
    network = model.network
    assert isinstance(network, BackboneNet)
    parts = []
    for batch in batches:
        with model.autocast():
            parts.append(network.features(model.inputs(batch)).half().cpu())
    return torch.cat(parts).numpy()


def _weights_key(model: Classifier) -> str:
    """Checksum of all that stands in front of the head."""
    sha = hashlib.sha256()
    assert isinstance(model.network, BackboneNet)
    for tensor in [model.normalize.mean, model.normalize.std, *model.network.backbone.state_dict().values()]:
        sha.update(tensor.contiguous().cpu().numpy().data)
    return sha.hexdigest()
