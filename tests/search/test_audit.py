"""The audit: trials that ASHA would have stopped go on, and all others fare as without one."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.searches import MAX_EPOCHS, run_search, small_config
from ray.tune.schedulers import TrialScheduler

from cifar_ray.search.asha import Audit, grace_period, make_asha
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.study import study_records


def lengths(audit: Audit | None, values: np.ndarray) -> list[int]:
    """Epochs of trials that run side by side, with these values (trials, epochs)."""
    asha = make_asha(values.shape[1], optuna.create_study(direction="maximize"), audit)
    trials: list[Any] = [SimpleNamespace(trial_id=f"t{n}", config={"number": n}) for n in range(len(values))]
    ran = [0] * len(values)
    stopped = set()
    for trial in trials:
        asha.on_trial_add(None, trial)
    for epoch in range(1, values.shape[1] + 1):
        for number, trial in enumerate(trials):
            if number in stopped:
                continue
            ran[number] = epoch
            result = {"epoch": epoch, "best_val_metric": values[number, epoch - 1]}
            decision = asha.on_trial_result(None, trial, result)
            if decision == TrialScheduler.STOP or epoch == values.shape[1]:
                stopped.add(number)
                asha.on_trial_complete(None, trial, result)
    return ran


def test_trials_of_the_audit_go_on_and_the_others_fare_as_without_one() -> None:
    values = np.random.default_rng(0).random((60, 27)).cumsum(1)
    without = lengths(None, values)
    audit = Audit(0.3, 27, seed=5)
    covered = [number for number in range(60) if audit.covers(number)]
    assert 10 < len(covered) < 26
    ran = lengths(audit, values)
    assert [ran[number] for number in covered] == [27] * len(covered)
    others = [number for number in range(60) if number not in covered]
    assert [ran[number] for number in others] == [without[number] for number in others]
    assert audit.spared == {number: without[number] for number in covered if without[number] < 27}
    assert audit.spared and len(audit.spared) < len(covered)


def test_which_trials_it_covers_is_settled_by_the_seed_alone() -> None:
    covered = [[Audit(0.2, 9, seed).covers(number) for number in range(1000)] for seed in (0, 0, 1)]
    assert covered[0] == covered[1] != covered[2]
    assert 150 < sum(covered[0]) < 250
    assert not any(Audit(0.0, 9, 0).covers(number) for number in range(1000))


def test_a_hopeless_trial_of_the_audit_reaches_its_end_and_its_record_says_so(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    seed = next(
        seed for seed in range(100) if [Audit(0.5, 9, seed).covers(n) for n in range(3)] == [False, True, False]
    )
    kind = partial(StudySearcher, audit=Audit(0.5, MAX_EPOCHS, seed))
    configs = [small_config(0.1), small_config(1e-7), small_config(1e-6)]
    study, recorder = run_search(configs, digit_arrays, tmp_path, 3, kind=kind)
    good, spared, stopped = study_records(study)
    assert [one["state"] for one in (good, spared, stopped)] == ["complete", "complete", "pruned"]
    rung = grace_period(MAX_EPOCHS)
    early = max(row["val_metric"] for row in recorder.rows[1][:rung])
    assert spared["audit"] == {"epoch": rung, "val_metric": early, "stopped_at": rung}
    assert "audit" not in good and "audit" not in stopped


@pytest.mark.parametrize("epochs", [0, 1])
def test_one_that_failed_before_asha_decides_has_no_value_there(epochs: int) -> None:
    seed = next(seed for seed in range(100) if Audit(0.5, 30, seed).covers(4))
    history = [{"val_metric": 0.5}] * epochs
    assert Audit(0.5, 30, seed).record(4, history) == {"epoch": 6, "val_metric": None, "stopped_at": None}
