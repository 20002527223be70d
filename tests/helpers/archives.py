"""Small archives of the layout of torchvision's data sets, served over HTTP in place of the real ones."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from helpers.images import encode, noise_named

NUM_TRAIN, NUM_TEST = 30, 12
"""Images of three classes in each split (Flowers102's validation split is as large as its test split)."""


class Server:
    """Serves the files of a folder, and counts those that it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = 0
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
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def add(self, name: str, content: bytes) -> str:
        """Serve a file; return its MD5."""
        (self.folder / name).write_bytes(content)
        return hashlib.md5(content).hexdigest()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def mat(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, arrays)
    return stream.getvalue()


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % 3


def serve_cifar(
    server: Server, patch: pytest.MonkeyPatch, kind: str, label_key: str, names_key: str, batches: list[str]
) -> None:
    import torchvision.datasets

    cifar = getattr(torchvision.datasets, kind)
    counts = {name: NUM_TRAIN // len(batches[:-1]) for name in batches[:-1]} | {batches[-1]: NUM_TEST}
    contents: dict[str, object] = {
        name: {"data": pixels(100 + place, 3072)[:count], label_key: labels(count).tolist()}
        for place, (name, count) in enumerate(counts.items())
    }
    contents[cifar.meta["filename"]] = {names_key: ["cat", "dog", "emu"]}
    files = {name: pickle.dumps(content) for name, content in contents.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive = tar_gz({f"{cifar.base_folder}/{name}": content for name, content in files.items()})
    patch.setattr(cifar, "tgz_md5", server.add(cifar.filename, archive))
    patch.setattr(cifar, "url", server.url + cifar.filename)
    patch.setattr(cifar, "train_list", [[name, md5[name]] for name in batches[:-1]])
    patch.setattr(cifar, "test_list", [[batches[-1], md5[batches[-1]]]])
    patch.setattr(cifar, "meta", cifar.meta | {"md5": md5[cifar.meta["filename"]]})


def serve_cifar10(server: Server, patch: pytest.MonkeyPatch) -> None:
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    serve_cifar(server, patch, "CIFAR10", "labels", "label_names", batches)


def serve_cifar100(server: Server, patch: pytest.MonkeyPatch) -> None:
    serve_cifar(server, patch, "CIFAR100", "fine_labels", "fine_label_names", ["train", "test"])


def serve_fashion_mnist(server: Server, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    resources = []
    for split, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        images = struct.pack(">4I", 0x803, count, 28, 28) + pixels(count, 28, 28).tobytes()
        names = struct.pack(">2I", 0x801, count) + labels(count).astype(np.uint8).tobytes()
        for name, content in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", names)):
            resources.append((name, server.add(name, gzip.compress(content))))
    patch.setattr(FashionMNIST, "resources", resources)
    patch.setattr(FashionMNIST, "mirrors", [server.url])
    patch.setattr(FashionMNIST, "classes", ["T-shirt/top", "Trouser", "Pullover"])


def serve_svhn(server: Server, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    splits = {}
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        name = f"{split}_32x32.mat"
        numbers = np.where(labels(count) == 0, 10, labels(count))[:, None].astype(np.uint8)  # a zero has the label 10
        md5 = server.add(name, mat(X=pixels(count, 32, 32, 3).transpose(1, 2, 3, 0), y=numbers))
        splits[split] = [server.url + name, name, md5]
    patch.setattr(SVHN, "split_list", splits)


PETS = ("Abyssinian", "american_bulldog", "Bombay")


def pets_files() -> dict[str, bytes]:
    """The files of a small Oxford-IIIT Pet, by their paths."""
    files = {"annotations/trimaps/Abyssinian_1.png": b"not read", "annotations/README": b"not read"}
    number = 0
    for name, count in (("trainval", NUM_TRAIN), ("test", NUM_TEST)):
        lines = []
        for label in labels(count):
            number += 1
            lines.append(f"{PETS[label]}_{number} {label + 1} {1 + (label == 1)} 1\n")
            size = (80 + number % 3, 70)
            files[f"images/{PETS[label]}_{number}.jpg"] = encode(noise_named(f"pet {number}", size), "JPEG")
        files[f"annotations/{name}.txt"] = "".join(lines).encode()
    return files


def serve_oxford_pets(server: Server, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import OxfordIIITPet

    resources = []
    for folder in ("images", "annotations"):
        archive = tar_gz({name: content for name, content in pets_files().items() if name.startswith(folder)})
        resources.append((f"{server.url}{folder}.tar.gz", server.add(f"{folder}.tar.gz", archive)))
    patch.setattr(OxfordIIITPet, "_RESOURCES", tuple(resources))


def serve_flowers102(server: Server, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Flowers102

    count = NUM_TRAIN + 2 * NUM_TEST
    images = {
        f"jpg/image_{i:05d}.jpg": encode(noise_named(f"flower {i}", (70, 80 + i % 3)), "JPEG")
        for i in range(1, count + 1)
    }
    ids = np.arange(1, count + 1)
    cut = {"trnid": ids[2 * NUM_TEST :], "valid": ids[:NUM_TEST], "tstid": ids[NUM_TEST : 2 * NUM_TEST]}
    files = {
        "image": ("102flowers.tgz", tar_gz(images)),
        "label": ("imagelabels.mat", mat(labels=1 + labels(count)[None])),
        "setid": ("setid.mat", mat(**{name: part[None] for name, part in cut.items()})),
    }
    patch.setattr(Flowers102, "_download_url_prefix", server.url)
    patch.setattr(
        Flowers102, "_file_dict", {key: (name, server.add(name, content)) for key, (name, content) in files.items()}
    )
    patch.setattr(Flowers102, "classes", ["pink primrose", "rose", "lotus"])


SERVED: dict[str, Callable[[Server, pytest.MonkeyPatch], None]] = {
    "cifar10": serve_cifar10,
    "cifar100": serve_cifar100,
    "fashion-mnist": serve_fashion_mnist,
    "svhn": serve_svhn,
    "oxford-pets": serve_oxford_pets,
    "flowers102": serve_flowers102,
}
"""Serves a small archive in place of each data set that is downloaded."""
