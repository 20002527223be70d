"""CIFAR-10 from a local server with a small archive of its kind, from copies that exist, and without a network."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encode, flip_a_byte, private_cache, sizes  # noqa: F401 (a fixture)
from PIL import Image

from cifar_ray.data.decode import decode_image
from cifar_ray.data.splits import load_data
from cifar_ray.errors import InputError


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
    assert (splits.source, splits.flips) == ("cifar10", ("none", "random", "alternating"))
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

    monkeypatch.setattr("cifar_ray.files.DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        assert_cifar10_cannot_be_had(cache, "timed out")
    assert socket.getdefaulttimeout() is None


def test_cifar10_folder_that_cannot_be_made(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot download .* to .*file"):
        load_data("cifar10", data_dir=tmp_path / "file" / "x")
