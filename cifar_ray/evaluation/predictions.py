"""Images that are named, and the classes that a saved model gives them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_ray.data.decode import decode_image, map_images
from cifar_ray.data.folder import IMAGE_SUFFIXES
from cifar_ray.errors import InputError

if TYPE_CHECKING:
    from cifar_ray.models.classifier import Classifier

BATCH_SIZE = 64
"""Images classified at once: few, so that the first rows come soon."""


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return the images that were named, and those below the folders that were named, each folder's in order.

    Raises:
        InputError: one of them does not exist, or has no images below it.
    """
    files: list[Path] = []
    for path in given:
        try:
            path.stat()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}: give images, and folders of images") from None
        found = _images_below(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: no images in this folder: they are known by {' '.join(sorted(IMAGE_SUFFIXES))}")
        files += found
    return files


def _images_below(root: Path) -> list[Path]:
    found: list[Path] = []

    def keep_unreadable(error: OSError) -> None:  # as if it were an image: decoding will name it, and the rest goes on
        found.append(Path(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=keep_unreadable, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] != "." and not _leads_back(os.path.join(folder, name))]
        found += [Path(folder, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]
    return sorted(found)


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    return os.path.islink(folder) and Path(os.path.realpath(os.path.dirname(folder))).is_relative_to(
        os.path.realpath(folder)
    )


def classify(
    model: Classifier, resize: dict[str, Any], files: Sequence[Path], temperature: float = 1.0
) -> Iterator[tuple[Path, list[float] | InputError]]:
    """Yield every file with its class probabilities, or with what is wrong with it, in order and as they come.

    Images are decoded and scored as in the evaluation, whose probabilities these are with a temperature of 1.
    """
    import torch

    from cifar_ray.training.loop import eval_model

    device = next(model.parameters()).device
    named = ((str(file), file) for file in files)
    with map_images(lambda name, file: decode_image(file, resize, name), named) as images:
        pairs = zip(files, images, strict=True)
        while batch := list(itertools.islice(pairs, BATCH_SIZE)):
            good = [image for _, image in batch if not isinstance(image, InputError)]
            rows: Iterator[list[float]] = iter(())
            if good:
                logits = eval_model(model, torch.from_numpy(np.stack(good)).to(device))
                # In float64, in which no temperature makes two classes equally probable that were not.
                rows = iter((logits.cpu().double() / temperature).softmax(1).tolist())
            for file, image in batch:
                yield file, image if isinstance(image, InputError) else next(rows)


def prediction(
    file: Path, class_names: Sequence[str], probabilities: Sequence[float], at_least: float | None = None
) -> dict[str, Any]:
    """What is said of one image; with `at_least` also whether the model abstains, and then it has no class."""
    named = dict(zip(class_names, probabilities, strict=True))
    best = max(named, key=named.__getitem__)
    row: dict[str, Any] = {"image": str(file), "class": best, "probability": named[best]}
    if at_least is not None:
        abstains = named[best] < at_least
        row |= {"class": None if abstains else best, "abstains": abstains}
    return row | {"probabilities": named}
