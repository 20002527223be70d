"""Real searches, all in one Ray session, and what their incumbents are worth when they are trained again.

    python benchmarks/search/real.py --out real.jsonl --tasks digits cifar --data cifar=PATH pets=PATH [--arms ...]
        [--seeds 8]

Every search has a line in the file, so that a run that was ended goes on where it was. Searches of one seed share their
split of the images. Each configuration that was the incumbent for a while is trained again with 3 fresh seeds, as trial
0 is, and scored on the holdout. Prints the table of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from arms import ARMS, STOCK, Arm
from ray import tune
from record_table import train
from simulate import Outcome, report
from tasks import TASKS, SearchTask, load_splits, training_arrays

from cifar_ray.config import trial_config
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import PROCESS, TrialSettings, granted_device
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.session import ray_session
from cifar_ray.distributed.workers import open_pool
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.tuner import run_search
from cifar_ray.training.loop import NonFiniteLossError, run_experiment

NUM_SLOTS = 2
FRESH_SEEDS = (900_001, 900_002, 900_003)
REAL_ARMS = (STOCK, "stock, our grace", "random, stock ASHA", "ours, tpe", "ours, mutation")


class Incumbents:
    """Keeps what was the best so far, since when."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.found: list[dict[str, Any]] = []
        self.epochs = 0
        self._best = (-1.0, 0.0)

    def add(self, config: dict[str, Any], row: dict[str, Any]) -> None:
        """An epoch of a trial has ended."""
        self.epochs += 1
        score = (row["val_accuracy"], -row["val_loss"])
        if score <= self._best:
            return
        self._best = score
        now = time.monotonic() - self.began
        if self.found and self.found[-1]["config"] == config:
            self.found[-1]["val_accuracy"] = score[0]  # it was the best already
        else:
            self.found.append({"at_s": now, "val_accuracy": score[0], "config": config})


class WatchOurs:
    """Tells of our searches."""

    def __init__(self, incumbents: Incumbents, task: SearchTask) -> None:
        self.incumbents = incumbents
        self.task = task
        self.configs: dict[int, dict[str, Any]] = {}

    def trial_began(self, number: int, params: dict[str, Any]) -> None:
        config = self.task.space.config(optuna.trial.FixedTrial(params), self.task.task)
        self.configs[number] = config.to_dict()

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        self.incumbents.add(self.configs[number], row)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class WatchStock(tune.Callback):
    """Tells of searches with Ray's own parts."""

    def __init__(self, incumbents: Incumbents) -> None:
        self.incumbents = incumbents

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "val_accuracy" in result:
            self.incumbents.add(trial.config["config"], result)


def train_stock(config: dict[str, Any], settings: TrialSettings) -> None:
    """Our training loop as a trainable of Tune's that reports every epoch, as tutorials do."""
    PROCESS.reset(config["seed"], settings.num_threads)
    data = PROCESS.load_data(settings.data[0], settings.num_classes, granted_device())

    def tell(row: dict[str, Any]) -> None:
        tune.report({name: row[name] for name in ("epoch", "val_accuracy", "val_loss", "best_val_metric")})

    experiment = settings.experiment(trial_config(config["config"], "trial"), config["seed"])
    try:
        run_experiment(experiment, data, report=tell)
    except NonFiniteLossError:
        return


def search(task: SearchTask, arm: Arm, settings: TrialSettings, storage: Path) -> tuple[Incumbents, float]:
    """Run one search; return its incumbents and the seconds it took."""
    searcher, scheduler, _ = arm
    incumbents = Incumbents()
    if isinstance(searcher, StudySearcher):
        searcher.watcher = WatchOurs(incumbents, task)  # type: ignore[assignment]
        workers = Workers(NUM_SLOTS, 1, {"CPU": 1, "GPU": 0})
        with Processes(workers) as processes, open_pool(settings, processes, storage, judged=True) as pool:
            searcher.pool = pool
            run_search(searcher, task.max_epochs, storage)
    else:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(train_stock, settings=settings), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=task.num_trials, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="stock", storage_path=str(storage), verbose=0, callbacks=[WatchStock(incumbents)]
            ),
        ).fit()
    return incumbents, time.monotonic() - incumbents.began


def run(task: SearchTask, source: str, name: str, seed: int, storage: Path) -> dict[str, Any]:
    """The line of one search."""
    splits = load_splits(task, source, seed)
    settings = TrialSettings(
        data=[ray.put(training_arrays(splits))],
        num_classes=task.num_classes,
        max_epochs=task.max_epochs,
        patience=max(2, task.max_epochs // 3),
        metric="accuracy",
        num_threads=1,
    )
    incumbents, wall_s = search(task, ARMS[name](task, seed), settings, storage)
    default = task.default_config.to_dict()
    configs = [default, *(one["config"] for one in incumbents.found)]
    again = ray.remote(num_cpus=1)(train)
    jobs = [(config, seed) for config in map(json.dumps, configs) for seed in FRESH_SEEDS]
    refs = {job: again.remote(task, source, seed, trial_config(json.loads(job[0]), name), job[1]) for job in jobs}
    curves = {job: ray.get(ref) for job, ref in refs.items()}

    def holdout(config: dict[str, Any]) -> list[int]:
        """Images that are right; guessing, where it failed."""
        found = [curves[json.dumps(config), one].holdout for one in FRESH_SEEDS]
        return [one[0] if one else task.num_holdout // task.num_classes for one in found]

    return {
        "task": task.name,
        "arm": name,
        "seed": seed,
        "wall_s": round(wall_s, 2),
        "epochs": incumbents.epochs,
        "default_right": holdout(default),
        "incumbents": [
            {"at_s": round(one["at_s"], 2), "val_accuracy": one["val_accuracy"], "right": holdout(one["config"])}
            for one in incumbents.found
        ],
        "config": incumbents.found[-1]["config"],
    }


def outcome(task: SearchTask, line: dict[str, Any]) -> Outcome:
    """As a simulated search's."""
    default = np.mean(line["default_right"])
    gains = [100 * (np.mean(one["right"]) - default) / task.num_holdout for one in line["incumbents"]]
    trace = [(one["at_s"], float(gain)) for one, gain in zip(line["incumbents"], gains, strict=True)]
    return Outcome(trace, line["wall_s"], line["epochs"])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["digits"], choices=list(TASKS))
    parser.add_argument("--data", nargs="+", default=[], metavar="TASK=PATH")
    parser.add_argument("--arms", nargs="+", default=REAL_ARMS, choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    sources = dict(one.split("=", 1) for one in args.data)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    done = {(line["task"], line["arm"], line["seed"]) for line in read(args.out)}
    # Seeds first: what is there after an interruption compares all arms.
    jobs = [job for job in itertools.product(args.tasks, range(args.seeds), args.arms)]
    with tempfile.TemporaryDirectory(prefix="cr") as folder, ray_session(Path(folder), num_cpus=NUM_SLOTS):
        for name, seed, arm in jobs:
            if (name, arm, seed) in done:
                continue
            line = run(TASKS[name], sources.get(name, name), arm, seed, Path(folder))
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, {arm}, seed {seed}: {line['wall_s']:.0f} s, {line['epochs']} epochs", flush=True)
    show(read(args.out), args.tasks, args.arms)


def show(lines: Sequence[dict[str, Any]], tasks: Sequence[str], arms: Sequence[str]) -> None:
    for name in tasks:
        of_arm = {arm: [line for line in lines if (line["task"], line["arm"]) == (name, arm)] for arm in arms}
        found = {arm: [outcome(TASKS[name], line) for line in of] for arm, of in of_arm.items() if len(of) > 1}
        if STOCK in found:
            print(f"\n{name}, real: n = {', '.join(f'{len(of)} ({arm})' for arm, of in found.items())}\n")
            report(TASKS[name], found, dict.fromkeys(found, float("nan")))


if __name__ == "__main__":
    main()
