"""Watching a run: TensorBoard events and the live line, both written by the driver from what trials report."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from cifar_ray.loop import Row
from cifar_ray.progress import Console, duration
from cifar_ray.results import HISTORY_COLUMNS, RunFolder, write_csv

SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "optimizer/lr",
    "grad_norm_max": "optimizer/grad_norm_max",
    "train_s": "seconds/train",
}
"""TensorBoard tag of each column of history.csv that is shown."""


class EventWriters:
    """One TensorBoard run for each training under way, in its own folder."""

    def __init__(self) -> None:
        self._writers: dict[Path, SummaryWriter] = {}

    def epoch(self, folder: Path, row: Row) -> None:
        """Write one epoch's scalars; they are on disk when this returns, so that TensorBoard shows them live."""
        if folder not in self._writers:
            self._writers[folder] = SummaryWriter(str(folder))
        writer = self._writers[folder]
        for column, tag in SCALARS.items():
            writer.add_scalar(tag, row[column], row["epoch"])
        writer.flush()

    def close(self, folder: Path) -> None:
        """End the run in `folder`, if one was begun."""
        writer = self._writers.pop(folder, None)
        if writer is not None:
            writer.close()

    def close_all(self) -> None:
        for folder in list(self._writers):
            self.close(folder)


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write history.csv, the public part of what each epoch measured."""
    write_csv(folder / "history.csv", HISTORY_COLUMNS, [{name: row[name] for name in HISTORY_COLUMNS} for row in rows])


class SearchWatch:
    """Keeps the history of every trial of a search on disk, and the live line up to date."""

    def __init__(self, run: RunFolder, console: Console, num_trials: int, slots: int) -> None:
        self.run = run
        self.console = console
        self.num_trials = num_trials
        self.slots = slots
        self.began = time.monotonic()
        self.running: dict[int, list[Row]] = {}
        self.states = {"complete": 0, "pruned": 0, "failed": 0}
        self.best: tuple[float, str] | None = None
        self.events = EventWriters()

    def trial_began(self, number: int) -> None:
        self.running[number] = []

    def epoch_ended(self, number: int, row: Row) -> None:
        self.running[number].append(row)
        write_history(self.run.trial(number), self.running[number])
        self.events.epoch(self.run.trial(number), row)
        self.console.status(self.status())

    def trial_ended(self, record: Row) -> None:
        del self.running[record["number"]]
        self.events.close(self.run.trial(record["number"]))
        self.states[record["state"]] += 1
        if record["best"] and (self.best is None or record["best"]["val_metric"] > self.best[0]):
            self.best = (record["best"]["val_metric"], record["name"])
        if record["state"] == "failed":
            self.console.line(f"{record['name']} failed: {record['reason']}")
        self.console.status(self.status())

    def status(self) -> str:
        """The live line: what matters most comes first, since a terminal of 80 columns cuts what is longer."""
        usable = self.states["complete"] + self.states["pruned"]
        running = min(len(self.running), self.slots)  # one more is drawn ahead, for the next free slot
        parts = [f"{usable}/{self.num_trials} done, {running} running, {self.states['pruned']} pruned"]
        if usable:
            elapsed = time.monotonic() - self.began
            left = (self.num_trials - usable) * elapsed / usable
            parts.append(f"{duration(left)} left, {60 * usable / elapsed:.3g}/min")
        if self.best:
            parts.append(f"best {self.best[0]:.4f} {self.best[1]}")
        if self.states["failed"]:
            parts.append(f"{self.states['failed']} failed")
        return " | ".join(parts)


class FinalsWatch:
    """The live line and TensorBoard events of the final training."""

    def __init__(self, run: RunFolder, console: Console, num_models: int, max_epochs: int) -> None:
        self.run = run
        self.console = console
        self.num_models = num_models
        self.num_epochs = num_models * max_epochs
        self.first_epoch_at: float | None = None
        self.epochs_done = 0
        self.models_done = 0
        self.events = EventWriters()

    def epoch_ended(self, name: str, row: Row) -> None:
        self.events.epoch(self.run.model(name), row)
        self.epochs_done += 1
        parts = [f"finals {self.models_done}/{self.num_models}", f"epoch {self.epochs_done}/{self.num_epochs}"]
        if self.first_epoch_at is None:
            self.first_epoch_at = time.monotonic()  # what came before was start-up and tells nothing of the rate
        else:
            rate = (time.monotonic() - self.first_epoch_at) / (self.epochs_done - 1)
            parts.append(f"{duration((self.num_epochs - self.epochs_done) * rate)} left")
        self.console.status(" | ".join(parts))

    def model_ended(self, name: str) -> None:
        self.models_done += 1
        self.events.close(self.run.model(name))
