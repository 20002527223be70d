"""Train configurations of the space `cnn` in full, two seeds each, and keep their curves: a table to simulate with.

    python benchmarks/search/record_table.py digits
    python benchmarks/search/record_table.py cifar --data PATH

Goes on with what `benchmarks/search/tables/NAME.csv` holds already. Two fifths of the configurations are random, two
fifths differ from the default recipe in 1 to 5 parameters, one fifth so from one of the best twentieth so far, by the
log-loss on validation images. Two processes of one thread each; times are CPU times, so other work does not count.

A row of the table: `origin`; the parameters, empty where they are not drawn; then for each seed, parted by `|`, the
validation images that were right after each epoch, the validation log-loss in thousandths (a list that ends early: the
loss became infinite or NaN), CPU seconds an epoch, and images of the holdout that are right, and the log-loss there,
with the weights of the best validation epoch (empty where there are none).
"""

import argparse
import csv
import itertools
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS, SearchTask, load_splits, training_arrays
from torch.nn import functional

from cifar_ray.config import TrialConfig, trial_config
from cifar_ray.search.mutation import Candidate, Params, draw, mutate
from cifar_ray.search.space import param_domains, sample_space
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, NonFiniteLossError, eval_model, run_experiment

TABLES = Path(__file__).parent / "tables"

NUM_SEEDS = 2
NUM_DEFAULTS = 8
"""Rows of the default recipe."""

GENERATION = 100
"""Configurations that are drawn knowing the same earlier ones."""

MEASURED = ("right", "loss", "epoch_s", "holdout_right", "holdout_loss")
"""Columns with a part for each seed."""


@dataclass(frozen=True)
class Curve:
    """One training."""

    right: list[int]
    """Validation images, after each epoch."""
    loss: list[float]
    epoch_s: float
    holdout: tuple[int, float] | None
    """Images that are right, and the log-loss."""


@dataclass(frozen=True)
class Recorded:
    """A configuration, and its trainings."""

    origin: str
    params: Params
    curves: tuple[Curve, ...]


def train(task: SearchTask, source: str, split_seed: int, config: TrialConfig, seed: int) -> Curve:
    """Train a configuration in full, and score its best weights on the holdout."""
    torch.set_num_threads(1)
    splits = load_splits(task, source, split_seed)
    data = DeviceData.from_arrays(training_arrays(splits), task.num_classes, torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    began = time.process_time()
    holdout = None
    try:
        outcome = run_experiment(Experiment(config, seed, task.max_epochs), data, report=rows.append)
    except NonFiniteLossError:
        took = time.process_time() - began
    else:
        took = time.process_time() - began
        labels = torch.tensor(splits["holdout"].labels)
        logits = eval_model(outcome.model, torch.tensor(splits["holdout"].images))
        holdout = int((logits.argmax(1) == labels).sum()), functional.cross_entropy(logits, labels).item()
    right = [round(row["val_accuracy"] * task.num_val) for row in rows]
    return Curve(right, [row["val_loss"] for row in rows], took / max(1, len(rows)), holdout)


def train_row(job: tuple[SearchTask, str, str, Params, dict[str, Any], int]) -> Recorded:
    task, source, origin, params, config, number = job
    seeds = range(number * NUM_SEEDS, (number + 1) * NUM_SEEDS)
    return Recorded(origin, params, tuple(train(task, source, 0, trial_config(config, origin), seed) for seed in seeds))


def read_table(path: Path) -> list[Recorded]:
    """Read a table; none is an empty one."""
    if not path.exists():
        return []
    found = []
    for row in csv.DictReader(path.read_text().splitlines()):
        cells = zip(*(row.pop(name).split("|") for name in MEASURED), strict=True)
        curves = tuple(
            Curve(
                [int(one) for one in right.split()],
                [int(one) / 1000 for one in loss.split()],
                float(epoch_s),
                (int(holdout_right), float(holdout_loss)) if holdout_right else None,
            )
            for right, loss, epoch_s, holdout_right, holdout_loss in cells
        )
        origin = row.pop("origin")
        found.append(Recorded(origin, {name: json.loads(text) for name, text in row.items() if text}, curves))
    return found


def param_names(task: SearchTask) -> list[str]:
    """All parameters that the space may draw."""
    return sorted(param_domains(trial for trial, _ in sample_space(task.space, task.task, 500)))


def cells(recorded: Recorded, names: Sequence[str]) -> list[str]:
    curves = recorded.curves
    params = {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in recorded.params.items()}
    return [
        recorded.origin,
        *(json.dumps(params[name]) if name in params else "" for name in names),
        "|".join(" ".join(map(str, curve.right)) for curve in curves),
        "|".join(" ".join(f"{1000 * min(loss, 99):.0f}" for loss in curve.loss) for curve in curves),
        "|".join(f"{curve.epoch_s:.4f}" for curve in curves),
        "|".join(str(curve.holdout[0]) if curve.holdout else "" for curve in curves),
        "|".join(f"{curve.holdout[1]:.4f}" if curve.holdout else "" for curve in curves),
    ]


def final_loss(recorded: Recorded) -> float:
    """Mean validation log-loss at the end."""
    return float(np.mean([curve.loss[-1] if curve.holdout else math.inf for curve in recorded.curves]))


def choose(task: SearchTask, number: int, known: Sequence[Recorded]) -> tuple[str, Candidate]:
    """The configuration of row `number`, of which `known` earlier rows may tell."""
    space, rng = task.space, np.random.default_rng([0, number])
    default = draw(space, task.task, rng, space.default_params(task.task), ())
    if number < NUM_DEFAULTS:
        return "default", default
    kind = number % 5
    if kind < 2:
        return "random", draw(space, task.task, rng, {}, ())
    num_changes = int(rng.integers(1, 6))
    if kind == 4 and len(known) >= GENERATION:
        best = sorted(known, key=final_loss)[: len(known) // 20]
        like = best[rng.integers(len(best))]
        return "near good", mutate(space, task.task, rng, draw(space, task.task, rng, like.params, ()), num_changes)
    return "near default", mutate(space, task.task, rng, default, num_changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[name for name, task in TASKS.items() if task.num_table])
    parser.add_argument("--data", help="where the images of `cifar` are")
    args = parser.parse_args()
    task, source = TASKS[args.task], args.data or args.task
    path = TABLES / f"{args.task}.csv"
    path.parent.mkdir(exist_ok=True)
    if path.exists():  # a row that was cut short is trained again
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    table, names = read_table(path), param_names(task)
    began = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(("origin", *names, *MEASURED))
        while len(table) < task.num_table:
            end = min(task.num_table, (len(table) // GENERATION + 1) * GENERATION)
            known = table[: len(table) // GENERATION * GENERATION]
            chosen = [(number, *choose(task, number, known)) for number in range(len(table), end)]
            jobs = [(task, source, origin, one.params, one.config.to_dict(), number) for number, origin, one in chosen]
            for recorded in pool.map(train_row, jobs):
                table.append(recorded)
                writer.writerow(cells(recorded, names))
                file.flush()
            print(f"{len(table)} of {task.num_table} after {time.monotonic() - began:.0f} s", flush=True)
    by_origin = itertools.groupby(sorted(table, key=lambda one: one.origin), key=lambda one: one.origin)
    for origin, of_origin in by_origin:
        losses = np.array([final_loss(one) for one in of_origin])
        quartiles = ", ".join(f"{value:.3f}" for value in np.quantile(losses, [0, 0.25, 0.5, 0.75]))
        print(f"{origin:14} n = {len(losses)}, final log-loss: best and quartiles {quartiles}")


if __name__ == "__main__":
    main()
