"""The searcher: Tune asks it for trials, and an Optuna study draws them and remembers how they ended.

What Tune tells of a trial ends up in the study, under the state that the trial deserves. A run that was interrupted,
however it was, goes on from there; how a study is opened and read is the matter of `study`, how Tune runs the trials
that of `tuner`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import optuna
import ray
import torch
from ray.tune.search import Searcher

from cifar_ray.config import Task, TrialConfig
from cifar_ray.distributed.workers import Pool
from cifar_ray.errors import InputError, one_line
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.results.records import DEFAULT, TRIED, Row, State
from cifar_ray.search.space import Space
from cifar_ray.search.study import RECORD, put_back, study_records, tell
from cifar_ray.search.trial import ROWS
from cifar_ray.training.seeds import derived_seed

MAX_INFEASIBLE = 20
"""Configurations over a limit, for each trial wanted, after which a search gives up."""

RESERVE_EPOCHS = 2
"""Epochs, as slow as the slowest so far, that a time budget leaves to the trials that are under way when it is up: they
end with their next report, and one that has just begun may be slower than all others."""


class Watcher(Protocol):
    """Is told, on the driver, what happens in a search."""

    def trial_began(self, number: int, params: dict[str, Any]) -> None: ...

    def epoch_ended(self, number: int, row: Row) -> None: ...

    def checkpointed(self, number: int, packed: bytes) -> None: ...

    def trial_ended(self, record: Row) -> None: ...

    def trial_put_back(self, number: int) -> None: ...


@dataclass(frozen=True)
class TrialCheckpoint:
    """What a trial goes on from."""

    packed: bytes
    rows: Sequence[Row]
    """Of the epochs that are behind it."""


@dataclass(frozen=True)
class Limits:
    """What a configuration may be at most, and how long the search may go on."""

    max_params: int | None = None
    end_s: Callable[[Sequence[Row]], float] = lambda records: math.inf
    """When the search has to have ended, in seconds of its clock, given the records of the trials finished so far."""
    epoch_s: float = 0.0
    """Seconds that an epoch takes, as far as that is known before any trial has run."""


class StudySearcher(Searcher):
    """Gives Tune the trials of an Optuna study, and tells the study how each of them ended.

    Ray's `OptunaSearch` tells the trials that ASHA stopped as complete, at the value of the epoch they were stopped
    in, which misleads the sampler; a non-finite loss it cannot tell at all. Here a trial ends as PRUNED with all its
    intermediate values, as COMPLETE, or as FAIL.

    Args:
        study: what is drawn, and remembered; a trial of it that waits is run first.
        space: what to draw from.
        task: what the space may look at.
        num_trials: trials to end complete or pruned, those of earlier sessions included.
        seed: of the run.
        watcher: is told what happens.
        limits: of each configuration, and of the search.
        index: of this space among the `num_spaces` of the run, which take turns in the numbers of trials.
        num_spaces: of the run.
        clock: tells the seconds that the search has taken so far.
        checkpoints: what trials that were interrupted go on from, by number.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        task: Task,
        num_trials: int,
        seed: int,
        watcher: Watcher,
        limits: Limits = Limits(),
        index: int = 0,
        num_spaces: int = 1,
        clock: Callable[[], float] = time.monotonic,
        checkpoints: Mapping[int, "TrialCheckpoint"] = MappingProxyType({}),
    ) -> None:
        super().__init__(metric="best_val_metric", mode="max")
        self.study = study
        self.space = space
        self.task = task
        self.num_trials = num_trials
        self.seed = seed
        self.watcher = watcher
        self.limits = limits
        self.index = index
        self.num_spaces = num_spaces
        self._running: dict[str, _Running] = {}
        self._finished = dict.fromkeys(State, 0)
        self.records = list(study_records(study))
        for record in self.records:
            self._finished[record["state"]] += 1
        self.clock = clock
        self.interrupted = False
        self._end_s = limits.end_s(self.records)
        measured = [_epoch_s(record["seconds"], record["epochs"]) for record in self.records if record["epochs"]]
        self._slowest_epoch_s = max(limits.epoch_s, *measured, 0.0)
        self._time_is_up = False
        self.checkpoints = checkpoints
        self.pool: Pool | None = None
        self.num_slots = 1
        if not study.trials and space.default is not None:
            study.enqueue_trial(space.default_params(task))

    @property
    def _usable(self) -> int:
        return sum(self._finished[state] for state in TRIED)

    @property
    def finished(self) -> bool:
        """Whether enough trials ended complete or pruned, too many did not, or the time is up; once, and for good.

        However late it is, there has to be something to train afterwards.
        """
        return (
            self._usable >= self.num_trials
            or self._finished[State.FAILED] > self.num_trials
            or self._finished[State.INFEASIBLE] > MAX_INFEASIBLE * self.num_trials
            or (self._usable > 0 and self.out_of_time)
        )

    @property
    def out_of_time(self) -> bool:
        """Whether what follows the search needs the rest of the time; once it does, trials that end change nothing."""
        reserve_s = RESERVE_EPOCHS * self._slowest_epoch_s
        self._time_is_up = self._time_is_up or self.clock() + reserve_s >= self._end_s
        return self._time_is_up

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        while not self.finished and (self.pool is None or self.pool.error is None):
            if self._usable + len(self._running) >= self.num_trials:
                return None  # enough are under way; one that fails will be replaced
            if len(self._running) > self.num_slots:
                return None  # one is drawn ahead; more would be drawn knowing less
            trial = self.study.ask()
            running = _Running(trial, self.space.name, trial.number * self.num_spaces + self.index)
            try:
                running.config = self._config(trial)
                running.num_params = count_config_params(running.config, self.task)
            except (InputError, RuntimeError) as error:  # torch refuses sizes that it cannot hold with a RuntimeError
                running.failure = one_line(error)
            self.watcher.trial_began(running.number, trial.params)
            self._check_limits(running)
            if running.failure is not None or running.infeasible is not None:
                self._end(running)
                continue
            assert running.config is not None
            trial.set_user_attr("tune_trial_id", trial_id)
            self._running[trial_id] = running
            drawn: dict[str, Any] = {
                "config": running.config.to_dict(),
                "seed": derived_seed(self.seed, running.number),
                "number": running.number,
            }
            if checkpoint := self.checkpoints.get(running.number):
                running.go_on(checkpoint.rows)
                for row in checkpoint.rows:
                    self.watcher.epoch_ended(running.number, row)
                drawn["resume"] = [ray.put(checkpoint.packed)]  # in a list, so that Tune passes it on as it is
            return drawn
        return Searcher.FINISHED

    def _config(self, trial: optuna.Trial) -> TrialConfig:
        if trial.number == 0 and self.space.default is None:
            return self.space.default_config(self.task)
        return self.space.config(trial, self.task)

    def _check_limits(self, running: "_Running") -> None:
        limit = self.limits.max_params
        if limit is None or running.num_params is None:
            return
        # The sampler learns from how far each configuration is from the limit, on either side of it.
        running.trial.set_constraint("max_params", math.log(running.num_params / limit))
        if running.num_params > limit:
            running.infeasible = f"more than --max-params {limit:,}"

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if running := self._running.get(trial_id):
            for row in result.get(ROWS, ()):
                self._on_row(running, row)

    def _on_row(self, running: "_Running", row: Row) -> None:
        running.seconds = {kind: s + running.earlier_s.get(kind, 0.0) for kind, s in row["seconds"].items()}
        if "failure" in row:
            running.failure = row["failure"]
        elif "checkpoint" in row:
            self.watcher.checkpointed(running.number, row["checkpoint"])
        elif not running.history or row["epoch"] > running.history[-1]["epoch"]:  # Tune repeats the last result
            running.history.append(row)
            if row["epoch"] not in running.reported:  # before an interruption
                running.trial.report(row["best_val_metric"], row["epoch"])
            epoch_s = _epoch_s(running.seconds, len(running.history))
            self._slowest_epoch_s = max(self._slowest_epoch_s, epoch_s)
            self.watcher.epoch_ended(running.number, row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._running:
            return
        if result:
            self.on_trial_result(trial_id, result)  # the result that ASHA stopped a trial at comes only here
        running = self._running.pop(trial_id)
        if self.finished and not (error or running.history or running.failure):
            # It was drawn ahead, and did not begin: a later session may run it.
            put_back(self.study, running.trial)
            self.watcher.trial_put_back(running.number)
            return
        if error and running.failure is None:
            running.failure = "the trial's process died"
        self._end(running)

    def _end(self, running: "_Running") -> None:
        record = {**running.record(), "ended_s": self.clock()}
        if record["state"] == State.PRUNED and self.out_of_time:
            record["reason"] = "stopped by --time-budget"
        # Before it is on record as finished: a trial whose files are not whole is run again after a kill.
        self.watcher.trial_ended(record)
        running.trial.set_user_attr(RECORD, record)
        tell(self.study, running.trial.number, record)
        self._finished[record["state"]] += 1
        self.records.append(record)
        self._end_s = self.limits.end_s(self.records)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its search algorithm for snapshots that are never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study's journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is taken up from its study, not from Tune's snapshots")


def _epoch_s(seconds: Mapping[str, float], epochs: int) -> float:
    return (seconds["train"] + seconds["eval"]) / epochs


def count_config_params(config: TrialConfig, task: Task) -> int:
    """Number of parameters of a configuration's model, which is built without memory for them."""
    with torch.device("meta"):
        model = build_model(config, num_classes=task.num_classes, channels=task.channels, image_size=task.image_size)
    return count_params(model)


@dataclass
class _Running:
    """A trial under way."""

    trial: optuna.Trial
    space: str
    number: int
    """In the run, over all its spaces."""
    config: TrialConfig | None = None
    num_params: int | None = None
    history: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    earlier_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the epochs that an earlier session trained."""
    failure: str | None = None
    infeasible: str | None = None

    def __post_init__(self) -> None:
        trials = self.trial.study.get_trials(deepcopy=False)
        self.reported = frozenset(trials[self.trial.number].intermediate_values)

    def go_on(self, rows: Sequence[Row]) -> None:
        """Take over the epochs of an earlier session."""
        self.history = list(rows)
        # (Rows of an earlier version tell training and validation alone.)
        self.earlier_s = {
            kind: sum(row.get(f"{kind}_s", 0.0) for row in rows) for kind in ("setup", "train", "eval", "checkpoint")
        }
        self.seconds = dict(self.earlier_s)

    def record(self) -> Row:
        """Return the trial's line of trials.jsonl."""
        last = self.history[-1] if self.history else None
        failure = self.failure or (None if last or self.infeasible else "it ended without a result")
        if failure:
            state = State.FAILED
        elif self.infeasible:
            state = State.INFEASIBLE
        else:
            state = State.COMPLETE if last and last["finished"] else State.PRUNED
        default = DEFAULT if self.number == 0 else f"{DEFAULT}-{self.space}"
        return {
            "number": self.number,
            "name": default if self.trial.number == 0 else f"trial-{self.number:04d}",
            "space": self.space,
            "params": self.trial.params,
            "config": self.config and self.config.to_dict(),
            "num_params": self.num_params,
            "state": state,
            "reason": failure or self.infeasible,
            "epochs": len(self.history),
            "features": self.history[0].get("features") if self.history else None,
            "best": _validation(max(self.history, key=lambda r: (r["val_metric"], -r["val_loss"]), default=None)),
            "last": _validation(last),
            "seconds": self.seconds,
        }


def _validation(row: Row | None) -> Row | None:
    return row and {name: row[name] for name in ("epoch", "val_accuracy", "val_loss", "val_metric")}
