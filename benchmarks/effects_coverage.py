"""How often the intervals of an ablation hold the true differences, all of a family together.

    python benchmarks/effects_coverage.py [--settings extra] [--families 1000] [--seed 0]

A fake trainer draws the rows of runs.csv: normal values over seeds (log-normal for the outcomes on the log scale), n
seeds an arm and 2 n of the base, all eight outcomes independent of each other, so that a simulation has eight families
of k arms. They go through the whole analysis, `effects.effects_of`. Every other arm has a planted effect of 4 standard
deviations of the base's seeds, the others none. Prints, for each setting,

- the families whose intervals hold all true differences (to be 95 % at least),
- those where an arm without an effect is called one (at most 5 %),
- the planted effects that are found, and those found with the wrong sign,
- the mean width of an interval in standard deviations, and what each method's share of the intervals is.

With `--settings extra` the same for settings that are harder or smaller: other spreads, families of one and three
arms, rounded and skewed values, interactions of a grid, patience. With `--settings power` how often effects are found
that are as large as what `effects.csv` calls detectable (its median; to be 80 %).
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cifar_ray.results.effects import INTERACTION, effects_of, is_effect
from cifar_ray.results.outcomes import CONVERGENCE, LOG_SCALE, PERFORMANCE, STABILITY
from cifar_ray.results.records import Row

OUTCOMES = (*PERFORMANCE, *CONVERGENCE, *STABILITY)
PLANTED = 4.0
"""In standard deviations."""

Spreads = Callable[[int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What the fake trainer draws from."""

    name: str
    num_arms: int
    num_seeds: int
    spreads: Spreads
    """Standard deviations (base and arms,), for a number of arms."""
    correlation: float = 0.0
    """Over seeds between arms."""
    step: float = 0.0
    """What values are rounded to, as shares of few images are."""
    skewed: bool = False
    """Exponential values, one seed in twenty two standard deviations worse than the mean, instead of normal ones."""
    grid: bool = False
    """The arms are those of a grid of 2 x 2 levels beside the base's: 4 single effects and 4 cells."""
    patience: str | None = None
    """The arms are what a patience would have kept. With half the seeds it differs: by a `normal` difference, or by
    one that is `skewed`, always a loss (exponential)."""


def equal(num_arms: int, rng: np.random.Generator) -> np.ndarray:
    return np.ones(num_arms + 1)


def one(index: int, spread: float) -> Spreads:
    def spreads(num_arms: int, rng: np.random.Generator) -> np.ndarray:
        return np.where(np.arange(num_arms + 1) == index, spread, 1.0)

    return spreads


def half(num_arms: int, rng: np.random.Generator) -> np.ndarray:
    return np.where(np.arange(num_arms + 1) > (num_arms + 1) // 2, 3.0, 1.0)


def lognormal(num_arms: int, rng: np.random.Generator) -> np.ndarray:
    return np.exp(0.5 * rng.normal(size=num_arms + 1))


def design_of(setting: Setting) -> Row:
    base: Row = {"name": "base", "factor": None, "level": None, "rate": "base", "control": None}
    arms = [base]
    if setting.grid:
        levels = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
        arms += [{"name": f"{factor}={level}", "factor": factor, "level": level} for factor, level in levels]
        for a in "12":
            arms += [
                {"name": f"a={a} x b={b}", "factor": "a x b", "level": f"{a} x {b}", "cells": {"a": a, "b": b}}
                for b in "12"
            ]
    else:
        arms += [{"name": f"f{j}=1", "factor": f"f{j}", "level": "1"} for j in range(setting.num_arms)]
    for arm in arms[1:]:
        arm |= {"rate": "base", "control": "base", "patience": 3 if setting.patience else None}
    return {"metric": "accuracy", "max_epochs": 15, "arms": arms}


def trained(setting: Setting, design: Row, effects: np.ndarray, rng: np.random.Generator) -> list[Row]:
    """Rows of runs.csv; `effects` (base and arms,) are the true differences from the base."""
    num_arms = len(design["arms"])
    num_base = setting.num_seeds * (1 if setting.patience else 2)
    of_seed = rng.normal(size=(len(OUTCOMES), 1, num_base))
    own = rng.normal(size=(len(OUTCOMES), num_arms, num_base))
    share = setting.correlation
    spreads = setting.spreads(num_arms - 1, rng)[:, None]
    if setting.skewed:
        own = 1 - rng.exponential(size=own.shape)
    values = spreads * (math.sqrt(share) * of_seed + math.sqrt(1 - share) * own)  # (outcomes, arms, seeds)
    if setting.patience:
        lost = rng.exponential(size=values.shape) if setting.patience == "skewed" else rng.normal(1, 1, values.shape)
        lost *= rng.random(values.shape) < 0.5
        values[:, 1:] = values[:, :1] - (lost - 0.5)[:, 1:]
    if setting.step:
        values = setting.step * np.round(values / setting.step)
    values += effects[:, None]
    rows = []
    for place, arm in enumerate(design["arms"]):
        for seed in range(num_base if place == 0 else setting.num_seeds):
            row: Row = {key: arm[key] for key in ("factor", "level", "rate", "control")}
            row |= {"arm": arm["name"], "seed": seed, "diverged": 0, "failure": None}
            for outcome, value in zip(OUTCOMES, values[:, place, seed].tolist(), strict=True):
                row[outcome] = math.exp(value) if outcome in LOG_SCALE else value
            rows.append(row)
    return rows


@dataclass
class Found:
    """Counts over the simulations of a setting."""

    families: int = 0
    covered: int = 0
    false_alarms: int = 0
    planted: int = 0
    found: int = 0
    wrong_sign: int = 0
    widths: list[float] = field(default_factory=list)
    methods: Counter[str] = field(default_factory=Counter)

    def add(self, rows: Sequence[Row], truth: Sequence[float]) -> None:
        self.families += 1
        self.covered += all(row["low"] <= true <= row["high"] for row, true in zip(rows, truth, strict=True))
        self.false_alarms += any(is_effect(row) for row, true in zip(rows, truth, strict=True) if true == 0)
        for row, true in zip(rows, truth, strict=True):
            self.planted += true != 0
            self.found += true != 0 and is_effect(row)
            self.wrong_sign += true != 0 and is_effect(row) and (row["difference"] > 0) != (true > 0)
            self.widths.append(row["high"] - row["low"])
            self.methods[row["method"]] += 1


def simulate(setting: Setting, num_families: int, rng: np.random.Generator) -> Found:
    """At least so many families; those of interactions alone for a grid."""
    design = design_of(setting)
    effects = np.array([PLANTED * (place % 2 == 0) for place in range(len(design["arms"]))])
    effects[0] = 0
    true = dict(zip([arm["name"] for arm in design["arms"]], effects.tolist(), strict=True))
    if setting.grid:  # the first two cells have an interaction, the others none
        for arm in design["arms"][5:]:
            single = sum(true[f"{factor}={level}"] for factor, level in arm["cells"].items())
            true[arm["name"]] = single + PLANTED * (arm["cells"]["a"] == "1")
        effects = np.array(list(true.values()))
    found = Found()
    while found.families < num_families:
        of_outcome: dict[str, list[Row]] = {}
        for row in effects_of(design, trained(setting, design, effects, rng)):
            of_outcome.setdefault(row["outcome"], []).append(row)
        for outcome, rows in of_outcome.items():
            if setting.grid:
                if outcome.startswith(INTERACTION):
                    found.add(rows, [PLANTED * row["level"].startswith("1") for row in rows])
            elif outcome in OUTCOMES and not (setting.patience and outcome in STABILITY):
                told = [row for row in rows if row["low"] is not None]
                found.add(told, [true[row["arm"]] for row in told])
    return found


def settings(extra: bool) -> list[Setting]:
    if not extra:
        kinds = [("equal", equal, 0.0), ("one arm 5 x", one(1, 5.0), 0.0)]
        kinds += [("seeds correlate 0.8", equal, 0.8), ("0.8, one arm 5 x", one(1, 5.0), 0.8)]
        return [Setting(name, k, n, *kind) for name, *kind in kinds for n in (3, 5) for k in (8, 20)]
    harder = [("one arm 2 x", one(1, 2.0)), ("base 3 x", one(0, 3.0)), ("base 1/3 x", one(0, 1 / 3))]
    harder += [("half the arms 3 x", half), ("log-normal, 0.5", lognormal)]
    found = [Setting(name, k, n, spreads) for name, spreads in harder for n in (3, 5) for k in (8, 20)]
    found += [Setting("seeds correlate 0.4", 8, n, equal, 0.4) for n in (3, 5)]
    found += [Setting(name, k, 5, kind) for name, kind in (("equal", equal), ("arm 5 x", one(1, 5.0))) for k in (1, 3)]
    found += [Setting("two seeds", 8, 2, equal)]
    found += [Setting("rounded to 1 sd", k, n, equal, step=1.0) for n in (3, 5) for k in (8, 20)]
    found += [Setting("skewed", k, n, equal, skewed=True) for n in (3, 5) for k in (8, 20)]
    for name, kind in (("equal", equal), ("one cell 5 x", one(5, 5.0))):
        found += [Setting(f"grid, {name}", 8, n, kind, grid=True) for n in (3, 5)]
    return found + [
        Setting(f"patience, {kind}", 3, n, equal, patience=kind) for kind in ("normal", "skewed") for n in (3, 5)
    ]


def power(setting: Setting, num_families: int, rng: np.random.Generator) -> tuple[float, Found]:
    """The median of what is called detectable where there is nothing, and what comes of effects of that size."""
    design = design_of(setting)
    arms = [arm["name"] for arm in design["arms"]]
    detectable = [
        row["detectable"]
        for _ in range(max(num_families // 16, 1))
        for row in effects_of(design, trained(setting, design, np.zeros(len(arms)), rng))
        if row["detectable"] is not None
    ]
    size = float(np.median(detectable))
    found = Found()
    while found.families < num_families:
        of_outcome: dict[str, list[Row]] = {}
        for row in effects_of(design, trained(setting, design, size * (np.arange(len(arms)) > 0), rng)):
            of_outcome.setdefault(row["outcome"], []).append(row)
        for rows in of_outcome.values():
            found.add(rows, [size] * len(rows))
    return size, found


def percent(count: int, total: int) -> str:
    share = count / max(total, 1)
    return f"{100 * share:5.1f} ± {100 * math.sqrt(share * (1 - share) / max(total, 1)):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=1000, help="of each setting; a simulation has eight")
    parser.add_argument("--settings", choices=("main", "extra", "power"), default="main")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    if args.settings == "power":
        for number, (num_seeds, num_arms) in enumerate(((3, 8), (3, 20), (5, 8), (5, 20))):
            setting = Setting("equal", num_arms, num_seeds, equal)
            size, found = power(setting, args.families, np.random.default_rng([args.seed, number]))
            share = percent(found.found, found.planted)
            print(f"k = {num_arms:2}, n = {num_seeds}: detectable {size:.2f} standard deviations, found in {share}")
        print(f"\n{args.families} families of each, seed {args.seed}")
        return
    print(
        "spread of seeds      k  n  families  hold all true     false alarm       found         wrong  width  methods"
    )
    for number, setting in enumerate(settings(args.settings == "extra")):
        found = simulate(setting, args.families, np.random.default_rng([args.seed, number]))
        methods = ", ".join(
            f"{name} {100 * count / found.methods.total():.0f} %" for name, count in found.methods.most_common()
        )
        print(
            f"{setting.name:19} {setting.num_arms:2} {setting.num_seeds:2}  {found.families:8}  "
            f"{percent(found.covered, found.families)}   {percent(found.false_alarms, found.families)}   "
            f"{100 * found.found / max(found.planted, 1):5.1f} %  {100 * found.wrong_sign / max(found.found, 1):5.2f} %"
            f"  {np.mean(found.widths):5.2f}  {methods}",
            flush=True,
        )
    print(f"\nseed {args.seed}, {time.perf_counter() - began:.0f} s; ± 1 standard error")


if __name__ == "__main__":
    main()
