"""The search: Ray Tune runs the trials, ASHA stops them, and an Optuna study draws them and remembers.

The study is the record: what Tune is told about a trial ends up there, under the state that the trial deserves.
"""

import importlib.util
import inspect
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from cifar_ray.config import InputError, Task, TrialConfig, trial_config
from cifar_ray.loop import Row
from cifar_ray.results import DEFAULT
from cifar_ray.trial import ROW, TrialSettings, train_trial

REDUCTION_FACTOR = 3
RECORD = "record"
"""User attribute of a finished trial in the study: its record, one line of trials.jsonl."""

Record = dict[str, Any]


class Watcher(Protocol):
    """Is told, on the driver, what happens in a search."""

    def trial_began(self, number: int) -> None: ...

    def epoch_ended(self, number: int, row: Row) -> None: ...

    def trial_ended(self, record: Record) -> None: ...


@dataclass(frozen=True)
class Space:
    """A search space: a Python file with `space(trial, task)` and, if it likes, `default(task)`."""

    name: str
    draw: Callable[[Any, Task], dict[str, Any]]
    default: Callable[[Task], dict[str, Any]] | None = None
    """Parameter values of trial 0. Without it trial 0 is the default recipe of the built-in space `cnn`."""

    def config(self, trial: optuna.Trial | optuna.trial.FixedTrial, task: Task) -> TrialConfig:
        """Draw a configuration. Raises InputError where the space's code is wrong."""
        try:
            values = self.draw(trial, task)
        except Exception as error:
            lines = traceback.extract_tb(error.__traceback__)
            # The space's own line, where it has one, not that of a library it called.
            own = [line for line in lines if line.filename == inspect.getsourcefile(self.draw)]
            line = (own or lines)[-1]
            where = f"{line.filename}:{line.lineno}"
            raise InputError(f"space {self.name}: {type(error).__name__}: {_one_line(error)} ({where})") from error
        return trial_config(values, f"space {self.name}")

    def default_config(self, task: Task) -> TrialConfig:
        """The configuration of trial 0."""
        if self.default is None:
            return load_space("cnn").default_config(task)
        return self.config(optuna.trial.FixedTrial(self.default(task)), task)


def load_space(name: str) -> Space:
    """Load a space by the name of a built-in one or the path of a Python file; only the driver does.

    Raises:
        InputError: there is no such space, or its file is broken.
    """
    package = importlib.util.find_spec("search_spaces")
    assert package is not None and package.submodule_search_locations
    builtin = {path.stem: path for path in Path(package.submodule_search_locations[0]).glob("[a-z]*.py")}
    path = builtin.get(name, Path(name))
    if name not in builtin and not (name.endswith(".py") and path.is_file()):
        known = ", ".join(sorted(builtin))
        raise InputError(f"--space: no space {name!r}; take one of {known}, or the path of a Python file")
    module = _import_file(path)
    if not callable(getattr(module, "space", None)):
        raise InputError(f"--space: {path} defines no function space(trial, task)")
    return Space(path.stem, module.space, getattr(module, "default", None))


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cifar_ray_space_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"--space: {path} cannot be loaded: {type(error).__name__}: {_one_line(error)}") from error
    return module


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def create_study(journal: Path, sampler: str, seed: int) -> optuna.Study:
    """Create a study in a new journal file; `sampler` is `tpe` or `random`."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    sampler_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return optuna.create_study(
        storage=storage,
        study_name="cifar_ray",
        direction="maximize",
        sampler=(
            # Conditional parameters are modelled together with those they depend on (group), and running trials
            # count as bad ones (constant_liar), so that slots that ask side by side do not get the same answer.
            # Trial 0 is a good start to model from: five random draws beside it are enough.
            optuna.samplers.TPESampler(
                n_startup_trials=6, multivariate=True, group=True, constant_liar=True, seed=sampler_seed
            )
            if sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=sampler_seed)
        ),
    )


def trial_seed(study_seed: int, *path: int) -> int:
    """Seed of a trial (`path` is its number) or of a final training (trial number, seed index)."""
    return int(np.random.SeedSequence([study_seed, *path]).generate_state(1)[0])


def trial_name(number: int) -> str:
    """Name of a trial's configuration in records, tables and model folders."""
    return DEFAULT if number == 0 else f"trial-{number:04d}"


class StudySearcher(Searcher):
    """Gives Tune the trials of an Optuna study, and tells the study how each of them ended.

    Ray's `OptunaSearch` tells the trials that ASHA stopped as complete, at the value of the epoch they were stopped
    in, which misleads the sampler; a non-finite loss it cannot tell at all. Here a trial ends as PRUNED with all its
    intermediate values, as COMPLETE, or as FAIL.
    """

    def __init__(
        self, study: optuna.Study, space: Space, task: Task, num_trials: int, seed: int, watcher: Watcher
    ) -> None:
        super().__init__(metric="best_val_metric", mode="max")
        self.study = study
        self.space = space
        self.task = task
        self.num_trials = num_trials
        self.seed = seed
        self.watcher = watcher
        self._running: dict[str, _Running] = {}
        self._finished = dict.fromkeys(("complete", "pruned", "failed"), 0)
        if not study.trials and space.default is not None:
            study.enqueue_trial(space.default(task))

    @property
    def _usable(self) -> int:
        return self._finished["complete"] + self._finished["pruned"]

    @property
    def finished(self) -> bool:
        """Whether enough trials ended complete or pruned, or too many failed."""
        return self._usable >= self.num_trials or self._finished["failed"] > self.num_trials

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        while not self.finished:
            if self._usable + len(self._running) >= self.num_trials:
                return None  # enough are under way; one that fails will be replaced
            trial = self.study.ask()
            self.watcher.trial_began(trial.number)
            try:
                config = self._config(trial)
            except InputError as error:
                self._end(_Running(trial, None, failure=str(error)))
                continue
            trial.set_user_attr("tune_trial_id", trial_id)
            self._running[trial_id] = _Running(trial, config)
            return {"config": config.to_dict(), "seed": trial_seed(self.seed, trial.number)}
        return Searcher.FINISHED

    def _config(self, trial: optuna.Trial) -> TrialConfig:
        if trial.number == 0 and self.space.default is None:
            return self.space.default_config(self.task)
        return self.space.config(trial, self.task)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        running = self._running.get(trial_id)
        if running is None or ROW not in result:
            return
        row: Row = result[ROW][0]
        running.seconds = row["seconds"]
        if "failure" in row:
            running.failure = row["failure"]
        elif not running.history or row["epoch"] > running.history[-1]["epoch"]:  # Tune repeats the last result
            running.history.append(row)
            running.trial.report(row["best_val_metric"], row["epoch"])
            self.watcher.epoch_ended(running.trial.number, row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._running:
            return
        if result:
            self.on_trial_result(trial_id, result)  # the result that ASHA stopped a trial at comes only here
        running = self._running.pop(trial_id)
        if error and running.failure is None:
            running.failure = "the trial's process died"
        self._end(running)

    def _end(self, running: "_Running") -> None:
        record = running.record(self.space.name)
        running.trial.set_user_attr(RECORD, record)
        if record["state"] == "complete":
            self.study.tell(running.trial, record["best"]["val_metric"])
        elif record["state"] == "pruned":
            self.study.tell(running.trial, state=TrialState.PRUNED)
        else:
            self.study.tell(running.trial, state=TrialState.FAIL)
        self._finished[record["state"]] += 1
        self.watcher.trial_ended(record)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its search algorithm for snapshots that are never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study's journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is taken up from its study, not from Tune's snapshots")


@dataclass
class _Running:
    """A trial under way."""

    trial: optuna.Trial
    config: TrialConfig | None
    history: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    def record(self, space: str) -> Record:
        """Return the trial's line of trials.jsonl."""
        last = self.history[-1] if self.history else None
        failure = self.failure or ("it ended without a result" if last is None else None)
        return {
            "number": self.trial.number,
            "name": trial_name(self.trial.number),
            "space": space,
            "params": self.trial.params,
            "config": self.config and self.config.to_dict(),
            "state": "failed" if failure else "complete" if last and last["finished"] else "pruned",
            "reason": failure,
            "epochs": len(self.history),
            "best": _validation(max(self.history, key=lambda r: (r["val_metric"], -r["val_loss"]), default=None)),
            "last": _validation(last),
            "seconds": self.seconds,
        }


def _validation(row: Row | None) -> Row | None:
    return row and {name: row[name] for name in ("epoch", "val_accuracy", "val_loss", "val_metric")}


def grace_period(max_epochs: int) -> int:
    """Epochs before ASHA may stop a trial: a fifth of the horizon, rounded up.

    With a tenth, recipes that warm up slowly were stopped whatever they would have become: `benchmarks/README.md`.
    """
    return -(-max_epochs // 5)


def run_search(searcher: StudySearcher, settings: TrialSettings, resources: dict[str, float], storage: Path) -> None:
    """Run the trials of `searcher` to the end, as many side by side as `resources` allow.

    Args:
        searcher: draws the trials and keeps their records.
        settings: shared by all trials.
        resources: of one trial, by Ray's names (`CPU`, `GPU`).
        storage: a folder for Tune's own files, of no use afterwards.
    """
    trainable = tune.with_resources(
        tune.with_parameters(train_trial, settings=settings), {name.lower(): n for name, n in resources.items()}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            scheduler=ASHAScheduler(
                time_attr="epoch",
                metric="best_val_metric",
                mode="max",
                max_t=settings.max_epochs,
                grace_period=grace_period(settings.max_epochs),
                reduction_factor=REDUCTION_FACTOR,
            ),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(storage), verbose=0),
    )
    tuner.fit()


def study_records(study: optuna.Study) -> Iterator[Record]:
    """The records of the study's finished trials, by number."""
    for trial in study.get_trials(deepcopy=False):
        if RECORD in trial.user_attrs:
            yield trial.user_attrs[RECORD]


def finalists(records: list[Record], number: int) -> list[Record]:
    """The best `number` different configurations by validation metric, and trial 0 beside them.

    Ties go to the lower validation loss. Pruned trials come after all complete ones: they are needed only where few
    trials reached their horizon. Failed ones are left out.
    """
    usable = [record for record in records if record["state"] in ("complete", "pruned")]
    usable.sort(key=lambda r: (r["state"] == "pruned", -r["best"]["val_metric"], r["best"]["val_loss"]))
    chosen: dict[str, Record] = {}
    for record in usable:
        chosen.setdefault(json.dumps(record["config"], sort_keys=True), record)
    best = list(chosen.values())[:number]
    default = [record for record in usable if record["number"] == 0 and record not in best]
    return best + default
