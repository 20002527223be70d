"""How fast a configuration trains here, and in which precision: timed on every slot at once before a run begins."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from cifar_ray.cli.console import Console
from cifar_ray.config import Precision, TrialConfig
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.speed import Memory, Speed, bf16_speedup, measure_speed
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError

MIN_SPEEDUP = 1.15
"""How many times as fast bf16 has to be for `--precision auto` to choose it."""


IMPORTED_MB = 350.0
"""What a process holds that has imported what it needs, and trained nothing."""

GROWTH = 3.0
"""How many times as much beyond that as in the probe it comes to hold, about, where it trains larger networks than the
default recipe's: 621 MB became 1,205 in a search on 5,000 images of CIFAR-10."""


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
    except (RayActorError, OutOfMemoryError) as error:
        raise InputError(
            f"memory does not do for {processes.workers.num_workers} workers, one of which was killed in the probe: "
            "give more --cpus-per-trial, so that there are fewer, or smaller images"
        ) from error


def measure_speeds(
    processes: Processes, configs: Iterable[TrialConfig], shared: TrialSettings
) -> tuple[list[Speed], list[Memory]]:
    """Time each configuration in all processes at once.

    Returns:
        The speed of each of them; and what each process that is up (see `Processes.up`) held in memory, at most.

    Raises:
        InputError: it cannot be trained on this data.
    """
    measured = [_on_all(processes, measure_speed, config, shared) for config in configs]
    together = processes.workers.workers_per_model

    def mean(speeds: Sequence[Speed]) -> Speed:
        # Workers that train a model together are taken to be as fast as each alone; they do not quite get there.
        return replace(
            speeds[0],
            train=together * statistics.fmean(speed.train for speed in speeds),
            val=together * statistics.fmean(speed.val for speed in speeds),
            test=together * statistics.fmean(speed.test for speed in speeds),
        )

    memory = [max((of for _, of in of_process), key=lambda of: of.own) for of_process in zip(*measured, strict=True)]
    return [mean([speed for speed, _ in of_config]) for of_config in measured], memory


def fit_memory(
    run: Run[Any], console: Console, processes: Processes, memory: Sequence[Memory], beside_mb: float = 0.0
) -> None:
    """Let go of processes that their nodes have no memory for, rather than have the system kill some; say so.

    Args:
        run: is told how many slots it has.
        console: is told.
        processes: of the run.
        memory: of those that are up, as :func:`measure_speeds` returns it.
        beside_mb: what else is started for each of them.
    """
    each_mb = beside_mb + IMPORTED_MB + GROWTH * max(0.0, max(of.own for of in memory) - IMPORTED_MB)
    by_node: dict[str, list[int]] = {}
    for index, of in enumerate(memory):
        by_node.setdefault(of.node, []).append(index)
    # As if none of them were there.
    room_mb = {
        node: min(memory[index].free for index in of_node) + sum(memory[index].own for index in of_node)
        for node, of_node in by_node.items()
    }
    kept = [index for node, of_node in by_node.items() for index in of_node[: int(room_mb[node] / each_mb)]]
    if len(kept) == len(memory):
        return
    told = f"a worker may come to hold {each_mb / 1e3:.1f} GB, and a node has {min(room_mb.values()) / 1e3:.1f} GB"
    if len(kept) < processes.workers.workers_per_model:
        console.line(f"warning     memory may not do: {told}; give smaller images, or a smaller --train-size")
        return
    there = processes.up()
    processes.shrink([there[index] for index in kept])
    run.about["device"]["slots"] = processes.workers.num_groups
    console.line(f"memory      {processes.workers.num_groups} side by side instead: {told} for all of them")
