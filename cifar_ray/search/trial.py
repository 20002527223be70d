"""A Tune trial: it hands a configuration to the workers, and reports the epochs that come of it.

Its process trains nothing, and so does without torch: it is there sooner, and small.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from cifar_ray.config import trial_config
from cifar_ray.distributed.jobs import Checkpoint, Epochs, Job
from cifar_ray.results.records import Row

ROWS = "rows"
"""Key of the rows in what a trial reports."""


def run_trial(config: dict[str, Any], desk: Any, decisive: frozenset[int] | None) -> None:
    """Let the workers of a pool train one configuration, and report its epochs under Tune.

    Args:
        config: `config` (a nested dict for :func:`trial_config`), `seed`, the `number` of the trial, and perhaps
            `resume`, a reference (in a list) to a checkpoint of it.
        desk: the actor of the pool's :class:`jobs.Desk`.
        decisive: see :class:`jobs.Job`.
    """
    send([])  # Tune wants a first report even of a trial that does not begin
    key = str(config["number"])
    resume = ray.get(config["resume"][0]) if "resume" in config else None
    job = Job(key, trial_config(config["config"], "trial"), config["seed"], resume, decisive=decisive)
    try:
        ray.get(desk.submit.remote(job))
        while True:
            message = ray.get(desk.next_message.remote(key))
            if isinstance(message, Checkpoint):
                send([{"checkpoint": message.packed}])
            elif isinstance(message, Epochs):
                send(message.rows)
                if message.rows[-1]["finished"]:
                    return
                # Tune has decided by now: a trial that it stops does not come back from `send`.
                desk.judge.remote(key, message.rows[-1]["epoch"])
            else:
                send([{"failure": message.failure, "seconds": message.seconds}])
                return
    finally:
        desk.drop.remote(key)


def send(rows: Sequence[Row]) -> None:
    """Report rows to the driver; the values that ASHA reads stand beside them, if the last one has them."""
    last = rows[-1] if rows else {}
    known: Row = {name: last[name] for name in ("epoch", "best_val_metric") if name in last}
    tune.report({**known, ROWS: list(rows)})
