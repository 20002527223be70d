"""What the verdict says of ranks and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.scores import row

from cifar_ray.reporting import verdict
from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.reporting.verdict import family_verdict
from cifar_ray.results.ranking import ConfigSummary, best_of_families, compare_best, summarise
from cifar_ray.results.statistics import (
    Comparison,
    Interval,
)


def comparison(b: str, low: float, high: float, counts_seeds: bool = True, a: str = "x") -> Comparison:
    return Comparison(a, b, (low + high) / 2, low, high, 10_000, counts_seeds)


@pytest.mark.parametrize(
    ("configs", "comparisons", "expected"),
    [
        (
            ["x", "default"],
            [comparison("default", 0.01, 0.02)],
            "beats the default recipe: +1.50 points (95 % interval +1.00",
        ),
        (
            ["x", "default"],
            [comparison("default", -0.01, 0.02)],
            "gained nothing measurable over the default recipe: +0.50",
        ),
        (
            ["x", "default"],
            [comparison("default", -0.02, -0.01)],
            "worse on test than the default recipe: -1.50 points",
        ),
        (["x", "default"], [comparison("default", -0.02, -0.01, False)], "One seed is too few to compare it with the"),
        (
            ["x", "default"],
            [comparison("default", 0.01, 0.02, False)],
            "One seed is too few to compare it with the default",
        ),
        (["x", "default"], [], "compares with the default recipe is unknown, since predictions are missing"),
        (
            ["default", "y"],
            [comparison("y", -0.1, 0.2, a="default")],
            "It is the default recipe, and the search found nothing better; it cannot be told apart from the runner-up",
        ),
        (["x", "y", "default"], [comparison("y", -0.1, 0.2)], "cannot be told apart from the runner-up y"),
        (["x", "y"], [comparison("y", 0.1, 0.2)], "beats the runner-up y"),
    ],
)
def test_verdict_says_what_was_gained(configs: list[str], comparisons: list[Comparison], expected: str) -> None:
    rows = [row(config, seed, 0.9 - 0.1 * i + 0.01 * seed) for i, config in enumerate(configs) for seed in range(3)]
    text = verdict.verdict(summarise(rows), comparisons)
    lead = "No clear choice between x and the default recipe" if "worse on test" in expected else f"Take {configs[0]}"
    start = f"{lead}: test accuracy 91.00 % (mean over 3 seeds), the best by mean validation accuracy. "
    assert text.startswith(start) and expected in text
    assert text.count(". ") == 1 and text.endswith(".")


def test_verdict_speaks_of_the_metric_that_ranks() -> None:
    labels = np.arange(40) % 2
    rows = [row(config, seed, 0.8, test_f1_macro=0.75, test_auc_macro_ovr=None) for config in "xy" for seed in (0, 1)]
    predictions = {one["model"]: np.eye(2)[labels ^ (np.arange(40) < 10)] for one in rows} | {"labels": labels}
    summaries = summarise(rows, 40, predictions)
    text = verdict.verdict(summaries, compare_best(rows, summaries, predictions, "f1"), "f1")
    score, words = summaries[0].test_f1, "over 2 seeds and test images"
    assert f"Take x: test F1 0.7500 (95 % interval {score.low:.4f} to {score.high:.4f}, {words}), the best by" in text
    assert "mean validation F1. It cannot be told apart from the runner-up y: +0.0000 in F1 (95 % interval -0.0" in text
    assert "points" not in text and "accuracy" not in text
    assert "unknown, since the test split has no AUC" in verdict.verdict(summaries, [], "auc")


def test_scores_are_told_with_their_interval_in_brackets() -> None:
    one = Interval(0.9721, 0.961, 0.98016, 3)
    assert score_text(one) == "97.21 (96.10 to 98.02)"
    assert score_text(one, "auc") == "0.9721 (0.9610 to 0.9802)"
    assert score_text(Interval(1.0, None, None, 1)) == "100.00"
    assert score_text(None) == "-"
    assert (difference_text(0.0145), difference_text(-0.0145, "f1")) == ("+1.45", "-0.0145")


def test_verdict_without_finals_intervals_or_test_split() -> None:
    assert "no verdict" in verdict.verdict([], [])
    alone = verdict.verdict(summarise([row("x")]), [])
    assert alone == "Take x: test accuracy 90.00 % (one seed, so no interval)."
    untested = verdict.verdict(summarise([row("x", test_accuracy=None)]), [])
    assert untested == "Take x: test accuracy unknown."


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (["default-b", "default"], "It is the default recipe of b, and the search found nothing better; it cannot be "
         "told apart from the runner-up, the default recipe of a: +0.00 points"),
        (["x", "default", "default-b"], "gained nothing measurable over the default recipe of b: +0.00 points (95 % "
         "interval -1.00 to +1.00); it cannot be told apart from the runner-up, the default recipe of a: +0.00"),
        (["x", "default-b", "default"], "gained nothing measurable over the default recipe of b: +0.00 points (95 % "
         "interval -1.00 to +1.00)."),
    ],
)  # fmt: skip
def test_verdict_names_the_default_recipe_it_means_where_there_are_two(configs: list[str], expected: str) -> None:
    rows = [row(config, seed, 0.9 - 0.1 * i + 0.01 * seed) for i, config in enumerate(configs) for seed in range(3)]
    recipes = {"default": "the default recipe of a", "default-b": "the default recipe of b"}
    comparisons = [comparison(other, -0.01, 0.01, a=configs[0]) for other in configs[1:]]
    text = verdict.verdict(summarise(rows), comparisons, default="default-b", recipes=recipes)
    assert expected in text and text.count("the default recipe of b") == 1


@pytest.mark.parametrize(
    ("low", "high", "params", "expected"),
    [
        (-0.03, 0.05, 130_000, "; it cannot be told apart from the best of cnn, default, which has 1.2 % of the "
         "parameters: +1.00 points (95 % interval -3.00 to +5.00)."),
        (-0.03, 0.05, 22_000_000, "; it cannot be told apart from the best of cnn, default: +1.00 points"),
        (-0.05, -0.03, 130_000, "; it is worse on test than the best of cnn, default, which has 1.2 % of the "
         "parameters"),
        (0.01, 0.03, 130_000, None),
    ],
)  # fmt: skip
def test_verdict_names_the_best_of_another_family_that_is_as_good(
    low: float, high: float, params: int, expected: str | None
) -> None:
    big = {"family": "resnet", "num_params": 11_000_000}
    accuracies = {"default-resnet": 0.9, "y": 0.8, "default": 0.7}
    rows = [
        row(
            config,
            seed,
            accuracy + 0.01 * seed,
            **(big if config != "default" else {"family": "cnn", "num_params": params}),
        )
        for config, accuracy in accuracies.items()
        for seed in range(3)
    ]
    of_y = comparison("y", 0.1, 0.2, a="default-resnet")
    found = comparison("default", low, high, a="default-resnet")
    recipes = {"default": "the default recipe of cnn", "default-resnet": "the default recipe of resnet"}
    said = verdict.verdict(summarise(rows), [of_y, found], default="default-resnet", recipes=recipes)
    assert expected in said if expected else "best of cnn" not in said
    # As the runner-up it has been told of.
    without_y = [one for one in rows if one["config"] != "y"]
    assert "best of cnn" not in verdict.verdict(
        summarise(without_y), [found], default="default-resnet", recipes=recipes
    )


def families(
    num_params: tuple[int | None, int | None], latency: tuple[float | None, float | None]
) -> list[ConfigSummary]:
    """The best configurations `x` of family resnet and `y` of family cnn, with their sizes and latencies."""
    rows = [row("x", 0, 0.9, family="resnet", num_params=num_params[0], latency_ms_p50=latency[0])]
    rows += [row("y", 0, 0.8, family="cnn", num_params=num_params[1], latency_ms_p50=latency[1])]
    return best_of_families(summarise(rows))


LARGER: Any = ((7_100_000, 100_000), (3.1, 1.0))


SMALLER: Any = ((1_400, 100_000), (0.32, 1.0))


MIXED: Any = ((11_900_000, 100_000), (0.5, 1.0))


COST = "for 71 times the parameters and 3.1 times the latency of one image"


@pytest.mark.parametrize(
    ("measured", "found", "expected"),
    [
        (LARGER, comparison("y", 0.06, 0.102), "Take resnet, whose best configuration beats that of cnn on test: "
         f"+8.10 points (95 % interval +6.00 to +10.20), {COST}."),
        (SMALLER, comparison("y", 0.06, 0.102), "Take resnet, whose best configuration beats that of cnn on test: "
         "+8.10 points (95 % interval +6.00 to +10.20), with 1.4 % of the parameters and 32 % of the latency of one "
         "image."),
        (LARGER, comparison("y", -0.01, 0.02), "resnet ranks first by mean validation F1, but cannot be told apart "
         f"from cnn on test: +0.50 points (95 % interval -1.00 to +2.00), {COST}. Take cnn where size or speed "
         "counts."),
        (SMALLER, comparison("y", 0.0, 0.02), "with 1.4 % of the parameters and 32 % of the latency of one image. Take "
         "resnet where size or speed counts."),
        (MIXED, comparison("y", -0.01, 0.02), ", with 119 times the parameters and 50 % of the latency of one image. "
         "Take cnn where size counts and resnet where speed counts."),
        (((100, 101), (1.0, 1.0)), comparison("y", -0.01, 0.02), ", with about as many parameters and about the same "
         "latency of one image. Take either."),
        (((None, 1), (None, None)), comparison("y", -0.01, 0.02), "(95 % interval -1.00 to +2.00). Take either."),
        (LARGER, comparison("y", -0.02, -0.01), "No clear choice: resnet ranks first by mean validation F1, but is "
         f"worse on test than cnn: -1.50 points (95 % interval -2.00 to -1.00), {COST}."),
        (LARGER, comparison("y", 0.01, 0.02, False), "resnet ranks first by mean validation F1, but one seed is too "
         "few to compare it with cnn: +1.50 points (95 % interval +1.00 to +2.00 from the test images alone), "
         f"{COST}."),
        (LARGER, comparison("z", 0.01, 0.02), f"resnet ranks first by mean validation F1, {COST}; how it compares with "
         "cnn on test is unknown, since predictions are missing."),
    ],
)  # fmt: skip
def test_family_verdict_says_what_to_take_how_sure_and_what_it_costs(
    measured: Any, found: Comparison, expected: str
) -> None:
    (said,) = family_verdict(families(*measured), [found], "f1")
    assert said.endswith(expected)
