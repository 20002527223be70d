"""Real data sets for tests: images, class folders and parquet files made in a temporary folder, and what was read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cifar_ray.data.splits import DataSplits

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, name="cache")
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of every test of the importing file in a folder of its own."""
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


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
