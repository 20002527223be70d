"""What the report of an ablation says: each clause where its number is, and nothing where it is not."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.ablation import make_ablation, make_design

from cifar_ray.files import write_json
from cifar_ray.reporting import effects_design, effects_reflection, effects_words
from cifar_ray.reporting.effects import effects, effects_headline
from cifar_ray.reporting.effects_figures import ForestRow, forest_figure
from cifar_ray.reporting.experiment import Experiment
from cifar_ray.reporting.render import build_report, sections_of
from cifar_ray.reporting.terminal import table_of
from cifar_ray.results.effects import ALIKE, is_effect
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import EFFECTS_COLUMNS, RUNS_COLUMNS, SWEEP_COLUMNS, Row, RunFolder, write_csv

BETTER = {"difference": 0.02, "low": 0.01, "high": 0.03}
WORSE = {"difference": -0.031, "low": -0.04, "high": -0.022}
OPEN = {"difference": -0.002, "low": -0.0095, "high": 0.0055, "detectable": 0.009, "seeds_needed": 14}
NO_SCORE = {"reason": "3 of 5 seeds diverged"}


class Made:
    """An ablation written by hand: rows of effects.csv by outcome and arm, rows of runs.csv by arm."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        self.design = make_design()
        self.run: Row = {"kind": "ablate", "metric": "accuracy", "data": {}}
        self.effects: list[Row] = []
        self.runs: list[Row] = []
        self.sweep: list[Row] = []

    def effect(self, arm: str, outcome: str = "test_metric", **numbers: Any) -> None:
        of = next(one for one in self.design["arms"] if one["name"] == arm)
        row = {name: of[name] for name in ("factor", "level", "rate", "control")}
        self.effects.append({"arm": arm, "outcome": outcome, "n": 5, **row, **numbers})

    def trained(self, arm: str, seeds: int = 5, **numbers: Any) -> None:
        self.runs += [{"arm": arm, "seed": seed, "diverged": 0, "epochs": 15, **numbers} for seed in range(seeds)]

    def read(self) -> Experiment:
        write_json(self.folder.run_json, self.run)
        write_json(self.folder.design_json, self.design)
        write_csv(self.folder.effects_csv, EFFECTS_COLUMNS, self.effects)
        write_csv(self.folder.runs_csv, RUNS_COLUMNS, self.runs)
        write_csv(self.folder.sweep_csv, SWEEP_COLUMNS, self.sweep)
        return Experiment(Records(self.folder))

    def said(self, factor: str) -> str:
        return " ".join(effects_words.entry(self.read(), factor)[1])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "run")


# A factor.


def test_nothing_is_said_of_a_factor_without_numbers(made: Made) -> None:
    assert all(made.said(str(one["name"])) == "" for one in made.design["factors"])
    assert not any(effects(Records(made.folder))[0].entries)


def test_an_effect_is_told_with_its_interval_and_nothing_that_would_settle_it(made: Made) -> None:
    made.effect("dropout=0.1", **BETTER, detectable=0.009)
    made.effect("dropout=0.3", **WORSE)
    assert made.said("dropout") == (
        "On test, dropout 0.1 is better than 0: +2.00 points (+1.00 to +3.00); dropout 0.3 is worse than 0: "
        "-3.10 points (-4.00 to -2.20)."
    )


def test_an_interval_that_holds_zero_is_no_effect_and_says_what_would_have_been_seen(made: Made) -> None:
    made.effect("residual=true", **OPEN)
    assert made.said("residual") == (
        "On test, residual true cannot be told apart from false: -0.20 points (-0.95 to +0.55). A difference of 0.90 "
        "points would have been seen here; to settle one as large as this takes about 14 seeds a level."
    )


def test_an_interval_that_ends_at_zero_is_no_effect(made: Made) -> None:
    made.effect("residual=true", difference=0.01, low=0.0, high=0.02)
    assert "cannot be told apart" in made.said("residual")
    assert effects_reflection.changes(made.read()) is None


@pytest.mark.parametrize(
    ("missing", "said", "not_said"),
    [
        ("detectable", "settle one as large as this takes about 14", "would have been seen"),
        ("seeds_needed", "A difference of 0.90 points would have been seen here.", "settle"),
    ],
)
def test_each_half_of_the_power_is_told_alone(made: Made, missing: str, said: str, not_said: str) -> None:
    made.effect("residual=true", **(OPEN | {missing: None}))
    assert said in made.said("residual") and not_said not in made.said("residual")


def test_a_level_that_varies_too_much_for_any_difference_is_said_to(made: Made) -> None:
    made.effect("activation=mish", **OPEN)
    made.effect("activation=gelu", **(OPEN | {"detectable": 1.44}))
    assert (
        "A difference of 0.90 points would have been seen here; gelu varies too much from seed to seed for any "
        "difference to be seen here; to settle"
    ) in made.said("activation")


def test_several_levels_that_cannot_be_told_are_one_clause(made: Made) -> None:
    made.effect("activation=mish", **OPEN)
    made.effect("activation=gelu", **(OPEN | {"seeds_needed": 1000}))
    text = made.said("activation")
    assert "mish -0.20 points (-0.95 to +0.55) and gelu -0.20 points (-0.95 to +0.55) cannot be told apart" in text
    assert "about 14 seeds a level for mish and 1,000 seeds a level or more for gelu" in text


def test_a_level_is_told_at_the_bases_rate_and_at_its_own(made: Made) -> None:
    made.effect("norm=none", **WORSE)
    made.effect("norm=none, own rate", **OPEN)
    assert made.said("norm").startswith(
        "On test, norm none at the base's rate of 0.25 is worse than batch: -3.10 points (-4.00 to -2.20); at its own "
        "rate of 0.083 it cannot be told apart from batch: -0.20 points (-0.95 to +0.55)."
    )


def test_a_shared_rate_is_told_where_the_sweep_says_so(made: Made) -> None:
    assert effects_words.shared_rate(made.read(), "norm") is None
    rows = {"norm=group": 0.25, "norm=evonorm_s0": 0.75, "norm=none": 0.083}
    made.sweep = [
        {"arm": arm, "lr": lr, "chosen": int(lr == best)} for arm, best in rows.items() for lr in (0.25, 0.75)
    ]
    made.sweep += [{"arm": "optimizer=muon", "lr": lr, "chosen": 0} for lr in (0.083, 0.25)]
    found = made.read()
    assert effects_words.shared_rate(found, "norm") == (
        "Of the learning rates that were tried the base's, 0.25, is the best for group, too."
    )
    assert effects_words.shared_rate(found, "optimizer") == (
        "None of the learning rates that were tried holds for muon: with each a training failed."
    )
    assert effects_words.shared_rate(found, "dropout") is None


def test_levels_at_their_own_rates_are_compared_with_the_base_at_its_own(made: Made) -> None:
    assert "own best rate" not in " ".join(effects_design.design(made.read()))
    base = made.design["arms"][0]
    made.design["arms"].append(base | {"name": "base, own rate", "rate": "own", "lr": 0.083})
    made.trained("base, own rate", test_metric=0.91)
    found = made.read()
    assert "The base's own best rate is 0.083" in " ".join(effects_design.design(found))
    table = effects(found.records)[0].tables[0]
    assert table.rows[0][1:3] == ["small-cnn", "91.00 (0.00)"] and table.marks[0] == ["base", "own rate 0.083"]


def test_what_the_control_lacks_is_said_of_it(made: Made) -> None:
    made.effect("residual=true", reason="base: 1 of 10 seeds diverged")
    assert made.said("residual") == "On test, residual true cannot be compared, since 1 of 10 seeds of base diverged."


def test_an_arm_of_which_seeds_diverged_has_no_score(made: Made) -> None:
    made.effect("kernel-size=5", **NO_SCORE)
    made.trained("kernel-size=5", seeds=2, test_metric=0.99, val_metric=0.99)
    made.trained("kernel-size=5", seeds=3, diverged=1)
    made.trained("base", seeds=10, test_metric=0.9, val_metric=0.9)
    assert "kernel-size 5 cannot be compared, since 3 of 5 seeds diverged" in made.said("kernel-size")
    table = effects(Records(made.folder))[0].tables[0]
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert (row["level"], row["test accuracy %"], row["val accuracy %"]) == ("5", "-", "-")
    assert table.marks[1] == ["3 of 5 diverged"]


def test_divergences_are_told_where_the_effect_does_not(made: Made) -> None:
    made.trained("kernel-size=5", seeds=1)
    made.trained("kernel-size=5", seeds=2, diverged=1)
    assert made.said("kernel-size") == "2 of 3 seeds of kernel-size 5 diverged."


def test_one_seed_has_no_interval(made: Made) -> None:
    made.effect("residual=true", difference=-0.01, reason="one seed")
    assert made.said("residual") == "On test, residual true has no interval (one seed): -1.00 points."


def test_what_failed_for_another_reason_has_no_mean_either(made: Made) -> None:
    made.trained("residual=true", seeds=4, test_metric=0.99)
    made.trained("residual=true", seeds=1, failure="out of memory")
    made.read()
    table = effects(Records(made.folder))[0].tables[0]
    assert table.rows[0][2] == "-" and table.marks[0] == ["1 of 5 failed"]


def test_cost_is_told_where_it_differs(made: Made) -> None:
    made.trained("base", epoch_s=0.6, num_params=1000)
    made.trained("activation=mish", epoch_s=0.9, num_params=1000)
    made.trained("activation=gelu", epoch_s=0.62, num_params=1500)
    made.trained("residual=true", epoch_s=0.9, num_params=1000)
    made.effect("activation=mish", "epoch_s", **WORSE)
    made.effect("residual=true", "epoch_s", difference=0.02, low=-0.05, high=0.09, scale="log")
    assert made.said("activation") == (
        "Cost: mish takes 1.5 times the seconds an epoch (0.9 against 0.6); gelu takes 1.5 times the parameters (1.5k "
        "against 1k)."
    )
    assert made.said("residual") == "Cost: about the same time and parameters."


def test_the_seconds_of_a_head_are_told_to_leave_its_features_out(made: Made) -> None:
    (arm,) = (one for one in made.design["arms"] if one["name"] == "residual=true")
    arm["config"] = {**arm["config"], "model": {"finetune": "head"}}
    made.trained("base", epoch_s=20.0)
    made.trained("residual=true", epoch_s=0.1)
    made.effect("residual=true", "epoch_s", difference=-5.3, low=-5.6, high=-5.0, scale="log")
    assert made.said("residual") == (
        "Cost: residual true takes 0.5 % of the seconds an epoch (0.1 against 20; without the features of the images, "
        "which a frozen backbone computes once)."
    )


def test_a_cost_that_a_busy_machine_hides_is_not_called_the_same(made: Made) -> None:
    made.trained("base", seeds=2, epoch_s=0.6, num_params=1000)
    made.trained("base", seeds=1, epoch_s=0.7, num_params=1000)
    made.trained("residual=true", seeds=1, epoch_s=0.9, num_params=1000)
    made.trained("residual=true", seeds=1, epoch_s=0.6, num_params=1000)
    made.effect("residual=true", "epoch_s", difference=0.15, low=-0.3, high=0.6, scale="log")
    assert made.said("residual") == (
        "Cost: how long residual true takes cannot be told (0.6 to 0.9 seconds an epoch by seed, against 0.6 to 0.7)."
    )


def test_what_else_can_be_told_is_told_by_level(made: Made) -> None:
    late = {"difference": 3.2, "low": 1.1, "high": 5.3, "reached": "3 of 5"}
    made.effect("norm=group", "epochs_to_target", **late)
    made.effect("norm=group", "oscillation", difference=math.log(2), low=0.3, high=1.1, scale="log")
    made.effect("norm=group", "grad_norm_max", difference=math.log(3), low=0.3, high=2.1, scale="log")
    made.effect("norm=group", "gap", **WORSE)
    made.effect("norm=evonorm_s0", "loss_area", difference=0.12, low=0.1, high=0.14)
    assert made.said("norm") == (
        "Besides, group gets to the target 3.2 epochs later (3 of 5 seeds do), lets the validation loss swing 2 times "
        "as much, has 3 times the largest gradient norm and narrows the gap to training accuracy by 3.10 points; "
        "evonorm_s0 has a higher validation loss on its way (by 0.120)."
    )


def test_a_level_that_never_gets_to_the_target_is_not_called_late(made: Made) -> None:
    made.effect("residual=true", "epochs_to_target", difference=6.0, low=5.0, high=7.0, reached="0 of 5")
    assert made.said("residual") == "Besides, residual true never gets to the target."


def test_no_other_difference_is_said_only_of_what_was_measured(made: Made) -> None:
    made.effect("residual=true", "oscillation", difference=0.1, low=-0.1, high=0.3)
    assert made.said("residual") == "No difference in convergence, stability or the gap can be told."


def test_convergence_is_not_compared_across_schedules_without_a_word(made: Made) -> None:
    sooner = {"difference": -2.0, "low": -3.0, "high": -1.0, "reached": "5 of 5"}
    made.effect("lr-schedule=constant", "epochs_to_target", **sooner)
    made.effect("residual=true", "epochs_to_target", **sooner)
    assert "annealing fixes when a training converges" in made.said("lr-schedule")
    assert "annealing" not in made.said("residual")
    (image,) = effects(Records(made.folder))[0].images
    assert "†" in image.title


def test_early_stopping_says_what_it_saves_and_where_it_means_nothing(made: Made) -> None:
    made.effect("early-stopping=2", **WORSE)
    made.trained("early-stopping=2", epochs=None)
    for seed, row in enumerate(made.runs):
        row["epochs"] = 5 + seed
    made.trained("lr-schedule=constant", test_metric=0.9)
    text = made.said("early-stopping")
    assert text.startswith(
        "On lr-schedule=constant, each compared with the same trainings at full length: a patience of 2 ends after 7.0 "
        "of 15 epochs (53 % saved) and is worse than the full training: -3.10 points (-4.00 to -2.20). With one_cycle "
        "and cosine it means nothing"
    )
    assert "constant and" not in text and "step" not in text


def test_early_stopping_without_its_runs_says_no_savings(made: Made) -> None:
    made.effect("early-stopping=2", **WORSE)
    assert "saved" not in made.said("early-stopping") and "is worse" in made.said("early-stopping")


def test_metrics_that_are_no_percentages_have_no_points(made: Made) -> None:
    made.design["metric"] = "auc"
    made.effect("residual=true", **WORSE)
    assert made.said("residual") == "On test, residual true is worse than false: -0.0310 (-0.0400 to -0.0220)."


# The design and the headline.


def test_design_says_what_was_tried_and_what_intervals_hold(made: Made) -> None:
    said = " ".join(effects_design.design(made.read()))
    for words in ("small-cnn", "10 seeds", "5 seeds", "15 epochs", "Stated in advance", "simultaneous over a family"):
        assert words in said
    assert "share one split" in said and "norm-placement=before_conv (the base has its pooling before" in said
    assert "power" not in said and "vary more from seed to seed" not in said
    made.effect("early-stopping=2", **WORSE, method="paired")
    assert "seed by seed" not in " ".join(effects_design.design(made.read()))
    made.effect("residual=true", **OPEN, method="moderated")
    made.effect("dropout=0.1", **OPEN, method="paired")
    said = " ".join(effects_design.design(made.read()))
    assert "power of 80 %" in said and "vary more from seed to seed" in said and "seed by seed" in said


def test_design_of_splits_drawn_anew(made: Made) -> None:
    made.design |= {"resplit": True, "left_out": []}
    said = " ".join(effects_design.design(made.read()))
    assert "draws its own training and validation images" in said
    assert "share one split" not in said and "Left out" not in said


def test_headline_takes_the_largest_effect_at_a_fair_rate(made: Made) -> None:
    made.effect("norm=none", difference=-0.3, low=-0.4, high=-0.2)
    made.effect("norm=none, own rate", **OPEN)
    made.effect("dropout=0.1", **BETTER)
    assert effects_design.headline(made.read()) == (
        "dropout mattered most: 0.1 instead of 0 gains 2.00 points of test accuracy (95 % interval +1.00 to +3.00); of "
        "8 choices, 1 has an effect that can be told."
    )


def test_headline_where_nothing_can_be_told(made: Made) -> None:
    made.effect("dropout=0.1", **OPEN)
    made.effect("kernel-size=5", **NO_SCORE)
    made.trained("kernel-size=5", seeds=3, diverged=1)
    assert effects_design.headline(made.read()) == (
        "With 5 seeds a level no choice can be told apart from small-cnn on test: a difference of 0.90 points or more "
        "would have been seen; kernel-size=5 diverged in some trainings, and has no score."
    )
    made.effects, made.runs = [], []
    made.trained("base", seeds=2, diverged=1)
    made.effect("dropout=0.1", reason="2 of 2 seeds of the base diverged")
    assert effects_design.headline(made.read()).startswith("2 of 2 seeds of the base diverged")
    assert str(effects_reflection.lower_rate(made.read())).endswith(": --set optimizer/lr=0.083")
    made.effects, made.runs = [], []
    assert "nothing to tell" in effects_design.headline(made.read())


# What to make of it.


def test_what_to_change_is_decided_on_validation_and_never_on_test(made: Made) -> None:
    made.effect("dropout=0.1", **BETTER)
    made.effect("dropout=0.1", "val_metric", **OPEN)
    made.effect("activation=mish", "val_metric", **BETTER)
    found = made.read()
    assert effects_reflection.changes(found) == (
        "Change activation from relu to mish: validation accuracy +2.00 points (+1.00 to +3.00)."
    )
    assert "dropout (0.1 differs on test alone, which must not choose)" in str(effects_reflection.open_yet(found))


@pytest.mark.parametrize(
    ("test", "told"), [(BETTER, ", confirmed by test"), (OPEN, ", not confirmed by test"), (WORSE, "contradicted")]
)
def test_test_confirms_a_change_or_does_not(made: Made, test: Row, told: str) -> None:
    made.effect("dropout=0.1", **test)
    made.effect("dropout=0.1", "val_metric", **BETTER)
    assert told in str(effects_reflection.changes(made.read()))


def test_a_level_that_lost_trainings_is_not_changed_to(made: Made) -> None:
    made.effect("dropout=0.1", "val_metric", **BETTER)
    made.trained("dropout=0.1", seeds=1, diverged=1)
    assert effects_reflection.changes(made.read()) is None


def test_what_loses_or_diverges_is_why_to_keep(made: Made) -> None:
    made.effect("dropout=0.1", "val_metric", **OPEN)
    made.effect("dropout=0.3", "val_metric", **WORSE)
    made.trained("kernel-size=5", seeds=1, diverged=1)
    assert effects_reflection.keeps(made.read()) == (
        "Keep, since other levels lose validation accuracy or diverge: dropout 0 (0.3 -3.10 points, -4.00 to -2.20); "
        "kernel-size 3 (5: 1 of 1 seed diverged)."
    )


def test_a_level_that_loses_at_the_bases_rate_alone_is_no_reason_to_keep(made: Made) -> None:
    made.effect("norm=none", "val_metric", **WORSE)
    made.effect("norm=none, own rate", "val_metric", **OPEN)
    assert effects_reflection.keeps(made.read()) is None


def test_what_is_cheaper_and_cannot_be_told_apart_may_replace(made: Made) -> None:
    made.effect("residual=true", "val_metric", **OPEN)
    assert effects_reflection.drops(made.read()) is None
    made.trained("base", epoch_s=1.0, num_params=1000)
    made.trained("residual=true", epoch_s=0.5, num_params=1000)
    made.effect("residual=true", "epoch_s", **WORSE)
    found = made.read()
    assert effects_reflection.drops(found) == (
        "Where cost counts, what is cheaper and cannot be told apart: residual true instead of false takes 50 % of the "
        "seconds an epoch (0.5 against 1), and loses 0.95 points of validation accuracy at most by its interval."
    )
    assert effects_reflection.open_yet(found) is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (OPEN, "saves 60 % of the epochs, and loses 0.95 points"),
        (WORSE, "at every patience"),
        ({"reason": ALIKE}, "saves 60 % of the epochs, and keeps the weights that the full training keeps"),
    ],
)
def test_whether_early_stopping_pays(made: Made, row: Row, told: str) -> None:
    assert effects_reflection.stopping(made.read()) is None
    made.effect("early-stopping=2", "val_metric", **row)
    made.trained("early-stopping=2", epochs=6)
    made.trained("lr-schedule=constant", epochs=15)
    for one in made.runs[:5]:
        one["epochs"] = 6
    assert told in str(effects_reflection.stopping(made.read()))


def test_no_advice_without_numbers(made: Made) -> None:
    found = made.read()
    assert [clause(found) for clause in effects_reflection.NEXT] == [None] * len(effects_reflection.NEXT)
    assert [clause(found) for clause in effects_reflection.REFLECTION] == [None] * len(effects_reflection.REFLECTION)


def gains(made: Made) -> None:
    made.effect("norm=none, own rate", "val_metric", **BETTER)


def nearly(made: Made) -> None:
    made.effect("dropout=0.1", "val_metric", difference=0.002, low=-0.001, high=0.005, seeds_needed=12)


def two_effects(made: Made) -> None:
    made.design = make_design(cross=False)
    made.effect("dropout=0.3", "val_metric", **WORSE)
    made.effect("residual=true", "val_metric", **BETTER)


def diverging(made: Made) -> None:
    made.trained("kernel-size=5", seeds=1, diverged=1)


def late(made: Made) -> None:
    made.trained("base", best_epoch=15)


@pytest.mark.parametrize(
    ("clause", "change", "flags"),
    [
        (effects_reflection.train_together, gains, "--set model/norm=none --set optimizer/lr=0.083"),
        (effects_reflection.more_seeds, nearly, "--vary dropout --seeds 12"),
        (effects_reflection.cross, two_effects, "--vary residual --vary dropout --cross residual,dropout"),
        (effects_reflection.lower_rate, diverging, "--set model/kernel_sizes='[5,5,5]' --set optimizer/lr=0.083"),
        (effects_reflection.longer, late, "--max-epochs 30"),
        (effects_reflection.other_splits, gains, "--resplit"),
    ],
)
def test_advice_comes_with_its_flags(
    made: Made, clause: Callable[[Experiment], str | None], change: Callable[[Made], None], flags: str
) -> None:
    assert clause(made.read()) is None
    change(made)
    said = clause(made.read())
    assert said is not None and said.endswith(f": {flags}")


# Figures and the whole report.


def test_forest_colours_effects_alone_and_cuts_what_is_far_off() -> None:
    rows = [ForestRow("norm", heading=True)]
    rows += [ForestRow(f"level {i}", difference=0.5, simultaneous=(-0.5, 1.5), alone=(0.1, 0.9)) for i in range(4)]
    rows += [ForestRow("worse", difference=-2.0, simultaneous=(-3.0, -1.0))]
    rows += [ForestRow("far", difference=-90.0, simultaneous=(-91.0, -89.0)), ForestRow("none", note="one seed")]
    (axes,) = forest_figure(rows, "points", ("better", "worse"), higher_is_better=True).axes
    left, right = axes.get_xlim()
    assert -10 < left < -3.0 and right > 1.5
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts == ["norm", "-90", "one seed"]
    points = {line.get_ydata()[0]: line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"}
    assert [points[place] for place in range(1, 5)] == ["white"] * 4 and points[5] != "white"
    assert forest_figure(rows[:1], "points", ("better", "worse"), higher_is_better=True) is None


def test_forest_of_ratios_shows_ratios() -> None:
    rows = [ForestRow("twice", difference=math.log(2), simultaneous=(math.log(1.5), math.log(2.6)))]
    (axes,) = forest_figure(rows, "times", ("less", "more"), higher_is_better=False, log=True).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "1.2", "1.5", "2", "2.5"]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished ablation of 28 arms with its report."""
    folder = make_ablation(tmp_path_factory.mktemp("runs") / "ablation")
    build_report(folder.root)
    return folder


def test_the_terminal_has_a_row_for_each_arm_in_80_columns(ablation: RunFolder) -> None:
    records = Records(ablation)
    table = table_of(records)
    assert table is not None
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    told = {row["arm"] for row in records.effects if row["outcome"] == "test_metric" and is_effect(row)}
    assert told and sum(line.endswith("*") for line in lines) == len(told)
    assert sum("seeds diverged" in line for line in lines) == 1
    assert len(lines) == 1 + len([arm for arm in records.design["arms"] if arm["name"] != "base, own rate"]) + 2


def test_report_of_an_ablation_begins_with_its_effects_and_leaves_out_noise(ablation: RunFolder) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", ablation.report_html.read_text())
    assert headings == [
        "What each choice did", "What to keep, and what to try next", "Together: norm x dropout",
        "Learning curves by choice", "All results", "Where the base errs", "The run",
    ]  # fmt: skip
    text = ablation.report_html.read_text()
    assert effects_headline(Records(ablation)) in text.replace("\N{NO-BREAK SPACE}", " ")
    assert len(text) < 3_000_000
    for name in ("effects-performance", "effects-convergence", "effects-swings", "effects-gradients", "curves-norm",
                 "cross-norm-dropout"):  # fmt: skip
        assert (
            ablation.evaluation / f"{name}.png"
        ).exists() and f"evaluation/{name}.png" in ablation.report_md.read_text()


def test_crossed_choices_say_what_they_do_together(ablation: RunFolder) -> None:
    (together,) = [one for one in effects(Records(ablation)) if one.heading.startswith("Together")]
    assert "norm=none with dropout=0.1 is" in together.text[0] and "group" not in together.text[0]
    assert together.tables[0].columns == ["norm", "dropout", "test accuracy %", "difference", "interaction"]
    assert [row[:2] for row in together.tables[0].rows] == [
        ["none", "0.1"], ["group", "0.1"], ["none", "0.3"], ["group", "0.3"],
    ]  # fmt: skip


def test_an_ablation_without_records_has_a_report(made: Made) -> None:
    made.read()
    assert [one for one in sections_of(Records(made.folder)) if one.heading.startswith("What")] == []
    made.folder.design_json.unlink()
    assert "nothing to tell" in effects_headline(Records(made.folder))
    assert sections_of(Records(made.folder)) == []


def test_a_factor_that_is_called_by_its_path_names_files(ablation: RunFolder, tmp_path: Path) -> None:
    records = Records(ablation)
    design = copy.deepcopy(records.design)
    for one in design["factors"]:
        one["name"] = one["name"].replace("dropout", "model/dropout")
    for arm in design["arms"]:
        arm["factor"] = arm["factor"] and arm["factor"].replace("dropout", "model/dropout")
        arm["cells"] = {key.replace("dropout", "model/dropout"): value for key, value in arm.get("cells", {}).items()}
    records.__dict__["design"] = design
    names = [image.name for one in effects(records) for image in one.images]
    assert {"curves-model-dropout.png", "cross-norm-model-dropout.png"} <= set(names)
    assert not any("/" in name for name in names)
