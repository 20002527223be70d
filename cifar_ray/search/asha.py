"""ASHA: which trials go on at which epoch."""

from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler

REDUCTION_FACTOR = 3
"""ASHA lets one in so many trials go on at each rung."""


def grace_period(max_epochs: int) -> int:
    """Epochs before ASHA may stop a trial: a fifth of the horizon, rounded up.

    With a tenth, recipes that warm up slowly were stopped whatever they would have become: `benchmarks/README.md`.
    """
    return -(-max_epochs // 5)


def rungs(max_epochs: int) -> list[int]:
    """Epochs after which ASHA decides whether a trial goes on."""
    found = [grace_period(max_epochs)]
    while found[-1] * REDUCTION_FACTOR < max_epochs:
        found.append(found[-1] * REDUCTION_FACTOR)
    return found


def make_asha(max_epochs: int, study: optuna.Study) -> ASHAScheduler:
    """ASHA, which remembers the trials that an earlier session of the run finished."""
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="best_val_metric",
        mode="max",
        max_t=max_epochs,
        grace_period=grace_period(max_epochs),
        reduction_factor=REDUCTION_FACTOR,
    )
    controller: Any = None  # which ASHA does not look at, and of a trial at its id alone
    for earlier in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        trial: Any = SimpleNamespace(trial_id=f"earlier-{earlier.number}")
        asha.on_trial_add(controller, trial)
        for epoch, value in sorted(earlier.intermediate_values.items()):
            asha.on_trial_result(controller, trial, {"epoch": epoch, "best_val_metric": value})
        asha.on_trial_remove(controller, trial)
    return asha
