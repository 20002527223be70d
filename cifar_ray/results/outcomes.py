"""What an ablation measures of each arm, and which arms can be compared by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from cifar_ray.results.ablation import BASE
from cifar_ray.results.records import Row

PERFORMANCE = ("test_metric", "val_metric", "test_loss", "gap")
"""Outcomes, the primary one first."""

CONVERGENCE = ("epochs_to_target", "loss_area")
STABILITY = ("grad_norm_max", "oscillation")
COST = ("epoch_s",)
LOG_SCALE = frozenset((*STABILITY, *COST))
"""Outcomes whose differences are log ratios: they spread in proportion to their size."""


def mean_of(seeds: Mapping[int, float]) -> float:
    """Mean of values by seed."""
    return fmean(seeds.values())


class Values:
    """The values of one outcome over seeds, by arm, or why there are none."""

    def __init__(self, outcome: str, design: Row, runs: Sequence[Row]) -> None:
        self.outcome = outcome
        self.log = outcome in LOG_SCALE
        self.runs: dict[str, list[Row]] = {}
        for run in runs:
            self.runs.setdefault(run["arm"], []).append(run)
        self.has_target = any(run["epochs_to_target"] is not None for run in self.runs.get(BASE, []))
        self.max_epochs = design["max_epochs"]
        self.of_arm: dict[str, dict[int, float]] = {}
        """By seed; all that an arm has, on the scale of the analysis."""
        for arm, of_arm in self.runs.items():
            known = {run["seed"]: self._value(run) for run in of_arm}
            self.of_arm[arm] = {seed: value for seed, value in known.items() if value is not None}
        self._reasons = {arm: self._reason(arm) for arm in self.runs}

    def _value(self, run: Row) -> float | None:
        value = run.get(self.outcome)
        if self.outcome == "epochs_to_target" and self.has_target and run.get("loss_area") is not None:
            value = self.max_epochs if value is None else value
        if self.log:
            return math.log(value) if value is not None and value > 0 else None
        return None if value is None else float(value)

    def reason(self, arm: str) -> str | None:
        """Why an arm cannot be compared; None where it can."""
        return self._reasons.get(arm, "not trained")

    def _reason(self, arm: str) -> str | None:
        runs = self.runs[arm]
        diverged = sum(bool(run["diverged"]) for run in runs)
        failed = sum(bool(run.get("failure")) for run in runs) - diverged
        if diverged:
            return f"{diverged} of {len(runs)} seeds diverged" + (f", {failed} failed" if failed > 0 else "")
        if failed > 0:
            return f"{failed} of {len(runs)} seeds failed"
        if len(runs) < 2:
            return "one seed"
        lacking = len(runs) - len(self.of_arm[arm])
        if lacking:
            return "not measured" if lacking == len(runs) else f"not measured for {lacking} of {len(runs)} seeds"
        return None

    def whole(self, arm: str) -> bool:
        """Whether all seeds of an arm have a value, and none failed."""
        runs = self.runs.get(arm, [])
        return bool(runs) and len(self.of_arm[arm]) == len(runs) and not any(run.get("failure") for run in runs)

    def mean(self, seeds: Mapping[int, float]) -> float:
        """On the scale of runs.csv; geometric for logs."""
        mean = mean_of(seeds)
        return math.exp(mean) if self.log else mean

    def row(self, arm: Row, control: str) -> Row:
        """What a row says without an interval."""
        name = arm["name"]
        row: Row = {key: arm[key] for key in ("factor", "level", "rate")}
        row |= {"outcome": self.outcome, "arm": name, "control": control, "scale": "log" if self.log else "difference"}
        row |= {"n_control": len(self.runs.get(control, [])), "n": len(self.runs.get(name, []))}
        keys = ("mean_control", "mean", "difference", "low", "high", "low_alone", "high_alone", "method", "detectable")
        row |= dict.fromkeys((*keys, "seeds_needed", "reached_control", "reached"))
        if self.outcome in CONVERGENCE and self.has_target:
            row |= {"reached_control": self._reached(control), "reached": self._reached(name)}
        of_control = self.reason(control)
        row["reason"] = self.reason(name) or (f"{control}: {of_control}" if of_control else None)
        if self.whole(control):
            row["mean_control"] = self.mean(self.of_arm[control])
        if self.whole(name):
            row["mean"] = self.mean(self.of_arm[name])
        if self.whole(control) and self.whole(name):
            row["difference"] = mean_of(self.of_arm[name]) - mean_of(self.of_arm[control])
        return row

    def _reached(self, arm: str) -> str | None:
        """How many of its trainings reached the target: `3 of 5`."""
        runs = self.runs.get(arm, [])
        return f"{sum(run['epochs_to_target'] is not None for run in runs)} of {len(runs)}" if runs else None
