"""The Tune run of a search: its trials side by side, until the searcher has had enough."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from cifar_ray.distributed.workers import Pool
from cifar_ray.search.asha import make_asha, rungs
from cifar_ray.search.progress import Progress
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.trial import ROWS, run_trial


class Stopper(tune.Stopper):
    """Ends each trial with its first report after the time is up, or before it begins, and all of them on Ctrl-C."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.interrupted = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.progress.out_of_time if result.get(ROWS) else self.progress.finished

    def stop_all(self) -> bool:
        return self.interrupted

    @contextlib.contextmanager
    def ctrl_c_ends_all(self) -> Iterator[None]:
        """The first Ctrl-C of a block ends the search, the second one the program at once.

        That is what Tune makes of it, too; but it does not tell, and its handler outlives the search.
        """
        before = signal.getsignal(signal.SIGINT)

        def interrupt(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it for snapshots that are never read."""
        return {}


def run_search(searcher: StudySearcher, max_epochs: int, storage: Path) -> None:
    """Let the searcher's pool train its trials, until it has had enough.

    Args:
        searcher: draws the trials and keeps their records.
        max_epochs: of a trial that nothing ends early.
        storage: a folder for Tune's own files, of no use afterwards.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it; what was running is left to a later session.
        Exception: the workers of the pool were lost again and again; that of the last time.
    """
    pool, stopper = searcher.pool, Stopper(searcher.progress)
    # With one pending trial at a time, its default, Tune starts one process after another. Where trials are shorter
    # than that takes it never had a second one: the first process, free again, took the trial that the second was
    # being started for, and that one was stopped.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(pool.num_groups)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Workers that train together wait for the verdict on every epoch, so that all of them end after the same one.
    decisive = frozenset(rungs(max_epochs)) if pool.workers_per_model == 1 else None
    # The workers hold every CPU: of what is left, a trial that only passes messages on takes as good as nothing.
    trainable = tune.with_resources(tune.with_parameters(run_trial, desk=pool.desk, decisive=decisive), {"memory": 1})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            # Not one more, to be at the desk before a worker is free: Tune keeps the process of a trial that has ended
            # only for one that waits for a process, and would start a process for each trial.
            max_concurrent_trials=pool.num_groups,
            reuse_actors=True,
            scheduler=make_asha(max_epochs, searcher.study, searcher.audit),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            verbose=0,
            stop=stopper,
            callbacks=[_DropAtTheDesk(pool)],
        ),
    )
    with stopper.ctrl_c_ends_all():
        tuner.fit()
    if stopper.interrupted:
        raise KeyboardInterrupt
    pool.check()


class _DropAtTheDesk(tune.Callback):
    """Tells the desk of trials that have ended.

    One whose process was killed cannot do so itself; one that ASHA stopped can, but not before Tune uses its process
    again, and its worker would wait for a verdict until then.
    """

    def __init__(self, pool: Pool) -> None:
        self.desk = pool.desk

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.desk.drop.remote(str(trial.config["number"]))

    on_trial_error = on_trial_complete
