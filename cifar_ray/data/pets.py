"""The Oxford-IIIT Pet's own layout: all images in one folder, and lists that say which is what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cifar_ray.data.decode import EncodedSplit
from cifar_ray.errors import InputError

LISTS = {"train": "trainval.txt", "test": "test.txt"}


def list_pets(root: Path, splits: Iterable[str] = tuple(LISTS)) -> tuple[dict[str, EncodedSplit], tuple[str, ...]]:
    """Find the splits and the class names of a folder with `images/` and `annotations/`; reads no images.

    A line such as `american_bulldog_12 2 2 1` of `annotations/trainval.txt` or `test.txt` stands for
    `images/american_bulldog_12.jpg`, of class 2, which is called American Bulldog, as torchvision calls it.

    Raises:
        InputError: a list is missing, or a line of it cannot be understood.
    """
    found: dict[str, list[tuple[Path, int]]] = {}
    names: dict[int, str] = {}  # by the number of the class in the lists
    for split in splits:
        file = root / "annotations" / LISTS[split]
        found[split] = []
        for row, line in enumerate(_lines(file), start=1):
            if not line or line.startswith("#"):
                continue
            parts = re.fullmatch(r"((\S+)_\d+)\s+(\d{1,9})(\s.*)?", line)
            if not parts:
                raise InputError(
                    f"{file} line {row}: must be an image and the number of its class, such as `Abyssinian_1 1 1 1`, "
                    f"not {line:.60}: correct it"
                )
            image, name, number = parts[1], parts[2].replace("_", " ").title(), int(parts[3])
            if names.setdefault(number, name) != name:
                raise InputError(f"{file} line {row}: class {number} is {names[number]} and {name}: correct the list")
            found[split].append((root / "images" / f"{image}.jpg", number))
    label_of = {number: label for label, number in enumerate(sorted(names))}  # a part of the data set may lack some
    return {
        split: EncodedSplit(
            labels=np.array([label_of[number] for _, number in images], dtype=np.int64),
            files=[image for image, _ in images],
        )
        for split, images in found.items()
    }, tuple(names[number] for number in label_of)


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{file}: cannot read this list, which the Oxford-IIIT Pet has beside images/; add it, or give a folder "
            "with a folder per class"
        ) from None
