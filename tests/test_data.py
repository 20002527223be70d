"""Loading, decoding, caching and splitting, on real files made in `tmp_path` and on the shared data where it is."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cifar_ray import data, image_folder
from cifar_ray.config import InputError
from cifar_ray.data import DataSplits, load_data, stratified_split
from cifar_ray.decode import decode_image

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CIFAR_RAY_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's cache in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    return tmp_path / "user cache" / "cifar_ray"


def noise(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise_named(name: str, *options: Any) -> Image.Image:
    """Like `noise`, another one for every name."""
    return noise(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"), *options)


def make_tree(root: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write `classes[name]` images into `root/name/`; no two images of a test are equal."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise_named(f"{root.name}/{name}/{i}", size, mode).save(root / name / f"{i:04}.png")
    return root


def make_parquet(file: Path, labels: list[int], names: list[str] | None = None, column: str = "img") -> Path:
    """Write a file as Hugging Face's `datasets` does."""
    images = [{"bytes": encode(noise_named(f"{file.name}/{i}")), "path": f"{i}.png"} for i in range(len(labels))]
    return write_table(file, {column: images, "label": labels}, names)


def write_table(file: Path, columns: dict[str, list], names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def sizes(splits: DataSplits) -> tuple[int, int, int]:
    return len(splits.train.labels), len(splits.val.labels), len(splits.test.labels)


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels).tolist()


def pixels(splits: DataSplits) -> list[set[bytes]]:
    return [{image.tobytes() for image in part.images} for part in (splits.train, splits.val, splits.test)]


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LOAD = "import sys; from cifar_ray.data import load_data; print(load_data(sys.argv[1]).fingerprint)"


@pytest.mark.parametrize(
    ("class_sizes", "num_taken", "bounds", "expected"),
    [
        ([10, 10], 4, {}, [2, 2]),
        ([10, 30, 60], 20, {}, [2, 6, 12]),
        ([7, 7, 7], 4, {}, [2, 1, 1]),  # a tie of remainders goes to the lower label
        ([4, 4, 5], 4, {}, [1, 1, 2]),  # else the largest remainder wins
        ([2, 2, 100], 10, {}, [1, 1, 8]),  # at least one of each class
        ([2, 2, 2], 1, {}, [1, 1, 1]),  # more than asked, where that is needed
        ([2, 2, 2], 6, {}, [1, 1, 1]),  # at least one is left
        ([3, 50], 40, {"min_left": 2}, [1, 39]),
        ([3, 50], 10, {"min_taken": 2, "min_left": 0}, [2, 8]),
        ([3, 50], 53, {"min_taken": 2, "min_left": 0}, [3, 50]),
    ],
)
def test_stratified_split_counts(
    class_sizes: list[int], num_taken: int, bounds: dict[str, int], expected: list[int]
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(class_sizes)), class_sizes))
    left, taken = stratified_split(labels, num_taken, **bounds)
    assert counts(labels[taken]) == expected
    assert sorted([*left, *taken]) == list(range(len(labels)))


def test_stratified_split_is_exact_for_any_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        class_sizes = rng.integers(2, 60, rng.integers(2, 12))
        labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
        num_taken = int(rng.integers(len(class_sizes), len(labels) - len(class_sizes) + 1))
        taken = stratified_split(labels, num_taken)[1]
        got = np.bincount(labels[taken], minlength=len(class_sizes))
        assert got.sum() == num_taken
        assert ((got >= 1) & (got < class_sizes)).all()
        quota = class_sizes * num_taken / len(labels)
        if (quota >= 1).all() and (quota <= class_sizes - 1).all():
            assert (np.abs(got - quota) < 1).all()


def test_stratified_split_is_the_same_for_ever() -> None:
    assert stratified_split(np.arange(40) % 2, 8)[1].tolist() == [2, 3, 16, 23, 35, 36, 37, 38]


def test_digits() -> None:
    splits = load_data("digits")
    assert sizes(splits) == (1150, 288, 359)
    assert splits.train.images.shape == (1150, 1, 8, 8)
    assert splits.class_names == tuple("0123456789")
    assert splits.flips == (False,)
    assert splits.source == "digits"
    assert splits.resize == {"channels": 1, "image_size": 8, "rule": "native"}
    assert splits.train.images.max() == 255
    # Written down once: whoever changes it changes every result on digits.
    assert splits.fingerprint == "60685682c026e95330451a551a99b29cf11942889e682e3f99ab304098fb91bc"


def test_arrays_have_the_promised_types(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_tree(tmp_path / "d" / split, {"a": 6, "b": 6})
    for splits in (load_data("digits"), load_data(str(tmp_path / "d")), load_data(str(tmp_path / "d"))):  # and cached
        for part in (splits.train, splits.val, splits.test):
            assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
            assert part.images.flags.c_contiguous
            assert part.images.flags.writeable
            assert type(part.images) is type(part.labels) is np.ndarray


@pytest.mark.parametrize("image_size", [12, 5])
def test_digits_at_another_size(image_size: int) -> None:
    splits = load_data("digits", image_size=image_size)
    assert splits.train.images.shape == (1150, 1, image_size, image_size)
    assert splits.resize == {"channels": 1, "image_size": image_size, "rule": "shorter_side_center_crop"}
    native = load_data("digits")
    assert np.array_equal(splits.val.labels, native.val.labels)
    encoded = encode(Image.fromarray(native.val.images[7, 0]))
    assert np.array_equal(splits.val.images[7], decode_image(encoded, splits.resize))
    assert splits.fingerprint != native.fingerprint


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"": 20}, (26, 6, 8)),  # of 40: 8 to test, 20 % of 32 to validation
        ({"train": 20, "test": 5}, (32, 8, 10)),
        ({"train": 20, "val": 5}, (32, 8, 10)),
        ({"train": 20, "valid": 5}, (32, 8, 10)),
        ({"Train": 20, "Validation": 3, "TEST": 5}, (40, 6, 10)),
        ({"": 3}, (2, 2, 2)),
    ],
)
def test_tree_layouts(tmp_path: Path, folders: dict[str, int], expected: tuple[int, int, int]) -> None:
    for folder, count in folders.items():
        make_tree(tmp_path / "d" / folder, {"cat": count, "dog": count})
    splits = load_data(str(tmp_path / "d"))
    assert sizes(splits) == expected
    assert splits.class_names == ("cat", "dog")
    assert splits.source == str(tmp_path / "d")
    assert splits.flips == (False, True)
    train, val, test = pixels(splits)
    assert len(train | val | test) == sum(expected)  # every image is another one: the splits share none
    for part in (splits.train, splits.val, splits.test):
        assert counts(part.labels) == [len(part.labels) // 2] * 2
    on_disk = {folder.lower(): tmp_path / "d" / folder for folder in folders}
    for name, found in (("test", test), ("train", train)):
        if name in on_disk:
            files = on_disk[name].rglob("*.png")
            assert found <= {np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes() for f in files}


def test_labels_follow_the_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for value, name in enumerate(("zebra", "ant", "mole")):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (4, 4), 50 * value + i).save(root / name / f"{i}.png")
    splits = load_data(str(root))
    assert splits.class_names == ("ant", "mole", "zebra")
    for part in (splits.train, splits.val, splits.test):
        assert [(2, 0, 1)[v // 50] for v in part.images[:, 0, 0, 0]] == part.labels.tolist()


@pytest.mark.parametrize(("train_images", "num_val"), [(9_998, 2_000), (10_000, 1_000)])
def test_validation_share(tmp_path: Path, train_images: int, num_val: int) -> None:
    image = {"bytes": encode(Image.new("L", (2, 2))), "path": ""}
    for split, count in (("train", train_images), ("test", 4)):
        write_table(tmp_path / "d" / f"{split}-0.parquet", {"img": [image] * count, "label": [0, 1] * (count // 2)})
    assert sizes(load_data(str(tmp_path / "d"))) == (train_images - num_val, num_val, 4)


@pytest.mark.parametrize(
    ("source", "train_size", "expected", "test"),
    [
        ("digits", 100, (80, 20), 359),
        ("digits", 20, (10, 10), 359),
        ("digits", 1438, (1150, 288), 359),
        ("own validation", 20, (16, 4), 6),
        ("own validation", 9, (6, 3), 6),
    ],
)
def test_train_size(tmp_path: Path, source: str, train_size: int, expected: tuple[int, int], test: int) -> None:
    if source != "digits":
        source = str(tmp_path / "d")
        for split, count in {"train": 8, "val": 2, "test": 2}.items():
            make_tree(tmp_path / "d" / split, dict.fromkeys("abc", count))
    whole, part = load_data(source), load_data(source, train_size=train_size)
    assert sizes(part) == (*expected, test)
    assert np.array_equal(part.test.images, whole.test.images)
    assert min(counts(part.train.labels)) >= 1 and min(counts(part.val.labels)) >= 1
    for labels in (part.train.labels, part.val.labels):
        assert max(counts(labels)) - min(counts(labels)) <= 1 or source == "digits"
    train, val, test_pixels = pixels(part)
    if source != "digits":
        assert len(train | val | test_pixels) == sum(sizes(part))
    assert (part.fingerprint == whole.fingerprint) == (sizes(part) == sizes(whole))


@pytest.mark.parametrize(
    ("train_size", "message"),
    [
        (1439, "1439: digits has only 1438"),
        (19, "19: 10 classes need at least 20"),
        (0, "0: 10 classes"),
        (-5, "-5: 10"),
    ],
)
def test_train_size_out_of_range(train_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data("digits", train_size=train_size)


def test_train_size_keeps_two_images_of_a_rare_class(tmp_path: Path) -> None:
    make_tree(tmp_path / "d" / "train", {"a": 60, "b": 3})
    make_tree(tmp_path / "d" / "test", {"a": 2, "b": 2})
    splits = load_data(str(tmp_path / "d"), train_size=10)
    assert (counts(splits.train.labels), counts(splits.val.labels)) == ([7, 1], [1, 1])


def test_splits_are_the_same_in_another_process(tmp_path: Path) -> None:
    make_tree(tmp_path / "d", {"a": 9, "b": 12, "c": 30})
    here = load_data(str(tmp_path / "d"))
    for run in ("decoded", "reused"):  # with a cache of its own, first empty and then filled
        process = run_python(LOAD, tmp_path / "d", PYTHONHASHSEED="7", XDG_CACHE_HOME=str(tmp_path / "other"))
        assert process.communicate() == (here.fingerprint + "\n", ""), run


def test_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return load_data(str(root)).fingerprint

    root = make_tree(tmp_path / "d", {"a": 6, "b": 6})
    seen = [fingerprint()]
    copy = shutil.copytree(root, tmp_path / "copy")
    assert load_data(str(copy)).fingerprint == seen[0]
    pixel = Image.open(root / "a" / "0000.png")
    pixel.putpixel((0, 0), tuple(255 - v for v in pixel.getpixel((0, 0))))
    pixel.save(root / "a" / "0000.png")
    seen.append(fingerprint())
    (root / "b").rename(root / "bee")
    seen.append(fingerprint())
    shutil.copy(root / "a" / "0000.png", root / "a" / "more.png")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_names_may_hold_spaces_and_any_script(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "my données 数据", {"großer Hund": 4, "chat noir": 4, "猫": 4})
    assert load_data(str(root)).class_names == ("chat noir", "großer Hund", "猫")


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    before = load_data(str(root)).fingerprint
    make_tree(root, {".git": 1})
    (root / "README.md").write_text("hello")
    (root / "notes.parquet").write_text("no split, beside class folders")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "a" / "._0000.png").write_bytes(b"x")
    (root / "a" / "labels.csv").write_text("x")
    assert load_data(str(root)).fingerprint == before


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"])
def test_image_suffixes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), 100).save(tmp_path / "d" / name / f"{i}.{suffix}")
    splits = load_data(str(tmp_path / "d"))
    assert sizes(splits) == (2, 2, 2)
    assert np.abs(splits.train.images.astype(int) - 100).max() <= 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"bus": 4, "train": 4})
    assert load_data(str(root)).class_names == ("bus", "train")


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "d", {"a": 3, "b": 3})
    make_tree(tmp_path / "digits", {"a": 3, "b": 3})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("d").source == load_data("~/d").source == str(tmp_path / "d")
    assert load_data("./digits").class_names == ("a", "b")
    assert len(load_data("digits").class_names) == 10


def test_parquet_with_names_and_shards(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for shard in range(3):
        make_parquet(root / f"train-0000{shard}-of-00003.parquet", [0, 1, 2] * 4, ["cat", "dog", "emu"])
    make_parquet(root / "test-00000-of-00001.parquet", [0, 1, 2, 2], ["cat", "dog", "emu"])
    (root / "README.md").write_text("hello")
    splits = load_data(str(root))
    assert splits.class_names == ("cat", "dog", "emu")
    assert sizes(splits) == (29, 7, 4)
    assert splits.test.labels.tolist() == [0, 1, 2, 2]
    assert len(set.union(*pixels(splits))) == 40
    for i, row in enumerate(pq.read_table(root / "test-00000-of-00001.parquet")["img"].to_pylist()):
        want = np.asarray(Image.open(io.BytesIO(row["bytes"])))
        assert np.array_equal(splits.test.images[i].transpose(1, 2, 0), want)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train-0": 10}, (13, 3, 4)),
        ({"train": 10, "validation": 2}, (16, 4, 4)),
        ({"train-0": 10, "val-0": 2, "test-0": 3}, (20, 4, 6)),
    ],
)
def test_parquet_layouts_and_default_names(
    tmp_path: Path, files: dict[str, int], expected: tuple[int, int, int]
) -> None:
    for name, count in files.items():
        make_parquet(tmp_path / "d" / f"{name}.parquet", [0, 1] * count, column="image")
    splits = load_data(str(tmp_path / "d"))
    assert sizes(splits) == expected
    assert splits.class_names == ("0", "1")


def tree(**splits: dict[str, int]) -> Callable[[Path], None]:
    return lambda root: [make_tree(root / split, classes) for split, classes in splits.items()] and None


def flat(**classes: int) -> Callable[[Path], None]:
    return lambda root: make_tree(root, classes) and None


def parquet(**files: list[int]) -> Callable[[Path], None]:
    return lambda root: [make_parquet(root / f"{f}-0.parquet", v, ["a", "b"]) for f, v in files.items()] and None


def table(**columns: list) -> Callable[[Path], None]:
    return lambda root: write_table(root / "train-0.parquet", columns) and None


def cut_parquet(length: int) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        file = make_parquet(root / "train-0.parquet", [0, 1] * 5)
        file.write_bytes(file.read_bytes()[:length])

    return make


def damage_parquet_pages(root: Path) -> None:
    file = make_parquet(root / "train-0.parquet", [0, 1] * 50)
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)


def other_names_in_test(root: Path) -> None:
    make_parquet(root / "train-0.parquet", [0, 1] * 5, ["cat", "dog"])
    make_parquet(root / "test-0.parquet", [0, 1] * 5, ["dog", "cat"])


def nested(root: Path) -> None:
    make_tree(root / "training", {"a": 3, "b": 3})
    make_tree(root / "testing", {"a": 3, "b": 3})


def loose(root: Path) -> None:
    make_tree(root, {".": 3})


PNG = {"bytes": encode(noise(0)), "path": ""}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda root: None, "no such folder; --data takes cifar10, digits or", id="missing"),
        pytest.param(lambda root: root.write_text(""), "is a file; --data takes", id="file"),
        pytest.param(lambda root: root.mkdir(), "found no images; one folder per class", id="empty"),
        pytest.param(flat(a=0, b=0), "found no images", id="folders without images"),
        pytest.param(loose, "found no images", id="images without class folders"),
        pytest.param(nested, "found no images; .* directly in it", id="images too deep"),
        pytest.param(flat(a=4, b=0), "class 'b' has no readable images: add some", id="empty class"),
        pytest.param(flat(a=4), "has 1 class", id="one class"),
        pytest.param(flat(a=4, b=2), "class 'b' has 2 train image.*needs 3", id="class too small for three splits"),
        pytest.param(tree(train={"a": 4, "b": 1}, test={"a": 1, "b": 1}), "'b' has 1 train.*needs 2", id="too small"),
        pytest.param(tree(train={"a": 4, "b": 4}), "has train/ but no test/ or val/: add one, or", id="only train"),
        pytest.param(tree(test={"a": 4, "b": 4}, val={"a": 4, "b": 4}), "has no train/", id="no train"),
        pytest.param(tree(train={"a": 4, "b": 4}, test={"a": 4}), "'b' has no .* in the test", id="not in test"),
        pytest.param(tree(train={"a": 4}, test={"a": 4, "b": 2}), "'b' has no .* in the train", id="not in train"),
        pytest.param(
            tree(train={"a": 4, "b": 4}, test={"a": 4, "b": 4}, val={"a": 4}),
            "'b' has no .* in the val",
            id="not in val",
        ),
        pytest.param(
            tree(train={"a": 4, "b": 4}, test={"a": 4, "b": 4}, Test={"a": 4}),
            "more than one folder for test",
            id="two",
        ),
        pytest.param(parquet(test=[0, 1]), "has no train/ folder and no train-", id="parquet without train"),
        pytest.param(parquet(data=[0, 1]), "has no train/ folder and no train-", id="parquet of another name"),
        pytest.param(table(label=[0, 1]), "train-0.parquet: needs a column `img` or `image`", id="no image column"),
        pytest.param(table(img=[b"x"], label=[0]), "struct with `bytes`", id="image column of bytes"),
        pytest.param(table(img=[{"path": "x"}], label=[0]), "struct with `bytes`", id="image column of paths"),
        pytest.param(table(img=[PNG]), "needs a column `label` of integers; has img", id="no label column"),
        pytest.param(table(img=[PNG], label=["cat"]), "needs a column `label` of integers", id="labels of text"),
        pytest.param(table(img=[PNG, PNG], label=[0, None]), "1 labels are missing", id="missing label"),
        pytest.param(parquet(train=[0, 1, 0, 1, 2]), "the train split has label 2, outside 0..1", id="label too large"),
        pytest.param(parquet(train=[0, 1] * 4, test=[0, -1]), "the test split has label -1", id="unlabelled test"),
        pytest.param(
            table(img=[PNG] * 8, label=[0, 1] * 3 + [0, 10**12]), "has label 10{12}, outside", id="huge label"
        ),
        pytest.param(table(img=[PNG] * 8, label=[0, 2] * 4), "class '1' has no readable images", id="gap in labels"),
        pytest.param(other_names_in_test, "parquet: declares other class names", id="other class names"),
        pytest.param(parquet(train=[0] * 8), "class 'b' has no readable images", id="declared class without images"),
        pytest.param(cut_parquet(0), "train-0.parquet: cannot read the parquet file", id="empty parquet"),
        pytest.param(cut_parquet(500), "train-0.parquet: cannot read the parquet file", id="truncated parquet"),
        pytest.param(damage_parquet_pages, "train-0.parquet: cannot read the parquet file", id="damaged parquet"),
    ],
)
def test_bad_inputs(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "my data")
    with pytest.raises(InputError, match=message) as error:
        load_data(str(tmp_path / "my data"))
    assert str(error.value).startswith(str(tmp_path / "my data"))
    assert "\n" not in str(error.value)


def test_bad_image_size() -> None:
    with pytest.raises(InputError, match="--image-size 0: must be at least 1"):
        load_data("digits", image_size=0)


def test_unreadable_folder(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 3, "b": 3})
    root.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(InputError, match="d: cannot read the folder: Permission denied; change its permissions"):
            load_data(str(root))
    finally:
        os.seteuid(user)
        root.chmod(0o755)


def damaged(kind: str) -> bytes:
    whole = encode(noise(1, (64, 64)), "JPEG" if kind == "truncated jpeg" else "PNG")
    if kind == "eps":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    if kind == "float":
        return encode(Image.new("F", (8, 8), 0.5), "TIFF")
    return {"empty": b"", "text": b"hello", "flipped png": whole[:60] + b"\0" * 100 + whole[160:]}.get(
        kind, whole[:400]
    )


@pytest.mark.parametrize("kind", ["empty", "text", "truncated png", "truncated jpeg", "flipped png", "eps", "float"])
@pytest.mark.parametrize("layout", ["tree", "parquet"])
def test_damaged_image(tmp_path: Path, layout: str, kind: str) -> None:
    root = tmp_path / "d"
    if layout == "tree":
        make_tree(root, {"a": 5, "b": 5})
        where = str(root / "a" / "0009.jpg")
        Path(where).write_bytes(damaged(kind))
    else:
        good = [{"bytes": encode(noise(i)), "path": ""} for i in range(10)]
        bad = {"bytes": damaged(kind) or None, "path": ""}
        write_table(root / "train-0.parquet", {"img": [*good, bad], "label": [*[0, 1] * 5, 0]})
        where = f"{root / 'train-0.parquet'} row 10"
    with pytest.raises(InputError) as error:
        load_data(str(root))
    assert str(error.value).startswith(f"{where}: ")
    assert str(error.value).endswith("; repair or remove it, or pass --skip-bad-images")
    assert "\n" not in str(error.value) and " at 0x" not in str(error.value)
    assert ("not an image of a known format" in str(error.value)) == (kind in ("empty", "text", "eps"))
    for _ in ("decoded", "reused"):
        splits = load_data(str(root), skip_bad_images=True)
        assert [entry.startswith(f"{where}: ") for entry in splits.bad_images] == [True]
        assert sizes(splits) == (6, 2, 2)
    with pytest.raises(InputError):  # the copy without it is no answer to this question
        load_data(str(root))


def test_skipping_must_leave_images_of_every_class(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 0})
    (root / "b" / "x.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InputError, match="class 'b' has no readable images"):
            load_data(str(root), skip_bad_images=True)


def test_dead_link_is_a_bad_image(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    (root / "a" / "x.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"x\.png: No such file"):
        load_data(str(root))
    assert len(load_data(str(root), skip_bad_images=True).bad_images) == 1


RGB = {"channels": 3, "image_size": 4, "rule": "shorter_side_center_crop"}
GRAY = RGB | {"channels": 1}


def palette(**options: object) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encode(image, **options)


SIXTEEN_BIT = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))


@pytest.mark.parametrize(
    ("content", "color"),
    [
        pytest.param(encode(Image.new("L", (4, 4), 90)), (90, 90, 90), id="L"),
        pytest.param(encode(Image.new("1", (4, 4), 1)), (255, 255, 255), id="1"),
        pytest.param(encode(Image.new("RGB", (4, 4), (200, 100, 50))), (200, 100, 50), id="RGB"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 255))), (200, 100, 50), id="opaque"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 0))), (255, 255, 255), id="transparent"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 51))), (244, 224, 214), id="half transparent"),
        pytest.param(encode(Image.new("LA", (4, 4), (100, 51))), (224, 224, 224), id="LA"),
        pytest.param(palette(), (200, 100, 50), id="palette"),
        pytest.param(palette(transparency=1), (255, 255, 255), id="transparent palette"),
        pytest.param(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), id="CMYK"),
        pytest.param(encode(SIXTEEN_BIT), (128, 128, 128), id="16 bit PNG"),
        pytest.param(encode(SIXTEEN_BIT, "TIFF"), (128, 128, 128), id="16 bit TIFF"),
        pytest.param(b"P5 4 4 65535\n" + b"\x80\x00" * 16, (128, 128, 128), id="16 bit PGM"),
        pytest.param(b"P5 4 4 1023\n" + b"\x02\x00" * 16, (128, 128, 128), id="10 bit PGM"),
    ],
)
def test_decode_modes(tmp_path: Path, content: bytes, color: tuple[int, int, int]) -> None:
    image = decode_image(content, RGB)
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((3, 4, 4), np.uint8, True)
    assert np.abs(image.astype(int) - np.array(color)[:, None, None]).max() <= 2
    assert abs(decode_image(content, GRAY).mean() - np.dot(color, (0.299, 0.587, 0.114))) <= 2
    (tmp_path / "x.png").write_bytes(content)
    assert np.array_equal(decode_image(tmp_path / "x.png", RGB), image)


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (900, 300), (3, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decode_keeps_the_centre(size: tuple[int, int], kind: str) -> None:
    """Of three bands along the longer side only the middle one is left."""
    bands = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    bands = bands if size[0] > size[1] else bands.transpose(1, 0, 2)
    image = Image.fromarray(bands).resize(size, Image.Resampling.NEAREST)
    got = decode_image(encode(image, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})), RGB)
    if min(size) >= 10:  # of smaller ones the bands run into each other
        middle = got[:, :, 1:3] if size[0] > size[1] else got[:, 1:3]
        assert np.abs(middle.astype(int) - np.array([0, 255, 0])[:, None, None]).max() < 30
    assert got.shape == (3, 4, 4)


def test_decode_of_the_right_size_is_lossless() -> None:
    image = noise(3, (4, 4))
    assert np.array_equal(decode_image(encode(image), RGB).transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("side", [8, 512])
def test_decode_turns_as_exif_says(side: int) -> None:
    image = Image.new("L", (side, side), 0)
    image.paste(255, (0, 0, side // 2, side // 2))  # top left
    for orientation, (row, column) in {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 8: (1, 0)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        quarters = decode_image(encode(image, "JPEG", exif=exif), GRAY | {"image_size": 2})[0]
        assert np.unravel_index(quarters.argmax(), (2, 2)) == (row, column)


def test_damaged_exif_does_not_matter() -> None:
    image = noise(4, (4, 4))
    assert np.array_equal(decode_image(encode(image, exif=b"Exif\0\0nonsense"), RGB), decode_image(encode(image), RGB))


def test_decode_image_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path / 'x.png'}: No such file or directory$"):
        decode_image(tmp_path / "x.png", RGB)
    with pytest.raises(InputError, match=r"^image: not an image of a known format$"):
        decode_image(b"hello", RGB)


@pytest.mark.parametrize(
    ("train", "test", "options", "expected"),
    [
        (("RGB", (8, 8)), ("RGB", (8, 8)), {}, (3, 8, "native")),
        (("RGB", (64, 64)), ("RGB", (64, 64)), {}, (3, 64, "native")),
        (("RGB", (65, 65)), ("RGB", (65, 65)), {}, (3, 32, "shorter_side_center_crop")),
        (("RGB", (65, 65)), ("RGB", (65, 65)), {"auto_size": 20}, (3, 20, "shorter_side_center_crop")),
        (("RGB", (8, 9)), ("RGB", (8, 9)), {}, (3, 32, "shorter_side_center_crop")),
        (("RGB", (8, 8)), ("RGB", (9, 9)), {}, (3, 32, "shorter_side_center_crop")),  # the test split counts, too
        (("RGB", (8, 8)), ("RGB", (8, 8)), {"image_size": 10}, (3, 10, "shorter_side_center_crop")),
        (("L", (8, 8)), ("L", (8, 8)), {}, (1, 8, "native")),
        (("L", (8, 8)), ("RGB", (8, 8)), {}, (3, 8, "native")),
    ],
)
def test_size_and_channels(
    tmp_path: Path, train: tuple, test: tuple, options: dict[str, int], expected: tuple[int, int, str]
) -> None:
    for split, (mode, size) in {"train": train, "test": test}.items():
        make_tree(tmp_path / "d" / split, {"a": 3, "b": 3}, size, mode)
    splits = load_data(str(tmp_path / "d"), **options)
    channels, size, rule = expected
    assert splits.resize == {"channels": channels, "image_size": size, "rule": rule}
    for part in (splits.train, splits.val, splits.test):
        assert part.images.shape[1:] == (channels, size, size)
    file = sorted((tmp_path / "d" / "test" / "a").iterdir())[0]
    assert np.array_equal(splits.test.images[0], decode_image(file, splits.resize))  # what `predict` will do


def cached_entries(cache: Path) -> list[Path]:
    return sorted((cache / "decoded").iterdir())


def test_decoded_copy_is_reused_until_a_file_changes(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    first = load_data(str(root))
    assert "decoded in" in caplog.text and "kept the decoded copy" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode_image", lambda *_: pytest.fail("decoded again"))
        again = load_data(str(root))
        load_data(str(root), train_size=6)  # splitting comes after the cache
    assert "reused the decoded copy" in caplog.text
    assert (again.fingerprint, again.resize, again.class_names) == (first.fingerprint, first.resize, first.class_names)
    assert len(cached_entries(cache)) == 1
    assert load_data(str(root), image_size=4).train.images.shape[2:] == (4, 4)
    file = root / "a" / "0000.png"
    stat = file.stat()
    noise(99).save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_data(str(root)).fingerprint != first.fingerprint
    file.unlink()
    assert sum(sizes(load_data(str(root)))) == 9


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def damage_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"False", b"True ").replace(b"{", b"[", 1))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_byte, damage_the_header, Path.unlink, lambda file: file.write_text("[]")]
)
@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "meta.json"])
def test_damaged_copy_is_rebuilt(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    first = load_data(str(root))
    (entry,) = cached_entries(cache)
    damage(entry / name)
    assert load_data(str(root)).fingerprint == first.fingerprint
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged decoded copy" in caplog.text
    caplog.clear()
    assert load_data(str(root)).fingerprint == first.fingerprint
    assert not caplog.records
    assert cached_entries(cache) == [entry]


def test_without_a_cache_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sum(sizes(load_data(str(root)))) == 10
    assert "cannot keep the decoded copy" in caplog.text


def test_interrupted_write_leaves_no_copy(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    root = make_tree(tmp_path / "d", {"a": 5, "b": 5})
    with monkeypatch.context() as patch:
        patch.setattr(image_folder.json, "dumps", interrupt)  # the last file of the copy
        with pytest.raises(KeyboardInterrupt):
            load_data(str(root))
    assert cached_entries(cache) == []
    assert sum(sizes(load_data(str(root)))) == 10
    assert not caplog.records


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    make_tree(tmp_path / "d", {"a": 200, "b": 200}, (64, 64))
    # Each waits for the other in front of the write, so that both have decoded and both want to keep their copy.
    code = """
import logging, pathlib, sys, time
from cifar_ray import data, image_folder
logging.basicConfig(level="INFO")
write, me, other = image_folder._write_cache, *map(pathlib.Path, sys.argv[2:])
def wait_and_write(*arguments):
    me.touch()
    while not other.exists():
        time.sleep(0.001)
    write(*arguments)
image_folder._write_cache = wait_and_write
print(data.load_data(sys.argv[1]).fingerprint)
"""
    one, two = tmp_path / "one", tmp_path / "two"
    processes = [run_python(code, tmp_path / "d", one, two), run_python(code, tmp_path / "d", two, one)]
    results = [process.communicate(timeout=60) for process in processes]
    assert results[0][0] == results[1][0] == load_data(str(tmp_path / "d")).fingerprint + "\n"
    assert all("decoded in" in log and "WARNING" not in log for _, log in results)
    assert sorted("kept the decoded copy" in log for _, log in results) == [False, True]
    assert len(cached_entries(cache)) == 1  # and nothing half-written


class Archive:
    """A small CIFAR-10 served over HTTP, in torchvision's place for the real one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import CIFAR10

        self.requests = 0
        rng = np.random.default_rng(0)
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        files = {
            name: {"data": rng.integers(0, 256, (30, 3072), dtype=np.uint8), "labels": [0, 1, 2] * 10} for name in names
        }
        files["batches.meta"] = {"label_names": ["cat", "dog", "emu"]}
        self.batches = files
        self.file = folder / CIFAR10.filename
        md5 = {}
        with tarfile.open(self.file, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
                member.size = len(pickle.dumps(content))
                archive.addfile(member, io.BytesIO(pickle.dumps(content)))
                md5[name] = hashlib.md5(pickle.dumps(content)).hexdigest()
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                if self.headers["Method"] == "HEAD":  # torchvision's way to follow redirects; it reads no body
                    return self.do_HEAD()
                outer.requests += 1
                return super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{CIFAR10.filename}"
        monkeypatch.setattr(CIFAR10, "url", self.url)
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(self.file.read_bytes()).hexdigest())
        monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    (tmp_path / "served").mkdir()
    server = Archive(tmp_path / "served", monkeypatch)
    yield server
    server.close()


def test_cifar10_is_downloaded_once(archive: Archive, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    splits = load_data("cifar10")
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert sizes(splits) == (120, 30, 30)
    assert splits.class_names == ("cat", "dog", "emu")
    assert splits.resize == {"channels": 3, "image_size": 32, "rule": "native"}
    assert (splits.source, splits.flips) == ("cifar10", (False, True))
    assert np.array_equal(splits.test.images.reshape(30, -1), archive.batches["test_batch"]["data"])
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-py"]  # no archive, nothing half-done
    archive.close()
    assert load_data("cifar10").fingerprint == splits.fingerprint
    assert archive.requests == 1
    small = load_data("cifar10", image_size=8)
    encoded = encode(Image.fromarray(splits.val.images[7].transpose(1, 2, 0)))
    assert np.array_equal(small.val.images[7], decode_image(encoded, small.resize))


def test_cifar10_data_dir(archive: Archive, tmp_path: Path, cache: Path) -> None:
    load_data("cifar10", data_dir=tmp_path / "else where")
    assert (tmp_path / "else where" / "cifar-10-batches-py").is_dir()
    assert not cache.exists()


def test_cifar10_archive_brought_by_hand(archive: Archive, cache: Path) -> None:
    archive.close()
    cache.mkdir(parents=True)
    shutil.copy(archive.file, cache)
    assert sizes(load_data("cifar10")) == (120, 30, 30)
    assert archive.requests == 0


def test_cifar10_damaged_copy_is_downloaded_again(archive: Archive, cache: Path) -> None:
    before = load_data("cifar10").fingerprint
    flip_a_byte(cache / "cifar-10-batches-py" / "data_batch_3")
    assert load_data("cifar10").fingerprint == before
    assert archive.requests == 2


def assert_cifar10_cannot_be_had(cache: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        load_data("cifar10")
    assert "`--data digits`" in str(error.value) and "`--data PATH`" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_cifar10_corrupted_archive(archive: Archive, cache: Path) -> None:
    flip_a_byte(archive.file)
    assert_cifar10_cannot_be_had(cache, "corrupted")


def test_cifar10_without_network(archive: Archive, cache: Path) -> None:
    archive.close()
    assert_cifar10_cannot_be_had(cache, "Connection refused")


def test_cifar10_with_a_server_that_does_not_answer(
    archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        assert_cifar10_cannot_be_had(cache, "timed out")
    assert socket.getdefaulttimeout() is None


def test_cifar10_folder_that_cannot_be_made(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot download .* to .*file"):
        load_data("cifar10", data_dir=tmp_path / "file" / "x")


def test_import_is_cheap() -> None:
    code = (
        "import sys, cifar_ray.data; print({'torch', 'sklearn', 'pyarrow', 'PIL', 'ray', 'optuna'} & set(sys.modules))"
    )
    assert run_python(code).communicate() == ("set()\n", "")


def shared(name: str) -> str:
    if not (SHARED / "data" / name).is_dir():
        pytest.skip(f"{SHARED / 'data' / name} is absent: set CIFAR_RAY_SHARED")
    return str(SHARED / "data" / name)


def test_real_cifar10_parquet() -> None:
    splits = load_data(shared("cifar10"))
    assert sizes(splits) == (45_000, 5_000, 10_000)
    assert splits.class_names[0] == "airplane" and splits.class_names[9] == "truck"
    assert counts(splits.train.labels) == [4_500] * 10 and counts(splits.val.labels) == [500] * 10
    assert len(set.union(*pixels(splits))) == 60_000
    both = np.concatenate([splits.train.images, splits.val.images])
    assert both.mean((0, 2, 3)) / 255 == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)  # its README's


def test_real_pet_breeds() -> None:
    splits = load_data(shared("pet_breeds"), train_size=900)
    assert sizes(splits) == (720, 180, 450)
    assert splits.resize == {"channels": 3, "image_size": 64, "rule": "native"}
    assert counts(splits.train.labels) == [80] * 9 and counts(splits.test.labels) == [50] * 9
