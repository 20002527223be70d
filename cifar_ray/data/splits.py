"""The data a run trains on: where it comes from, and how it is split.

Every source (one of those known by name, a folder of images or of parquet files) becomes uint8 arrays of one size, cut
into train, validation and test by fixed seeds. Search and finals see train and validation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import Flip, Task
from cifar_ray.data.decode import Decoded, Images, take_images
from cifar_ray.data.folder import load_folder
from cifar_ray.data.sources import DATA_SETS, load_data_set
from cifar_ray.data.stratified import image_ids, stratified_split
from cifar_ray.errors import InputError
from cifar_ray.files import cache_folder, checksum


@dataclass(frozen=True)
class DataSplits:
    """A data set ready for training; only splits that the source brought can share images (see `num_test_copies`)."""

    train: Images
    """What weights are fitted on."""
    val: Images
    """What models are chosen by."""
    test: Images
    """The sealed split: read once, by the evaluation."""
    class_names: tuple[str, ...]
    """Name of each label."""
    source: str
    """One of `DATA_SETS`, or the absolute path of the user's folder."""
    fingerprint: str
    """SHA-256 over pixels, labels, split membership and class names: equal where two runs saw the same data."""
    flips: tuple[Flip, ...]
    """Values of `augment/flip` that make sense."""
    resize: dict[str, Any]
    """How any image becomes an input, see :func:`decode_image`: `channels` (1 or 3), `image_size` and `rule`, which is
    `native` (the data has that size already) or `shorter_side_center_crop`; with TIFFs of 32-bit integers also
    `white_int32`, 255 unless one of them has a larger pixel, then 65,535."""
    bad_images: tuple[str, ...] = ()
    """What `skip_bad_images` left out: "path: reason"."""
    val_is_test: bool = False
    """The test split is what the source calls validation, since it brings no other."""
    num_val_copies: int = 0
    """Validation images whose pixels equal those of a training image."""
    num_test_copies: int = 0
    """Test images whose pixels equal those of a training or validation image."""

    def training_arrays(self) -> dict[str, np.ndarray]:
        """The arrays that training may see: images and labels of train and validation, not of test."""
        return {
            "train_images": self.train.images,
            "train_labels": self.train.labels,
            "val_images": self.val.images,
            "val_labels": self.val.labels,
        }


def load_data(
    source: str,
    *,
    train_size: int | None = None,
    image_size: int | None = None,
    data_dir: Path | None = None,
    skip_bad_images: bool = False,
    auto_size: int = 32,
) -> DataSplits:
    """Load one of `DATA_SETS` or the folder at the path `source`, and split it.

    `digits` is cut into 200 images to train on, 597 to validate and 1,000 to test.

    A folder holds one folder of images per class, or `train/` with `test/` or `val/` that do (the second is the test
    split; with all three `val/` is the validation split), or Hugging Face parquet files (`train-*.parquet` ...), or the
    `images/` and `annotations/` of the Oxford-IIIT Pet. Without a test split of its own, a stratified 20 % goes to test
    first. Validation is carved from train, stratified: 10 %, below 10,000 images 20 %. Equal images, whatever their
    labels, are carved as one; in splits that the source brought they are counted. Decoded images of files are kept in
    the user cache folder.

    Args:
        source: one of `DATA_SETS`, or a path.
        train_size: keep this many images of train and validation together, stratified; where validation is carved,
            copies of an image only after all others. None keeps all.
        image_size: side to bring every image to. None keeps the images' own size where all are equal, square and at
            most 64 pixels wide, and otherwise means `auto_size`.
        data_dir: where what is known by name lies or is downloaded to. None is the user cache folder.
        skip_bad_images: leave unreadable images out, and list them in `bad_images`, instead of failing.
        auto_size: see `image_size`.

    Raises:
        InputError: the data is missing, unreadable or cannot be split as asked; one line says what, where, what to do.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size {image_size}: must be at least 1")
    if source in DATA_SETS:
        decoded = load_data_set(source, data_dir or cache_folder(), image_size, auto_size, skip_bad_images)
    else:
        source = os.path.abspath(os.path.expanduser(source))
        decoded = load_folder(Path(source), image_size, auto_size, skip_bad_images)
    train, val, test = _carve(decoded, source, train_size)

    fingerprint = _fingerprint(decoded.class_names, train, val, test)
    flips = DATA_SETS[source].flips if source in DATA_SETS else Task.flips
    train_ids, val_ids, test_ids = (image_ids(part.images) for part in (train, val, test))
    return DataSplits(
        train,
        val,
        test,
        decoded.class_names,
        source,
        fingerprint,
        flips,
        decoded.resize,
        decoded.bad_images,
        decoded.val_is_test,
        num_val_copies=int(np.isin(val_ids, train_ids).sum()),
        num_test_copies=int(np.isin(test_ids, np.concatenate([train_ids, val_ids])).sum()),
    )


def redrawn(data: DataSplits, seed: int) -> DataSplits:
    """Draw train and validation anew out of both together, as large as they were, stratified, copies on one side.

    What one seed gives is always the same. The test split stays as it is.
    """
    images = np.concatenate([data.train.images, data.val.images])
    labels = np.concatenate([data.train.labels, data.val.labels])
    pool = Images(images, labels)
    order = np.random.RandomState(seed % 2**32).permutation(len(labels))  # of numpy's streams the one that stays
    ids = image_ids(images)
    left, chosen = stratified_split(labels[order], len(data.val.labels), ids=ids[order])
    train, val = (take_images(pool, np.sort(order[part])) for part in (left, chosen))
    return replace(
        data,
        train=train,
        val=val,
        fingerprint=_fingerprint(data.class_names, train, val, data.test),
        num_val_copies=int(np.isin(image_ids(val.images), image_ids(train.images)).sum()),
    )


def _fingerprint(class_names: Sequence[str], train: Images, val: Images, test: Images) -> str:
    checksums = [checksum(array) for part in (train, val, test) for array in (part.images, part.labels)]
    return hashlib.sha256(json.dumps([class_names, checksums]).encode()).hexdigest()


def _carve(decoded: Decoded, source: str, train_size: int | None) -> tuple[Images, Images, Images]:
    """Return train, validation and test, copied into memory of their own."""
    pool, val, test = decoded.splits["train"], decoded.splits.get("val"), decoded.splits.get("test")
    num_classes = len(decoded.class_names)
    needed = 1 + (val is None) + (test is None)  # images per class: one for each split that comes out of the pool
    keep = np.arange(len(pool.labels))
    ids = image_ids(pool.images) if needed > 1 else keep
    sizes = np.bincount(pool.labels[np.unique(ids, return_index=True)[1]], minlength=num_classes)
    if sizes.min() < needed:
        name = decoded.class_names[sizes.argmin()]
        copies = ", copies not counted" if len(np.unique(ids)) < len(ids) else ""
        raise InputError(f"{source}: class {name!r} has {sizes.min()} train image(s){copies}, needs {needed}: add some")

    if test is None:
        keep, chosen = stratified_split(pool.labels, round(0.2 * len(keep)), min_left=needed - 1, ids=ids)
        test = take_images(pool, chosen)
    else:
        test = take_images(test, np.arange(len(test.labels)))

    total = len(keep) + (0 if val is None else len(val.labels))
    size = total if train_size is None else train_size
    if size > total:
        raise InputError(f"--train-size {size}: {source} has only {total} train and validation images")
    if size < 2 * num_classes:
        raise InputError(f"--train-size {size}: {num_classes} classes need at least {2 * num_classes} images")
    if val is not None:
        num_val = min(max(round(size * len(val.labels) / total), num_classes), size - num_classes)
        keep = keep[stratified_split(pool.labels[keep], size - num_val, min_left=0)[1]]
        return take_images(pool, keep), take_images(val, stratified_split(val.labels, num_val, min_left=0)[1]), test
    if size < total:
        labels = pool.labels[keep]
        keep = keep[stratified_split(labels, size, min_taken=2, min_left=0, ids=ids[keep], part_copies=True)[1]]
    num_val = round((0.1 if size >= 10_000 else 0.2) * size)
    left, chosen = stratified_split(pool.labels[keep], num_val, ids=ids[keep])
    return take_images(pool, keep[left]), take_images(pool, keep[chosen]), test
