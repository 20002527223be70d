"""The data a run trains on: where it comes from, and how it is split.

Every source (scikit-learn's digits, torchvision's CIFAR-10, a folder of images or of parquet files) becomes uint8
arrays of one size, cut into train, validation and test by fixed seeds. Search and finals see train and validation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import Flip, InputError, Task
from cifar_ray.decode import fit_square, one_line, to_array
from cifar_ray.image_folder import Decoded, Images, cache_folder, checksum, load_folder

SPLIT_SEED = 0  # not the run's seed: all runs over the same data see the same splits
DOWNLOAD_TIMEOUT_S = 60.0


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
    """`digits`, `cifar10` or the absolute path of the user's folder."""
    fingerprint: str
    """SHA-256 over pixels, labels, split membership and class names: equal where two runs saw the same data."""
    flips: tuple[Flip, ...]
    """Values of `augment/flip` that make sense: `none` alone for digits, since a mirrored one is another character."""
    resize: dict[str, Any]
    """How any image becomes an input, see :func:`decode_image`: `channels` (1 or 3), `image_size` and `rule`, which is
    `native` (the data has that size already) or `shorter_side_center_crop`; with TIFFs of 32-bit integers also
    `white_int32`, 255 unless one of them has a larger pixel, then 65,535."""
    bad_images: tuple[str, ...] = ()
    """What `skip_bad_images` left out: "path: reason"."""
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
    """Load `digits`, `cifar10` or the folder at the path `source`, and split it.

    `digits` is cut into 200 images to train on, 597 to validate and 1,000 to test.

    A folder holds one folder of images per class, or `train/` with `test/` or `val/` that do (the second is the test
    split; with all three `val/` is the validation split), or Hugging Face parquet files (`train-*.parquet` ...).
    Without a test split of its own, a stratified 20 % goes to test first. Validation is carved from train, stratified:
    10 %, below 10,000 images 20 %. Equal images, whatever their labels, are carved as one; in splits that the source
    brought they are counted. Decoded folders are kept in the user cache folder.

    Args:
        source: `digits`, `cifar10` or a path.
        train_size: keep this many images of train and validation together, stratified; where validation is carved,
            copies of an image only after all others. None keeps all.
        image_size: side to bring every image to. None keeps the images' own size where all are equal, square and at
            most 64 pixels wide, and otherwise means `auto_size`.
        data_dir: where `cifar10` lies or is downloaded to. None is the user cache folder.
        skip_bad_images: leave unreadable images out, and list them in `bad_images`, instead of failing.
        auto_size: see `image_size`.

    Raises:
        InputError: the data is missing, unreadable or cannot be split as asked; one line says what, where, what to do.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size {image_size}: must be at least 1")
    if source == "digits":
        decoded = _load_digits(image_size)
    elif source == "cifar10":
        decoded = _load_cifar10(data_dir or cache_folder(), image_size)
    else:
        source = os.path.abspath(os.path.expanduser(source))
        decoded = load_folder(Path(source), image_size, auto_size, skip_bad_images)
    train, val, test = _carve(decoded, source, train_size)

    checksums = [checksum(array) for part in (train, val, test) for array in (part.images, part.labels)]
    fingerprint = hashlib.sha256(json.dumps([decoded.class_names, checksums]).encode()).hexdigest()
    flips: tuple[Flip, ...] = ("none",) if source == "digits" else Task.flips
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
        num_val_copies=int(np.isin(val_ids, train_ids).sum()),
        num_test_copies=int(np.isin(test_ids, np.concatenate([train_ids, val_ids])).sum()),
    )


def image_ids(images: np.ndarray) -> np.ndarray:
    """Return a number (N,) uint64 for each of `images` (N, ...), the same where all pixels are the same."""
    digests = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


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
        test = _take(pool, chosen)
    else:
        test = _take(test, np.arange(len(test.labels)))

    total = len(keep) + (0 if val is None else len(val.labels))
    size = total if train_size is None else train_size
    if size > total:
        raise InputError(f"--train-size {size}: {source} has only {total} train and validation images")
    if size < 2 * num_classes:
        raise InputError(f"--train-size {size}: {num_classes} classes need at least {2 * num_classes} images")
    if val is not None:
        num_val = min(max(round(size * len(val.labels) / total), num_classes), size - num_classes)
        keep = keep[stratified_split(pool.labels[keep], size - num_val, min_left=0)[1]]
        return _take(pool, keep), _take(val, stratified_split(val.labels, num_val, min_left=0)[1]), test
    if size < total:
        labels = pool.labels[keep]
        keep = keep[stratified_split(labels, size, min_taken=2, min_left=0, ids=ids[keep], part_copies=True)[1]]
    num_val = round((0.1 if size >= 10_000 else 0.2) * size)
    left, chosen = stratified_split(pool.labels[keep], num_val, ids=ids[keep])
    return _take(pool, keep[left]), _take(pool, keep[chosen]), test


def stratified_split(
    labels: np.ndarray,
    num_taken: int,
    *,
    min_taken: int = 1,
    min_left: int = 1,
    ids: np.ndarray | None = None,
    part_copies: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted positions of `labels` (N,) left behind and taken, the latter `num_taken` in all.

    Each class gives in proportion to its size (largest remainder; ties go to the lower label), at least `min_taken` and
    all but `min_left`; `num_taken` moves to the nearest number that allows it. The same labels give the same split.

    Args:
        ids: (N,), equal where images are. They count for the class of the first of them and stay together, so that
            classes with copies give a few images more or fewer; `min_taken` and `min_left` do not count copies.
        part_copies: take exactly `num_taken`, copies of an image after all others of its class, instead.
    """
    ids = np.arange(len(labels)) if ids is None else ids
    _, first, group, num_equal = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    first = first[group]  # (N,) of each image the first that equals it
    labels, is_copy = labels[first], first != np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    low, high = np.full_like(sizes, min_taken), sizes - min_left
    assert (low <= high).all(), "a class is too small to split"
    num_taken = int(np.clip(num_taken, low.sum(), high.sum()))
    counts = np.clip(sizes * num_taken // len(labels), low, high)
    while (missing := num_taken - counts.sum()) != 0:  # at most a few rounds per class
        owed = sizes * num_taken - counts * len(labels)  # integers, so that ties are exact
        if missing > 0:
            counts[np.where(counts < high, owed, np.iinfo(np.int64).min).argmax()] += 1
        else:
            counts[np.where(counts > low, owed, np.iinfo(np.int64).max).argmin()] -= 1
    rng = np.random.RandomState(SPLIT_SEED)  # the one whose stream no later version of numpy may change
    taken = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, counts, strict=True):
        order = rng.permutation(np.flatnonzero((labels == label) & ~is_copy))
        if part_copies:
            taken[np.concatenate([order, np.flatnonzero((labels == label) & is_copy)])[:count]] = True
        else:
            taken[order[_fill(num_equal[group[order]].tolist(), count, min_taken, len(order) - min_left)]] = True
    if not part_copies:
        taken = taken[first]
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _fill(sizes: list[int], room: int, at_least: int, at_most: int) -> list[int]:
    """Return the positions of those `sizes` that, one after another, still fit into `room`, of so many in number."""
    assert at_least <= at_most, "a class is too small to split"
    chosen: list[int] = []
    for i, size in enumerate(sizes):
        if size <= room and len(chosen) < at_most:
            chosen.append(i)
            room -= size
    if len(chosen) < at_least:
        rest = sorted(set(range(len(sizes))) - set(chosen), key=lambda i: (sizes[i], i))
        chosen += rest[: at_least - len(chosen)]
    return chosen


def _take(part: Images, index: np.ndarray) -> Images:
    return Images(part.images[index], part.labels[index])


def _load_digits(image_size: int | None) -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8) from 0..16
    names = tuple(str(name) for name in bunch.target_names)
    # Few to train on, since from many every good configuration learns them all, and nothing can be told apart.
    whole = Images(images, bunch.target.astype(np.int64))
    rest, test = stratified_split(whole.labels, 1_000)
    train, val = stratified_split(whole.labels[rest], 597)
    cut = {"train": _take(whole, rest[train]), "val": _take(whole, rest[val]), "test": _take(whole, test)}
    return _from_arrays(cut, names, image_size)


def _load_cifar10(data_dir: Path, image_size: int | None) -> Decoded:
    from torchvision.datasets import CIFAR10

    try:
        sets = {"train": CIFAR10(data_dir, train=True), "test": CIFAR10(data_dir, train=False)}
    except (RuntimeError, OSError):  # absent, unreadable, or its checksums are wrong
        _download_cifar10(data_dir)
        sets = {"train": CIFAR10(data_dir, train=True), "test": CIFAR10(data_dir, train=False)}
    splits = {
        name: Images(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, dtype=np.int64))
        for name, data in sets.items()
    }
    return _from_arrays(splits, tuple(sets["train"].classes), image_size)


def _download_cifar10(data_dir: Path) -> None:
    import http.client
    import socket

    from torchvision.datasets import CIFAR10

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torchvision sets none: behind a silent firewall it waits for ever
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Beside the target and then moved, so that two runs that start at once do not write the same files.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=data_dir) as temp:
            if (data_dir / CIFAR10.filename).is_file():  # brought here by hand
                shutil.copy(data_dir / CIFAR10.filename, temp)
            CIFAR10(temp, download=True)
            (data_dir / CIFAR10.base_folder).mkdir(exist_ok=True)
            for file in (Path(temp) / CIFAR10.base_folder).iterdir():
                os.replace(file, data_dir / CIFAR10.base_folder / file.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise InputError(
            f"cifar10: cannot download {CIFAR10.url} to {data_dir} ({one_line(error)}); use `--data digits`, which "
            f"needs no network, `--data PATH` with images of your own, or put {CIFAR10.filename} into that folder"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def _from_arrays(splits: dict[str, Images], class_names: tuple[str, ...], image_size: int | None) -> Decoded:
    channels, native_size = splits["train"].images.shape[1:3]
    if image_size is None:
        return Decoded(splits, class_names, {"channels": channels, "image_size": native_size, "rule": "native"})
    from PIL import Image

    def fit(image: np.ndarray) -> np.ndarray:  # (C, H, W) to (C, S, S)
        pixels = image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        return to_array(fit_square(Image.fromarray(pixels), image_size))

    with ThreadPoolExecutor() as pool:
        splits = {k: Images(np.stack(list(pool.map(fit, v.images))), v.labels) for k, v in splits.items()}
    resize = {"channels": channels, "image_size": image_size, "rule": "shorter_side_center_crop"}
    return Decoded(splits, class_names, resize)
