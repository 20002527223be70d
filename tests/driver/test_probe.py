"""What a run computes in: what is found before it begins, and that it stays."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.speed import Memory
from cifar_ray.driver import probe
from cifar_ray.driver.probe import IMPORTED_MB, fit_memory, measure_speeds, settle_precision
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import has_bf16

WORKERS = Workers(2, 1, {"CPU": 1, "GPU": 0})
AUTO = [
    ([1.2, 1.3], ("bf16", "bf16 trains 1.25 times as fast as fp32 here")),
    ([1.3, 0.9], ("fp32", "bf16 trains 1.10 times as fast as fp32 here")),
    ([None, 2.0], ("fp32", "this processor does not compute in bfloat16")),
]


def run_with(tmp_path: Path, precision: str, **more: Any) -> Run[TuneSettings]:
    return Run(TuneSettings(data="digits", runs_dir=tmp_path, precision=precision, name="r"), "tune", "cnn", **more)


def settled(run: Run[TuneSettings], shared: Any = None) -> tuple[str, str]:
    stream = io.StringIO()
    with Processes(WORKERS) as processes:
        return settle_precision(run, Console(stream), processes, TrialConfig(), shared), stream.getvalue()


def measuring(monkeypatch: pytest.MonkeyPatch, speedups: Any) -> None:
    monkeypatch.setattr(probe, "_on_all", lambda *args: speedups)


@pytest.mark.parametrize(("speedups", "expected"), AUTO)
def test_bf16_is_taken_where_all_workers_have_it_and_it_pays_and_the_run_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedups: Any, expected: tuple[str, str]
) -> None:
    measuring(monkeypatch, speedups)
    run = run_with(tmp_path, "auto")
    used, why = expected
    assert settled(run) == (used, f"precision   {used}: {why}\n")
    run.begin({})
    run.close()
    measuring(monkeypatch, [9.0 if used == "fp32" else 0.1])  # what would be found now
    again = run_with(tmp_path, "auto", resume=str(run.folder.root))
    assert settled(again)[0] == used
    assert again.about["precision"] == {"used": used, "why": why}
    again.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    measuring(monkeypatch, [0.5, 0.5])
    assert settled(run_with(tmp_path, precision)) == (precision, f"precision   {precision}: as asked\n")


def test_bf16_is_refused_where_a_worker_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, [1.5, None])
    with pytest.raises(InputError) as error:
        settled(run_with(tmp_path, "bf16"))
    told = "--precision bf16: this processor does not compute in it; give --precision fp32 or auto"
    assert str(error.value) == told


def test_both_are_measured_on_the_workers(hardware: Any, tmp_path: Path, digit_arrays: dict[str, np.ndarray]) -> None:
    shared = TrialSettings([ray.put(digit_arrays)], 10, 1, None, "accuracy", 1)
    run = run_with(tmp_path, "auto")
    used, told = settled(run, shared)
    if not has_bf16("cpu"):
        assert (used, told) == ("fp32", "precision   fp32: this processor does not compute in bfloat16\n")
        return
    speedup = float(told.split(" trains ")[1].split()[0])
    assert 0.05 < speedup < 20
    assert used == ("bf16" if speedup >= probe.MIN_SPEEDUP else "fp32")


@pytest.mark.parametrize(
    ("flags", "there"), [("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("fpu avx512f", False)]
)
def test_the_processor_is_asked_whether_it_has_bf16(monkeypatch: pytest.MonkeyPatch, flags: str, there: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"flags\t\t: {flags}\n")
    assert has_bf16.__wrapped__("cpu") is there


ROOMY = Memory("a", own=IMPORTED_MB, free=10_000)
TIGHT = Memory("a", own=IMPORTED_MB + 100, free=300)
"""One that comes to hold IMPORTED_MB + GROWTH * 100: with two of them there is room for one and a half."""


def fitted(tmp_path: Path, memory: list[Memory], workers: Workers = WORKERS, **more: Any) -> tuple[Run[Any], int, str]:
    run, stream = run_with(tmp_path, "fp32"), io.StringIO()
    run.about["device"] = {"slots": workers.num_groups}
    with Processes(workers) as processes:
        fit_memory(run, Console(stream), processes, memory, **more)
        return run, len(processes.call_all(os.getpid)), stream.getvalue()


def test_fewer_train_side_by_side_where_memory_does_not_do(hardware: Any, tmp_path: Path) -> None:
    run, there, told = fitted(tmp_path, [TIGHT, TIGHT])
    assert there == 1 and run.about["device"] == {"slots": 1}
    assert told == (
        "memory      1 side by side instead: a worker may come to hold 0.7 GB, and a node has 1.2 GB for all of them\n"
    )


@pytest.mark.parametrize("memory", [[ROOMY, ROOMY], [TIGHT, replace(TIGHT, node="b")]])
def test_all_stay_where_each_node_has_room_for_its_own(hardware: Any, tmp_path: Path, memory: list[Memory]) -> None:
    run, there, told = fitted(tmp_path, memory)
    assert (there, told, run.about["device"]) == (2, "", {"slots": 2})


def test_what_is_started_beside_a_worker_counts_too(hardware: Any, tmp_path: Path) -> None:
    _, there, told = fitted(tmp_path, [ROOMY, ROOMY], beside_mb=5_100)
    assert there == 1 and "may come to hold 5.5 GB, and a node has 10.7 GB" in told


def test_a_warning_where_not_even_one_model_may_fit(hardware: Any, tmp_path: Path) -> None:
    run, there, told = fitted(tmp_path, [TIGHT, TIGHT], replace(WORKERS, workers_per_model=2))
    assert told.startswith("warning     memory may not do: ") and there == 2 and run.about["device"] == {"slots": 1}


def test_a_process_tells_what_it_holds(hardware: Any, digit_arrays: dict[str, np.ndarray]) -> None:
    shared = TrialSettings([ray.put(digit_arrays)], 10, 1, None, "accuracy", 1)
    with Processes(WORKERS) as processes:
        _, memory = measure_speeds(processes, [TrialConfig()], shared)
    assert len(memory) == 2 and memory[0].node == memory[1].node
    assert all(100 < of.own < 2_000 and 0 < of.free < psutil.virtual_memory().total / 1e6 for of in memory)


def test_a_worker_that_is_killed_in_the_probe_is_one_line(hardware: Any) -> None:
    with (
        Processes(WORKERS) as processes,
        pytest.raises(InputError, match=r"memory does not do for 2 workers"),
    ):
        probe._on_all(processes, die, TrialConfig(), None)  # type: ignore[arg-type]


def die(*args: Any) -> None:
    os._exit(1)
