"""The live line of a search and of its finals; what these tell goes into histories and TensorBoard events too."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_ray.cli.console import PART, Console
from cifar_ray.files import write_bytes
from cifar_ray.results.records import CHECKPOINT, TRIED, Row, RunFolder, State, write_history
from cifar_ray.search.space import Domain
from cifar_ray.text import duration
from cifar_ray.tracking.tensorboard import EventWriters, Experiment, clear_training


class SearchWatch:
    """Keeps what TensorBoard shows of a run's searches, every trial's history, and the live line up to date."""

    def __init__(
        self,
        run: RunFolder,
        console: Console,
        num_trials: int,
        domains: Mapping[str, Domain],
        finished: Sequence[Row] = (),
    ) -> None:
        """Begin to watch.

        Args:
            run: where the records go.
            console: shows the live line.
            num_trials: trials wanted, those of earlier sessions included.
            domains: of every parameter that a trial may draw, as far as is known.
            finished: records of trials that an earlier session of the run finished; their files are there.
        """
        self.run = run
        self.console = console
        self.num_trials = num_trials
        self.began = time.monotonic()
        self.running: dict[int, list[Row]] = {}
        self.states = dict.fromkeys(State, 0)
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
        if record["state"] == State.FAILED:
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
        return sum(self.states[state] for state in TRIED)

    def status(self) -> str:
        """The live line: what matters most comes first, since a narrow terminal shows only what fits."""
        others = [f"{self.states[state]} {state}" for state in State if state != State.COMPLETE and self.states[state]]
        parts = [", ".join([f"{self._num_usable}/{self.num_trials} done", *others])]
        elapsed, done = time.monotonic() - self.began, self._num_usable - self.num_earlier  # of this session alone
        if done:
            parts.append(f"{duration((self.num_trials - self._num_usable) * elapsed / done)} left")
        if self.best:
            parts.append(f"best {self.best[0]:.4f} {self.best[1]}")
        if done:
            parts.append(f"{60 * done / elapsed:.3g}/min")
        parts.append(f"{len(self.running)} running")
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
