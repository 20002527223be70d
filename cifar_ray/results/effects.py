"""What the choices of an ablation did: the rows of effects.csv, from those of runs.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cifar_ray.results.ablation import BASE, EARLY_STOPPING
from cifar_ray.results.outcomes import CONVERGENCE, COST, PERFORMANCE, STABILITY, Values, mean_of
from cifar_ray.results.records import Row
from cifar_ray.results.simultaneous import (
    Correlation,
    Margin,
    Spread,
    dunnett_critical,
    intraclass_correlation,
    seeds_needed,
)

INTERACTION = "interaction: "
"""Before the outcome of a cell of a grid less the two single effects."""

ALIKE = "no seed differs from its control"
"""Why there is no interval of a patience that kept what the full training did."""

CROSSED = ("test_metric", "val_metric")
"""Outcomes that have interactions."""


def effects_of(design: Row, runs: Sequence[Row]) -> list[Row]:
    """Differences of all arms from their controls, each with an interval.

    The intervals of a family hold together in 95 % of experiments. A family is one outcome and the arms of one kind
    with the same control: those at the base's learning rate (the cells of a grid among them), those at rates of their
    own, those of early stopping; and the interactions of a grid. Nothing is adjusted over outcomes, of which
    `test_metric` is the primary one. How the intervals come about says :class:`~.simultaneous.Spread`.

    Seeds make all that is uncertain here: the intervals are of what other seeds would give on the same split of the
    data (with `resplit`, on other splits), not on other test images.

    Arms are compared seed by seed where seeds are surely so correlated that the intervals become narrower by it, the
    control's further seeds being left out. What a patience would have kept is always compared with its own training.

    An arm of which a training diverged or failed has no means and no intervals, nor has any arm whose control did:
    those that survive flatter it. The row says why. A training that never reached the target counts `max_epochs`.

    Args:
        design: of design.json.
        runs: rows of runs.csv.

    Returns:
        Rows of `records.EFFECTS_COLUMNS`, of each outcome in turn.
    """
    families: dict[tuple[str, str, bool], list[Row]] = {}
    for arm in design["arms"]:
        if arm["control"] is not None:
            key = (str(arm["control"]), str(arm["rate"]), arm.get("patience") is not None)
            families.setdefault(key, []).append(arm)
    rows = []
    for outcome in (*PERFORMANCE, *CONVERGENCE, *STABILITY, *COST):
        values = Values(outcome, design, runs)
        for (control, _, early), arms in families.items():
            rows += _family(values, control, arms, early)
    for outcome in CROSSED:
        rows += _interactions(Values(outcome, design, runs), design)
    return rows


def is_effect(row: Row | None) -> bool:
    """Whether a row of effects.csv is called an effect: its simultaneous interval does not hold zero."""
    low, high = (None, None) if row is None else (row.get("low"), row.get("high"))
    return low is not None and high is not None and (low > 0 or high < 0)


def seed_correlation(
    runs: Sequence[Row], outcome: str = "test_metric", arms: Sequence[str] | None = None
) -> Correlation | None:
    """How correlated arms are over seeds: what pairing by seed could gain.

    Args:
        runs: rows of runs.csv.
        outcome: a column of it.
        arms: names; all that were trained, without those of early stopping and those that lack a value, by default.

    Returns:
        None where there are not two arms with two seeds in common.
    """
    of_arm: dict[str, dict[int, float]] = {}
    lacking = set()
    for run in runs:
        if arms is None and run["factor"] == EARLY_STOPPING:
            continue
        if run.get(outcome) is None:
            lacking.add(run["arm"])
        else:
            of_arm.setdefault(run["arm"], {})[run["seed"]] = run[outcome]
    kept = [of_arm[arm] for arm in (of_arm if arms is None else arms) if arm in of_arm and arm not in lacking]
    shared = sorted(set.intersection(*(set(one) for one in kept))) if kept else []
    if len(kept) < 2 or len(shared) < 2:
        return None
    return intraclass_correlation(np.array([[one[seed] for seed in shared] for one in kept]))


def _family(values: Values, control: str, arms: Sequence[Row], early: bool) -> list[Row]:
    rows = [values.row(arm, control) for arm in arms]
    if early and values.outcome in (*STABILITY, *COST):
        for row in rows:
            row["reason"] = row["reason"] or "the same training as its control"
    told = [row for row in rows if row["reason"] is None]
    names = [row["arm"] for row in told]
    if not told:
        return rows
    if early:
        _compare_each_with_its_training(values, told, control)
        return rows
    sample = _Sample.of(values, control, names)
    for row in told:
        if sample.spread is None:
            row["reason"] = "all seeds of each arm scored the same"
            continue
        weights = {row["arm"]: 1.0, control: -1.0}
        row["difference"] = sample.means[row["arm"]] - sample.means[control]
        margin = sample.spread.margin(weights, len(names), names)
        _fill(row, margin, sample.shrink(weights, control), sample.paired)
        if sample.paired:
            of_control = {seed: values.of_arm[control][seed] for seed in sample.seeds}
            row |= {"n_control": len(of_control), "mean_control": values.mean(of_control)}
    return rows


def _fill(row: Row, margin: Margin, shrink: float, paired: bool) -> None:
    difference = row["difference"]
    row |= {"low": difference - margin.half, "high": difference + margin.half}
    row |= {"low_alone": difference - margin.half_alone, "high_alone": difference + margin.half_alone}
    row |= {"method": "paired" if paired else margin.method, "detectable": margin.detectable}
    if not is_effect(row):
        row["seeds_needed"] = seeds_needed(difference, margin, row["n"], shrink)


@dataclass(frozen=True)
class _Sample:
    """What a family is compared by: its variances over seeds, each seed's own effect taken off where that pays."""

    means: dict[str, float]
    spread: Spread | None
    """None where nothing varies."""
    seeds: list[int]
    """That all arms share, where they are compared seed by seed."""

    @property
    def paired(self) -> bool:
        return bool(self.seeds)

    @staticmethod
    def of(values: Values, control: str, names: Sequence[str]) -> _Sample:
        of_arm = {name: values.of_arm[name] for name in (*names, control)}
        # Means of values that are all the same differ in their last digits.
        least = (1e-9 * max(abs(value) for one in of_arm.values() for value in one.values())) ** 2
        seeds = _seeds_to_pair_by(of_arm, control)
        if seeds:
            shared = {name: {seed: one[seed] for seed in seeds} for name, one in of_arm.items()}
            grid = np.array([list(one.values()) for one in shared.values()])  # (arms, seeds)
            num_arms = len(shared)
            # The effect of each seed was estimated from the arms, so that they vary less around it than they do.
            found = (grid - grid.mean(axis=0)).var(axis=1, ddof=1) * num_arms / (num_arms - 1)
            if found.max() > least:
                variances = dict(zip(shared, found.tolist(), strict=True))
                sizes = dict.fromkeys(shared, len(seeds))
                spread = Spread(variances, sizes, (num_arms - 1) * (len(seeds) - 1))
                return _Sample({name: mean_of(one) for name, one in shared.items()}, spread, seeds)
        variances = {name: float(np.var(list(one.values()), ddof=1)) for name, one in of_arm.items()}
        varies = max(variances.values()) > least
        spread_alone = Spread(variances, {name: len(one) for name, one in of_arm.items()}) if varies else None
        return _Sample({name: mean_of(one) for name, one in of_arm.items()}, spread_alone, [])

    def shrink(self, weights: Mapping[str, float], control: str) -> float:
        """By how much squared standard errors fall if the control has twice the seeds of an arm, where it has not."""
        assert self.spread is not None
        if self.paired:
            return 1.0
        sizes = self.spread.sizes
        size = min(sizes[name] for name in weights)
        now = sum(weight**2 / sizes[name] for name, weight in weights.items())
        then = sum(weight**2 / (size * (2 if name == control else 1)) for name, weight in weights.items())
        return then / now


def _seeds_to_pair_by(of_arm: Mapping[str, Mapping[int, float]], control: str) -> list[int]:
    """The seeds that all arms share, where comparing seed by seed surely makes intervals narrower; else none."""
    shared = sorted(set.intersection(*(set(one) for one in of_arm.values())))
    arms = [name for name in of_arm if name != control]
    if len(shared) < 2 or any(set(of_arm[name]) != set(shared) for name in arms):
        return []
    correlation = intraclass_correlation(np.array([[one[seed] for seed in shared] for one in of_arm.values()]))
    if correlation is None:
        return []
    num_seeds, num_control = len(shared), len(of_arm[control])
    sizes = (num_seeds,) * len(arms)
    unpaired = dunnett_critical(sizes, num_control, len(arms) * (num_seeds - 1) + num_control - 1)
    paired = dunnett_critical(sizes, num_seeds, len(arms) * (num_seeds - 1))
    wider = paired**2 * 2 / num_seeds / (unpaired**2 * (1 / num_seeds + 1 / num_control))
    return shared if (1 - correlation.low) * wider < 1 else []


def _compare_each_with_its_training(values: Values, rows: Sequence[Row], control: str) -> None:
    """Intervals of what a patience would have kept less what its training kept in the end, seed by seed.

    Many differences are zero and some are not: they are no additive effects of seeds, so that Student's t of each arm's
    own differences stands for them, at Sidak's level. Few seeds may by luck have lost alike, so no arm is taken to
    vary less than the mean of them; as all arms come from the same trainings, that mean adds no degrees of freedom.
    """
    of_control = values.of_arm[control]
    differences = {}
    for row in rows:
        of_arm = values.of_arm[row["arm"]]
        shared = sorted(of_arm.keys() & of_control.keys())
        row |= {"n_control": len(shared), "n": len(shared)}
        if len(shared) < 2:
            row["reason"] = "fewer than two seeds in common"
            continue
        found = np.array([of_arm[seed] - of_control[seed] for seed in shared])
        differences[row["arm"]] = found
        row |= {"difference": float(found.mean()), "mean": values.mean({seed: of_arm[seed] for seed in shared})}
        row["mean_control"] = values.mean({seed: of_control[seed] for seed in shared})
    variances = {name: float(found.var(ddof=1)) for name, found in differences.items() if np.abs(found).max() > 1e-12}
    typical = float(np.mean(list(variances.values()))) if variances else 0.0
    for row in rows:
        name = row["arm"]
        if row["reason"] is None and name not in variances:
            row["reason"] = ALIKE
        elif row["reason"] is None and typical <= 1e-24:
            row["reason"] = "the same difference with all seeds"
        elif row["reason"] is None:
            spread = Spread({name: max(variances[name], typical)}, {name: row["n"]})
            _fill(row, spread.margin({name: 1.0}, len(variances)), 1.0, True)


def _interactions(values: Values, design: Row) -> list[Row]:
    """What the cells of a grid have above the sum of the two single effects."""
    cells = [arm for arm in design["arms"] if arm.get("cells") and arm["control"] == BASE]
    arms = [arm for arm in design["arms"] if arm["control"] == BASE and arm["rate"] == "base"]
    arms = [arm for arm in arms if arm.get("patience") is None]
    singles = {(arm["factor"], arm["level"]): arm["name"] for arm in arms if not arm.get("cells")}
    rows = []
    for arm in cells:
        row = values.row(arm, BASE)
        row |= {"outcome": INTERACTION + values.outcome, "mean": None, "mean_control": None, "difference": None}
        parts = [singles.get(cell) for cell in arm["cells"].items()]
        for part in parts:
            of_part = values.reason(part) if part else "not trained"
            row["reason"] = row["reason"] or (f"{part or 'a level alone'}: {of_part}" if of_part else None)
        rows.append((row, parts))
    told = [(row, parts) for row, parts in rows if row["reason"] is None]
    if told:
        names = [arm["name"] for arm in arms if values.reason(arm["name"]) is None]
        sample = _Sample.of(values, BASE, names)
        for row, parts in told:
            weights = {row["arm"]: 1.0, **dict.fromkeys(parts, -1.0), BASE: len(parts) - 1.0}
            row["difference"] = sum(weight * sample.means[name] for name, weight in weights.items())
            if sample.spread is None:
                row["reason"] = "all seeds of each arm scored the same"
                continue
            _fill(row, sample.spread.margin(weights, len(told)), sample.shrink(weights, BASE), sample.paired)
    return [row for row, _ in rows]
