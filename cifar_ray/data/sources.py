"""Data sets that are known by name: scikit-learn's digits and torchvision's CIFAR-10."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cifar_ray.data.decode import Decoded, Images, fit_square, take_images, to_array
from cifar_ray.data.stratified import stratified_split
from cifar_ray.errors import InputError, one_line
from cifar_ray.files import download_timeout


def load_digits(image_size: int | None) -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8) from 0..16
    names = tuple(str(name) for name in bunch.target_names)
    # Few to train on, since from many every good configuration learns them all, and nothing can be told apart.
    whole = Images(images, bunch.target.astype(np.int64))
    rest, test = stratified_split(whole.labels, 1_000)
    train, val = stratified_split(whole.labels[rest], 597)
    cut = {
        "train": take_images(whole, rest[train]),
        "val": take_images(whole, rest[val]),
        "test": take_images(whole, test),
    }
    return _from_arrays(cut, names, image_size)


def load_cifar10(data_dir: Path, image_size: int | None) -> Decoded:
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

    from torchvision.datasets import CIFAR10

    try:
        with download_timeout():
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
