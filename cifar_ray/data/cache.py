"""Encoded images decoded once: their copy in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.data.decode import Decoded, EncodedSplit, Images, decode_splits, map_images
from cifar_ray.errors import InputError, one_line
from cifar_ray.files import cache_folder, checksum

CACHE_VERSION = 2  # raise it whenever the same files would give other pixels or labels

logger = logging.getLogger(__name__)


def decode_once(
    root: Path,
    splits: dict[str, EncodedSplit],
    class_names: tuple[str, ...],
    image_size: int | None,
    auto_size: int,
    skip_bad_images: bool,
) -> Decoded:
    """Decode the images of `splits`, which lie below `root`, or take the copy that was kept when it was done before.

    Raises:
        InputError: there are fewer than two classes, one has no images in a split, or an image cannot be read.
    """
    _check_classes(root, {name: split.labels for name, split in splits.items()}, class_names)
    entry = cache_folder() / "decoded" / cache_key(root, splits, image_size, auto_size, skip_bad_images)
    decoded = read_cache(entry, class_names)
    if decoded is not None:
        logger.info("%s: reused the decoded copy in %s", root, entry)
    else:
        start = time.perf_counter()
        decoded = decode_splits(splits, class_names, image_size, auto_size, skip_bad_images)
        logger.info("%s: decoded in %.1f s", root, time.perf_counter() - start)
        # Here as well, since skipping may have emptied a class; before it is cached, so that no cached copy needs this.
        _check_classes(root, {name: split.labels for name, split in decoded.splits.items()}, class_names)
        write_cache(entry, decoded)
    return decoded


def _check_classes(root: Path, labels: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    if len(class_names) < 2:
        raise InputError(f"{root}: has {len(class_names)} class, needs at least 2: give the folder above the classes")
    for split, split_labels in labels.items():
        sizes = np.bincount(split_labels, minlength=len(class_names))
        if sizes.min() == 0:
            name = class_names[sizes.argmin()]
            where = "no readable images" if len(labels) == 1 else f"no readable images in the {split} split"
            raise InputError(f"{root}: class {name!r} has {where}: add some, or remove the class from every split")


def cache_key(root: Path, splits: dict[str, EncodedSplit], *settings: Any) -> str:
    """Name what decoding gives: the content of the files, and how they are decoded.

    Not their size and time: where both are fixed (uncompressed images, unpacked with the times of their archive) other
    images would pass for these. Reading all of them takes a few hundredths of the time that decoding them does.
    """
    import PIL

    sha = hashlib.sha256(repr((CACHE_VERSION, PIL.__version__, str(root), settings)).encode())
    for split, encoded in splits.items():
        with map_images(_digest, ((os.path.relpath(file, root), file) for file in encoded.files)) as digests:
            sha.update(repr((split, *digests)).encode())
    return sha.hexdigest()[:32]


def _digest(name: str, file: Path) -> tuple[str, bytes]:
    with suppress(OSError), file.open("rb") as stream:
        return name, hashlib.file_digest(stream, "sha256").digest()
    return name, b""  # a dead link, say: decoding will name it


def read_cache(entry: Path, class_names: tuple[str, ...]) -> Decoded | None:
    if not entry.is_dir():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text())
        splits = {}
        for split, checksums in meta["splits"].items():
            arrays = [np.load(entry / f"{split}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels")]
            if [checksum(array) for array in arrays] != checksums:
                raise ValueError(f"wrong checksum of {split}")
            splits[split] = Images(*arrays)
        return Decoded(splits, class_names, meta["resize"], tuple(meta["bad_images"]))
    except Exception as error:  # damage takes any form
        logger.warning("%s: damaged decoded copy (%s), decoding again", entry, one_line(error))
        shutil.rmtree(entry, ignore_errors=True)
        return None


def write_cache(entry: Path, decoded: Decoded) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=entry.parent, ignore_cleanup_errors=True) as temp:
            checksums: dict[str, list[str]] = {}
            for split, part in decoded.splits.items():
                np.save(f"{temp}/{split}_images.npy", part.images)
                np.save(f"{temp}/{split}_labels.npy", part.labels)
                checksums[split] = [checksum(part.images), checksum(part.labels)]
            meta = {"resize": decoded.resize, "bad_images": decoded.bad_images, "splits": checksums}
            Path(temp, "meta.json").write_text(json.dumps(meta))
            os.rename(temp, entry)  # all or nothing, whoever reads meanwhile
        logger.info("kept the decoded copy in %s", entry)
    except OSError as error:
        if not entry.is_dir():  # else another run was first, with the same content
            logger.warning("%s: cannot keep the decoded copy (%s)", entry, one_line(error))
