"""Fixtures: small data, a private Ray session, and the command line as its user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def hardware() -> Iterator[object]:
    """One Ray session for all tests that ask for it: two slots, whatever the machine has."""
    from cifar_ray.runtime import ray_session, temporary_folder

    # Ray's workers import the test modules whose functions and classes they run.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with temporary_folder() as folder, ray_session(folder, num_cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where other processes want the cores too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digit_arrays() -> dict[str, np.ndarray]:
    """The arrays that trials get, from a few hundred digits."""
    from cifar_ray.data import load_data

    return load_data("digits", train_size=400).training_arrays()


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `python -m cifar_ray.COMMAND ARGS` in an empty folder, its runs below `tmp_path/runs`."""

    def run(command: str, *args: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", f"cifar_ray.{command}", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )

    return run
