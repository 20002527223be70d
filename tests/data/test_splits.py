"""Splitting, digits, and what holds for data of every source; the shared real data where it is."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.images import REPOSITORY, counts, encode, make_tree, pixels, private_cache, run_python, sizes, write_table  # noqa: F401 (a fixture)
from PIL import Image

from cifar_ray.data.decode import decode_image, take_images
from cifar_ray.data.splits import DataSplits, load_data, redrawn
from cifar_ray.data.stratified import stratified_split
from cifar_ray.errors import InputError

LOAD = "import sys; from cifar_ray.data.splits import load_data; print(load_data(sys.argv[1]).fingerprint)"


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
    assert sizes(splits) == (200, 597, 1000)
    assert splits.train.images.shape == (200, 1, 8, 8)
    assert splits.class_names == tuple("0123456789")
    assert splits.flips == ("none",)
    assert splits.source == "digits"
    assert splits.resize == {"channels": 1, "image_size": 8, "rule": "native"}
    assert splits.train.images.max() == 255
    assert len(set.union(*pixels(splits))) == 1797
    for part in (splits.train, splits.val, splits.test):
        assert np.abs(np.array(counts(part.labels)) / len(part.labels) - 0.1).max() < 0.006
    # Written down once: whoever changes it changes every result on digits.
    assert splits.fingerprint == "f42ef1e59f53dcb0bdc2829e50bdd9883229a1bf0be38168001c909a5e39ddab"


@pytest.mark.parametrize("image_size", [12, 5])
def test_digits_at_another_size(image_size: int) -> None:
    splits = load_data("digits", image_size=image_size)
    assert splits.train.images.shape == (200, 1, image_size, image_size)
    assert splits.resize == {"channels": 1, "image_size": image_size, "rule": "shorter_side_center_crop"}
    native = load_data("digits")
    assert np.array_equal(splits.val.labels, native.val.labels)
    encoded = encode(Image.fromarray(native.val.images[7, 0]))
    assert np.array_equal(splits.val.images[7], decode_image(encoded, splits.resize))
    assert splits.fingerprint != native.fingerprint


def test_bad_image_size() -> None:
    with pytest.raises(InputError, match="--image-size 0: must be at least 1"):
        load_data("digits", image_size=0)


def test_arrays_have_the_promised_types(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_tree(tmp_path / "d" / split, {"a": 6, "b": 6})
    for splits in (load_data("digits"), load_data(str(tmp_path / "d")), load_data(str(tmp_path / "d"))):  # and cached
        for part in (splits.train, splits.val, splits.test):
            assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
            assert part.images.flags.c_contiguous
            assert part.images.flags.writeable
            assert type(part.images) is type(part.labels) is np.ndarray


@pytest.mark.parametrize(("train_images", "num_val"), [(9_998, 2_000), (10_000, 1_000)])
def test_validation_share(tmp_path: Path, train_images: int, num_val: int) -> None:
    pixels = np.arange(10_004, dtype=">u4").view(np.uint8).reshape(-1, 2, 2)  # no two images are equal
    images = [{"bytes": encode(Image.fromarray(image)), "path": ""} for image in pixels]
    for split, part in (("train", images[:train_images]), ("test", images[-4:])):
        write_table(tmp_path / "d" / f"{split}-0.parquet", {"img": part, "label": [0, 1] * (len(part) // 2)})
    assert sizes(load_data(str(tmp_path / "d"))) == (train_images - num_val, num_val, 4)


@pytest.mark.parametrize(
    ("source", "train_size", "expected", "test"),
    [
        ("digits", 100, (25, 75), 1000),
        ("digits", 20, (10, 10), 1000),
        ("digits", 797, (200, 597), 1000),
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
        (798, "798: digits has only 797"),
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


def copy_all(root: Path, times: int = 1) -> Path:
    """Put so many copies of every image beside it."""
    for file in list(root.rglob("*.png")):
        for i in range(times):
            shutil.copy(file, file.with_name(f"copy-{i}-{file.name}"))
    return root


def shared_pixels(splits: DataSplits) -> set[bytes]:
    train, val, test = pixels(splits)
    return train & val | train & test | val & test


@pytest.mark.parametrize(("train_size", "num_train", "num_val"), [(None, 128, 32), (101, 81, 20), (75, 60, 15)])
def test_copies_of_an_image_go_to_one_split(
    tmp_path: Path, train_size: int | None, num_train: int, num_val: int
) -> None:
    root = copy_all(make_tree(tmp_path / "d", {"a": 50, "b": 50}))
    splits = load_data(str(root), train_size=train_size)
    assert shared_pixels(splits) == set()
    assert sizes(splits) == (num_train, num_val, 40)
    assert counts(splits.test.labels) == [20, 20] and np.ptp(counts(splits.val.labels)) <= 1
    assert (splits.num_val_copies, splits.num_test_copies) == (0, 0)
    if num_train + num_val <= 80:  # there are as many images without copies: they come first
        assert len(set.union(*pixels(splits)[:2])) == num_train + num_val


def test_validation_is_carved_without_parting_copies(tmp_path: Path) -> None:
    copy_all(make_tree(tmp_path / "d" / "train", {"a": 20, "b": 30}), times=2)
    make_tree(tmp_path / "d" / "test", {"a": 3, "b": 3})
    for train_size in (None, 4, 31, 149):
        splits = load_data(str(tmp_path / "d"), train_size=train_size)
        assert shared_pixels(splits) == set()
        assert sum(sizes(splits)) == (train_size or 150) + 6
        assert min(counts(splits.train.labels)) >= 1 and min(counts(splits.val.labels)) >= 1


def test_equal_images_of_different_labels_go_to_one_split(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"a": 30, "b": 30})
    for file in list((root / "a").iterdir()):
        shutil.copy(file, root / "b" / f"copy-{file.name}")
    splits = load_data(str(root))
    assert shared_pixels(splits) == set()
    assert sum(sizes(splits)) == 90
    assert all(min(counts(part.labels)) > 0 for part in (splits.train, splits.val, splits.test))


def test_copies_do_not_fill_a_class_that_is_too_small(tmp_path: Path) -> None:
    root = copy_all(make_tree(tmp_path / "d", {"a": 10, "b": 2}), times=5)
    with pytest.raises(InputError, match=r"class 'b' has 2 train image.*, copies not counted, needs 3: add some"):
        load_data(str(root))


def test_images_in_two_given_splits_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for split, count in {"train": 10, "val": 5, "test": 5}.items():
        make_tree(root / split, {"a": count, "b": count})
    for split, name, target in (("train", "a", "val/b"), ("train", "b", "test/b"), ("val", "a", "test/a")):
        for i in range(2 if split == "train" else 1):
            shutil.copy(root / split / name / f"{i:04}.png", root / target / f"copy-{i}.png")
    splits = load_data(str(root))
    assert sizes(splits) == (20, 12, 13)
    assert (splits.num_val_copies, splits.num_test_copies) == (2, 3)


def test_splits_that_part_no_copies_hold_what_they_must() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        num_distinct = int(rng.integers(12, 60))
        ids = np.concatenate([np.arange(num_distinct), rng.integers(0, num_distinct, rng.integers(0, 40))])
        ids = rng.permutation(ids)
        labels = ids % 3 if rng.integers(2) else rng.permutation(ids % 3)
        labels[np.unique(ids, return_index=True)[1]] = np.arange(num_distinct) % 3
        num_taken = int(rng.integers(3, len(ids) - 2))
        left, taken = stratified_split(labels, num_taken, ids=ids)
        assert sorted([*left, *taken]) == list(range(len(ids)))
        assert not set(ids[left]) & set(ids[taken])
        assert set(labels[left]) == set(labels[taken]) == {0, 1, 2}
        exact = stratified_split(labels, num_taken, ids=ids, part_copies=True, min_taken=1)[1]
        assert len(exact) == num_taken
        assert not np.array_equal(labels, ids % 3) or np.bincount(labels[exact], minlength=3).min() > 0


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


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "d", {"a": 3, "b": 3})
    make_tree(tmp_path / "digits", {"a": 3, "b": 3})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("d").source == load_data("~/d").source == str(tmp_path / "d")
    assert load_data("./digits").class_names == ("a", "b")
    assert len(load_data("digits").class_names) == 10


def test_import_is_cheap() -> None:
    heavy = "{'torch', 'sklearn', 'pyarrow', 'PIL', 'ray', 'optuna'}"
    code = f"import sys, cifar_ray.data.splits; print({heavy} & set(sys.modules))"
    assert run_python(code).communicate() == ("set()\n", "")


SHARED = Path(os.environ.get("CIFAR_RAY_SHARED", REPOSITORY.parent / "shared"))


def shared(name: str) -> str:
    if not (SHARED / "data" / name).is_dir():
        pytest.skip(f"{SHARED / 'data' / name} is absent: set CIFAR_RAY_SHARED")
    return str(SHARED / "data" / name)


@pytest.mark.slow
def test_real_cifar10_parquet() -> None:
    splits = load_data(shared("cifar10"))
    assert sizes(splits) == (45_000, 5_000, 10_000)
    assert splits.class_names[0] == "airplane" and splits.class_names[9] == "truck"
    assert counts(splits.train.labels) == [4_500] * 10 and counts(splits.val.labels) == [500] * 10
    assert len(set.union(*pixels(splits))) == 60_000
    assert (splits.num_val_copies, splits.num_test_copies) == (0, 0)
    both = np.concatenate([splits.train.images, splits.val.images])
    assert both.mean((0, 2, 3)) / 255 == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)  # its README's


def test_train_and_validation_are_drawn_anew_and_copies_stay_on_one_side() -> None:
    data = load_data("digits")
    other, again, third = redrawn(data, 5), redrawn(data, 5), redrawn(data, 6)
    assert sizes(other) == sizes(data)
    assert other.fingerprint == again.fingerprint
    assert len({data.fingerprint, other.fingerprint, third.fingerprint}) == 3
    assert other.test is data.test
    union = [np.concatenate([one.train.images, one.val.images]).reshape(797, -1) for one in (data, other)]
    assert sorted(map(bytes, union[0])) == sorted(map(bytes, union[1]))
    assert np.abs(np.subtract(counts(other.train.labels), counts(data.train.labels))).max() <= 1
    twice = replace(data, val=take_images(data.val, np.repeat(np.arange(300), 2)[:597]))
    assert redrawn(twice, 1).num_val_copies == 0


def test_real_pet_breeds() -> None:
    splits = load_data(shared("pet_breeds"), train_size=900)
    assert sizes(splits) == (720, 180, 450)
    assert splits.resize == {"channels": 3, "image_size": 64, "rule": "native"}
    assert counts(splits.train.labels) == [80] * 9 and counts(splits.test.labels) == [50] * 9
