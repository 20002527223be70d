"""The processes of a run, on real Ray: what they are called for comes back, whichever of them die."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from cifar_ray.distributed import processes as module
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.processes import MAX_ROUNDS, Processes

WORKERS = Workers(2, 1, {"CPU": 1, "GPU": 0})


def work(item: str) -> str:
    """Return what it is given, but die of what says so, once or always."""
    if item.startswith("deadly") or (item.startswith("once:") and not os.path.exists(item[5:])):
        if item.startswith("once:"):
            Path(item[5:]).touch()
        os._exit(1)
    return item


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_process_took_along_when_it_died_goes_to_another_one(
    hardware: Any, tmp_path: Path, num_workers: int
) -> None:
    items = {"a": "fine", "b": f"once:{tmp_path}/b", "c": "fine", "d": f"once:{tmp_path}/d", "e": "fine"}
    told: list[str] = []
    with Processes(Workers(num_workers, 1, {"CPU": 1, "GPU": 0})) as processes:
        results = processes.map(work, {key: (item,) for key, item in items.items()}, told.append)
        assert results == items and list(results) == list(items) and sorted(told) == sorted(items)
        assert processes.call_all(work, "fine") == ["fine"] * num_workers, "a dead process is left"


def test_an_item_that_kills_every_process_is_named(hardware: Any) -> None:
    with (
        Processes(WORKERS) as processes,
        pytest.raises(RuntimeError, match=f"died {MAX_ROUNDS} times over: no result for b"),
    ):
        processes.map(work, {"a": ("fine",), "b": ("deadly",)})


def test_all_are_called_at_once_and_each_is_used_again(hardware: Any) -> None:
    with Processes(WORKERS) as processes:
        first, again = processes.call_all(os.getpid), processes.call_all(os.getpid)
        assert first == again and len(set(first)) == 2
        processes.keep([1])
        assert ray.get(processes.call(0, os.getpid)) == first[1]
        assert set(processes.call_all(os.getpid)) & set(first) == {first[1]}, "the other one is started anew"


def test_those_that_are_not_wanted_any_more_stay_away(hardware: Any) -> None:
    with Processes(WORKERS) as processes:
        first = processes.call_all(os.getpid)
        processes.shrink([1])
        assert processes.call_all(os.getpid) == [first[1]]
        assert processes.workers == Workers(1, 1, {"CPU": 1, "GPU": 0})
        assert processes.map(work, {"a": ("fine",), "b": ("fine",)}) == {"a": "fine", "b": "fine"}


def test_nobody_waits_for_a_process_that_other_runs_leave_no_room_for(
    hardware: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    holding = ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote()
    time.sleep(1)
    with Processes(WORKERS) as processes:
        assert len(processes.up()) == 1
        assert processes.call_all(work, "fine") == ["fine"]
        ray.cancel(holding, force=True)
        processes.map(work, {"a": ("fine",)})
