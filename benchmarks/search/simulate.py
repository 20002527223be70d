"""Search in the worlds of the recorded tables, in simulated time, and print what each way to search found.

    python benchmarks/search/simulate.py [--tasks digits cifar] [--arms NAME ...] [--seeds 32] [--slots 2]

Our searcher and Ray's own searchers and schedulers are driven as Tune drives them: a trial at a time asked for where a
slot is free, every epoch told, stopped where the scheduler says so. The outcome is true: by how many points the holdout
accuracy that the world expects of the incumbent (best validation accuracy so far) is above trial 0's. Prints its mean
and 95 % interval over search seeds, the epochs trained, the simulated time, and when the mean outcome of stock parts
was reached.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from arms import ARMS, SLOW, STOCK
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from record_table import TABLES, read_table
from scipy import stats
from tasks import TASKS, SearchTask
from world import Training, World, cross_validate

OVERHEAD_S = 0.05
"""Seconds of a trial beside its epochs."""


@dataclass(eq=False)
class _Handle:
    """A trial, as far as Ray's schedulers look at it."""

    trial_id: str
    status: str = "RUNNING"


@dataclass
class _Trial:
    """A trial under way, or ended."""

    trial_id: str
    params: dict[str, Any]
    training: Training
    handle: Any
    epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)
    """Accuracy and minus the log-loss, of the best epoch."""


@dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    trace: list[tuple[float, float]]
    """Seconds, and gain over trial 0 in points, at each change of the incumbent."""
    end_s: float
    epochs: int


def search(
    world: World, searcher: Searcher, scheduler: TrialScheduler, params_of: Callable[[Any], Any], slots: int, seed: int
) -> Outcome:
    """Run one search of the task's trials; `params_of` gives the parameters of what the searcher suggested."""
    task = world.task
    default = world.truth(task.default_params)
    controller: Any = SimpleNamespace(get_live_trials=lambda: [])
    running: list[tuple[float, int, _Trial]] = []
    trace: list[tuple[float, float]] = []
    best = (-1.0, 0.0)
    now, num_begun, epochs = 0.0, 0, 0
    while True:
        while len(running) < slots and num_begun < task.num_trials:
            trial_id = f"trial{num_begun}"
            suggested = searcher.suggest(trial_id)
            if suggested is None or suggested == Searcher.FINISHED:
                break
            params = params_of(suggested)
            training = world.train(params, np.random.default_rng([seed, num_begun]))
            trial = _Trial(trial_id, params, training, _Handle(trial_id))
            scheduler.on_trial_add(controller, trial.handle)
            heapq.heappush(running, (now + OVERHEAD_S + training.epoch_s, num_begun, trial))
            num_begun += 1
        if not running:
            return Outcome(trace, now, epochs)
        now, number, trial = heapq.heappop(running)
        training = trial.training
        if trial.epoch == len(training.loss):  # it fails in the next epoch
            scheduler.on_trial_error(controller, trial.handle)
            searcher.on_trial_complete(trial.trial_id, {"rows": [{"failure": "loss", "seconds": SECONDS}]}, error=True)
            continue
        accuracy, loss = float(training.accuracy[trial.epoch]), float(training.loss[trial.epoch])
        trial.epoch += 1
        epochs += 1
        trial.best = max(trial.best, (accuracy, -loss))
        if trial.best > best:
            best = trial.best
            trace.append((now, world.truth(trial.params) - default))
        finished = trial.epoch == task.max_epochs
        row = {
            "epoch": trial.epoch,
            "val_accuracy": accuracy,
            "val_loss": loss,
            "val_metric": accuracy,
            "best_val_metric": trial.best[0],
            "finished": finished,
            "seconds": SECONDS,
        }
        result = {**row, "training_iteration": trial.epoch, "rows": [row]}
        searcher.on_trial_result(trial.trial_id, result)
        decision = scheduler.on_trial_result(controller, trial.handle, result)
        if finished or decision == TrialScheduler.STOP:
            scheduler.on_trial_complete(controller, trial.handle, result)
            searcher.on_trial_complete(trial.trial_id, result)
        else:
            heapq.heappush(running, (now + training.epoch_s, number, trial))


SECONDS = {"setup": 0.0, "train": 0.0, "eval": 0.0, "checkpoint": 0.0}


@cache
def world_of(name: str) -> World:
    return World(TASKS[name], read_table(TABLES / f"{name}.csv"))


def run(job: tuple[str, str, int, int]) -> tuple[Outcome, float]:
    """One search, and the seconds that it really took."""
    name, arm, slots, seed = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    np.random.seed(seed)  # ASHA draws its one bracket
    world = world_of(name)
    began = time.monotonic()
    outcome = search(world, *ARMS[arm](TASKS[name], seed), slots, seed)
    return outcome, time.monotonic() - began


def gain_at(outcome: Outcome, seconds: float) -> float:
    """Gain of the incumbent at that time."""
    return next((gain for at, gain in reversed(outcome.trace) if at <= seconds), 0.0)


def time_to(outcome: Outcome, gain: float, budget_s: float) -> float:
    """Seconds until the incumbent first gained so much; twice the budget where it never did."""
    return next((at for at, reached in outcome.trace if reached >= gain), 2 * budget_s)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % Student's t interval over search seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):+.2f} ± {half:.2f}"


def report(task: SearchTask, found: dict[str, list[Outcome]], real_s: dict[str, float]) -> None:
    stock = found[STOCK]
    budget_s = float(np.mean([outcome.end_s for outcome in stock]))
    target = float(np.mean([outcome.trace[-1][1] for outcome in stock]))
    columns = ("gain in points", "at equal time", "epochs", "seconds", "time to stock's gain", "ms a draw (real)")
    print(f"| {task.name} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for arm, outcomes in found.items():
        final = interval([outcome.trace[-1][1] for outcome in outcomes])
        at_budget = interval([gain_at(outcome, budget_s) for outcome in outcomes])
        epochs = np.mean([outcome.epochs for outcome in outcomes])
        seconds = np.mean([outcome.end_s for outcome in outcomes])
        times = [time_to(outcome, target, budget_s) for outcome in outcomes]
        ratio = np.mean(times) / np.mean([time_to(outcome, target, budget_s) for outcome in stock])
        draw_ms = 1000 * real_s[arm] / task.num_trials
        print(f"| {arm} | {final} | {at_budget} | {epochs:.0f} | {seconds:.0f} | {ratio:.2f} | {draw_ms:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=[name for name, task in TASKS.items() if task.num_table])
    parser.add_argument("--arms", nargs="+", default=[arm for arm in ARMS if arm not in SLOW], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=32, help="search seeds")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them; below 1000: for tuning")
    parser.add_argument("--slots", type=int, default=2)
    args = parser.parse_args()
    arms = list(dict.fromkeys([STOCK, *args.arms]))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name in args.tasks:
            table = read_table(TABLES / f"{name}.csv")
            facts = cross_validate(TASKS[name], table)
            print(f"\n{name}: {len(table)} recorded configurations; {facts}; {args.slots} slots, n = {args.seeds}\n")
            jobs = [(name, arm, args.slots, seed) for arm, seed in itertools.product(arms, seeds)]
            results = dict(zip(jobs, pool.map(run, jobs), strict=True))
            found = {arm: [results[job][0] for job in jobs if job[1] == arm] for arm in arms}
            real_s = {arm: float(np.mean([results[job][1] for job in jobs if job[1] == arm])) for arm in arms}
            report(TASKS[name], found, real_s)


if __name__ == "__main__":
    main()
