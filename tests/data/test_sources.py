"""Data sets with a name: from a local server with small archives, from copies that exist, and without a network."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.archives import NUM_TEST, SERVED, Server
from helpers.images import encode, flip_a_byte, private_cache, sizes  # noqa: F401 (a fixture)
from PIL import Image

from cifar_ray.data import sources
from cifar_ray.data.decode import decode_image
from cifar_ray.data.sources import DATA_SETS
from cifar_ray.data.splits import load_data
from cifar_ray.errors import InputError

FLIPS = ("none", "random", "alternating")
RGB_32 = {"channels": 3, "image_size": 32, "rule": "native"}
CROPPED = {"channels": 3, "image_size": 32, "rule": "shorter_side_center_crop"}  # since they are larger

# What is loaded of each archive: numbers of images, names of classes, flips that make sense, how images become inputs,
# and what then lies in the data folder.
EXPECTED = {
    "cifar10": ((24, 6, 12), ("cat", "dog", "emu"), FLIPS, RGB_32, ["cifar-10-batches-py"]),
    "cifar100": ((24, 6, 12), ("cat", "dog", "emu"), FLIPS, RGB_32, ["cifar-100-python"]),
    "fashion-mnist": (
        (24, 6, 12),
        ("T-shirt/top", "Trouser", "Pullover"),
        FLIPS,
        {"channels": 1, "image_size": 28, "rule": "native"},
        ["FashionMNIST"],
    ),
    "svhn": ((24, 6, 12), ("0", "1", "2"), ("none",), RGB_32, ["test_32x32.mat", "train_32x32.mat"]),
    "oxford-pets": ((24, 6, 12), ("Abyssinian", "American Bulldog", "Bombay"), FLIPS, CROPPED, ["oxford-iiit-pet"]),
    "flowers102": ((30, 12, 12), ("pink primrose", "rose", "lotus"), FLIPS, CROPPED, ["flowers-102"]),
}

# A file of the copy in the data folder that can be damaged, and how many files are then fetched again. A file with a
# checksum is damaged by a byte, of others half is cut off or all.
DAMAGED = {
    "cifar10": ("cifar-10-batches-py/data_batch_3", "byte", 1),
    "cifar100": ("cifar-100-python/train", "byte", 1),
    "fashion-mnist": ("FashionMNIST/raw/t10k-images-idx3-ubyte", "half", 4),
    "svhn": ("test_32x32.mat", "byte", 1),  # the other one is as it should be
    "oxford-pets": ("oxford-iiit-pet/images/Bombay_3.jpg", "all", 2),
    "flowers102": ("flowers-102/setid.mat", "byte", 2),  # the labels are as they should be
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.close()


@pytest.fixture(params=SERVED)
def name(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    SERVED[request.param](server, monkeypatch)
    return request.param


@pytest.fixture
def cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    SERVED["cifar10"](server, monkeypatch)
    return server


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "decoded")


def test_every_data_set_that_is_downloaded_is_tried_here() -> None:
    assert set(SERVED) == set(EXPECTED) == set(DAMAGED) == {name for name, one in DATA_SETS.items() if one.files}


def test_what_an_error_says_to_fetch_is_what_torchvision_fetches() -> None:
    import torchvision.datasets

    for one in DATA_SETS.values():
        if one.files:
            of_class = re.findall("'([^']+)'", str(vars(getattr(torchvision.datasets, one.torchvision_class))))
            for file in one.files:
                assert one.url + file in of_class or {one.url, file} <= set(of_class)


def test_it_is_downloaded_once(name: str, server: Server, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected_sizes, class_names, flips, resize, files = EXPECTED[name]
    splits = load_data(name)
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert sizes(splits) == expected_sizes
    assert (splits.source, splits.class_names, splits.flips) == (name, class_names, flips)
    assert splits.resize == resize
    assert splits.test.images.shape[1:] == (resize["channels"], resize["image_size"], resize["image_size"])
    assert splits.test.images.flags.c_contiguous and splits.test.images.dtype == np.uint8
    assert splits.test.labels.tolist() == [0, 1, 2] * (NUM_TEST // 3)
    assert in_folder(cache) == files  # nothing half-done
    assert not [file for file in cache.rglob("*gz")]  # nor packed
    assert server.requests == len(DATA_SETS[name].files)
    server.close()
    assert load_data(name).fingerprint == splits.fingerprint


def test_its_images_are_those_that_torchvision_gives(name: str, cache: Path) -> None:
    images = load_data(name, image_size=20).test.images
    dataset = DATA_SETS[name].dataset(cache, "test")
    for i in range(NUM_TEST):
        image, label = dataset[i]
        assert label == i % 3
        assert np.array_equal(images[i], decode_image(encode(image), {"channels": len(images[i]), "image_size": 20}))


def test_an_image_size_resizes_as_any_image_is_resized(cifar10: Server) -> None:
    splits, small = load_data("cifar10"), load_data("cifar10", image_size=8)
    encoded = encode(Image.fromarray(splits.val.images[5].transpose(1, 2, 0)))
    assert np.array_equal(small.val.images[5], decode_image(encoded, small.resize))


def test_it_is_downloaded_to_the_data_dir(name: str, tmp_path: Path, cache: Path) -> None:
    load_data(name, data_dir=tmp_path / "else where")
    assert in_folder(tmp_path / "else where") == EXPECTED[name][-1]
    assert not cache.exists() or in_folder(cache) == []


def test_archives_brought_by_hand_are_used(name: str, server: Server, cache: Path) -> None:
    server.close()
    folder = cache / DATA_SETS[name].folder
    folder.mkdir(parents=True)
    for file in DATA_SETS[name].files:
        shutil.copy(server.folder / file, folder)
    assert sizes(load_data(name)) == EXPECTED[name][0]
    assert server.requests == 0
    assert set(DATA_SETS[name].files) <= set(in_folder(folder))  # they stay where they were put


def test_a_damaged_copy_is_downloaded_again(name: str, server: Server, cache: Path) -> None:
    before = load_data(name).fingerprint
    requests = server.requests
    path, damage, num_fetched = DAMAGED[name]
    file = cache / path
    if damage == "byte":
        flip_a_byte(file)
    elif damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    assert load_data(name).fingerprint == before
    assert server.requests - requests == num_fetched
    assert in_folder(cache) == EXPECTED[name][-1]


def test_two_runs_that_start_at_once_both_get_it(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_ray.data.sources.download_timeout", contextlib.nullcontext)  # it is of the whole process
    both_found_nothing = threading.Barrier(2, timeout=20)
    download = sources._download

    def wait_and_download(*arguments: Any) -> None:
        both_found_nothing.wait()
        download(*arguments)

    monkeypatch.setattr(sources, "_download", wait_and_download)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load_data, [name, name])
    assert first.fingerprint == second.fingerprint == load_data(name).fingerprint
    assert in_folder(cache) == EXPECTED[name][-1]


def assert_cannot_be_had(name: str, cache: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        load_data(name)
    line = str(error.value)
    files = ", ".join(DATA_SETS[name].files)
    where = f"from {DATA_SETS[name].url} to {cache / DATA_SETS[name].folder}"
    assert line.startswith(f"{name}: cannot download {files} {where} (")
    assert "`--data digits`" in line and "`--data PATH`" in line
    assert "\n" not in line
    assert list(cache.iterdir()) == []


def test_a_corrupted_archive_is_told(name: str, server: Server, cache: Path) -> None:
    flip_a_byte(server.folder / DATA_SETS[name].files[0])
    assert_cannot_be_had(name, cache, "corrupted")


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(
    name: str, server: Server, cache: Path
) -> None:
    server.close()
    assert_cannot_be_had(name, cache, "Connection refused")


def test_a_server_that_does_not_answer_is_told(cifar10: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr("cifar_ray.files.DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        assert_cannot_be_had("cifar10", cache, "timed out")
    assert socket.getdefaulttimeout() is None


def test_a_data_dir_that_cannot_be_made_is_told(cifar10: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot download .* to .*file"):
        load_data("cifar10", data_dir=tmp_path / "file" / "x")
