"""The searcher: Tune asks it for trials, and an Optuna study draws them and remembers how they ended.

What Tune tells of a trial ends up in the study, under the state that the trial deserves. A run that was interrupted,
however it was, goes on from there; how a study is opened and read is the matter of `study`, how Tune runs the trials
that of `tuner`.
"""

import math
from collections.abc import Mapping, Sequence
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
from cifar_ray.models.check import check_network
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.results.records import Row, State
from cifar_ray.search.asha import Audit
from cifar_ray.search.progress import Progress, mean_epoch_s
from cifar_ray.search.study import RECORD, SpaceStudy, put_back, tell
from cifar_ray.search.trial import ROWS
from cifar_ray.training.seeds import derived_seed


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


class StudySearcher(Searcher):
    """Gives Tune the trials of an Optuna study, and tells the study how each of them ended.

    Ray's `OptunaSearch` tells the trials that ASHA stopped as complete, at the value of the epoch they were stopped
    in, which misleads the sampler; a non-finite loss it cannot tell at all. Here a trial ends as PRUNED with all its
    intermediate values, as COMPLETE, or as FAIL.

    Args:
        of_space: what to draw from, and the study that draws and remembers; a trial of it that waits is run first.
        task: what the space may look at.
        seed: of the run.
        progress: counts the trials that end, and knows when they are enough.
        pool: trains them, as many side by side as it has groups of workers.
        watcher: is told what happens.
        max_params: parameters that a configuration's model may have.
        checkpoints: what trials that were interrupted go on from, by number.
        audit: trials that are not stopped early, if there are any.
    """

    def __init__(
        self,
        of_space: SpaceStudy,
        task: Task,
        seed: int,
        progress: Progress,
        pool: Pool,
        watcher: Watcher,
        max_params: int | None = None,
        checkpoints: Mapping[int, TrialCheckpoint] = MappingProxyType({}),
        audit: Audit | None = None,
    ) -> None:
        super().__init__(metric="best_val_metric", mode="max")
        self.of_space = of_space
        self.study = of_space.study
        self.task = task
        self.seed = seed
        self.progress = progress
        self.pool = pool
        self.watcher = watcher
        self.max_params = max_params
        self.checkpoints = checkpoints
        self.audit = audit
        self._running: dict[str, _Running] = {}
        if not self.study.trials:
            for params in (of_space.space.default_params(task), *of_space.first):
                self.study.enqueue_trial(params)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        while not self.progress.finished and self.pool.error is None:
            if self.progress.num_usable + len(self._running) >= self.progress.num_trials:
                return None  # enough are under way; one that fails will be replaced
            if len(self._running) >= self.pool.num_groups:
                return None  # what is drawn ahead of time is drawn knowing less
            trial = self.study.ask()
            running = _Running(trial, self.of_space)
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
        space = self.of_space.space
        if trial.number == 0 and space.default is None:
            return space.default_config(self.task)
        return space.config(trial, self.task)

    def _check_limits(self, running: "_Running") -> None:
        limit = self.max_params
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
        if seconds := row.get("seconds"):
            running.seconds = {kind: s + running.earlier_s.get(kind, 0.0) for kind, s in seconds.items()}
        if "failure" in row:
            running.failure = row["failure"]
        elif "checkpoint" in row:
            self.watcher.checkpointed(running.number, row["checkpoint"])
        elif not running.history or row["epoch"] > running.history[-1]["epoch"]:  # Tune repeats the last result
            running.history.append(row)
            if row["epoch"] not in running.reported:  # before an interruption
                running.trial.report(row["best_val_metric"], row["epoch"])
            self.progress.add_epoch(mean_epoch_s(running.seconds, len(running.history)))
            self.watcher.epoch_ended(running.number, row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._running:
            return
        if result:
            self.on_trial_result(trial_id, result)  # the result that ASHA stopped a trial at comes only here
        running = self._running.pop(trial_id)
        if self.progress.finished and not (error or running.history or running.failure):
            # It was drawn, and did not begin: a later session may run it.
            put_back(self.study, running.trial)
            self.watcher.trial_put_back(running.number)
            return
        if error and running.failure is None:
            running.failure = "the trial's process died"
        self._end(running)

    def _end(self, running: "_Running") -> None:
        record = {**running.record(), "ended_s": self.progress.now_s}
        if record["state"] == State.PRUNED and self.progress.out_of_time:
            record["reason"] = "stopped by --time-budget"
        if self.audit and (audited := self.audit.record(running.number, running.history)):
            record["audit"] = audited
        # Before it is on record as finished: a trial whose files are not whole is run again after a kill.
        self.watcher.trial_ended(record)
        running.trial.set_user_attr(RECORD, record)
        tell(self.study, running.trial.number, record)
        self.progress.add_trial(record)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its search algorithm for snapshots that are never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study's journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is taken up from its study, not from Tune's snapshots")


def count_config_params(config: TrialConfig, task: Task) -> int:
    """Number of parameters of a configuration's model, which is built without memory for them.

    A network of the user's own is built and tried: raises as :func:`check_network`.
    """
    if config.family == "module":
        return count_params(check_network(config, task))
    with torch.device("meta"):
        model = build_model(config, num_classes=task.num_classes, channels=task.channels, image_size=task.image_size)
    return count_params(model)


@dataclass
class _Running:
    """A trial under way."""

    trial: optuna.Trial
    of_space: SpaceStudy
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

    @property
    def number(self) -> int:
        """In the run, over all its spaces."""
        return self.of_space.number(self.trial.number)

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
        return {
            "number": self.number,
            "name": self.of_space.trial_name(self.trial.number),
            "space": self.of_space.space.name,
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
