"""Data sets that are known by name: scikit-learn's digits, and several of torchvision's."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import Flip, Task
from cifar_ray.data.cache import decode_once
from cifar_ray.data.decode import Decoded, EncodedSplit, Images, fit_square, take_images, to_array
from cifar_ray.data.pets import list_pets
from cifar_ray.data.stratified import stratified_split
from cifar_ray.errors import InputError, one_line
from cifar_ray.files import download_timeout

logger = logging.getLogger(__name__)

DEFAULT_DATA = "cifar10"


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from, and what is special to it."""

    read: Callable[[DataSet, Path], Decoded | tuple[dict[str, EncodedSplit], tuple[str, ...]]]
    """Gives what lies in a data folder: small images decoded, large ones as files with the class names."""
    torchvision_class: str = ""
    """By its name, since torchvision takes seconds to import; none of what needs no download."""
    splits: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"train": {"train": True}, "test": {"train": False}}
    )
    """What the class is called with for each split."""
    url: str = ""
    files: tuple[str, ...] = ()
    """What is downloaded, below `url`."""
    folder: str = ""
    """Where torchvision looks for these files, below the data folder."""
    flips: tuple[Flip, ...] = Task.flips
    """Values of `augment/flip` that make sense: `none` alone for digits, since a mirrored one is another character."""

    def dataset(self, data_dir: Path, split: str, **options: Any) -> Any:
        """torchvision's data set. Raises RuntimeError or OSError where it finds it absent or damaged."""
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_class)(data_dir, **self.splits[split], **options)


def load_data_set(name: str, data_dir: Path, image_size: int | None, auto_size: int, skip_bad_images: bool) -> Decoded:
    """Load one of `DATA_SETS`, downloading it to `data_dir` where it is absent there or damaged.

    Raises:
        InputError: it cannot be downloaded, or one of its images cannot be read.
    """
    data_set = DATA_SETS[name]
    try:
        found = data_set.read(data_set, data_dir)
    except Exception as error:  # it is absent, or damaged: in any form, since not all of them have checksums
        logger.info("%s: no whole copy in %s (%s), downloading", name, data_dir, one_line(error))
        _download(name, data_set, data_dir)
        found = data_set.read(data_set, data_dir)
    if isinstance(found, Decoded):
        return found if image_size is None else _resized(found, image_size)
    return decode_once(data_dir / data_set.folder, *found, image_size, auto_size, skip_bad_images)


def _download(name: str, data_set: DataSet, data_dir: Path) -> None:
    import http.client

    folder = data_dir / data_set.folder
    try:
        with download_timeout():
            data_dir.mkdir(parents=True, exist_ok=True)
            # Beside the target and then moved, so that two runs that start at once do not write the same files.
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=data_dir) as temp:
                partial = Path(temp, data_set.folder)
                partial.mkdir(parents=True, exist_ok=True)
                for file in data_set.files:
                    if (folder / file).is_file():  # brought here by hand
                        shutil.copy(folder / file, partial)
                for split in data_set.splits:
                    data_set.dataset(Path(temp), split, download=True)
                for file in data_set.files:
                    if file.endswith(("gz", "zip")):  # unpacked by now
                        (partial / file).unlink()
                for path in Path(temp).iterdir():
                    _move(path, data_dir / path.name)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        these = "this file" if len(data_set.files) == 1 else "these files"
        raise InputError(
            f"{name}: cannot download {', '.join(data_set.files)} from {data_set.url} to {folder} ({one_line(error)}); "
            "use `--data digits`, which needs no network, `--data PATH` with images of your own, or put "
            f"{these} into that folder"
        ) from None


def _move(path: Path, target: Path) -> None:
    """Move a file or a folder: at once where none is there yet, else file by file over what is."""
    try:
        os.replace(path, target)
    except OSError:
        if not path.is_dir():
            raise
        for inner in path.iterdir():
            _move(inner, target / inner.name)


def _read_digits(data_set: DataSet, data_dir: Path) -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8) from 0..16
    # Few to train on, since from many every good configuration learns them all, and nothing can be told apart.
    whole = Images(images, bunch.target.astype(np.int64))
    rest, test = stratified_split(whole.labels, 1_000)
    train, val = stratified_split(whole.labels[rest], 597)
    cut = {
        "train": take_images(whole, rest[train]),
        "val": take_images(whole, rest[val]),
        "test": take_images(whole, test),
    }
    return _native(cut, tuple(str(name) for name in bunch.target_names))


def _read_arrays(data_set: DataSet, data_dir: Path) -> Decoded:
    """Read a data set that torchvision has in memory."""
    splits: dict[str, Images] = {}
    names: tuple[str, ...] = ()
    for split in data_set.splits:
        dataset = data_set.dataset(data_dir, split)
        images = np.asarray(dataset.data)
        if images.ndim == 3:  # (N, H, W)
            images = images[:, None]
        elif images.shape[1] > 3:  # (N, H, W, C), as all but SVHN are
            images = images.transpose(0, 3, 1, 2)
        labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=np.int64)
        splits[split] = Images(np.ascontiguousarray(images), labels)
        names = tuple(getattr(dataset, "classes", ())) or tuple(str(label) for label in range(1 + labels.max()))
    return _native(splits, names)


def _native(splits: dict[str, Images], class_names: tuple[str, ...]) -> Decoded:
    channels, native_size = splits["train"].images.shape[1:3]
    return Decoded(splits, class_names, {"channels": channels, "image_size": native_size, "rule": "native"})


def _resized(decoded: Decoded, image_size: int) -> Decoded:
    from PIL import Image

    channels = decoded.resize["channels"]

    def fit(image: np.ndarray) -> np.ndarray:  # (C, H, W) to (C, S, S)
        pixels = image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        return to_array(fit_square(Image.fromarray(pixels), image_size))

    with ThreadPoolExecutor() as pool:
        splits = {k: Images(np.stack(list(pool.map(fit, v.images))), v.labels) for k, v in decoded.splits.items()}
    resize = {"channels": channels, "image_size": image_size, "rule": "shorter_side_center_crop"}
    return Decoded(splits, decoded.class_names, resize)


def _read_pets(data_set: DataSet, data_dir: Path) -> tuple[dict[str, EncodedSplit], tuple[str, ...]]:
    splits, names = list_pets(data_dir / data_set.folder)
    return _all_there(splits), names


def _read_flowers(data_set: DataSet, data_dir: Path) -> tuple[dict[str, EncodedSplit], tuple[str, ...]]:
    splits = {}
    for split in data_set.splits:
        dataset = data_set.dataset(data_dir, split, loader=lambda file: file)
        files, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
        splits[split] = EncodedSplit(np.array(labels, dtype=np.int64), list(files))
    return _all_there(splits), tuple(dataset.classes)


def _all_there(splits: dict[str, EncodedSplit]) -> dict[str, EncodedSplit]:
    """Raise FileNotFoundError where an image is missing, which torchvision does not look for."""
    for encoded in splits.values():
        if missing := next((file for file in encoded.files if not file.is_file()), None):
            raise FileNotFoundError(missing)
    return splits


DATA_SETS = {
    "cifar10": DataSet(
        _read_arrays, "CIFAR10", url="https://www.cs.toronto.edu/~kriz/", files=("cifar-10-python.tar.gz",)
    ),
    "cifar100": DataSet(
        _read_arrays, "CIFAR100", url="https://www.cs.toronto.edu/~kriz/", files=("cifar-100-python.tar.gz",)
    ),
    "fashion-mnist": DataSet(
        _read_arrays,
        "FashionMNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        folder="FashionMNIST/raw",
    ),
    "svhn": DataSet(
        _read_arrays,
        "SVHN",
        splits={"train": {"split": "train"}, "test": {"split": "test"}},
        url="http://ufldl.stanford.edu/housenumbers/",
        files=("train_32x32.mat", "test_32x32.mat"),
        flips=("none",),
    ),
    "oxford-pets": DataSet(
        _read_pets,
        "OxfordIIITPet",
        splits={"train": {"split": "trainval"}, "test": {"split": "test"}},
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/",
        files=("images.tar.gz", "annotations.tar.gz"),
        folder="oxford-iiit-pet",
    ),
    "flowers102": DataSet(
        _read_flowers,
        "Flowers102",
        splits={split: {"split": split} for split in ("train", "val", "test")},
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        files=("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        folder="flowers-102",
    ),
    "digits": DataSet(_read_digits, flips=("none",)),
}
"""All that `--data` knows by name; another one is an entry here."""

DATA_HINT = f"--data takes {', '.join(DATA_SETS)} or the path of a folder"
