"""A Tune trial: the training loop in a process that many trials use one after the other."""

import gc
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray import tune

from cifar_ray.config import trial_config
from cifar_ray.distributed.jobs import Checkpoint, Epoch, Job
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights
from cifar_ray.results.records import Row
from cifar_ray.search.asha import rungs
from cifar_ray.training.loop import NonFiniteLossError, run_experiment

ROWS = "rows"
"""Key of the rows in what a trial reports."""


REPORT_EVERY_S = 1.0
"""Epochs wait at most about so long to be reported, since a report takes as long as an epoch of a small network."""


def train_trial(config: dict[str, Any], settings: TrialSettings, search_began: float) -> None:
    """Train one configuration under Tune and report its epochs: at every rung, at the end, and once a second.

    The first report, which has none, lets Tune end a trial that was drawn before the time was up, and begins after it.

    Args:
        config: `config` (a nested dict for :func:`trial_config`) and `seed`.
        settings: shared by all trials.
        search_began: seconds since the epoch.
    """
    PROCESS.reset(config["seed"], settings.num_threads)
    clock = PROCESS.clock
    clock.start(search_began)  # after the imports of the first reset, which belong to the start-up
    send([])
    with clock.measure("data"):
        data = PROCESS.load_data(settings.data[0], settings.num_classes)

    unsent: list[Row] = []
    sent_at = time.monotonic()
    decisive = rungs(settings.max_epochs)

    def report(row: Row) -> None:
        nonlocal sent_at
        clock.count(row)
        unsent.append({**row, "seconds": clock.read()})
        if row["finished"] or row["epoch"] in decisive or time.monotonic() - sent_at >= REPORT_EVERY_S:
            send(unsent)
            unsent.clear()
            sent_at = time.monotonic()

    def fail(reason: str) -> None:
        send([*unsent, {"failure": reason, "seconds": clock.read()}])

    trial = trial_config(config["config"], "trial")
    try:
        run_experiment(
            settings.experiment(trial, config["seed"]),
            data,
            pretrained=get_weights(settings.pretrained, trial),
            report=report,
        )
    except NonFiniteLossError as error:
        fail(str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = f"out of memory: {error!s:.200}"
        del error
        gc.collect()
        torch.cuda.empty_cache()
        fail(reason)
    except Exception as error:
        # Nobody knows what state this leaves the process in: let Tune replace it, once the reason is on record.
        fail(f"{type(error).__name__}: {error!s:.300}")
        raise


def relay_trial(config: dict[str, Any], desk: Any, search_began: float) -> None:
    """Let the workers of a pool train one configuration, and report every epoch under Tune.

    Args:
        config: `config` and `seed` as for :func:`train_trial`, the `number` of the trial, and perhaps `resume`, a
            reference (in a list) to a checkpoint of it.
        desk: the actor of the pool's :class:`jobs.Desk`.
        search_began: seconds since the epoch.
    """
    clock = PROCESS.clock
    clock.start(search_began)
    send([])
    key = str(config["number"])
    resume = ray.get(config["resume"][0]) if "resume" in config else None
    try:
        ray.get(desk.submit.remote(Job(key, trial_config(config["config"], "trial"), config["seed"], resume)))
        while True:
            message = ray.get(desk.next_message.remote(key))
            if isinstance(message, Checkpoint):
                send([{"checkpoint": message.packed, "seconds": clock.read()}])
            elif isinstance(message, Epoch):
                clock.count(message.row)
                send([{**message.row, "seconds": clock.read()}])
                if message.row["finished"]:
                    return
                # Tune has decided by now: a trial that it stops does not come back from `send`.
                ray.get(desk.judge.remote(key, message.row["epoch"]))
            else:
                send([{"failure": message.failure, "seconds": clock.read()}])
                return
    finally:
        desk.drop.remote(key)


def send(rows: Sequence[Row]) -> None:
    """Report rows to the driver; the values that ASHA reads stand beside them, if the last one has them."""
    last = rows[-1] if rows else {}
    known: Row = {name: last[name] for name in ("epoch", "best_val_metric") if name in last}
    with PROCESS.clock.measure("scheduler"):  # of a trial that goes on: what stops one is raised in there
        tune.report({**known, ROWS: list(rows)})
