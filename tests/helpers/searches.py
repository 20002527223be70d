"""Small searches: a task, configurations that train in a moment, and what watches them."""

from pathlib import Path
from typing import Any

import optuna

from cifar_ray.config import Task

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
