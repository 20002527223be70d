"""Folders of images, as files in class folders or as Hugging Face parquet files: what they hold, by split and class."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar_ray.data.cache import decode_once
from cifar_ray.data.decode import Decoded, EncodedSplit, open_parquet
from cifar_ray.data.pets import list_pets
from cifar_ray.data.sources import DATA_HINT
from cifar_ray.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


def load_folder(root: Path, image_size: int | None, auto_size: int, skip_bad_images: bool) -> Decoded:
    splits, class_names, val_is_test = _list_folder(root)
    decoded = decode_once(root, splits, class_names, image_size, auto_size, skip_bad_images)
    return replace(decoded, val_is_test=val_is_test)


def _list_folder(root: Path) -> tuple[dict[str, EncodedSplit], tuple[str, ...], bool]:
    """Find the splits under `root`, which is of one of four kinds, and the class names; reads no images.

    - parquet files: `train-*.parquet`, `test-*.parquet` and perhaps `val-*.parquet`;
    - the Oxford-IIIT Pet: `images/`, and lists in `annotations/`;
    - split trees: `train/`, `test/` and perhaps `val/`, each with a folder per class;
    - one flat tree: a folder per class, which becomes the training split.

    The last that is returned is whether the test split is called validation there.
    """
    entries = _visible_entries(root)
    parquet = _parquet_by_split(entries)
    if parquet is not None:
        return *_list_parquet(_named_splits(root, parquet)), _val_is_test(parquet)
    if _has_pets(entries):
        return *list_pets(root), False
    folders = _folders_by_split(entries)
    if not folders:
        return *_list_trees(root, {"train": root}), False
    splits = _named_splits(root, folders)
    if "test" not in splits:
        raise InputError(f"{root}: has train/ but no test/ or val/: add one, or give {root / 'train'} to have it split")
    if double := [split for split, paths in splits.items() if len(paths) > 1]:
        raise InputError(f"{root}: has more than one folder for {double[0]}: merge them")
    return *_list_trees(root, {split: paths[0] for split, paths in splits.items()}), _val_is_test(folders)


def list_test_split(root: Path) -> tuple[EncodedSplit, tuple[str, ...]]:
    """Find the labelled images under `root` that models can be tested on, and their class names; reads no images.

    They are the test split; of a folder without one the validation split, and of a folder without splits all of it.

    Raises:
        InputError: there are none, or they have no labels.
    """
    entries = _visible_entries(root)
    parquet = _parquet_by_split(entries)
    if parquet is not None:
        files = [Path(entry.path) for entry in entries if entry.name.lower().endswith(".parquet")]
        splits, names = _list_parquet({"test": _one_of(parquet) or files})
        return splits["test"], names
    if _has_pets(entries):
        splits, names = list_pets(root, ["test"])
        return splits["test"], names
    trees = _one_of(_folders_by_split(entries)) or [root]
    if len(trees) > 1:
        raise InputError(f"{root}: has more than one folder of {trees[0].name}: merge them")
    if not any(entry.is_dir() and _image_files(Path(entry.path)) for entry in _visible_entries(trees[0])):
        raise InputError(
            f"{root}: has no labels, which are the names of folders with images in them; "
            f"python -m cifar_ray.predict MODEL {root} classifies images without labels"
        )
    splits, names = _list_trees(trees[0], {"test": trees[0]})
    return splits["test"], names


def _one_of(found: dict[str, list[Path]]) -> list[Path]:
    """What there is of the split that models are tested on."""
    return next((found[split] for split in ("test", "val", "train") if split in found), [])


def _parquet_by_split(entries: list[os.DirEntry[str]]) -> dict[str, list[Path]] | None:
    """The parquet files of each split that they are named after; None where the folder is not one of parquet files."""
    files = [entry for entry in entries if entry.name.lower().endswith(".parquet")]
    if not any(_split_name(entry.name) for entry in files) and any(entry.is_dir() for entry in entries):
        return None  # whatever those are, there are folders beside them
    found = _by_split(files)
    return found if files else None


def _has_pets(entries: list[os.DirEntry[str]]) -> bool:
    """Whether these are the folders of the Oxford-IIIT Pet, and not two classes that happen to be called so."""
    folders = {entry.name: Path(entry.path) for entry in entries if entry.is_dir()}
    return {"images", "annotations"} <= set(folders) and not _image_files(folders["annotations"])


def _folders_by_split(entries: list[os.DirEntry[str]]) -> dict[str, list[Path]]:
    """The folders that are splits. One with images in it, and no folders, is a class that happens to be called so."""
    folders = [entry for entry in entries if entry.is_dir() and _split_name(entry.name)]
    return _by_split(
        [entry for entry in folders if any(inner.is_dir() for inner in _visible_entries(Path(entry.path)))]
    )


def _by_split(entries: list[os.DirEntry[str]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for entry in entries:
        if split := _split_name(entry.name):
            found.setdefault(split, []).append(Path(entry.path))
    return found


def _named_splits(root: Path, found: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The splits as they are used: where a second one beside train is all there is, it is the sealed test split."""
    if "train" not in found:
        raise InputError(f"{root}: has no train/ folder and no train-*.parquet: add it, or give the folder with it")
    if _val_is_test(found):
        return {"train": found["train"], "test": found["val"]}
    return found


def _val_is_test(found: dict[str, list[Path]]) -> bool:
    return set(found) == {"train", "val"}


def _split_name(name: str) -> str:
    return SPLIT_NAMES.get(re.split("[-.]", name.lower())[0], "")


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; {DATA_HINT}") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: is a file; {DATA_HINT}") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot read the folder: {error.strerror}; change its permissions") from None


def _list_trees(root: Path, trees: dict[str, Path]) -> tuple[dict[str, EncodedSplit], tuple[str, ...]]:
    files = {
        split: {entry.name: _image_files(Path(entry.path)) for entry in _visible_entries(tree) if entry.is_dir()}
        for split, tree in trees.items()
    }
    if not any(found for classes in files.values() for found in classes.values()):
        raise InputError(f"{root}: found no images; one folder per class is needed, with the images directly in it")
    names = tuple(sorted({name for classes in files.values() for name in classes}))  # those without images as well
    return {
        split: EncodedSplit(
            labels=np.repeat(np.arange(len(names)), [len(classes.get(name, ())) for name in names]).astype(np.int64),
            files=[file for name in names for file in classes.get(name, ())],
        )
        for split, classes in files.items()
    }, names


def _image_files(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _visible_entries(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES]


def _list_parquet(files: dict[str, list[Path]]) -> tuple[dict[str, EncodedSplit], tuple[str, ...]]:
    import pyarrow as pa

    splits: dict[str, EncodedSplit] = {}
    names: tuple[str, ...] | None = None
    column = ""
    for split, paths in files.items():
        labels = []
        for path in paths:
            with open_parquet(path) as parquet:
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
        splits[split] = EncodedSplit(np.concatenate(labels), paths, column)
    # Without names no label can be as large as the number of images: a class in between would be empty.
    highest = max(split.labels.max(initial=-1) for split in splits.values())
    trained_on = splits.get("train") or next(iter(splits.values()))
    num_classes = len(names or ()) or int(min(1 + highest, len(trained_on.labels)))
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
