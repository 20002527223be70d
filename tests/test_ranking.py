"""The ranking of models and its uncertainty."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cifar_ray import ranking
from cifar_ray.config import InputError
from cifar_ray.ranking import Comparison
from cifar_ray.results import Row


def row(config: str, seed: int = 0, val: float | None = 0.9, loss: float | None = 0.3, **more: Any) -> Row:
    """One row of results.csv."""
    values = {"model": f"{config}-seed{seed}", "config": config, "seed": seed, "val_metric": val, "val_loss": loss}
    return values | {"val_accuracy": val, "test_accuracy": val, "num_params": 1000} | more


def simulated(
    rng: np.random.Generator, num_images: int, num_seeds: int, seed_noise: float, gain: float = 0.0
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows and predictions of configurations a and b, right on about 84 % of images; `gain` raises a's logits.

    A model is right on an image where a sum of normal effects is above 0: the image's, the configuration's on that
    image, the seed's, and noise.
    """
    labels = rng.integers(0, 2, num_images)
    image = rng.normal(1.4, 1.0, num_images)
    rows, predictions = [], {"labels": labels}
    for config, shift in (("a", gain), ("b", 0.0)):
        own = image + shift + rng.normal(0, 0.3, num_images)
        for seed in range(num_seeds):
            right = own + rng.normal(0, seed_noise) + rng.normal(0, 0.3, num_images) > 0
            predicted = np.where(right, labels, 1 - labels)
            rows.append(row(config, seed))
            predictions[f"{config}-seed{seed}"] = np.eye(2, dtype=np.float32)[predicted]
    return rows, predictions


def test_mean_interval_is_students_t() -> None:
    one = ranking.mean_interval([0.90, 0.92, 0.94])
    assert one.mean == pytest.approx(0.92)
    assert one.half_width == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom, by hand
    values = [0.7, 0.9, 0.65, 0.8, 0.81]
    expected = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    ninety = ranking.mean_interval(values, confidence=0.9)
    assert (ninety.low, ninety.high) == pytest.approx(expected)


def test_mean_interval_of_one_none_and_beyond_one() -> None:
    assert ranking.mean_interval([0.5]) == ranking.Interval(0.5, None, None, 1)
    assert ranking.mean_interval([None, None]) == ranking.Interval(None, None, None, 0)
    assert ranking.mean_interval([None, 0.5]).n == 1
    high = ranking.mean_interval([0.9, 1.0]).high
    assert high is not None and high > 1.0  # not clipped


def test_summaries_rank_by_validation_then_loss_then_size() -> None:
    rows = [
        row("large", loss=0.2, num_params=2000),
        row("small", loss=0.2, num_params=10),
        row("low-loss", loss=0.1, num_params=9000),
        row("unmeasured", val=None, loss=None),
        row("best", val=0.95, loss=0.9, test_accuracy=0.1),
        row("worst", val=0.5, loss=0.0, test_accuracy=1.0),
    ]
    ranked = [one.config for one in ranking.summarise(rows)]
    assert ranked == ["best", "low-loss", "small", "large", "worst", "unmeasured"]
    assert [one.config for one in ranking.summarise(reversed(rows))] == ranked


def test_means_that_differ_in_the_last_bit_are_ties() -> None:
    sums = [0.1, 0.2, 0.3]
    assert sum(sums) / 3 != 0.2  # else this tests nothing
    rows = [row("a", 0, sum(sums) / 3, loss=0.5), row("b", 0, 0.2, loss=0.1)]
    assert ranking.summarise(rows)[0].config == "b"
    assert ranking.summarise(rows[::-1])[0].config == "b"


def test_summary_holds_its_seeds_and_what_was_measured_once() -> None:
    rows = [
        row("a", 0, 0.8, latency_ms_p50=None, trial=12),
        row("a", 1, 0.9, latency_ms_p50=0.5, trial=12),
        row("a", 2, 0.9, loss=0.1, latency_ms_p50=None, trial=12),
    ]
    (one,) = ranking.summarise(rows)
    assert one.best_model == "a-seed2"  # of two equal metrics the lower loss
    assert one.models == ["a-seed0", "a-seed1", "a-seed2"]
    assert (one.latency_ms_p50, one.trial, one.val_metric.n) == (0.5, 12, 3)
    assert one.test_auc == ranking.Interval(None, None, None, 0)


def test_compare_gives_the_difference_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    rows, predictions = simulated(rng, 500, 3, 0.05, gain=0.2)
    one = ranking.compare(rows, "a", "b", predictions)
    accuracy = {
        name: (array.argmax(axis=1) == predictions["labels"]).mean()
        for name, array in predictions.items()
        if name != "labels"
    }
    by_hand = sum(accuracy[f"a-seed{k}"] - accuracy[f"b-seed{k}"] for k in range(3)) / 3
    assert one.difference == pytest.approx(by_hand)
    assert one.low < one.difference < one.high
    assert one == ranking.compare(rows, "a", "b", predictions)
    other_way = ranking.compare(rows, "b", "a", predictions)
    assert other_way.difference == pytest.approx(-one.difference)
    assert other_way.high - other_way.low == pytest.approx(one.high - one.low, rel=0.1)


@pytest.mark.parametrize("seed_noise", [0.0, 0.03, 0.2])
def test_compare_covers_the_truth(seed_noise: float) -> None:
    """Whether images, both, or seeds dominate the noise, the interval of 3 seeds covers 0 where nothing differs."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(150):
        one = ranking.compare(*arguments(simulated(rng, 2000, 3, seed_noise)), num_resamples=1000)
        covered.append(one.low <= 0.0 <= one.high)
    assert np.mean(covered) > 0.90  # percentiles of 3 draws reach 0.83 where seeds dominate


def arguments(made: tuple[list[Row], dict[str, np.ndarray]]) -> tuple[Any, ...]:
    """The arguments of `compare` from rows and predictions."""
    return made[0], "a", "b", made[1]


def test_compare_is_paired_and_counts_seeds() -> None:
    rng = np.random.default_rng(2)
    rows, predictions = simulated(rng, 4000, 3, 0.0)
    paired = ranking.compare(rows, "a", "b", predictions)
    shuffled = dict(predictions)
    order = rng.permutation(4000)
    for name in ("b-seed0", "b-seed1", "b-seed2"):  # as accurate, but right on other images
        right = predictions[name].argmax(axis=1) == predictions["labels"]
        shuffled[name] = np.eye(2)[np.where(right[order], predictions["labels"], 1 - predictions["labels"])]
    unpaired = ranking.compare(rows, "a", "b", shuffled)
    assert unpaired.difference == pytest.approx(paired.difference)
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)

    noisy = ranking.compare(*arguments(simulated(rng, 4000, 3, 0.3)))
    assert noisy.high - noisy.low > 3 * (paired.high - paired.low)
    one_seed = ranking.compare(*arguments(simulated(rng, 4000, 1, 0.3)))
    assert paired.counts_seeds and not one_seed.counts_seeds
    assert one_seed.high - one_seed.low < 0.5 * (noisy.high - noisy.low)  # too narrow, hence the flag


def test_compare_is_welchs_interval_where_seeds_dominate() -> None:
    rows, predictions = simulated(np.random.default_rng(4), 20_000, 3, 0.3)
    labels = predictions.pop("labels")
    accuracy = {name: (array.argmax(axis=1) == labels).mean() for name, array in predictions.items()}
    a, b = ([accuracy[f"{config}-seed{seed}"] for seed in range(3)] for config in "ab")
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    one = ranking.compare(rows, "a", "b", predictions | {"labels": labels})
    assert one.high - one.low == pytest.approx(expected.high - expected.low, rel=0.1)


def test_compare_of_equal_models_is_exactly_zero() -> None:
    rows = [row("a"), row("b")]
    array = np.eye(2, dtype=np.float32)[[0, 1, 1]]
    one = ranking.compare(rows, "a", "b", {"labels": np.array([0, 1, 0]), "a-seed0": array, "b-seed0": array})
    assert (one.difference, one.low, one.high) == (0.0, 0.0, 0.0)


def test_compare_is_quick_and_needs_predictions() -> None:
    rows, predictions = simulated(np.random.default_rng(3), 10_000, 3, 0.05)
    ranking.compare(rows, "a", "b", predictions)  # imports scipy
    start = time.perf_counter()
    ranking.compare(rows, "a", "b", predictions)
    assert time.perf_counter() - start < 1.0
    with pytest.raises(InputError, match="c: no predictions"):
        ranking.compare([*rows, row("c")], "a", "c", predictions)
    summaries = ranking.summarise([*rows, row("c", val=0.1)])
    assert [(one.a, one.b) for one in ranking.compare_best(rows, summaries, predictions)] == [("a", "b")]
    assert ranking.compare_best(rows, summaries, {}) == []


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
        (
            ["x", "default"],
            [comparison("default", 0.01, 0.02, False)],
            "One seed is too few to compare it with the default",
        ),
        (["x", "default"], [], "compares with the default recipe is unknown, since predictions are missing"),
        (
            ["default", "y"],
            [comparison("y", -0.1, 0.2, a="default")],
            "The search found nothing better than the default",
        ),
        (["x", "y", "default"], [comparison("y", -0.1, 0.2)], "cannot be told apart from the runner-up y"),
        (["x", "y"], [comparison("y", 0.1, 0.2)], "beats the runner-up y"),
    ],
)
def test_verdict_says_what_was_gained(configs: list[str], comparisons: list[Comparison], expected: str) -> None:
    rows = [row(config, seed, 0.9 - 0.1 * i + 0.01 * seed) for i, config in enumerate(configs) for seed in range(3)]
    text = ranking.verdict(ranking.summarise(rows), comparisons, "F1")
    assert text.startswith(f"Take {configs[0]}: test accuracy 91.00 ± 2.48 % (95 % interval over 3 seeds), the best by")
    assert "mean validation F1" in text and expected in text
    assert text.count(". ") == 1 and text.endswith(".")


def test_verdict_without_finals_intervals_or_test_split() -> None:
    assert "no verdict" in ranking.verdict([], [])
    alone = ranking.verdict(ranking.summarise([row("x")]), [])
    assert alone == "Take x: test accuracy 90.00 % (one seed, so no interval)."
    untested = ranking.verdict(ranking.summarise([row("x", test_accuracy=None)]), [])
    assert untested == "Take x: test accuracy not measured."


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (["default-b", "default"], "nothing better than the default recipe of b; it cannot be told apart from the "
         "runner-up, the default recipe of a: +0.00 points"),
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
    text = ranking.verdict(ranking.summarise(rows), comparisons, default="default-b", recipes=recipes)
    assert expected in text and text.count("the default recipe of b") == 1


def test_default_recipes_are_known_by_their_names() -> None:
    names = ["default", "default-resnet", "defaults", "trial-0000", "my-default"]
    assert [ranking.is_default(name) for name in names] == [True, True, False, False, False]


def test_best_of_families_takes_the_first_of_each_that_is_known() -> None:
    rows = [
        row("a", 0, 0.7, family="cnn", test_accuracy=1.0, train_s=1.0),
        row("b", 0, 0.8, family="cnn", train_s=2.0),
        row("b", 1, 0.8, family="cnn", train_s=5.0),
        row("c", 0, 0.9, family="resnet"),
        row("d", 0, 0.95, family=None),
    ]
    best = ranking.best_of_families(ranking.summarise(rows))
    assert [(one.family, one.config, one.train_s) for one in best] == [("resnet", "c", None), ("cnn", "b", 3.5)]


def families(
    num_params: tuple[int | None, int | None], latency: tuple[float | None, float | None]
) -> list[ranking.ConfigSummary]:
    """The best configurations `x` of family resnet and `y` of family cnn, with their sizes and latencies."""
    rows = [row("x", 0, 0.9, family="resnet", num_params=num_params[0], latency_ms_p50=latency[0])]
    rows += [row("y", 0, 0.8, family="cnn", num_params=num_params[1], latency_ms_p50=latency[1])]
    return ranking.best_of_families(ranking.summarise(rows))


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
    (said,) = ranking.family_verdict(families(*measured), [found], "F1")
    assert said.endswith(expected)
