"""Watching a run: TensorBoard events and the live line, both written by the driver from what trials report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter

from cifar_ray.hparams import STATES, Domain, Experiment
from cifar_ray.loop import Row
from cifar_ray.progress import PART, Console, duration
from cifar_ray.results import CHECKPOINT, HISTORY_COLUMNS, RunFolder, write_bytes, write_csv

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
        self._writers: dict[Path, FileWriter] = {}

    def epoch(self, folder: Path, row: Row) -> None:
        """Write one epoch's scalars; they are on disk when this returns, so that TensorBoard shows them live."""
        scalars = [Summary.Value(tag=tag, simple_value=row[column]) for column, tag in SCALARS.items()]
        self.add(folder, Summary(value=scalars), row["epoch"])

    def add(self, folder: Path, summary: Summary, epoch: int) -> None:
        """Write the values of one event; they are on disk when this returns."""
        if folder not in self._writers:
            self._writers[folder] = FileWriter(str(folder))
        self._writers[folder].add_summary(summary, epoch)
        self._writers[folder].flush()

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


def clear_training(folder: Path) -> None:
    """Remove what an interrupted training left, since TensorBoard would show it beside the next one's; not its
    checkpoint, which is of use until a newer one takes its place.
    """
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != CHECKPOINT:
            path.unlink()


class SearchWatch:
    """Keeps what TensorBoard shows of a run's searches, every trial's history, and the live line up to date."""

    def __init__(
        self,
        run: RunFolder,
        console: Console,
        num_trials: int,
        slots: int,
        domains: Mapping[str, Domain],
        finished: Sequence[Row] = (),
    ) -> None:
        """Begin to watch.

        Args:
            run: where the records go.
            console: shows the live line.
            num_trials: trials wanted, those of earlier sessions included.
            slots: trials that may run side by side.
            domains: of every parameter that a trial may draw, as far as is known.
            finished: records of trials that an earlier session of the run finished; their files are there.
        """
        self.run = run
        self.console = console
        self.num_trials = num_trials
        self.slots = slots
        self.began = time.monotonic()
        self.running: dict[int, list[Row]] = {}
        self.states = dict.fromkeys(STATES, 0)
        self.best: tuple[float, str] | None = None
        self.events = EventWriters()
        self.experiment = Experiment(run.root / "hparams", domains, [record["params"] for record in finished])
        for record in finished:
            self._count(record)
        self.num_earlier = self._num_usable

    def trial_began(self, number: int, params: Mapping[str, Any]) -> None:
        clear_training(self.run.trial(number))
        self.running[number] = []
        self.experiment.cover(params)

    def epoch_ended(self, number: int, row: Row) -> None:
        self.running[number].append(row)
        write_history(self.run.trial(number), self.running[number])
        self.events.epoch(self.run.trial(number), row)
        self.console.status(self.status())

    def checkpointed(self, number: int, packed: bytes) -> None:
        write_bytes(self.run.trial(number) / CHECKPOINT, packed)

    def trial_ended(self, record: Row) -> None:
        number = record["number"]
        del self.running[number]
        (self.run.trial(number) / CHECKPOINT).unlink(missing_ok=True)
        self.events.add(self.run.trial(number), self.experiment.session(record), record["epochs"])
        self.events.close(self.run.trial(number))
        self._count(record)
        if record["state"] == "failed":
            self.console.line(f"{record['name']} failed: {record['reason']}")
        self.console.status(self.status())

    def trial_put_back(self, number: int) -> None:
        del self.running[number]

    def _count(self, record: Row) -> None:
        self.states[record["state"]] += 1
        if record["best"] and (self.best is None or record["best"]["val_metric"] > self.best[0]):
            self.best = (record["best"]["val_metric"], record["name"])

    @property
    def _num_usable(self) -> int:
        return self.states["complete"] + self.states["pruned"]

    def status(self) -> str:
        """The live line: what matters most comes first, since a narrow terminal shows only what fits."""
        others = [f"{self.states[state]} {state}" for state in STATES[1:] if self.states[state]]
        parts = [", ".join([f"{self._num_usable}/{self.num_trials} done", *others])]
        elapsed, done = time.monotonic() - self.began, self._num_usable - self.num_earlier  # of this session alone
        if done:
            parts.append(f"{duration((self.num_trials - self._num_usable) * elapsed / done)} left")
        if self.best:
            parts.append(f"best {self.best[0]:.4f} {self.best[1]}")
        if done:
            parts.append(f"{60 * done / elapsed:.3g}/min")
        parts.append(f"{min(len(self.running), self.slots)} running")  # one more is drawn ahead, for the next free slot
        return PART.join(parts)


class FinalsWatch:
    """The live line and TensorBoard events of the final training."""

    def __init__(self, run: RunFolder, console: Console, num_models: int, max_epochs: int) -> None:
        self.run = run
        self.console = console
        self.num_models = num_models
        self.max_epochs = max_epochs
        self.num_epochs = num_models * max_epochs
        self.first_epoch_at: float | None = None
        self.epochs_done = 0
        self.models_done = 0
        self.events = EventWriters()

    def model_goes_on(self, name: str, rows: Sequence[Row]) -> None:
        """Show the epochs that an earlier session trained."""
        for row in rows:
            self.events.epoch(self.run.model(name), row)
        self.num_epochs -= len(rows)

    def epoch_ended(self, name: str, row: Row) -> None:
        self.events.epoch(self.run.model(name), row)
        self.epochs_done += 1
        if row["finished"]:  # perhaps by its patience
            self.num_epochs -= self.max_epochs - row["epoch"]
        parts = [f"finals {self.models_done}/{self.num_models}", f"epoch {self.epochs_done}/{self.num_epochs}"]
        if self.first_epoch_at is None:
            self.first_epoch_at = time.monotonic()  # what came before was start-up and tells nothing of the rate
        else:
            rate = (time.monotonic() - self.first_epoch_at) / (self.epochs_done - 1)
            parts.append(f"{duration((self.num_epochs - self.epochs_done) * rate)} left")
        self.console.status(PART.join(parts))

    def model_ended(self, name: str) -> None:
        self.models_done += 1
        self.events.close(self.run.model(name))
