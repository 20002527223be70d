"""What the choices of an ablation did, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from cifar_ray.files import write_json
from cifar_ray.results.ablation import runs_of
from cifar_ray.results.effects import effects_of, is_effect, seed_correlation
from cifar_ray.results.outcomes import CONVERGENCE, COST, LOG_SCALE, PERFORMANCE, STABILITY
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import EFFECTS_COLUMNS, RUNS_COLUMNS, Row, RunFolder, write_csv
from cifar_ray.results.simultaneous import Margin, Spread, dunnett_critical, seeds_needed, students_t, variance_prior

OUTCOMES = (*PERFORMANCE, *CONVERGENCE, *STABILITY, *COST)


def arm(name: str, control: str | None = "base", **more: Any) -> Row:
    factor, _, level = name.partition("=")
    fields: Row = {"name": name, "factor": factor if level else None, "level": level or None, "rate": "base"}
    return fields | {"lr": 0.25, "lr_schedule": "cosine", "control": control, "patience": None} | more


def design(*arms: Row) -> Row:
    return {"metric": "accuracy", "max_epochs": 15, "arms": [arm("base", None), *arms]}


def runs(plan: Row, values: Mapping[str, Sequence[float | None]], outcome: str = "test_metric") -> list[Row]:
    """Rows of runs.csv with one outcome; every training reached the target in its third epoch."""
    rows = []
    for one in plan["arms"]:
        for seed, value in enumerate(values.get(one["name"], [])):
            row: Row = dict.fromkeys(RUNS_COLUMNS)
            row |= {"arm": one["name"], "seed": seed, "diverged": 0, "epochs_to_target": 3, "loss_area": 1.0}
            row |= {name: one[name] for name in ("factor", "level", "rate", "control")}
            rows.append(row | {outcome: value})
    return rows


def effects(plan: Row, rows: Sequence[Row], outcome: str = "test_metric") -> dict[str, Row]:
    """Rows of one outcome by arm."""
    return {row["arm"]: row for row in effects_of(plan, rows) if row["outcome"] == outcome}


def reasons(plan: Row, rows: Sequence[Row], outcome: str = "test_metric") -> list[str | None]:
    return [row["reason"] for row in effects(plan, rows, outcome).values()]


BASE = [0.90, 0.91, 0.89, 0.92, 0.905, 0.895]


@pytest.mark.parametrize(("sizes", "control"), [((3,), 6), ((5, 5, 5, 5), 10), ((4, 3, 6), 4), ((3,) * 7, 6)])
def test_dunnetts_critical_value_is_scipys(sizes: tuple[int, ...], control: int) -> None:
    rng = np.random.default_rng(0)
    arms, base = [rng.normal(size=size) for size in sizes], rng.normal(size=control)
    freedom = sum(sizes) + control - len(sizes) - 1
    pooled = (sum(one.var(ddof=1) * (len(one) - 1) for one in arms) + base.var(ddof=1) * (control - 1)) / freedom
    found = stats.dunnett(*arms, control=base, random_state=0).confidence_interval()
    critical = (found.high[0] - found.low[0]) / 2 / math.sqrt(pooled * (1 / sizes[0] + 1 / control))
    assert dunnett_critical(sizes, control, freedom) == pytest.approx(critical, abs=0.01)


def test_prior_of_variances_solves_smyths_equations() -> None:
    freedoms = np.full(40, 4.0)
    variances = np.random.default_rng(1).chisquare(4, 40) / 4 * 6 / np.random.default_rng(2).chisquare(6, 40)
    freedom, variance = variance_prior(variances, freedoms)
    logs = np.log(variances) - special.digamma(2) + math.log(2)
    assert special.polygamma(1, freedom / 2) == pytest.approx(logs.var(ddof=1) - special.polygamma(1, 2))
    assert math.log(variance) == pytest.approx(logs.mean() + special.digamma(freedom / 2) - math.log(freedom / 2))
    assert 2 < freedom < 100
    assert variance_prior(np.full(5, 0.3), np.full(5, 4.0))[0] == math.inf


def test_intervals_of_arms_that_spread_alike_are_dunnetts() -> None:
    rng = np.random.default_rng(11)
    plan = design(*(arm(f"f{j}=1") for j in range(4)))
    values = {one["name"]: rng.normal(0.9, 0.01, 10 if one["name"] == "base" else 5).tolist() for one in plan["arms"]}
    found = effects(plan, runs(plan, values))
    names = list(found)
    scipys = stats.dunnett(*(values[name] for name in names), control=values["base"], random_state=0)
    interval = scipys.confidence_interval()
    for name, low, high in zip(names, interval.low, interval.high, strict=True):
        row = found[name]
        assert row["method"] == "pooled (Dunnett)"
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-4)
        assert row["low"] < row["low_alone"] < row["difference"] < row["high_alone"] < row["high"]
        assert (row["n_control"], row["n"], row["scale"], row["reason"]) == (10, 5, "difference", None)


def test_a_single_arm_has_students_interval() -> None:
    plan = design(arm("norm=none"))
    values = {"base": BASE, "norm=none": [0.85, 0.855, 0.862]}
    row = effects(plan, runs(plan, values))["norm=none"]
    expected = stats.ttest_ind(values["norm=none"], values["base"]).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=1e-5)
    assert (row["low_alone"], row["high_alone"]) == pytest.approx(tuple(expected), abs=1e-5)
    assert is_effect(row) and row["seeds_needed"] is None
    assert (row["mean_control"], row["mean"]) == pytest.approx((np.mean(BASE), np.mean(values["norm=none"])))


def test_an_arm_that_spreads_more_is_judged_by_its_own_spread() -> None:
    steady = [0.901, 0.911, 0.891]
    plan = design(arm("a=1"), arm("b=1"), arm("c=1"))
    values = {"base": BASE, "a=1": steady, "b=1": steady, "c=1": [0.5, 0.9, 0.7]}
    found = effects(plan, runs(plan, values))
    row = found["c=1"]
    assert row["method"] == "own spread (Welch)"
    welch = stats.ttest_ind(values["c=1"], BASE, equal_var=False)
    error = abs(welch.statistic) ** -1 * abs(row["difference"])
    assert (row["high"] - row["low"]) / 2 >= students_t(welch.df, 3) * error * (1 - 1e-9)
    assert (row["high"] - row["low"]) > 3 * (found["a=1"]["high"] - found["a=1"]["low"])


def test_seeds_are_paired_where_that_surely_pays() -> None:
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0, 0.05, 10)
    plan = design(arm("a=1"))
    values = {"base": (0.8 + of_seed).tolist(), "a=1": (0.81 + of_seed[:5] + rng.normal(0, 0.001, 5)).tolist()}
    rows = runs(plan, values)
    row = effects(plan, rows)["a=1"]
    expected = stats.ttest_rel(values["a=1"], values["base"][:5]).confidence_interval()
    assert (row["method"], row["n_control"], row["n"]) == ("paired", 5, 5)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=1e-5)
    assert row["difference"] == pytest.approx(row["mean"] - row["mean_control"])
    correlation = seed_correlation(rows)
    assert correlation is not None and correlation.estimate > 0.99 and correlation.num_seeds == 5
    alone = {name: rng.normal(0.8, 0.05, len(one)).tolist() for name, one in values.items()}
    assert effects(plan, runs(plan, alone))["a=1"]["method"] != "paired"


def test_what_a_patience_kept_is_compared_with_its_own_training() -> None:
    plan = design(arm("early-stopping=3", patience=3), arm("early-stopping=5", patience=5))
    values = {"base": BASE, "early-stopping=3": [0.88, 0.91, 0.88, 0.91, 0.905, 0.895], "early-stopping=5": BASE}
    found = effects(plan, runs(plan, values))
    row = found["early-stopping=3"]
    expected = stats.ttest_rel(values["early-stopping=3"], BASE).confidence_interval()
    assert row["method"] == "paired"
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    assert found["early-stopping=5"]["reason"] == "no seed differs from its control"
    assert found["early-stopping=5"]["difference"] == 0
    of_stability = runs(plan, values, "grad_norm_max")
    assert set(reasons(plan, of_stability, "grad_norm_max")) == {"the same training as its control"}


def diverge(rows: list[Row], name: str, number: int, failure: str = "non-finite loss in epoch 2") -> list[Row]:
    for row in [row for row in rows if row["arm"] == name][:number]:
        row |= {"diverged": int(failure.startswith("non-finite")), "failure": failure, "test_metric": None}
        row |= {"epochs_to_target": None, "loss_area": None}
    return rows


def test_an_arm_that_diverged_has_no_interval_and_no_mean_of_those_that_survived() -> None:
    plan = design(arm("a=1"), arm("b=1"))
    values = {"base": BASE, "a=1": BASE[:3], "b=1": BASE[1:4]}
    whole = effects(plan, runs(plan, values))
    for failure, reason in (("non-finite loss", "2 of 3 seeds diverged"), ("out of memory", "2 of 3 seeds failed")):
        rows = diverge(runs(plan, values), "a=1", 2, failure)
        found = effects(plan, rows)
        row = found["a=1"]
        assert row["reason"] == reason
        assert [row[key] for key in ("mean", "difference", "low", "high", "method", "detectable")] == [None] * 6
        assert not is_effect(row)
        assert found["b=1"]["reason"] is None and found["b=1"]["low"] is not None
        assert effects(plan, rows, "loss_area")["a=1"]["reached"] == "1 of 3"
    assert whole["a=1"]["low"] is not None
    rows = diverge(runs(plan, values), "base", 1)
    assert reasons(plan, rows) == ["base: 1 of 6 seeds diverged"] * 2
    rows = diverge(runs(plan, values), "a=1", 3)
    assert reasons(plan, diverge(rows, "b=1", 3)) == ["3 of 3 seeds diverged"] * 2


def test_few_seeds_and_equal_scores_claim_nothing() -> None:
    plan = design(arm("a=1"), arm("b=1"))
    found = effects(plan, runs(plan, {"base": BASE, "a=1": [0.5], "b=1": BASE[:3]}))
    assert (found["a=1"]["reason"], found["a=1"]["low"]) == ("one seed", None)
    assert found["a=1"]["difference"] is not None and found["b=1"]["low"] is not None
    assert reasons(plan, runs(plan, {"base": [0.9], "a=1": [0.5, 0.6]})) == ["base: one seed", "not trained"]
    same = runs(plan, {"base": [0.9] * 6, "a=1": [0.5] * 3, "b=1": [0.9] * 3})
    assert reasons(plan, same) == ["all seeds of each arm scored the same"] * 2
    # Equal seeds in one arm take the spread of the others.
    found = effects(plan, runs(plan, {"base": BASE, "a=1": [0.9] * 3, "b=1": BASE[:3]}))
    widths = [row["high"] - row["low"] for row in found.values()]
    assert widths[0] >= widths[1] * 0.99 > 0.01
    for pair in (([0.9] * 6, [0.91, 0.92, 0.905]), (BASE, [0.9] * 3), ([0.9] * 6, [0.9, 0.9, 0.900001])):
        row = effects(plan, runs(plan, {"base": pair[0], "a=1": pair[1]}))["a=1"]
        assert row["high"] > row["low"]


def test_without_histories_convergence_is_not_measured_and_scores_are() -> None:
    plan = design(arm("a=1"))
    rows = runs(plan, {"base": BASE, "a=1": BASE[:3]})
    for row in rows:
        row |= {"epochs_to_target": None, "loss_area": None}
    for outcome in (*CONVERGENCE, *STABILITY):
        assert reasons(plan, rows, outcome) == ["not measured"]
    assert reasons(plan, rows) == [None]
    rows[-1] |= {"test_metric": None}
    assert reasons(plan, rows) == ["not measured for 1 of 3 seeds"]


def test_a_training_that_never_reached_the_target_counts_the_horizon() -> None:
    plan = design(arm("a=1"))
    rows = runs(plan, {"base": [4, 5, 6, 5, 4, 6], "a=1": [None, 14, None]}, "epochs_to_target")
    row = effects(plan, rows, "epochs_to_target")["a=1"]
    assert row["mean"] == pytest.approx((15 + 14 + 15) / 3)
    assert (row["reached_control"], row["reached"]) == ("6 of 6", "1 of 3")
    assert is_effect(row)
    never = runs(plan, {"base": BASE, "a=1": [None] * 3}, "epochs_to_target")
    row = effects(plan, [one | {"epochs_to_target": None} for one in never], "epochs_to_target")["a=1"]
    assert row["reason"] == "not measured"  # without a target


def test_stability_is_compared_by_ratios() -> None:
    plan = design(arm("a=1"))
    rows = runs(plan, {"base": [1.0, 2.0, 1.4, 1.2], "a=1": [10.0, 20.0]}, "grad_norm_max")
    row = effects(plan, rows, "grad_norm_max")["a=1"]
    assert row["scale"] == "log"
    assert row["mean"] == pytest.approx(math.sqrt(200))
    assert row["difference"] == pytest.approx(math.log(row["mean"] / row["mean_control"]))
    rows = runs(plan, {"base": [1.0, 2.0, 1.4, 1.2], "a=1": [0.0, 20.0]}, "grad_norm_max")
    assert reasons(plan, rows, "grad_norm_max") == ["not measured for 1 of 2 seeds"]


def test_families_are_those_of_a_control_and_a_kind_of_rate() -> None:
    rng = np.random.default_rng(3)
    own = [arm(f"norm={level}, own rate", rate="own") for level in ("none", "group")]
    plan = design(arm("a=1"), arm("b=1"), *own)
    values = {one["name"]: rng.normal(0.9, 0.01, 6 if one["name"] == "base" else 3).tolist() for one in plan["arms"]}
    together = effects(plan, runs(plan, values))
    apart = effects(design(arm("a=1"), arm("b=1")), runs(plan, values))
    assert {name: together[name] for name in apart} == apart


def test_what_is_detectable_and_how_many_seeds_would_settle_a_difference() -> None:
    margin = Margin(half=0.06, half_alone=0.04, critical=3.0, standard_error=0.02, freedom=8.0, number=4, method="")
    assert margin.detectable == pytest.approx((students_t(8, 4) + stats.t.ppf(0.8, 8)) * 0.02)
    needed = seeds_needed(0.03, margin, 5, 1.0)

    def finds(seeds: int) -> bool:
        freedom = 8 * (seeds - 1) / 4
        critical = stats.t.ppf((1 + 0.95**0.25) / 2, freedom) + stats.t.ppf(0.8, freedom)
        return bool(critical * 0.02 * math.sqrt(5 / seeds) <= 0.03)

    assert finds(needed) and not finds(needed - 1)
    assert seeds_needed(0.0, margin, 5, 1.0) == seeds_needed(1e-5, margin, 5, 1.0) == 1000
    assert seeds_needed(5.0, margin, 5, 1.0) == 6
    plan = design(arm("a=1"))
    rows = runs(plan, {"base": BASE[:3], "a=1": [0.905, 0.91, 0.89]})
    few = effects(plan, rows)["a=1"]
    assert not is_effect(few) and few["detectable"] > (few["high"] - few["low"]) / 2
    assert 3 < few["seeds_needed"] <= 1000


def test_interactions_are_cells_less_both_single_effects() -> None:
    rng = np.random.default_rng(6)
    cell = arm("a=1 x b=1", factor="a x b", level="1 x 1", cells={"a": "1", "b": "1"})
    plan = design(arm("a=1"), arm("b=1"), cell)
    values = {one["name"]: rng.normal(0.9, 0.01, 8 if one["name"] == "base" else 4).tolist() for one in plan["arms"]}
    rows = runs(plan, values)
    row = effects(plan, rows, "interaction: test_metric")["a=1 x b=1"]
    mean = {name: np.mean(one) for name, one in values.items()}
    assert row["difference"] == pytest.approx(mean["a=1 x b=1"] - mean["a=1"] - mean["b=1"] + mean["base"])
    variances = {name: np.var(one, ddof=1) for name, one in values.items()}
    pooled = (3 * sum(variances.values()) + 4 * variances["base"]) / 16
    assert row["high"] - row["difference"] == pytest.approx(stats.t.ppf(0.975, 16) * math.sqrt(pooled * 7 / 8))
    assert (row["factor"], row["level"], row["mean"], row["method"]) == ("a x b", "1 x 1", None, "pooled")
    assert effects(plan, rows)["a=1 x b=1"]["difference"] == pytest.approx(mean["a=1 x b=1"] - mean["base"])
    diverge(rows, "b=1", 1)
    assert reasons(plan, rows, "interaction: test_metric") == ["b=1: 1 of 4 seeds diverged"]


def epochs(metrics: Sequence[float], losses: Sequence[float], norm: float | None = 2.0) -> list[Row]:
    of_epochs = enumerate(zip(metrics, losses, strict=True), start=1)
    shared = {"grad_norm_max": norm, "train_s": 0.5}
    return [{"epoch": epoch, "val_metric": metric, "val_loss": loss, **shared} for epoch, (metric, loss) in of_epochs]


def result(config: str, seed: int, **more: Any) -> Row:
    row = {"model": f"{config}-seed{seed}", "config": config, "seed": seed, "training_seed": 100 + seed}
    scores = {"val_metric": 0.9, "val_accuracy": 0.9, "test_accuracy": 0.88, "test_loss": 0.4, "train_accuracy": 0.97}
    return (
        row | scores | {"epochs": 6, "best_epoch": 6, "num_params": 1000, "failure": None, "test_f1_macro": 0.8} | more
    )


def test_runs_are_measured_from_results_and_histories(tmp_path: Path) -> None:
    plan = design(arm("early-stopping=1", patience=1), arm("a=0.10")) | {"max_epochs": 6}
    rows = [result("base", 1), result("base", 0), result("early-stopping=1", 0, epochs=3, best_epoch=2, val_metric=0.8)]
    rows += [result("a=0.10", 0, failure="non-finite loss in epoch 2", epochs=None, val_metric=0.3)]
    losses = [1.0, 0.8, 0.9, 0.5, 0.4, 0.6]
    histories = {
        "base-seed0": epochs([0.5, 0.8, 0.7, 0.885, 0.88, 0.9], losses),
        "base-seed1": [],
        "a=0.10-seed0": epochs([0.1], [3.0], 400.0),
    }
    found = runs_of(plan, rows, histories)
    assert [(row["arm"], row["seed"]) for row in found] == [
        ("base", 0), ("base", 1), ("early-stopping=1", 0), ("a=0.10", 0),
    ]  # fmt: skip
    full, bare, stopped, diverged = found
    assert all(set(row) == set(RUNS_COLUMNS) for row in found)
    assert (full["epochs_to_target"], full["seconds_to_target"]) == (4, 2.0)  # the target is 0.882
    assert full["loss_area"] == pytest.approx(np.mean(losses))
    assert full["oscillation"] == pytest.approx((0.1 + 0.2) / 2)
    assert (full["gap"], full["grad_norm_max"], full["epoch_s"]) == (pytest.approx(0.07), 2.0, 0.5)
    assert (full["test_metric"], full["lr"], full["lr_schedule"]) == (0.88, 0.25, "cosine")
    assert [bare[key] for key in ("epochs_to_target", "loss_area", "grad_norm_max", "oscillation")] == [None] * 4
    assert bare["val_metric"] == 0.9
    assert stopped["epochs"] == 3 and stopped["epochs_to_target"] is None
    # Its weights are those of the second epoch from then on.
    assert stopped["loss_area"] == pytest.approx((1.0 + 0.8 + 0.9 + 3 * 0.8) / 6)
    assert (diverged["diverged"], diverged["epochs"], diverged["grad_norm_max"]) == (1, 1, 400.0)
    assert [diverged[key] for key in ("val_metric", "test_metric", "gap", "best_epoch", "loss_area")] == [None] * 5
    assert runs_of({**plan, "metric": "f1"}, rows, histories)[0]["test_metric"] == 0.8
    told = runs_of(plan, rows, histories, {"base-seed1": "no space left"})[1]
    assert (told["failure"], told["diverged"], told["val_metric"]) == ("no space left", 0, None)

    folder = RunFolder(tmp_path)
    write_json(folder.run_json, {"kind": "ablate"})
    assert (Records(folder).design, Records(folder).ablation_runs, Records(folder).effects) == ({}, [], [])
    write_json(folder.design_json, plan)
    write_csv(folder.runs_csv, RUNS_COLUMNS, found)
    write_csv(folder.effects_csv, EFFECTS_COLUMNS, effects_of(plan, found))
    read = Records(folder)
    assert read.design == plan
    assert read.ablation_runs[3]["level"] == "0.10"
    assert read.ablation_runs[0]["loss_area"] == full["loss_area"]
    assert {row["outcome"] for row in read.effects} == set(OUTCOMES)
    assert all(set(row) == set(EFFECTS_COLUMNS) for row in effects_of(plan, found))
    assert effects_of(plan, read.ablation_runs) == effects_of(plan, found)


def equal(place: int) -> float:
    return 1.0


def one_arm_wider(place: int) -> float:
    return 5.0 if place == 1 else 1.0


@pytest.mark.parametrize("spread", [equal, one_arm_wider])
@pytest.mark.parametrize("share", [0.0, 0.8], ids=["independent", "correlated"])
def test_intervals_hold_all_true_differences_together(spread: Callable[[int], float], share: float) -> None:
    """Seeded simulation of 360 families of 6 arms, 4 seeds each: 95 % hold; 92 % is 2.5 standard errors below.

    The bound is one-sided: intervals of arms that do not surely spread alike are wider than they need be, and those of
    correlated seeds that are not paired too. Intervals that stand alone must fail, or the simulation could not tell.
    """
    rng = np.random.default_rng(8)
    plan = design(*(arm(f"f{j}=1") for j in range(6)))
    true = {one["name"]: 3.0 * (place % 2 == 0) for place, one in enumerate(plan["arms"])} | {"base": 0.0}
    held, held_alone, false_alarms, families = 0, 0, 0, 0
    for _ in range(40):
        of_seed = rng.normal(size=(len(OUTCOMES), 8))
        rows = []
        for place, one in enumerate(plan["arms"]):
            for seed in range(8 if place == 0 else 4):
                noise = math.sqrt(share) * of_seed[:, seed] + math.sqrt(1 - share) * rng.normal(size=len(OUTCOMES))
                values = true[one["name"]] + spread(place) * noise
                logs = [name in LOG_SCALE for name in OUTCOMES]
                row = runs(design(one), {one["name"]: [0.0]})[0] | {"seed": seed}
                rows.append(row | dict(zip(OUTCOMES, np.where(logs, np.exp(values), values).tolist(), strict=True)))
        by_outcome: dict[str, list[Row]] = {}
        for row in effects_of(plan, rows):
            by_outcome.setdefault(row["outcome"], []).append(row)
        for family in by_outcome.values():
            families += 1
            held += all(row["low"] <= true[row["arm"]] <= row["high"] for row in family)
            held_alone += all(row["low_alone"] <= true[row["arm"]] <= row["high_alone"] for row in family)
            false_alarms += any(is_effect(row) for row in family if true[row["arm"]] == 0)
    assert families == 360
    assert held >= 0.92 * families
    assert false_alarms <= 0.08 * families
    assert share or held_alone < 0.90 * families


def test_margins_never_shrink_below_welchs_where_spreads_differ() -> None:
    variances = {"base": 1.0, "a": 30.0, "b": 0.5, "c": 0.7, "d": 0.02}
    spread = Spread(variances, {"base": 10, "a": 5, "b": 5, "c": 5, "d": 5})
    assert not spread.equal
    for name in "abcd":
        margin = spread.margin({name: 1.0, "base": -1.0}, 4, ["a", "b", "c", "d"])
        error = math.sqrt(variances[name] / 5 + variances["base"] / 10)
        freedom = error**4 / ((variances[name] / 5) ** 2 / 4 + (variances["base"] / 10) ** 2 / 9)
        assert margin.half >= students_t(freedom, 4) * error * (1 - 1e-9)


def test_an_arm_of_twice_the_mean_variance_is_judged_by_it_even_where_chance_may_have_done_it() -> None:
    spread = Spread({"base": 1.0, "a": 0.6, "b": 3.2, "c": 0.5}, {"base": 6, "a": 3, "b": 3, "c": 3})
    assert spread.equal
    by_arm = {name: spread.margin({name: 1.0, "base": -1.0}, 3, ["a", "b", "c"]) for name in "abc"}
    assert [one.method for one in by_arm.values()] == ["pooled (Dunnett)", "own spread (Welch)", "pooled (Dunnett)"]
    assert by_arm["b"].half > by_arm["a"].half == by_arm["c"].half


def test_equal_seeds_prove_no_variance_of_zero() -> None:
    plan = design(*(arm(f"early-stopping={patience}", patience=patience) for patience in (2, 3)))
    lower = {
        "early-stopping=2": [0.89, 0.90, 0.87, 0.92, 0.90, 0.895],
        "early-stopping=3": [one - 0.01 for one in BASE],
    }
    found = effects(plan, runs(plan, {"base": BASE} | lower))
    widths = [row["high"] - row["low"] for row in found.values()]
    assert widths[0] > 0.005 and widths[1] == pytest.approx(widths[0] / math.sqrt(2), rel=0.01)
    alone = effects(design(plan["arms"][2]), runs(plan, {"base": BASE} | lower))["early-stopping=3"]
    assert (alone["reason"], alone["low"]) == ("the same difference with all seeds", None)

    variances, sizes = {"base": 1.0, "a": 0.0, "b": 90.0, "c": 0.5, "d": 0.01}, {"base": 10}
    spread = Spread(variances, sizes | dict.fromkeys("abcd", 5))
    assert not spread.equal
    margin = spread.margin({"a": 1.0, "base": -1.0}, 4, ["a", "b", "c", "d"])
    assert margin.half > students_t(spread.pooled_freedom, 4) * math.sqrt(spread.pooled / 5)
