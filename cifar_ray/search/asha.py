"""ASHA: which trials go on at which epoch, and an audit of what it stops."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cifar_ray.results.records import Row
from cifar_ray.search.study import RECORD

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


class Audit:
    """Trials that go on where ASHA would stop them: what became of them tells what it misses.

    They are picked by the seed and their number, before anything is known of them.

    Args:
        share: of the trials, 0 to 0.5.
        max_epochs: of a trial that nothing ends early.
        seed: of the run.
    """

    def __init__(self, share: float, max_epochs: int, seed: int) -> None:
        self.share = share
        self.max_epochs = max_epochs
        self.seed = seed
        self.spared: dict[int, int] = {}
        """By number the epoch after which ASHA would have stopped a trial."""

    def covers(self, number: int) -> bool:
        return bool(np.random.default_rng([self.seed, number]).random() < self.share)

    def record(self, number: int, history: Sequence[Row]) -> Row | None:
        """What a trial's record says of the audit: nothing of one that it does not cover.

        That is the first epoch at which ASHA decides, the best validation value until then, and the epoch at which it
        would have stopped the trial, if it would have.
        """
        if not self.covers(number):
            return None
        rung = grace_period(self.max_epochs)
        until = [row["val_metric"] for row in history[:rung]] if len(history) >= rung else []
        return {"epoch": rung, "val_metric": max(until, default=None), "stopped_at": self.spared.get(number)}


class _AuditedASHA(ASHAScheduler):
    """ASHA, which lets the trials of an audit go on; to all others it does what it would do without one."""

    def __init__(self, audit: Audit, **options: Any) -> None:
        super().__init__(**options)
        self.audit = audit

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Row) -> str:
        number = getattr(trial, "config", {}).get("number")  # of an earlier session's nothing is known, nor decided
        if number in self.audit.spared:
            return TrialScheduler.CONTINUE  # at the later rungs it would not have been
        decision = super().on_trial_result(tune_controller, trial, result)
        stops_early = decision == TrialScheduler.STOP and result["epoch"] < self.audit.max_epochs
        if not stops_early or number is None or not self.audit.covers(number):
            return decision
        self.audit.spared[number] = result["epoch"]
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Row) -> None:
        if trial.config["number"] in self.audit.spared:
            self.on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)


def make_asha(max_epochs: int, study: optuna.Study, audit: Audit | None = None) -> ASHAScheduler:
    """ASHA, which remembers the trials that an earlier session of the run finished."""
    options: dict[str, Any] = {
        "time_attr": "epoch",
        "metric": "best_val_metric",
        "mode": "max",
        "max_t": max_epochs,
        "grace_period": grace_period(max_epochs),
        "reduction_factor": REDUCTION_FACTOR,
    }
    asha = _AuditedASHA(audit, **options) if audit else ASHAScheduler(**options)
    controller: Any = None  # which ASHA does not look at, and of a trial at its id alone
    for earlier in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        trial: Any = SimpleNamespace(trial_id=f"earlier-{earlier.number}")
        stopped_at = (earlier.user_attrs.get(RECORD, {}).get("audit") or {}).get("stopped_at") or max_epochs
        asha.on_trial_add(controller, trial)
        for epoch, value in sorted(earlier.intermediate_values.items()):
            if epoch <= stopped_at:
                asha.on_trial_result(controller, trial, {"epoch": epoch, "best_val_metric": value})
        asha.on_trial_remove(controller, trial)
    return asha
