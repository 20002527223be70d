"""The trainings of an ablation, from the records of its final models: the rows of runs.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import Any

from cifar_ray.results.ranking import TEST_SCORES
from cifar_ray.results.records import RUNS_COLUMNS, Row

BASE = "base"
"""The arm that the others differ from by one choice."""

EARLY_STOPPING = "early-stopping"
"""The factor whose arms are not trained: they are what a full training would have kept, had a patience ended it."""

TARGET = 0.98
"""Share of the base's mean best validation metric that a training is to reach."""

DIVERGED = "non-finite loss"
"""How the failure of a training begins that diverged."""


def runs_of(
    design: Row,
    rows: Sequence[Row],
    histories: Mapping[str, Sequence[Row]],
    failures: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row for each training, arms in the order of the design and seeds in theirs.

    Args:
        design: of design.json.
        rows: of results.csv; `config` is the arm.
        histories: rows of history.csv by model. What a patience would have kept needs none of its own: it has the
            first epochs of its control's, as many as its row says.
        failures: why trainings failed, by model, where their row does not say it.

    Returns:
        Rows of `records.RUNS_COLUMNS`. What was not measured is None: all but the arm for a training that failed, all
        that a history tells where there is none.
    """
    of_arm: dict[str, list[Row]] = {}
    for row in rows:
        failure = row.get("failure") or (failures or {}).get(row["model"])
        of_arm.setdefault(str(row["config"]), []).append({**row, "failure": failure})
    best = [row["val_metric"] for row in of_arm.get(BASE, []) if row["val_metric"] is not None and not row["failure"]]
    target = TARGET * fmean(best) if best else None
    score = TEST_SCORES[design.get("metric") or "accuracy"][1]
    runs = []
    for arm in design["arms"]:
        controls = {row["seed"]: row["model"] for row in of_arm.get(str(arm["control"]), [])}
        for row in sorted(of_arm.get(arm["name"], []), key=lambda row: row["seed"]):
            history = histories.get(row["model"]) or []
            if arm.get("patience") is not None:
                history = (history or histories.get(controls.get(row["seed"], ""), []))[: row.get("epochs") or 0]
            runs.append(_run(arm, row, score, history, target, design["max_epochs"]))
    return runs


def _run(arm: Row, row: Row, score: str, history: Sequence[Row], target: float | None, max_epochs: int) -> Row:
    failed = bool(row["failure"])
    scores = ("val_metric", "val_accuracy", "test_accuracy", "test_loss", "train_accuracy", "best_epoch")
    run: Row = dict.fromkeys(RUNS_COLUMNS)
    run |= {name: arm.get(name) for name in ("factor", "level", "rate", "control", "lr", "lr_schedule")}
    run["arm"] = arm["name"]
    run |= {name: row.get(name) for name in ("seed", "training_seed", "num_params", "failure")}
    run |= {name: None if failed else row.get(name) for name in scores}
    run["test_metric"] = None if failed else row.get(score)
    run["gap"] = _difference(run["train_accuracy"], run["val_accuracy"])
    run["diverged"] = int(failed and str(row["failure"]).startswith(DIVERGED))
    run["epochs"] = row.get("epochs") or len(history) or None
    norms = [epoch["grad_norm_max"] for epoch in history if epoch.get("grad_norm_max") is not None]
    seconds = [epoch["train_s"] for epoch in history if epoch.get("train_s") is not None]
    run["grad_norm_max"] = max(norms, default=None)
    run["epoch_s"] = median(seconds) if seconds else None  # which a machine that is busy for a while does not move
    return run | ({} if failed else _convergence(history, target, max_epochs))


def _difference(a: Any, b: Any) -> float | None:
    return None if a is None or b is None else a - b


def _convergence(history: Sequence[Row], target: float | None, max_epochs: int) -> Row:
    """How fast a training came to the target, and how steadily its validation loss fell."""
    losses = [epoch.get("val_loss") for epoch in history]
    found: Row = dict.fromkeys(("epochs_to_target", "seconds_to_target", "loss_area", "oscillation"))
    reached = [
        place
        for place, epoch in enumerate(history)
        if target is not None and epoch.get("val_metric") is not None and epoch["val_metric"] >= target
    ]
    if reached:
        found["epochs_to_target"] = history[reached[0]]["epoch"]
        seconds = list(accumulate(epoch.get("train_s") or 0.0 for epoch in history))
        found["seconds_to_target"] = seconds[reached[0]]
    known = [loss for loss in losses if loss is not None]
    if known and len(known) == len(losses):
        # A training that ended before its horizon is used with the weights of its best epoch: their loss stays.
        best = max(history, key=lambda epoch: (epoch.get("val_metric") or 0.0, -epoch["val_loss"]))["val_loss"]
        found["loss_area"] = (sum(known) + best * max(max_epochs - len(known), 0)) / max(max_epochs, len(known))
        steps = [abs(b - a) for a, b in pairwise(known)]
        last = steps[-max(len(known) // 3, 1) :]
        found["oscillation"] = fmean(last) if last else None
    return found
