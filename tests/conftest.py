"""Fixtures: small data, a private Ray session, and the command line as its user runs it."""

import contextlib
import functools
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import launcher

from cifar_ray.cli import parser

# Ray would start a session by itself for a test that forgot to ask for `hardware`.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the Ray session run one after another in one process of pytest-xdist.

    So do those that share a run, which their files mark with a group of their own.
    """
    for item in items:
        if "hardware" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def hardware() -> Iterator[object]:
    """One Ray session for all tests that ask for it: two slots, whatever the machine has."""
    from cifar_ray.distributed.session import ray_session, temporary_folder

    # Ray's workers import the test modules whose functions and classes they run.
    tests = Path(__file__).parent
    folders = [tests, *(path for path in sorted(tests.glob("[a-z]*")) if path.is_dir())]
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    with temporary_folder() as folder, ray_session(folder, num_cpus=2) as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small gain nothing from threads, and lose much where other processes want the cores too."""
    if "torch" in sys.modules:  # imported by a test that was collected
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def digit_arrays() -> dict[str, np.ndarray]:
    """The arrays that trials get, from a few hundred digits: more to train on than `digits` itself has."""
    from sklearn.datasets import load_digits

    from cifar_ray.data.stratified import stratified_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8)
    labels = bunch.target.astype(np.int64)
    rest, _ = stratified_split(labels, 359)
    part = rest[stratified_split(labels[rest], 400)[1]]
    train, val = (part[index] for index in stratified_split(labels[part], 80))
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "val_images": images[val],
        "val_labels": labels[val],
    }


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache folder for the test alone; returns where kept features lie in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cifar_ray" / "features"


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `python -m cifar_ray.COMMAND ARGS` in an empty folder, its runs below `tmp_path/runs`."""

    return functools.partial(launcher.run, folder=tmp_path)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run a command in this process and in `tmp_path`, see to it that it is refused as promised, return its one line.

    That is exit code 2, one line on standard error, nothing else said than how far it came, and no new run folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "")  # which --address sets
    broken_pipe = signal.getsignal(signal.SIGPIPE)  # which `predict` sets

    def files(folder: Path) -> dict[str, bytes | None]:
        return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}

    def run(name: str, *args: str) -> str:
        before = files(tmp_path / "runs")
        monkeypatch.setattr("sys.argv", [name, *args])
        with pytest.raises(SystemExit) as ended:
            parser.run_command(importlib.import_module(f"cifar_ray.{name}").main)
        assert ended.value.code == 2
        assert files(tmp_path / "runs") == before
        out, err = capfd.readouterr()
        assert not out or name != "predict"  # it prints nothing but results
        return launcher.error_line(err)

    yield run
    signal.signal(signal.SIGPIPE, broken_pipe)


@pytest.fixture
def refused_by_ray(
    refused: Callable[..., str], hardware: object, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """As `refused`, for what is found once Ray has started: with the Ray session of all tests instead of one more."""
    monkeypatch.setattr("cifar_ray.driver.start.ray_session", lambda folder: contextlib.nullcontext(hardware))
    return refused
