"""Labelled images that came after a model was trained."""

from pathlib import Path

import numpy as np
import pytest
from helpers.archives import pets_files
from helpers.images import make_parquet, make_tree
from PIL import Image

from cifar_ray.data.decode import decode_image
from cifar_ray.data.labelled import load_labelled, split_fingerprint
from cifar_ray.errors import InputError

RESIZE = {"channels": 1, "image_size": 8, "rule": "shorter_side_center_crop"}


def test_images_come_as_the_model_takes_them_and_labels_by_the_name_of_their_class(tmp_path: Path) -> None:
    make_tree(tmp_path, {"cat": 3, "dog": 2, "empty": 0})
    found = load_labelled(tmp_path, RESIZE, ["dog", "bird", "cat"])
    assert found.images.labels.tolist() == [2, 2, 2, 0, 0]
    assert found.missing == ("bird",)
    files = [*sorted((tmp_path / "cat").iterdir()), *sorted((tmp_path / "dog").iterdir())]
    assert np.array_equal(found.images.images, np.stack([decode_image(file, RESIZE) for file in files]))


@pytest.mark.parametrize(
    ("splits", "taken"), [(("train", "test"), "test"), (("train", "val"), "val"), (("test",), "test")]
)
def test_of_a_folder_with_splits_it_is_the_test_split(tmp_path: Path, splits: tuple[str, ...], taken: str) -> None:
    for number, split in enumerate(splits, start=1):
        make_tree(tmp_path / split, {"cat": number, "dog": 2})
    assert len(load_labelled(tmp_path, RESIZE, ["cat", "dog"]).images.labels) == 2 + 1 + splits.index(taken)


def test_of_the_oxford_pets_it_is_the_test_split(tmp_path: Path) -> None:
    for name, content in pets_files().items():
        if not name.endswith("trainval.txt"):  # which is not needed
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    found = load_labelled(tmp_path, RESIZE, ["Bombay", "Abyssinian", "American Bulldog"])
    assert found.images.labels.tolist() == [1, 2, 0] * 4


@pytest.mark.parametrize(("names", "count"), [(("train-0.parquet", "test-0.parquet"), 4), (("new.parquet",), 4)])
def test_of_parquet_files_it_is_the_test_split_or_else_all(tmp_path: Path, names: tuple[str, ...], count: int) -> None:
    for name in names:
        labels = [0, 0, 1, 1] * (2 if name.startswith("train") else 1)
        make_parquet(tmp_path / "parquet" / name, labels, ["cat", "dog"])
    found = load_labelled(tmp_path / "parquet", RESIZE, ["dog", "cat"])
    assert found.images.labels.tolist() == [1, 1, 0, 0]
    assert len(found.images.images) == count


def test_what_no_model_can_be_tested_on_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "others", {"cat": 1, **{f"new-{i}": 1 for i in range(7)}})
    with pytest.raises(InputError, match="do not know new-0, new-1, new-2, new-3, new-4 and 2 more, but cat, dog"):
        load_labelled(tmp_path / "others", RESIZE, ["cat", "dog"])
    make_tree(tmp_path / "classes", {"cat": 2})
    with pytest.raises(InputError, match=r"has no labels, .* python -m cifar_ray\.predict MODEL .*cat classifies"):
        load_labelled(tmp_path / "classes" / "cat", RESIZE, ["cat", "dog"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="has no labels"):
        load_labelled(tmp_path / "bare", RESIZE, ["cat", "dog"])
    with pytest.raises(InputError, match="no such folder"):
        load_labelled(tmp_path / "nosuch", RESIZE, ["cat", "dog"])


def test_unreadable_images_are_refused_or_left_out(tmp_path: Path) -> None:
    make_tree(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "0000.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cat/0000\.png: not an image .* or pass --skip-bad-images"):
        load_labelled(tmp_path, RESIZE, ["cat", "dog"])
    found = load_labelled(tmp_path, RESIZE, ["cat", "dog"], skip_bad_images=True)
    assert found.images.labels.tolist() == [0, 1, 1] and len(found.bad_images) == 1
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of its 4 images can be read, the first: "):
        load_labelled(tmp_path, RESIZE, ["cat", "dog"], skip_bad_images=True)


def test_the_fingerprint_of_a_split_is_that_of_its_pixels_labels_and_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, {"cat": 2, "dog": 2})
    images = load_labelled(tmp_path, RESIZE, ["cat", "dog"]).images
    same = split_fingerprint(images, ["cat", "dog"])
    assert same == split_fingerprint(load_labelled(tmp_path, RESIZE, ["cat", "dog"]).images, ("cat", "dog"))
    assert same != split_fingerprint(images, ["cat", "wolf"])
    Image.new("L", (8, 8), 3).save(tmp_path / "cat" / "0000.png")
    assert same != split_fingerprint(load_labelled(tmp_path, RESIZE, ["cat", "dog"]).images, ["cat", "dog"])
