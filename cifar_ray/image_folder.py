"""Folders of images, as files in class folders or as Hugging Face parquet files: found, decoded and cached."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import InputError
from cifar_ray.decode import decode_image, map_images, one_line, read_header

logger = logging.getLogger(__name__)

MAX_NATIVE_SIZE = 64  # larger images are resized unless the user asks for their size
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
CACHE_VERSION = 2  # raise it whenever the same files would give other pixels or labels


@dataclass(frozen=True)
class Images:
    """One split."""

    images: np.ndarray
    """(N, C, H, W) uint8, C-contiguous."""
    labels: np.ndarray
    """(N,) int64."""


# A data set whose images have their final size, before validation is carved.
@dataclass(frozen=True)
class Decoded:
    splits: dict[str, Images]  # "train", and "test" and "val" where the source has its own
    class_names: tuple[str, ...]
    resize: dict[str, Any]
    bad_images: tuple[str, ...] = ()


# One split of a folder before decoding: the image files, or the parquet files and their image column.
@dataclass(frozen=True)
class _Encoded:
    labels: np.ndarray  # (N,) int64
    files: list[Path]
    column: str | None = None

    def images(self) -> Iterator[tuple[str, Path | bytes]]:
        """Yield (name for messages, encoded image) in the order of the labels, few at a time in memory."""
        if self.column is None:
            yield from ((str(file), file) for file in self.files)
            return
        for file in self.files:
            with _open_parquet(file) as parquet:
                row = itertools.count()
                for batch in parquet.iter_batches(256, columns=[f"{self.column}.bytes"]):
                    for data in batch.column(0).field("bytes").to_pylist():
                        yield f"{file} row {next(row)}", data or b""


def load_folder(root: Path, image_size: int | None, auto_size: int, skip_bad_images: bool) -> Decoded:
    splits, class_names = _list_folder(root)
    _check_classes(root, {name: split.labels for name, split in splits.items()}, class_names)
    entry = cache_folder() / "decoded" / _cache_key(root, splits, image_size, auto_size, skip_bad_images)
    decoded = _read_cache(entry, class_names)
    if decoded is not None:
        logger.info("%s: reused the decoded copy in %s", root, entry)
    else:
        start = time.perf_counter()
        decoded = _decode(splits, class_names, image_size, auto_size, skip_bad_images)
        logger.info("%s: decoded in %.1f s", root, time.perf_counter() - start)
        # Here as well, since skipping may have emptied a class; before it is cached, so that no cached copy needs this.
        _check_classes(root, {name: split.labels for name, split in decoded.splits.items()}, class_names)
        _write_cache(entry, decoded)
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


def _list_folder(root: Path) -> tuple[dict[str, _Encoded], tuple[str, ...]]:
    """Find the splits and the class names under `root`; reads no images."""
    entries = _visible_entries(root)
    parquet = [entry for entry in entries if entry.name.lower().endswith(".parquet")]
    folders = [entry for entry in entries if entry.is_dir()]
    found: dict[str, list[Path]] = {}
    if (parquet and not folders) or any(_split_name(entry.name) for entry in parquet):
        for entry in parquet:
            found.setdefault(_split_name(entry.name), []).append(Path(entry.path))
        found.pop("", None)
    else:
        # A split folder holds folders. One with images in it is a class that happens to be called "train".
        for entry in folders:
            split = _split_name(entry.name)
            if split and any(inner.is_dir() for inner in _visible_entries(Path(entry.path))):
                found.setdefault(split, []).append(Path(entry.path))
    if (found or (parquet and not folders)) and "train" not in found:
        raise InputError(f"{root}: has no train/ folder and no train-*.parquet: add it, or give the folder with it")
    if set(found) == {"train", "val"}:
        found["test"] = found.pop("val")
    if found and found["train"][0].suffix.lower() == ".parquet":
        return _list_parquet(found)
    if found and "test" not in found:
        raise InputError(f"{root}: has train/ but no test/ or val/: add one, or give {root / 'train'} to have it split")
    if double := [split for split, paths in found.items() if len(paths) > 1]:
        raise InputError(f"{root}: has more than one folder for {double[0]}: merge them")
    return _list_trees(root, {split: paths[0] for split, paths in found.items()} or {"train": root})


def _split_name(name: str) -> str:
    return SPLIT_NAMES.get(re.split("[-.]", name.lower())[0], "")


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; --data takes cifar10, digits or the path of a folder") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: is a file; --data takes cifar10, digits or the path of a folder") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot read the folder: {error.strerror}; change its permissions") from None


def _list_trees(root: Path, trees: dict[str, Path]) -> tuple[dict[str, _Encoded], tuple[str, ...]]:
    files = {
        split: {entry.name: _image_files(Path(entry.path)) for entry in _visible_entries(tree) if entry.is_dir()}
        for split, tree in trees.items()
    }
    if not any(found for classes in files.values() for found in classes.values()):
        raise InputError(f"{root}: found no images; one folder per class is needed, with the images directly in it")
    names = tuple(sorted({name for classes in files.values() for name in classes}))  # those without images as well
    return {
        split: _Encoded(
            labels=np.repeat(np.arange(len(names)), [len(classes.get(name, ())) for name in names]).astype(np.int64),
            files=[file for name in names for file in classes.get(name, ())],
        )
        for split, classes in files.items()
    }, names


def _image_files(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _visible_entries(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES]


def _list_parquet(files: dict[str, list[Path]]) -> tuple[dict[str, _Encoded], tuple[str, ...]]:
    import pyarrow as pa

    splits: dict[str, _Encoded] = {}
    names: tuple[str, ...] | None = None
    column = ""
    for split, paths in files.items():
        labels = []
        for path in paths:
            with _open_parquet(path) as parquet:
                schema = parquet.schema_arrow
                column = column or next((name for name in ("img", "image") if name in schema.names), "")
                kind = schema.field(column).type if column in schema.names else None
                if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                    raise InputError(f"{path}: needs a column `img` or `image` that is a struct with `bytes`")
                if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
                    raise InputError(f"{path}: needs a column `label` of integers; has {', '.join(schema.names)}")
                column_labels = parquet.read(columns=["label"]).column("label")
            if column_labels.null_count:
                raise InputError(f"{path}: {column_labels.null_count} labels are missing: remove those rows")
            declared = _class_names(schema.metadata)
            if names not in (None, declared):
                raise InputError(f"{path}: declares other class names than the files beside it: label all alike")
            names = declared
            labels.append(column_labels.to_numpy().astype(np.int64))
        splits[split] = _Encoded(np.concatenate(labels), paths, column)
    # Without names no label can be as large as the number of images: a class in between would be empty.
    highest = max(split.labels.max(initial=-1) for split in splits.values())
    num_classes = len(names or ()) or int(min(1 + highest, len(splits["train"].labels)))
    for split, encoded in splits.items():
        wrong = encoded.labels[(encoded.labels < 0) | (encoded.labels >= num_classes)]
        if len(wrong):
            where = f"{files[split][0].parent}: the {split} split has label {wrong[0]}"
            raise InputError(f"{where}, outside 0..{num_classes - 1}: remove unlabelled rows or declare the class")
    return splits, names or tuple(str(label) for label in range(num_classes))


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]))
    except (KeyError, ValueError, TypeError):  # written by something other than Hugging Face's `datasets`
        return ()


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot read the parquet file ({one_line(error)}); copy it anew") from None


def _decode(
    splits: dict[str, _Encoded],
    class_names: tuple[str, ...],
    image_size: int | None,
    auto_size: int,
    skip_bad_images: bool,
) -> Decoded:
    # All headers first, since together they decide how each image is decoded. Damaged ones are reported below.
    headers: set[tuple[bool, tuple[int, int], int | None]] = set()
    for split in splits.values():
        with map_images(read_header, split.images()) as results:
            headers.update(header for header in results if not isinstance(header, InputError))
    sides = {side for _, size, _ in headers for side in size}
    native = image_size is None and len(sides) == 1 and max(sides) <= MAX_NATIVE_SIZE
    size = max(sides) if native else image_size or auto_size
    channels = 1 if all(is_gray for is_gray, _, _ in headers) else 3
    resize = {"channels": channels, "image_size": size, "rule": "native" if native else "shorter_side_center_crop"}
    if whites := {white for _, _, white in headers if white is not None}:
        resize["white_int32"] = max(whites)  # one for all: a dark image of 16 bits holds no more than one of 8

    decoded, bad = {}, []
    for split_name, split in splits.items():
        images = np.empty((len(split.labels), channels, size, size), dtype=np.uint8)
        good = np.zeros(len(split.labels), dtype=bool)
        with map_images(lambda name, data: decode_image(data, resize, name), split.images()) as results:
            for i, image in enumerate(results):
                if not isinstance(image, InputError):
                    images[i], good[i] = image, True
                elif skip_bad_images:
                    bad.append(str(image))
                else:
                    raise InputError(f"{image}; repair or remove it, or pass --skip-bad-images")
        decoded[split_name] = Images(images, split.labels) if good.all() else Images(images[good], split.labels[good])
    return Decoded(decoded, class_names, resize, tuple(bad))


def cache_folder() -> Path:
    """Return the user cache folder of this program, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar_ray"


def _cache_key(root: Path, splits: dict[str, _Encoded], *settings: Any) -> str:
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


def _read_cache(entry: Path, class_names: tuple[str, ...]) -> Decoded | None:
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


def _write_cache(entry: Path, decoded: Decoded) -> None:
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


def checksum(array: np.ndarray) -> str:
    sha = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    sha.update(array.data)
    return sha.hexdigest()
