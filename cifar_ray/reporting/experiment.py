"""An ablation as its report asks for it: the design, and what was measured of each arm."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from statistics import fmean, stdev

from cifar_ray.results.ablation import TARGET
from cifar_ray.results.effects import is_effect
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row

PRIMARY, VALIDATION, GAP = "test_metric", "val_metric", "gap"
EPOCHS, LOSS_AREA = "epochs_to_target", "loss_area"
OSCILLATION, GRADIENT = "oscillation", "grad_norm_max"
EPOCH_SECONDS = "epoch_s"


class Experiment:
    """The design of an ablation with the rows of runs.csv and effects.csv, by arm. Everything may be missing."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.design = records.design
        self.metric: str = self.design.get("metric") or records.metric
        self.base_name = str(self.design.get("base_name") or "the base")
        self.arms: dict[str, Row] = {str(arm["name"]): arm for arm in self.design.get("arms") or []}
        self.factors: list[Row] = self.design.get("factors") or []
        self._effects = {(str(row["outcome"]), str(row["arm"])): row for row in records.effects}
        self._runs: dict[str, list[Row]] = {}
        for row in records.ablation_runs:
            self._runs.setdefault(str(row["arm"]), []).append(row)

    @property
    def base(self) -> Row:
        """The arm of the base as it was given."""
        return next(iter(self.bases), {})

    @property
    def bases(self) -> list[Row]:
        """The arms that others are compared with, and that are no level of a factor: the base, at one rate or two."""
        return [arm for arm in self.arms.values() if not arm.get("factor") and not arm.get("control")]

    @property
    def levels(self) -> list[Row]:
        """The arms other than the base, in the order of the factors; crosses come last."""
        order = {str(one["name"]): i for i, one in enumerate(self.factors)}
        arms = [arm for arm in self.arms.values() if arm.get("control")]
        return sorted(arms, key=lambda arm: (bool(arm.get("cells")), order.get(str(arm.get("factor") or ""), -1)))

    def arms_of(self, factor: str) -> list[Row]:
        """The arms of a factor, by level, each at the base's rate before its own."""
        names = next((one.get("levels") or [] for one in self.factors if one["name"] == factor), [])
        order = {str(name): i for i, name in enumerate(names)}
        arms = [arm for arm in self.levels if arm.get("factor") == factor]
        return sorted(arms, key=lambda arm: (order.get(str(arm["level"]), len(order)), arm.get("rate") == "own"))

    def fair_arms(self, factor: str) -> list[Row]:
        """One arm for each level of a factor: at its own learning rate where it has one, else at the base's."""
        return list({str(arm["level"]): arm for arm in self.arms_of(factor)}.values())

    @property
    def crosses(self) -> list[str]:
        """Names of the crossed factors, such as `norm x dropout`."""
        return list(dict.fromkeys(str(arm["factor"]) for arm in self.levels if arm.get("cells")))

    def effect(self, outcome: str, arm: Row) -> Row | None:
        """The row of effects.csv that compares an arm with its control."""
        return self._effects.get((outcome, str(arm["name"])))

    def effects(self, outcome: str, arms: Iterable[Row]) -> list[tuple[Row, Row]]:
        """Those arms that have such a row, each with it."""
        return [(arm, row) for arm in arms if (row := self.effect(outcome, arm))]

    def runs(self, arm: Row) -> list[Row]:
        """The rows of runs.csv of an arm."""
        return self._runs.get(str(arm["name"]), [])

    def control(self, arm: Row) -> Row:
        """The arm that it is compared with."""
        return self.arms.get(str(arm.get("control")), {})

    def values(self, arm: Row, column: str) -> list[float]:
        """What is known of a column of runs.csv, over the seeds of an arm."""
        return [row[column] for row in self.runs(arm) if row.get(column) is not None] if arm else []

    def mean(self, arm: Row, column: str) -> float | None:
        values = self.values(arm, column)
        return fmean(values) if values else None

    def spread(self, arm: Row, column: str) -> float | None:
        """The standard deviation over the seeds of an arm."""
        values = self.values(arm, column)
        return stdev(values) if len(values) > 1 else None

    def num_diverged(self, arm: Row) -> int:
        return sum(bool(row.get("diverged")) for row in self.runs(arm))

    def num_failed(self, arm: Row) -> int:
        """Trainings that ended without scores; a diverged one is among them."""
        return sum(bool(row.get("diverged") or row.get("failure")) for row in self.runs(arm))

    @property
    def target(self) -> float | None:
        """The validation metric that counts as converged."""
        best = self.mean(self.base, VALIDATION) if self.base else None
        return None if best is None else TARGET * best

    def schedule(self, arm: Row) -> str | None:
        """The name of an arm's learning-rate schedule."""
        return ((arm.get("config") or {}).get("lr_schedule") or {}).get("name")

    def other_schedule(self, arm: Row) -> bool:
        """Whether an arm's learning rate moves in another way than its control's."""
        names = self.schedule(arm), self.schedule(self.control(arm))
        return None not in names and names[0] != names[1]

    def ratio(self, arm: Row, column: str) -> float | None:
        """How many times the mean of its control an arm has; 1 where seconds cannot be told apart."""
        mean, control = self.mean(arm, column), self.mean(self.control(arm), column)
        if not (mean and control):
            return None
        return mean / control if column != EPOCH_SECONDS or is_effect(self.effect(column, arm)) else 1.0

    def changes(self, arm: Row) -> dict[str, object]:
        """What an arm's configuration has otherwise than the base's, by path such as `model/norm`."""
        return _differing(self.design.get("base") or {}, arm.get("config") or {})

    def histories(self, arm: Row) -> list[list[Row]]:
        """The rows of history.csv of each seed of an arm that has any."""
        models = [row["model"] for row in self.records.rows if row["config"] == arm["name"]]
        return [rows for model in models if (rows := self.records.histories.get(model))]


def reached(row: Row | None) -> tuple[int, int] | None:
    """How many seeds of how many came to the target, of a row of effects.csv that holds it as `3 of 5`."""
    found = re.fullmatch(r"(\d+) of (\d+)", str((row or {}).get("reached") or ""))
    return (int(found[1]), int(found[2])) if found else None


def _differing(base: Row, other: Row, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            found |= _differing(base[key], value, f"{prefix}{key}/")
        elif value != base.get(key):
            found[f"{prefix}{key}"] = value
    return found


def ratio_of(log_difference: float) -> float:
    """How many times as large, of a difference on the log scale."""
    return math.exp(log_difference)
