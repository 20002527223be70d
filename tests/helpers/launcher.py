"""Whole commands, each in a process of its own, as their users start them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RUN_MODULE = "import runpy; runpy.run_module({module!r}, run_name='__main__')"


def start(
    command: str, *args: str, folder: Path, before: str = "", env: Mapping[str, str] = os.environ, **options: Any
) -> "subprocess.Popen[str]":
    """Start `python -m cifar_ray.COMMAND ARGS` in `folder`, which also takes its runs and its cache.

    Args:
        before: Python code that runs in the process before the command does, to set what no flag sets.
        options: of `subprocess.Popen`. By default both streams come back through pipes.
    """
    module = f"cifar_ray.{command}"
    program = ["-c", f"{before}\n{RUN_MODULE.format(module=module)}"] if before else ["-m", module]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *program, *args],
        cwd=folder,
        text=True,
        env={**env, "XDG_CACHE_HOME": str(folder / "cache")},
        **pipes | options,
    )


def run(command: str, *args: str, folder: Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """Start a command as `start` does, and wait for its end."""
    process = start(command, *args, folder=folder)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()  # if it took too long
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool], timeout: float = 240) -> None:
    """Wait until a condition holds that a running command is to bring about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the command does not come on"
        time.sleep(0.05)


def error_line(stderr: str) -> str:
    """Return what a command that was refused says on standard error: one line, and nothing else."""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr.removeprefix("error: ").removesuffix("\n")
