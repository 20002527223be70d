"""How fast a configuration trains here, and in which precision: timed on every slot at once before a run begins."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayTaskError

from cifar_ray.cli.console import Console
from cifar_ray.config import Precision, TrialConfig
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.speed import Speed, bf16_speedup, measure_speed
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError

MIN_SPEEDUP = 1.15
"""How many times as fast bf16 has to be for `--precision auto` to choose it."""


def settle_precision(
    run: Run[Any], console: Console, processes: Processes, config: TrialConfig, shared: TrialSettings
) -> Precision:
    """Choose what the models of a run compute in, once; a run that is taken up again goes on with that.

    Args:
        run: is told, for its run.json.
        console: is told.
        processes: where the models will train.
        config: what both are tried with.
        shared: what it is trained on.

    Raises:
        InputError: `--precision bf16`, and not every worker has it; or the configuration cannot be trained.
    """
    asked = run.settings.precision or "auto"
    if "precision" not in run.about:
        used, why = "fp32", "as asked"
        if run.resumed:  # begun by an older version
            used, why = ("bf16" if processes.workers.device == "cuda" else "fp32"), "as it was begun"
        elif asked != "fp32":
            used, why = _bf16_or_not(asked, processes, config, shared)
        run.about["precision"] = {"used": used, "why": why}
    chosen = run.about["precision"]
    console.line(f"precision   {chosen['used']}: {chosen['why']}")
    used = chosen["used"]
    return used


def _bf16_or_not(asked: str, processes: Processes, config: TrialConfig, shared: TrialSettings) -> tuple[str, str]:
    what = {"cpu": "processor", "cuda": "GPU"}[processes.workers.device]
    speedups = _on_all(processes, bf16_speedup, config, shared)
    if None in speedups:
        if asked == "bf16":
            raise InputError(f"--precision bf16: this {what} does not compute in it; give --precision fp32 or auto")
        return "fp32", f"this {what} does not compute in bfloat16"
    if asked == "bf16":
        return "bf16", "as asked"
    speedup = statistics.fmean(speedups)
    used = "bf16" if speedup >= MIN_SPEEDUP else "fp32"
    return used, f"bf16 trains {speedup:.2f} times as fast as fp32 here"


def _on_all(processes: Processes, measure: Callable[..., Any], config: TrialConfig, shared: TrialSettings) -> Any:
    """Call `measure` in all processes at once; raises InputError where the configuration cannot be trained."""
    try:
        return processes.call_all(measure, config, shared)
    except RayTaskError as error:
        cause = " ".join(str(error.cause).split())
        raise InputError(f"this configuration cannot be trained here: {cause:.200} ({config})") from error


def measure_speeds(processes: Processes, config: TrialConfig, shared: TrialSettings) -> tuple[Speed, float]:
    """Time a configuration in all processes at once; return the speed of a trial, and the memory of a process in MB.

    Raises:
        InputError: it cannot be trained on this data.
    """
    measured = _on_all(processes, measure_speed, config, shared)
    speeds = [speed for speed, _ in measured]
    together = processes.workers.workers_per_model
    # Workers that train a model together are taken to be as fast as each alone; they do not quite get there.
    mean = replace(
        speeds[0],
        train=together * statistics.fmean(speed.train for speed in speeds),
        val=together * statistics.fmean(speed.val for speed in speeds),
        test=together * statistics.fmean(speed.test for speed in speeds),
    )
    return mean, statistics.fmean(memory_mb for _, memory_mb in measured)
