"""Intervals of scores and of differences: what they hold, and how often they cover the truth."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scores import row
from scipy import stats

from cifar_ray.errors import InputError
from cifar_ray.results import statistics
from cifar_ray.results.ranking import compare_best, summarise
from cifar_ray.results.records import Row
from cifar_ray.results.statistics import (
    METRIC_NAMES,
    Interval,
    image_scores,
    num_effective_images,
    score_interval,
)
from cifar_ray.training.metrics import auc_macro_ovr, f1_macro


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


def test_interval_is_wilsons_where_seeds_agree_and_students_t_where_images_are_many() -> None:
    one = score_interval([0.8, 0.8, 0.8], 200)
    expected = stats.binomtest(160, 200).proportion_ci(method="wilson")
    assert (one.mean, one.low, one.high) == pytest.approx((0.8, expected.low, expected.high), abs=1e-4)
    values = [0.51, 0.50, 0.495, 0.502, 0.498]
    one = score_interval(values, 10_000_000)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (one.low, one.high) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.9965, 0.9965], [0.2, 0.45], [0.0, 1.0]])
def test_interval_is_never_of_width_zero_and_stays_within_0_and_1(values: list[float]) -> None:
    for num_images in (10, 288, 10_000):
        one = score_interval(values, num_images)
        assert one.mean is not None and one.low is not None and one.high is not None
        assert 0.0 <= one.low <= one.mean <= one.high <= 1.0
        # Where none of N images is wrong, Wilson's interval reaches to z**2 / N, about the rule of three.
        assert one.high - one.low >= 3 / (num_images + 4)


def test_more_seeds_do_not_average_the_images_away() -> None:
    values = [0.89, 0.91]
    few, many = (score_interval(values * n, 100) for n in (1, 50))
    image_noise = 1.96 * (0.9 * 0.1 / 100) ** 0.5
    assert many.high - many.low > 1.9 * image_noise  # type: ignore[operator]
    assert few.high - few.low > many.high - many.low  # type: ignore[operator]


@pytest.mark.parametrize(("num_seeds", "num_images"), [(2, 288), (3, 288), (3, 10_000)])
def test_interval_covers_what_is_to_be_expected(num_seeds: int, num_images: int) -> None:
    rng, covered = np.random.default_rng(0), []
    for mean in (0.5, 0.9, 0.99, 0.997):
        image = rng.normal(size=(100, 1, num_images))  # hard images are partly hard for every seed
        own = rng.normal(size=(100, num_seeds, num_images))
        right = 0.8 * image + 0.6 * own < stats.norm.ppf(mean)
        for scores in right.mean(axis=2):
            one = score_interval(scores.tolist(), num_images)
            covered.append(one.low <= mean <= one.high)  # type: ignore[operator]
    assert np.mean(covered) > 0.93  # Student's t over the seeds alone: 0.80 for 3 seeds and 288 images


def test_interval_of_one_seed_none_and_unknown_images() -> None:
    assert score_interval([0.5], 100) == Interval(0.5, None, None, 1)
    assert score_interval([None, None], 100) == Interval(None, None, None, 0)
    assert score_interval([None, 0.5], 100).n == 1
    assert score_interval([0.4, 0.5], None) == Interval(0.45, None, None, 2)


def imbalanced(rng: np.random.Generator, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 3) and labels (N,) of a model that is often wrong; the last class is rare."""
    labels = rng.choice(3, num_images, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(num_images, 3)) + 1.5 * np.eye(3)[labels]
    exp = np.exp(logits.round(1))  # rounded, so that there are ties
    return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_mean_of_the_images_scores_is_the_metric() -> None:
    probabilities, labels = imbalanced(np.random.default_rng(0), 400)
    values, true = torch.tensor(probabilities), torch.tensor(labels)
    means = {name: image_scores(name, probabilities, labels).mean() for name in METRIC_NAMES}
    assert means["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
    assert means["auc"] == pytest.approx(auc_macro_ovr(values, true), abs=1e-6)
    assert means["f1"] == pytest.approx(f1_macro(values, true), abs=1e-6)
    some = labels < 2
    assert image_scores("auc", probabilities[some], labels[some]) is None
    never = probabilities[some] * np.float32([1, 1, 0])  # the last class is neither there nor predicted
    f1 = f1_macro(torch.tensor(never), torch.tensor(labels[some]))
    assert image_scores("f1", never, labels[some]).mean() == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "auc", "f1"])
def test_spread_of_the_images_scores_is_the_sampling_error_of_the_metric(metric: str) -> None:
    rng = np.random.default_rng(1)
    drawn = [image_scores(metric, *imbalanced(rng, 500)) for _ in range(400)]
    told = np.mean([one.std() / 500**0.5 for one in drawn])
    assert told == pytest.approx(np.std([one.mean() for one in drawn]), rel=0.12)


def test_a_macro_mean_rests_on_fewer_images_where_classes_are_uneven() -> None:
    even, uneven = np.repeat([0, 1], 100), np.repeat([0, 1], [190, 10])
    assert num_effective_images("f1", even) == pytest.approx(200)
    assert num_effective_images("f1", uneven) == pytest.approx(4 / (1 / 190 + 1 / 10))
    assert num_effective_images("accuracy", uneven) == 200


def test_test_scores_have_intervals_by_the_predictions() -> None:
    rng = np.random.default_rng(2)
    _, labels = imbalanced(rng, 400)
    predictions, rows = {"labels": labels}, []
    for seed in range(3):
        exp = np.exp(rng.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels])
        predictions[f"a-seed{seed}"] = exp / exp.sum(axis=1, keepdims=True)
        auc, f1 = (image_scores(name, predictions[f"a-seed{seed}"], labels).mean() for name in ("auc", "f1"))
        rows.append(row("a", seed, test_auc_macro_ovr=auc, test_f1_macro=f1, test_accuracy=0.7 + 0.01 * seed))
    (one,) = summarise(rows, 100, predictions)
    for metric in ("accuracy", "auc", "f1"):
        score = one.test_score(metric)
        assert score.low < score.mean < score.high and score.n == 3
    # The rare class of 40 images weighs a third.
    assert one.test_f1.high - one.test_f1.low > one.test_accuracy.high - one.test_accuracy.low
    (untold,) = summarise(rows)
    assert (untold.test_f1.mean, untold.test_f1.low, untold.val_accuracy.low) == (one.test_f1.mean, None, None)


def test_compare_gives_the_difference_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    rows, predictions = simulated(rng, 500, 3, 0.05, gain=0.2)
    one = statistics.compare(rows, "a", "b", predictions)
    accuracy = {
        name: (array.argmax(axis=1) == predictions["labels"]).mean()
        for name, array in predictions.items()
        if name != "labels"
    }
    by_hand = sum(accuracy[f"a-seed{k}"] - accuracy[f"b-seed{k}"] for k in range(3)) / 3
    assert one.difference == pytest.approx(by_hand)
    assert one.low < one.difference < one.high
    assert one == statistics.compare(rows, "a", "b", predictions)
    other_way = statistics.compare(rows, "b", "a", predictions)
    assert other_way.difference == pytest.approx(-one.difference)
    assert other_way.high - other_way.low == pytest.approx(one.high - one.low)


@pytest.mark.parametrize("seed_noise", [0.0, 0.03, 0.2])
def test_compare_covers_the_truth(seed_noise: float) -> None:
    """Whether images, both, or seeds dominate the noise, the interval of 3 seeds covers 0 where nothing differs."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(150):
        one = statistics.compare(*arguments(simulated(rng, 2000, 3, seed_noise)))
        covered.append(one.low <= 0.0 <= one.high)
    assert np.mean(covered) > 0.90  # percentiles of 3 draws reach 0.83 where seeds dominate


def arguments(made: tuple[list[Row], dict[str, np.ndarray]]) -> tuple[Any, ...]:
    """The arguments of `compare` from rows and predictions."""
    return made[0], "a", "b", made[1]


def test_compare_is_paired_and_counts_seeds() -> None:
    rng = np.random.default_rng(2)
    rows, predictions = simulated(rng, 4000, 3, 0.0)
    paired = statistics.compare(rows, "a", "b", predictions)
    shuffled = dict(predictions)
    order = rng.permutation(4000)
    for name in ("b-seed0", "b-seed1", "b-seed2"):  # as accurate, but right on other images
        right = predictions[name].argmax(axis=1) == predictions["labels"]
        shuffled[name] = np.eye(2)[np.where(right[order], predictions["labels"], 1 - predictions["labels"])]
    unpaired = statistics.compare(rows, "a", "b", shuffled)
    assert unpaired.difference == pytest.approx(paired.difference)
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)

    noisy = statistics.compare(*arguments(simulated(rng, 4000, 3, 0.3)))
    assert noisy.high - noisy.low > 3 * (paired.high - paired.low)
    one_seed = statistics.compare(*arguments(simulated(rng, 4000, 1, 0.3)))
    assert paired.counts_seeds and not one_seed.counts_seeds
    assert one_seed.high - one_seed.low < 0.5 * (noisy.high - noisy.low)  # too narrow, hence the flag


def test_compare_is_welchs_interval_where_seeds_dominate() -> None:
    rows, predictions = simulated(np.random.default_rng(4), 20_000, 3, 0.3)
    labels = predictions.pop("labels")
    accuracy = {name: (array.argmax(axis=1) == labels).mean() for name, array in predictions.items()}
    a, b = ([accuracy[f"{config}-seed{seed}"] for seed in range(3)] for config in "ab")
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    one = statistics.compare(rows, "a", "b", predictions | {"labels": labels})
    assert one.high - one.low == pytest.approx(expected.high - expected.low, rel=0.1)


@pytest.mark.parametrize("metric", ["accuracy", "auc", "f1"])
def test_equal_models_differ_by_nothing_but_not_for_certain(metric: str) -> None:
    rows = [row(config, seed) for config in "ab" for seed in range(2)]
    labels = np.arange(300) % 3
    array = np.eye(3, dtype=np.float32)[np.where(np.arange(300) < 30, (labels + 1) % 3, labels)]
    predictions = {"labels": labels} | {one["model"]: array for one in rows}
    one = statistics.compare(rows, "a", "b", predictions, metric)
    assert one.difference == 0.0 and one.low == -one.high
    assert one.high == pytest.approx(3 / 300, rel=0.1)  # as the rule of three has it for what never happened
    array[:] = np.eye(3, dtype=np.float32)[labels]  # all of them right
    one = statistics.compare(rows, "a", "b", predictions, metric)
    assert one.difference == 0.0 and -one.low == one.high > 0.0


@pytest.mark.parametrize("metric", ["auc", "f1"])
def test_compare_by_another_metric_covers_the_truth_and_sees_a_gain(metric: str) -> None:
    rng, covered, told = np.random.default_rng(5), [], []
    rows = [row(config, seed) for config in "ab" for seed in range(3)]
    for gain in (0.0, 1.0):
        for _ in range(60):
            labels = rng.choice(3, 600, p=[0.6, 0.3, 0.1])
            image = rng.normal(size=(600, 3))
            predictions = {"labels": labels}
            for one in rows:
                signal = 1.5 + gain * (one["config"] == "a")
                logits = image + rng.normal(0, 0.5, (600, 3)) + signal * np.eye(3)[labels]
                predictions[one["model"]] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            found = statistics.compare(rows, "a", "b", predictions, metric)
            if gain:
                told.append(found.low > 0)
            else:
                covered.append(found.low <= 0.0 <= found.high)
            assert found.metric == metric
    assert np.mean(covered) > 0.9 and np.mean(told) > 0.8


def test_compare_of_ten_seeds_and_ten_thousand_images_takes_little_memory() -> None:
    labels = np.arange(10_000) % 10
    rng = np.random.default_rng(6)
    rows = [row(config, seed) for config in "ab" for seed in range(10)]
    predictions = {one["model"]: rng.random((10_000, 10), np.float32) for one in rows} | {"labels": labels}
    for metric in METRIC_NAMES:
        tracemalloc.start()
        statistics.compare(rows, "a", "b", predictions, metric)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5e6, metric


def test_compare_needs_predictions_and_a_score() -> None:
    rows, predictions = simulated(np.random.default_rng(3), 100, 3, 0.05)
    with pytest.raises(InputError, match="c: no predictions"):
        statistics.compare([*rows, row("c")], "a", "c", predictions)
    summaries = summarise([*rows, row("c", val=0.1)])
    assert [(one.a, one.b) for one in compare_best(rows, summaries, predictions)] == [("a", "b")]
    assert compare_best(rows, summaries, {}) == []
    one_class = predictions | {"labels": np.zeros(100, np.int64)}
    with pytest.raises(InputError, match="a: no AUC to compare; the test split lacks a class"):
        statistics.compare(rows, "a", "b", one_class, "auc")
    assert compare_best(rows, summaries, one_class, "auc") == []
