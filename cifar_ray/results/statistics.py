"""Means, intervals and comparisons over seeds and test images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np

from cifar_ray.errors import InputError
from cifar_ray.results.records import Row

METRIC_NAMES = {"accuracy": "accuracy", "auc": "AUC", "f1": "F1"}
"""What each metric that can rank models is called."""


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and its confidence interval; the bounds are None where nothing tells them."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def _students_t(total: float, of_seeds: Iterable[tuple[float, int]]) -> float:
    """How many standard errors a 95 % interval reaches to each side, where some of the variance comes from few seeds.

    Args:
        total: the variance of an estimate. What no part of it accounts for comes from many images, and counts as known.
        of_seeds: each part that comes from seeds, and their number less one. Together they have Satterthwaite's (1946)
            degrees of freedom.
    """
    from scipy.special import stdtrit  # half the import time of scipy.stats

    spread = sum(part**2 / freedom for part, freedom in of_seeds)
    freedom = min(total**2 / spread, 1e9) if spread > 0 else 1e9
    return float(stdtrit(max(freedom, 1.0), 0.975))


def score_interval(scores: Iterable[float | None], num_images: float | None, image_variance: float = 0.0) -> Interval:
    """Mean of scores in 0..1 over seeds, and the 95 % interval of what to expect on new images with new seeds.

    Seeds and images both make a mean noisy. The noise of seeds averages away over them, that of the images does not,
    since all seeds are scored on the same ones. So the variance is that of the scores over the number of seeds, plus
    that of a share of `num_images`. The interval is Wilson's (1927) for as many images as a share with this variance
    would be of (the effective sample size, as Korn & Graubard 1998 have it), with Student's t of Satterthwaite's
    degrees of freedom: it lies within 0..1, and where every image is right it still has the width that their number
    calls for. What it covers: `benchmarks/interval_coverage.py`.

    Args:
        scores: one a seed; None (not measured) is left out.
        num_images: that every seed was scored on. None where it is unknown: then there are no bounds.
        image_variance: of the mean, from the choice of the images, where it is known to be above that of a share.
    """
    known = [score for score in scores if score is not None]
    if not known:
        return Interval(None, None, None, 0)
    mean, num_seeds = fmean(known), len(known)
    if num_seeds == 1 or num_images is None:
        return Interval(mean, None, None, num_seeds)
    of_seeds = variance(known) / num_seeds
    of_share = mean * (1 - mean)
    total = of_seeds + max(of_share / num_images, image_variance)
    effective = of_share / total if of_share > 0 else num_images
    t = _students_t(total, [(of_seeds, num_seeds - 1)])
    centre = (mean + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t / (1 + t**2 / effective) * math.sqrt(of_share / effective + t**2 / (4 * effective**2))
    return Interval(mean, max(min(centre - half, mean), 0.0), min(max(centre + half, mean), 1.0), num_seeds)


def num_effective_images(metric: str, labels: np.ndarray) -> float:
    """How many images a score rests on.

    All of them; but a macro mean weighs every class alike, so that images of rare classes weigh more, and it rests on
    fewer: the square of the sum of their weights, over the sum of the squares (Kish 1965).
    """
    if metric == "accuracy":
        return float(len(labels))
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0]
    return float(len(sizes) ** 2 / (1 / sizes).sum())


def image_scores(metric: str, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """What each image contributes to a score: the mean is the score, the variance over N that of its sampling error.

    For `accuracy` whether it is right. For `auc` (macro one-vs-rest) and `f1` (macro) the score plus the image's
    influence on it: DeLong's structural components (DeLong, DeLong & Clarke-Pearson 1988), and the derivative by the
    counts of the confusion matrix (Takahashi et al. 2022, "Confidence interval for micro-averaged F1 and macro-averaged
    F1 scores").

    Args:
        metric: `accuracy`, `auc` or `f1`.
        probabilities: (N, C).
        labels: (N,) int64.

    Returns:
        (N,) float64; None where `auc` is undefined: a class is absent from the labels, or is the only one.
    """
    num_images, num_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    if metric == "accuracy":
        return (predicted == labels).astype(np.float64)
    true_counts = np.bincount(labels, minlength=num_classes)
    if metric == "f1":
        right = np.bincount(labels[predicted == labels], minlength=num_classes)
        counts = true_counts + np.bincount(predicted, minlength=num_classes)
        num_counted = (counts > 0).sum()  # a class that is neither there nor predicted does not count
        counts = np.maximum(counts, 1)
        f1 = 2 * right / counts
        # By how much one image more of a kind changes the sum of the classes' F1.
        change = 2 * (predicted == labels) / counts[labels] - (f1 / counts)[labels] - (f1 / counts)[predicted]
        return (f1.sum() + num_images * change) / num_counted
    assert metric == "auc", metric
    if (true_counts == 0).any() or (true_counts == num_images).any():
        return None
    scores = np.zeros(num_images)
    for index in range(num_classes):
        of_class = labels == index
        positive, negative = probabilities[of_class, index], probabilities[~of_class, index]
        above = _share_below(positive, negative)  # of each positive; their mean is the area
        area = above.mean()
        scores[of_class] += area + (above - area) * num_images / len(positive)
        scores[~of_class] += area + (1 - _share_below(negative, positive) - area) * num_images / len(negative)
    return scores / num_classes


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of `others` that each value is above; ties count half."""
    others = np.sort(others)
    below = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return below / (2 * len(others))


@dataclass(frozen=True)
class Comparison:
    """Mean test score (0..1) of configuration `a` minus that of `b`, with its 95 % interval."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    num_images: int
    counts_seeds: bool
    """False where a configuration has one seed: the interval then holds the noise of the test images alone."""
    metric: str = "accuracy"


def compare(
    rows: Sequence[Row], a: str, b: str, predictions: Mapping[str, np.ndarray], metric: str = "accuracy"
) -> Comparison:
    """Difference in mean test score between two configurations, and its 95 % interval.

    Seeds and test images both make it noisy, and both count (Bouthillier et al. 2021, "Accounting for variance in
    machine learning benchmarks"): the variance is that of the scores over each configuration's seeds, plus that of the
    mean difference image by image, all models being scored on the same ones (hence paired; Obuchowski & Rockette 1995
    do the same for readers and cases). The interval is +- Student's t of Welch and Satterthwaite's degrees of freedom.

    The images' part counts two more, one on which only `a` is right and one on which only `b` is (Bonett & Price 2012):
    that models agree on all images proves no equality, and there is no interval of width zero.

    In simulations of 2, 3 and 5 seeds this covers the truth in 95 to 99 % of comparisons: the most where test images
    dominate, since both parts count chance disagreement between models. An interval from few seeds is rough all the
    same: the spread of 3 is easily off by half.

    Raises:
        InputError: a configuration has no model with predictions, or the score is undefined on this test split.
    """
    labels = predictions.get("labels", np.zeros(0, np.int64))  # (N,)
    num_images = len(labels)
    images = np.zeros(num_images)  # the difference image by image
    of_seeds = []
    for config, sign in ((a, 1), (b, -1)):
        names = [row["model"] for row in rows if row["config"] == config and row["model"] in predictions]
        if not names:
            raise InputError(f"{config}: no predictions to compare; run the evaluation again")
        scores = []
        for name in names:
            found = image_scores(metric, predictions[name], labels)
            if found is None:
                raise InputError(f"{config}: no {METRIC_NAMES[metric]} to compare; the test split lacks a class")
            scores.append(float(found.mean()))
            images += sign * found / len(names)
        if len(names) > 1:
            of_seeds.append((variance(scores) / len(names), len(names) - 1))
    total = sum(part for part, _ in of_seeds) + float(images.var()) / num_images
    total += 2 / num_effective_images(metric, labels) ** 2
    half = _students_t(total, of_seeds) * math.sqrt(total)
    difference = float(images.mean())
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return Comparison(a, b, difference, low, high, num_images, len(of_seeds) == 2, metric)
