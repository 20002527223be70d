"""Ways to search: each a searcher and a scheduler, as Tune takes them.

All of them draw from the same space, begin with the default recipe, and rank by validation accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils.util import flatten_dict
from tasks import SearchTask

from cifar_ray.distributed.workers import Pool
from cifar_ray.search.asha import grace_period, make_asha
from cifar_ray.search.progress import Progress
from cifar_ray.search.samplers import sampler_of
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.study import SpaceStudy
from cifar_ray.training.seeds import derived_seed

Arm = tuple[Searcher, TrialScheduler, Callable[[Any], dict[str, Any]]]
"""A searcher, a scheduler, and what gives the parameters of a suggestion."""

NUM_SLOTS = 64
"""How many trials our searcher may hand out at once; the simulation asks for as many as it has slots."""


class _NoWatcher:
    """Is told of a search, and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def ours(task: SearchTask, seed: int, sampler: str, **options: Any) -> Arm:
    """Our searcher and our ASHA."""
    space = task.space
    made = sampler_of(sampler, space, task.task)(seed, **options)
    study = optuna.create_study(direction="maximize", sampler=made)
    progress = Progress([], task.num_trials)
    pool = Pool(None, NUM_SLOTS)  # a simulation asks for as many as it has slots; a real search has a pool of its own
    searcher = StudySearcher(SpaceStudy(space, study), task.task, seed, progress, pool, _NoWatcher())

    def params_of(drawn: dict[str, Any]) -> dict[str, Any]:
        return study.get_trials(deepcopy=False)[drawn["number"]].params

    return searcher, make_asha(task.max_epochs, study), params_of


class _Stock(OptunaSearch):
    """Ray's, which is not taken up again: what it would save for that, our space among it, cannot be pickled."""

    def save(self, checkpoint_path: str) -> None:
        pass


def stock(task: SearchTask, seed: int, scheduler: Callable[[SearchTask], TrialScheduler], sampler: Any = None) -> Arm:
    """Ray's OptunaSearch, with a sampler of Optuna's."""
    space = task.space

    def draw(trial: optuna.Trial) -> dict[str, Any]:
        config = space.config(trial, task.task)
        return {"config": config.to_dict(), "seed": derived_seed(seed, trial.number)}

    searcher = _Stock(
        draw,
        metric="best_val_metric",
        mode="max",
        points_to_evaluate=[task.default_params],
        sampler=sampler and sampler(seed=seed),
        seed=None if sampler else seed,
    )

    def params_of(drawn: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in drawn.items() if name not in ("config", "seed")}
        return flatten_dict(values, delimiter="/")

    return searcher, scheduler(task), params_of


def asha(task: SearchTask, grace: Callable[[int], int] = lambda max_epochs: 1) -> TrialScheduler:
    """Ray's ASHA, with its defaults but for the horizon."""
    return ASHAScheduler("epoch", "best_val_metric", "max", task.max_epochs, grace(task.max_epochs))


def median(task: SearchTask) -> TrialScheduler:
    """Ray's median stopping rule, with the grace period of our ASHA."""
    return MedianStoppingRule("epoch", "best_val_metric", "max", grace_period(task.max_epochs))


def no_stopping(task: SearchTask) -> TrialScheduler:
    return FIFOScheduler()


STOCK = "stock"

ARMS: dict[str, Callable[[SearchTask, int], Arm]] = {
    STOCK: partial(stock, scheduler=asha),
    "stock, our grace": partial(stock, scheduler=partial(asha, grace=grace_period)),
    "random, stock ASHA": partial(stock, scheduler=asha, sampler=optuna.samplers.RandomSampler),
    "TPE, median stopping": partial(stock, scheduler=median),
    "TPE, no stopping": partial(stock, scheduler=no_stopping),
    "random, no stopping": partial(stock, scheduler=no_stopping, sampler=optuna.samplers.RandomSampler),
    "GP, stock ASHA": partial(stock, scheduler=asha, sampler=optuna.samplers.GPSampler),
    "ours, tpe": partial(ours, sampler="tpe"),
    "ours, random": partial(ours, sampler="random"),
    "ours, mutation": partial(ours, sampler="mutation"),
}
"""By name; `STOCK` is what the others are measured against."""

SLOW = frozenset({"GP, stock ASHA"})
"""Those whose draws take seconds: they are simulated only where they are asked for."""
