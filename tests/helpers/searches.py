"""Small searches: a task, configurations that train in a moment, and what watches them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.samplers import RandomSampler

from cifar_ray.config import Task
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import open_pool
from cifar_ray.search import tuner
from cifar_ray.search.progress import Progress, TimeLimit
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.space import Space
from cifar_ray.search.study import SpaceStudy, open_study, study_records

MAX_EPOCHS = 9

TASK = Task(num_classes=10, channels=1, image_size=8, num_train=320, device="cpu", flips=("none",))


def small_config(lr: float, **model: Any) -> dict[str, Any]:
    return {
        "model": {"widths": [8], "blocks": [1], "kernel_sizes": [3], **model},
        "optimizer": {"lr": lr},
        "lr_schedule": {"name": "constant"},
        "batch_size": 64,
    }


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.records: list[dict[str, Any]] = []
        self.events: list[tuple[str, int]] = []
        self.search_s = 0.0

    def trial_began(self, number: int, params: dict[str, Any]) -> None:
        self.rows[number] = []
        self.events.append(("began", number))

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        self.rows[number].append(row)

    def trial_ended(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.events.append(("ended", record["number"]))

    def trial_put_back(self, number: int) -> None:
        self.events.append(("put back", number))

    @property
    def num_epochs(self) -> int:
        return sum(map(len, self.rows.values()))


def reopen(tmp_path: Path, name: str = "given") -> optuna.Study:
    """The study as another program sees it."""
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def run_search(
    space_configs: list[dict[str, Any]],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    num_trials: int,
    cpus: int = 2,
    recorder: Recorder | None = None,
    time_limit: TimeLimit = TimeLimit(),
    max_params: int | None = None,
    kind: Callable[..., StudySearcher] = StudySearcher,
) -> tuple[optuna.Study, Recorder]:
    """Search a space that gives these configurations in turn (the last one again and again)."""

    def draw(trial: optuna.Trial, task: Task) -> dict[str, Any]:
        trial.suggest_float("unused", 0, 1)
        return space_configs[min(trial.number, len(space_configs) - 1)]

    study = open_study(tmp_path / "study.journal", "given", RandomSampler, seed=0)
    recorder = recorder or Recorder()
    space = Space("given", draw, lambda task: {"unused": 0.5})
    progress = Progress(study_records(study), num_trials, time_limit)
    settings = TrialSettings([ray.put(arrays)], 10, MAX_EPOCHS, MAX_EPOCHS, "accuracy", 1)
    workers = Workers(2 // cpus, 1, {"CPU": cpus, "GPU": 0})
    with Processes(workers) as processes, open_pool(settings, processes, tmp_path, judged=True) as pool:
        searcher = kind(SpaceStudy(space, study), TASK, 0, progress, pool, recorder, max_params)
        tuner.run_search(searcher, MAX_EPOCHS, tmp_path)
    return study, recorder
