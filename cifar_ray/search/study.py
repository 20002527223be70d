"""The Optuna study of a search: opened or taken up again, and told how trials ended.

Its journal is the record of the search. Knows nothing of Ray: how trials are run is the matter of `tuner`.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from cifar_ray.results.records import DEFAULT, Row, State
from cifar_ray.search.space import Space

RECORD = "record"
"""User attribute of a finished trial in the study: its record, one line of trials.jsonl."""


@dataclass(frozen=True)
class SpaceStudy:
    """The study of one space among those of a run, which take turns in the numbers of trials."""

    space: Space
    study: optuna.Study
    index: int = 0
    """Of the space among the `num_spaces`."""
    num_spaces: int = 1
    first: Sequence[dict[str, Any]] = ()
    """Values of parameters that a new study tries after the default recipe, before it draws any."""

    def number(self, local_number: int) -> int:
        """Number in the run of a trial that has this one in its study."""
        return local_number * self.num_spaces + self.index

    def trial_name(self, local_number: int) -> str:
        """Name of a trial: the first one of each space is a default."""
        if local_number:
            return f"trial-{self.number(local_number):04d}"
        return f"{DEFAULT}-{self.space.name}" if self.index else DEFAULT


class _Journal(JournalFileBackend):
    """Optuna's journal, which waits for the disk where a trial ends, and not for each of its parameters and epochs.

    A wait is some milliseconds, a trial has dozens of lines, and its slot is empty meanwhile. What is written is there
    for every process, whatever becomes of this one. Only where the machine itself fails may lines be lost, and then of
    trials under way, which would be run again anyway.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                if any("state" in log for log in logs):
                    os.fsync(file.fileno())
        finally:
            self._own_lock.release()


def open_study(
    journal: Path, name: str, make_sampler: Callable[[int], optuna.samplers.BaseSampler], seed: int
) -> optuna.Study:
    """Open the study `name` in a journal file, or make it; `make_sampler` is given a seed.

    Trials that were running when an earlier session of the run was killed wait to be run again, under their numbers and
    with their parameters. One that had ended, but had not been told, is told.
    """
    storage = JournalStorage(_Journal(journal))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    # Not the seed of the first session: that would draw the same configurations again.
    sampler_seed = int(
        np.random.SeedSequence([seed, *([len(study.trials)] if study.trials else [])]).generate_state(1)[0]
    )
    study.sampler = make_sampler(sampler_seed)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if RECORD in trial.user_attrs:
            tell(study, trial.number, trial.user_attrs[RECORD])
        else:
            put_back(study, trial)
    return study


def put_back(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Let a trial that was drawn wait, to be asked for again under its number and with its parameters.

    Reaches into Optuna, as nothing else here does: what is public of it makes a new trial (`enqueue_trial`), or ends
    this one.
    """
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def mend_journal(journal: Path) -> str | None:
    """Make the journal of a killed run usable again; return what was mended, if anything was.

    A lock that nobody holds any more would block the next write for 30 seconds, and a last line that was cut short
    would make the journal unreadable once something is appended. Only to be called by the one writer.
    """
    mended = []
    lock = journal.with_name(journal.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
        mended.append("a stale lock removed")
    data = journal.read_bytes() if journal.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with journal.open("r+b") as file:
            file.truncate(len(whole))
        mended.append(f"{len(data) - len(whole)} bytes of a line that was cut short removed")
    return f"{journal.name}: {', '.join(mended)}" if mended else None


def tell(study: optuna.Study, local_number: int, record: Row) -> None:
    """Tell the study how a trial ended. One over a limit is PRUNED: of a failed one the sampler would learn nothing."""
    if record["state"] == State.COMPLETE:
        study.tell(local_number, record["best"]["val_metric"])
    else:
        state = TrialState.FAIL if record["state"] == State.FAILED else TrialState.PRUNED
        study.tell(local_number, state=state)


def study_records(study: optuna.Study) -> Iterator[Row]:
    """The records of the study's finished trials, by number."""
    for trial in study.get_trials(deepcopy=False):
        if RECORD in trial.user_attrs:
            yield trial.user_attrs[RECORD]
