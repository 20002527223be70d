"""Files written whole or not at all, checksums, the cache folder, and downloads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.errors import InputError

DOWNLOAD_TIMEOUT_S = 60.0
"""Seconds after which a download ends where nobody answers."""


def cache_folder() -> Path:
    """Return the user cache folder of this program, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar_ray"


def checksum(array: np.ndarray) -> str:
    sha = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    sha.update(array.data)
    return sha.hexdigest()


def write_bytes(path: Path, data: bytes, durable: bool = False) -> None:
    """Write a file atomically (a reader, or a crash, meets the old file or the new one), making its folder.

    Args:
        path: of the file.
        data: what it is to hold.
        durable: return when it is on disk, so that a power cut cannot leave an empty file in its place: for what a run
            that is taken up again relies on. That takes milliseconds, too long for what is written every epoch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. What UTF-8 cannot hold (undecodable file names) becomes `?`."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read this record: {error}") from None


def plain(value: Any) -> Any:
    """Turn numpy scalars and paths into what JSON and CSV know, and NaN and infinities into None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, obj: Any, durable: bool = True) -> None:
    """Write JSON, see :func:`write_bytes`; NaN and infinities, which JSON lacks, become null."""
    write_bytes(path, (json.dumps(plain(obj), indent=2, allow_nan=False) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError where it is missing or is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON: {error}") from None


@contextlib.contextmanager
def download_timeout() -> Iterator[None]:
    """Let downloads end where nobody answers: torch and torchvision wait for ever behind a silent firewall."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
