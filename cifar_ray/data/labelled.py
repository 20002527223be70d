"""Labelled images for models that are there already, such as a test set that came later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.data.decode import Images, decode_split
from cifar_ray.data.folder import list_test_split
from cifar_ray.errors import InputError
from cifar_ray.files import checksum

NUM_NAMED = 5
"""Classes that an error names, at most."""


@dataclass(frozen=True)
class Labelled:
    """A labelled folder, in the way that a model takes images."""

    images: Images
    missing: tuple[str, ...]
    """Classes of the model that no image is of."""
    bad_images: tuple[str, ...]
    """What was left out, where that was asked for: "path: reason"."""


def load_labelled(
    root: Path, resize: Mapping[str, Any], class_names: Sequence[str], skip_bad_images: bool = False
) -> Labelled:
    """Load the test images of a folder, with the labels that a model knows their classes by.

    Args:
        root: folders of images, by class or by split and then class, parquet files, or the folder of the Oxford-IIIT
            Pet; see :func:`list_test_split`.
        resize: of the model, see :class:`~cifar_ray.data.splits.DataSplits`.
        class_names: of the model, which classes are matched with by name.
        skip_bad_images: leave unreadable images out instead of failing.

    Raises:
        InputError: there are no such images, one is unreadable, or one is of a class that the model does not know.
    """
    encoded, names = list_test_split(root)
    held = np.unique(encoded.labels)
    unknown = [names[label] for label in held if names[label] not in class_names]
    if unknown:
        more = f" and {len(unknown) - NUM_NAMED} more" if len(unknown) > NUM_NAMED else ""
        raise InputError(
            f"{root}: the models do not know {', '.join(unknown[:NUM_NAMED])}{more}, but {', '.join(class_names)}: "
            "rename these classes, or leave them out"
        )
    if not len(held):
        raise InputError(f"{root}: has no images to evaluate on: add some")
    known = np.array([class_names.index(name) if name in class_names else -1 for name in names])
    images, good, bad = decode_split(encoded, dict(resize), skip_bad_images)
    labels = known[encoded.labels[good]].astype(np.int64)
    if not len(labels):
        raise InputError(f"{root}: none of its {len(good)} images can be read, the first: {bad[0]}")
    missing = tuple(name for label, name in enumerate(class_names) if label not in labels)
    return Labelled(Images(images[good], labels), missing, tuple(bad))


def split_fingerprint(images: Images, class_names: Sequence[str]) -> str:
    """SHA-256 over the pixels, labels and class names of one split."""
    parts = [checksum(images.images), checksum(images.labels), *class_names]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
