"""How the records of a run rank its trials and models, and how sure that ranking is.

Means and intervals over seeds and images, comparisons on the test split, and the verdict in words. Imports scipy only
where it is used, so that the driver can import this early.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from types import MappingProxyType
from typing import Any

import numpy as np

from cifar_ray.config import InputError
from cifar_ray.results import DEFAULT, Row

TRIED = ("complete", "pruned")
"""States of trials whose best value counts."""

METRIC_NAMES = {"accuracy": "accuracy", "auc": "AUC", "f1": "F1"}
"""What each metric that can rank models is called."""


def best_value(trial: Row) -> Any:
    """The best validation value of a trial; None where it has none."""
    return (trial.get("best") or {}).get("val_metric")


def is_default(config: str) -> bool:
    """Whether that names a default recipe: `default`, or with several spaces also one such as `default-resnet`."""
    return config == DEFAULT or config.startswith(f"{DEFAULT}-")


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


@dataclass(frozen=True)
class ConfigSummary:
    """One configuration over its seeds. Latencies are of one image, in milliseconds; `train_s` is a mean."""

    config: str
    family: str | None
    tta: str | None
    """Test-time augmentation, which scores and latencies include."""
    trial: int | None
    models: list[str]
    """Those that were trained and evaluated; without any, nothing below is known."""
    failures: list[str]
    """Why the others failed."""
    best_model: str
    val_metric: float | None
    val_loss: float | None
    val_accuracy: Interval
    test_accuracy: Interval
    test_auc: Interval
    test_f1: Interval
    num_params: int | None
    size_mb: float | None
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    images_per_s: float | None
    train_s: float | None

    def test_score(self, metric: str) -> Interval:
        """What `metric` (accuracy, auc or f1) is on the test split."""
        return {"accuracy": self.test_accuracy, "auc": self.test_auc, "f1": self.test_f1}[metric]

    @property
    def seeds(self) -> str:
        """How many seeds it stands on: `3`, or `1 of 3` where final trainings failed."""
        asked = len(self.models) + len(self.failures)
        return f"{len(self.models)} of {asked}" if self.failures else str(asked)

    @property
    def failed(self) -> str:
        """What came of its seeds where some failed: `1 of 3 seeds; 2 failed: non-finite loss`."""
        reasons = dict.fromkeys(failure.split(" in epoch ")[0] for failure in self.failures)  # seeds differ in epochs
        return f"{self.seeds} seeds; {len(self.failures)} failed: {', '.join(reasons)}"


def _rank_key(metric: float | None, loss: float | None, num_params: float | None) -> tuple[float, float, float]:
    # Rounded, so that means that differ in their last bit only (the order of the sum) count as ties.
    return (
        math.inf if metric is None else -round(metric, 9),
        math.inf if loss is None else round(loss, 9),
        math.inf if num_params is None else num_params,
    )


def summarise(
    rows: Iterable[Row], num_val: int | None = None, predictions: Mapping[str, np.ndarray] = MappingProxyType({})
) -> list[ConfigSummary]:
    """Group the rows of results.csv by configuration and rank the groups, best first.

    Ranked by mean `val_metric` over seeds; ties go to the lower mean `val_loss`, then to fewer parameters. One of whose
    seeds some failed comes after all others: the mean of the survivors flatters it. The best model of a configuration
    is the seed of best `val_metric`. The test split ranks nothing.

    Args:
        rows: of results.csv.
        num_val: number of validation images; without it, validation accuracies have no interval.
        predictions: see `results.read_predictions`; without them, test scores have no interval.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["config"]), []).append(row)
    summaries = []
    for config, group in groups.items():
        finished = [row for row in group if not row.get("failure")]
        best = min(
            finished or group, key=lambda row: _rank_key(row.get("val_metric"), row.get("val_loss"), row.get("seed"))
        )
        fields: dict[str, Any] = {name: _mean(finished, name) for name in ("val_metric", "val_loss", "train_s")}
        fields["val_accuracy"] = score_interval((row.get("val_accuracy") for row in finished), num_val)
        for metric, (name, column) in TEST_SCORES.items():
            fields[name] = _test_interval(finished, metric, column, predictions)
        same = ("family", "tta", "trial", "num_params", "size_mb", "latency_ms_p50", "latency_ms_p95", "images_per_s")
        for name in same:
            # The same for every seed, and latency is measured for one of them: take the first that is known.
            fields[name] = next((row[name] for row in group if row.get(name) is not None), None)
        fields["failures"] = [row["failure"] for row in group if row.get("failure")]
        models = [row["model"] for row in finished]
        summaries.append(ConfigSummary(config=config, models=models, best_model=best["model"], **fields))
    return sorted(
        summaries, key=lambda one: (bool(one.failures), _rank_key(one.val_metric, one.val_loss, one.num_params))
    )


TEST_SCORES = {
    "accuracy": ("test_accuracy", "test_accuracy"),
    "auc": ("test_auc", "test_auc_macro_ovr"),
    "f1": ("test_f1", "test_f1_macro"),
}
"""Of each metric: its name in a summary, and its column of results.csv."""


def _mean(rows: Iterable[Row], column: str) -> float | None:
    known = [row[column] for row in rows if row.get(column) is not None]
    return fmean(known) if known else None


def _test_interval(rows: Sequence[Row], metric: str, column: str, predictions: Mapping[str, np.ndarray]) -> Interval:
    scores = [row.get(column) for row in rows]
    labels = predictions.get("labels", np.zeros(0, np.int64))  # (N,)
    by_model = [image_scores(metric, predictions[row["model"]], labels) for row in rows if row["model"] in predictions]
    known = [of_images for of_images in by_model if of_images is not None]
    if not known:
        return score_interval(scores, None)
    image_variance = float(np.mean(known, axis=0).var()) / len(labels)
    return score_interval(scores, num_effective_images(metric, labels), image_variance)


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


def best_of_families(summaries: Iterable[ConfigSummary]) -> list[ConfigSummary]:
    """The first configuration of each family, of ranked summaries and in their order; unknown families are left out."""
    best: dict[str, ConfigSummary] = {}
    for one in summaries:
        if one.family is not None and one.models:
            best.setdefault(one.family, one)
    return list(best.values())


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


def compare_best(
    rows: Sequence[Row],
    summaries: Sequence[ConfigSummary],
    predictions: Mapping[str, np.ndarray],
    metric: str = "accuracy",
) -> list[Comparison]:
    """Compare the best configuration with every other, in the order of their ranks, where predictions allow it."""
    scored = [one.config for one in summaries if any(model in predictions for model in one.models)]
    best = summaries[0].config if summaries and summaries[0].test_score(metric).n else None
    return [compare(rows, best, other, predictions, metric) for other in scored if other != best and best in scored]


def score_text(value: float | Interval | None, metric: str = "accuracy") -> str:
    """A score, or a mean with its interval: accuracy in percent, `97.21` or `97.21 (96.10 to 98.02)`, others as 0.9721.

    The same digits everywhere: what two means differ by is seen, and their intervals say what it is worth.
    """
    if isinstance(value, Interval):
        bounds = f" ({score_text(value.low, metric)} to {score_text(value.high, metric)})"
        return score_text(value.mean, metric) + ("" if value.low is None else bounds)
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4f}"


def difference_text(value: float, metric: str = "accuracy") -> str:
    """A signed difference of scores: of accuracies in percentage points, such as `+0.45`, of others as `+0.0045`."""
    return f"{100 * value:+.2f}" if metric == "accuracy" else f"{value:+.4f}"


def _difference(one: Comparison) -> str:
    """A difference and its interval in words."""
    what = "points" if one.metric == "accuracy" else f"in {METRIC_NAMES[one.metric]}"
    low, high = difference_text(one.low, one.metric), difference_text(one.high, one.metric)
    interval = f"95 % interval {low} to {high}{'' if one.counts_seeds else ' from the test images alone'}"
    return f"{difference_text(one.difference, one.metric)} {what} ({interval})"


def verdict(
    summaries: Sequence[ConfigSummary],
    comparisons: Sequence[Comparison],
    metric: str = "accuracy",
    default: str | None = DEFAULT,
    recipes: Mapping[str, str] | None = None,
) -> str:
    """Say in one or two plain sentences which configuration to take, and how sure that is.

    Args:
        summaries: ranked.
        comparisons: of the best configuration with others.
        metric: that ranked them, and that they are compared by.
        default: the default recipe that shows what the search gained; None where there was no search.
        recipes: what to call each default recipe, by its name; needed where there are several.
    """
    if not summaries:
        return "No final model has been trained and evaluated, so there is no verdict."
    best, others = summaries[0], [one.config for one in summaries[1:]]
    if not best.models:
        return f"Every final training failed, so there is no verdict. {best.config}: {best.failed}."
    by_name = {one.b: one for one in comparisons if one.a == best.config}
    lost = [one.config for one in summaries if not one.models]
    recipes = recipes or ({DEFAULT: "the default recipe"} if default else {})
    score, what = best.test_score(metric), METRIC_NAMES[metric]
    lack = _lack(best, metric)

    def against(other: str, name: str, tie: str) -> str:
        if other not in by_name:
            return f"how it compares with {name} is unknown, since {'its trainings failed' if other in lost else lack}"
        one = by_name[other]
        words = f"it beats {name}" if one.low > 0 else f"it is worse on test than {name}" if one.high < 0 else tie
        if not one.counts_seeds:
            words = f"one seed is too few to compare it with {name}"
        return f"{words}: {_difference(one)}"

    first = f"test {what} {_with_interval(score, metric)}" if score.n else f"test {what} unknown"
    second = []
    if others and best.config == default:
        second.append(f"the search found nothing better than {recipes[default]}")
    elif default in others:
        tie = f"the search gained nothing measurable over {recipes[default]}"
        second.append(against(default, recipes[default], tie))
    if others and others[0] != default and others[0] not in lost:
        name = f"the runner-up, {recipes[others[0]]}" if others[0] in recipes else f"the runner-up {others[0]}"
        second.append(against(others[0], name, f"it cannot be told apart from {name}"))
    first += f", the best by mean validation {what}" if others else ""
    first += f" (on {best.failed})" if best.failures else ""
    said = "; ".join(second)
    return f"Take {best.config}: {first}." + (f" {said[0].upper()}{said[1:]}." if said else "")


def _lack(best: ConfigSummary, metric: str) -> str:
    """Why there is no comparison with the best."""
    undefined = metric == "auc" and best.test_accuracy.n and not best.test_auc.n
    return "the test split has no AUC" if undefined else "predictions are missing"


def _with_interval(score: Interval, metric: str) -> str:
    unit = " %" if metric == "accuracy" else ""
    if score.n == 1:
        return f"{score_text(score, metric)}{unit} (one seed, so no interval)"
    if score.low is None:
        return f"{score_text(score, metric)}{unit} (mean over {score.n} seeds)"
    low, high = score_text(score.low, metric), score_text(score.high, metric)
    return (
        f"{score_text(score.mean, metric)}{unit} (95 % interval {low} to {high}, over {score.n} seeds and test images)"
    )


def _times(ratio: float, thing: str, same: str) -> str:
    """So many times a thing, with two significant digits: `71 times the parameters`, `1.4 % of the parameters`."""
    if abs(ratio - 1) < 0.05:
        return f"about {same} {thing}"
    if ratio < 1:
        return f"{100 * ratio:.2g} % of the {thing}"
    return f"{ratio:,.0f} times the {thing}" if ratio >= 9.95 else f"{ratio:.1f} times the {thing}"


def family_verdict(
    best: Sequence[ConfigSummary], comparisons: Sequence[Comparison], metric: str = "accuracy"
) -> list[str]:
    """Say of the first family against each other one whether to take it, how sure that is, and what it costs.

    Args:
        best: the best configuration of each family, ranked.
        comparisons: of the first of them with others.
        metric: that ranked them, and that they are compared by.
    """
    winner, by_name = best[0], {one.b: one for one in comparisons if one.a == best[0].config}
    first = f"{winner.family} ranks first by mean validation {METRIC_NAMES[metric]}"
    lack = _lack(winner, metric)
    return [_family_against(winner, other, by_name.get(other.config) or lack, first) for other in best[1:]]


def _family_against(winner: ConfigSummary, other: ConfigSummary, found: Comparison | str, first: str) -> str:
    """`found`: how they compare, or why that is unknown."""
    ratios = {}
    if winner.num_params and other.num_params:
        ratios["size"] = winner.num_params / other.num_params
    if winner.latency_ms_p50 and other.latency_ms_p50:
        ratios["speed"] = winner.latency_ms_p50 / other.latency_ms_p50
    things = {"size": ("parameters", "as many"), "speed": ("latency of one image", "the same")}
    cost = " and ".join(_times(ratio, *things[what]) for what, ratio in ratios.items())
    cost = cost and f", {'for' if min(ratios.values()) > 1 else 'with'} {cost}"

    if isinstance(found, str):
        return f"{first}{cost}; how it compares with {other.family} on test is unknown, since {found}."
    said = f"{_difference(found)}{cost}"
    if not found.counts_seeds:
        return f"{first}, but one seed is too few to compare it with {other.family}: {said}."
    if found.low > 0:
        return f"Take {winner.family}, whose best configuration beats that of {other.family} on test: {said}."
    if found.high < 0:
        return f"No clear choice: {first}, but is worse on test than {other.family}: {said}."
    cheaper: dict[str | None, list[str]] = {}
    for what, ratio in ratios.items():
        if abs(ratio - 1) >= 0.05:
            cheaper.setdefault(winner.family if ratio < 1 else other.family, []).append(what)
    take = " and ".join(f"{family} where {' or '.join(whats)} counts" for family, whats in cheaper.items())
    return f"{first}, but cannot be told apart from {other.family} on test: {said}. Take {take or 'either'}."
