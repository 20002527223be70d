"""Folders of images and of parquet files: what is found in them, at what size, and what is told about bad ones."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.archives import pets_files
from helpers.images import counts, encode, make_parquet, make_tree, noise, pixels, private_cache, sizes, write_table  # noqa: F401 (a fixture)
from PIL import Image

from cifar_ray.data.decode import decode_image
from cifar_ray.data.splits import load_data
from cifar_ray.errors import InputError


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
    assert splits.val_is_test == (set(folders) in ({"train", "val"}, {"train", "valid"}))
    assert splits.flips == ("none", "random", "alternating")
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
    for value, name in enumerate(("a", "b")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(3):  # none equals another
            Image.new("L", (4, 4), 100 + 60 * value + 20 * i).save(tmp_path / "d" / name / f"{i}.{suffix}")
    splits = load_data(str(tmp_path / "d"))
    assert sizes(splits) == (2, 2, 2)
    values = np.sort([part.images.mean((1, 2, 3)) for part in (splits.train, splits.val, splits.test)], axis=None)
    assert np.abs(values - [100, 120, 140, 160, 180, 200]).max() <= 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"bus": 4, "train": 4})
    assert load_data(str(root)).class_names == ("bus", "train")


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
    assert splits.val_is_test == (set(files) == {"train", "validation"})


def make_pets(root: Path) -> Path:
    for name, content in pets_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_the_folder_of_the_oxford_pets(tmp_path: Path) -> None:
    root = make_pets(tmp_path / "any name")
    splits = load_data(str(root))
    assert splits.class_names == ("Abyssinian", "American Bulldog", "Bombay")
    assert sizes(splits) == (24, 6, 12)
    assert (splits.source, splits.val_is_test) == (str(root), False)
    lines = (root / "annotations" / "test.txt").read_text().splitlines()
    for image, label, line in zip(splits.test.images, splits.test.labels, lines, strict=True):
        name, number = line.split()[:2]
        assert label == int(number) - 1
        assert np.array_equal(image, decode_image(root / "images" / f"{name}.jpg", splits.resize))


def test_a_part_of_the_oxford_pets_and_comments_in_its_lists(tmp_path: Path) -> None:
    root = make_pets(tmp_path / "d")
    for name in ("trainval.txt", "test.txt"):
        file = root / "annotations" / name
        lines = [line for line in file.read_text().splitlines() if not line.startswith("american")]
        file.write_text("\n".join(["# Image CLASS-ID SPECIES BREED", "", *lines]))
    splits = load_data(str(root))
    assert splits.class_names == ("Abyssinian", "Bombay")
    assert sizes(splits) == (16, 4, 8)


def test_classes_may_be_called_images_and_annotations(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "d", {"annotations": 4, "images": 4})
    assert load_data(str(root)).class_names == ("annotations", "images")


def pets(name: str, old: str, new: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        file = make_pets(root) / "annotations" / name
        file.write_text(file.read_text().replace(old, new, 1))

    return make


def pets_without(name: str) -> Callable[[Path], None]:
    return lambda root: (make_pets(root) / name).unlink()


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
        pytest.param(lambda root: None, "no such folder; --data takes cifar10, .*, digits or", id="missing"),
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
        pytest.param(
            pets_without("annotations/test.txt"), "/test.txt: cannot read this list, .*; add it", id="no list"
        ),
        pytest.param(
            pets("trainval.txt", "Bombay_3 3 1 1", "Bombay_3.jpg"),
            "/trainval.txt line 3: must be an image and .*, not Bombay_3.jpg: correct it",
            id="line of a list without a class",
        ),
        pytest.param(
            pets("test.txt", "Bombay_33 3", "Bombay_33 1"),
            "/test.txt line 3: class 1 is Abyssinian and Bombay: correct the list",
            id="one number for two classes of pets",
        ),
        pytest.param(
            pets_without("images/Bombay_3.jpg"), "Bombay_3.jpg: No such file.*; repair or remove it", id="no such pet"
        ),
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


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("d", "/d: cannot read the folder: Permission denied; change its permissions"),
        ("d/a", "/d/a: cannot read the folder: Permission denied; change its permissions"),
        ("d/a/0000.png", "/d/a/0000.png: Permission denied; repair or remove it, or pass --skip-bad-images"),
    ],
)
def test_what_may_not_be_read(where: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder, which only its owner may enter
        root = make_tree(Path(name) / "d", {"a": 3, "b": 3})
        monkeypatch.setenv("XDG_CACHE_HOME", f"{name}/cache")
        Path(name).chmod(0o755)
        mode = (Path(name) / where).stat().st_mode
        (Path(name) / where).chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.raises(InputError) as error:
                load_data(str(root))
            assert str(error.value) == name + message
        finally:
            os.seteuid(user)
            (Path(name) / where).chmod(mode)


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


@pytest.mark.parametrize(("brightest", "white"), [(255, 255), (40_000, 65535), (65_536, 255)])
def test_one_white_for_all_images_of_32_bit_integers(tmp_path: Path, brightest: int, white: int) -> None:
    for value, folder in enumerate(("train/a", "train/b", "val/a", "val/b", "test/a", "test/b")):
        (tmp_path / "d" / folder).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 100 + 20 * value, dtype=np.int32)).save(tmp_path / "d" / folder / "0.tif")
    Image.fromarray(np.full((4, 4), brightest, dtype=np.int32)).save(tmp_path / "d" / "test" / "b" / "1.tif")
    for _ in ("decoded", "reused"):
        splits = load_data(str(tmp_path / "d"), skip_bad_images=True)
        assert splits.resize == {"channels": 1, "image_size": 4, "rule": "native", "white_int32": white}
        assert len(splits.bad_images) == (brightest > 65535)
        assert splits.train.images[:, 0, 0, 0].tolist() == ([100, 120] if white == 255 else [0, 0])
