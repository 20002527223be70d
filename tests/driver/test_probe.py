"""What a run computes in: what is found before it begins, and that it stays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.driver import probe
from cifar_ray.driver.probe import settle_precision
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
