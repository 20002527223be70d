"""How the records of a run rank its trials and models, and how sure that ranking is.

Means and intervals over seeds, comparisons on the test split, and the verdict in words. Imports scipy only where it is
used, so that the driver can import this early.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from cifar_ray.config import InputError
from cifar_ray.results import DEFAULT, Row

TRIED = ("complete", "pruned")
"""States of trials whose best value counts."""


def best_value(trial: Row) -> Any:
    """The best validation value of a trial; None where it has none."""
    return (trial.get("best") or {}).get("val_metric")


def is_default(config: str) -> bool:
    """Whether that names a default recipe: `default`, or with several spaces also one such as `default-resnet`."""
    return config == DEFAULT or config.startswith(f"{DEFAULT}-")


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and its confidence interval; the bounds are None where `n` is below 2."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Distance of the bounds from the mean."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def _students_t(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # half the import time of scipy.stats

    return float(stdtrit(max(freedom, 1.0), (1 + confidence) / 2))


def mean_interval(values: Iterable[float | None], confidence: float = 0.95) -> Interval:
    """Mean and Student's t interval of values that differ by their seed; None (not measured) is left out.

    The bounds are not clipped: an interval of accuracies that reaches above 1 says that n is too small for it.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Interval(known[0] if known else None, None, None, len(known))
    mean = fmean(known)
    half = _students_t(len(known) - 1, confidence) * stdev(known) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half, len(known))


@dataclass(frozen=True)
class ConfigSummary:
    """One configuration over its seeds. Latencies are of one image, in milliseconds; `train_s` is a mean."""

    config: str
    family: str | None
    tta: str | None
    """Test-time augmentation, which scores and latencies include."""
    trial: int | None
    models: list[str]
    best_model: str
    val_metric: Interval
    val_loss: Interval
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


def _rank_key(metric: float | None, loss: float | None, num_params: float | None) -> tuple[float, float, float]:
    # Rounded, so that means that differ in their last bit only (the order of the sum) count as ties.
    return (
        math.inf if metric is None else -round(metric, 9),
        math.inf if loss is None else round(loss, 9),
        math.inf if num_params is None else num_params,
    )


def summarise(rows: Iterable[Row]) -> list[ConfigSummary]:
    """Group the rows of results.csv by configuration and rank the groups, best first.

    Ranked by mean `val_metric` over seeds; ties go to the lower mean `val_loss`, then to fewer parameters. The best
    model of a configuration is the seed of best `val_metric`. The test split ranks nothing.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["config"]), []).append(row)
    summaries = []
    for config, group in groups.items():
        best = min(group, key=lambda row: _rank_key(row.get("val_metric"), row.get("val_loss"), row.get("seed")))
        fields: dict[str, Any] = {"test_auc": mean_interval(row.get("test_auc_macro_ovr") for row in group)}
        fields["test_f1"] = mean_interval(row.get("test_f1_macro") for row in group)
        for name in ("val_metric", "val_loss", "val_accuracy", "test_accuracy"):
            fields[name] = mean_interval(row.get(name) for row in group)
        same = ("family", "tta", "trial", "num_params", "size_mb", "latency_ms_p50", "latency_ms_p95", "images_per_s")
        for name in same:
            # The same for every seed, and latency is measured for one of them: take the first that is known.
            fields[name] = next((row[name] for row in group if row.get(name) is not None), None)
        fields["train_s"] = mean_interval(row.get("train_s") for row in group).mean
        models = [row["model"] for row in group]
        summaries.append(ConfigSummary(config=config, models=models, best_model=best["model"], **fields))
    return sorted(summaries, key=lambda one: _rank_key(one.val_metric.mean, one.val_loss.mean, one.num_params))


def best_of_families(summaries: Iterable[ConfigSummary]) -> list[ConfigSummary]:
    """The first configuration of each family, of ranked summaries and in their order; unknown families are left out."""
    best: dict[str, ConfigSummary] = {}
    for one in summaries:
        if one.family is not None:
            best.setdefault(one.family, one)
    return list(best.values())


@dataclass(frozen=True)
class Comparison:
    """Mean test accuracy of configuration `a` minus that of `b`, as fractions, with its 95 % interval."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    num_images: int
    counts_seeds: bool
    """False where a configuration has one seed: the interval then holds the noise of the test images alone."""


def compare(
    rows: Sequence[Row], a: str, b: str, predictions: Mapping[str, np.ndarray], num_resamples: int = 4000, seed: int = 0
) -> Comparison:
    """Difference in mean test accuracy between two configurations, and its 95 % interval.

    Seeds and test images both make it noisy, and both count (Bouthillier et al. 2021, "Accounting for variance in
    machine learning benchmarks"). So a bootstrap on two levels (Efron & Tibshirani 1993, "An introduction to the
    bootstrap") draws test images, the same for every model (hence paired), and seeds of each configuration.

    Two repairs for few seeds: it draws n - 1 of n, which makes the variance of their mean unbiased (Rao & Wu 1988), and
    the interval is +- Student's t (Welch and Satterthwaite's degrees of freedom) times the bootstrap's standard error.
    In simulations of 3 seeds whose noise dominates, percentiles of n draws covered the truth in 83 % of comparisons,
    this in 95 %; where test images dominate in 97 to 99 %, since both levels count chance disagreement between models.
    An interval from 3 seeds is rough all the same: their spread is easily off by half.

    Raises:
        InputError: a configuration has no model with predictions.
    """
    labels = predictions.get("labels", np.zeros(0, np.int64))  # (N,)
    correct_by_config: list[np.ndarray] = []
    for config in (a, b):
        names = [row["model"] for row in rows if row["config"] == config and row["model"] in predictions]
        if not names:
            raise InputError(f"{config}: no predictions to compare; run the evaluation again")
        correct_by_config.append(np.stack([predictions[name].argmax(axis=1) == labels for name in names]))  # (S, N)
    num_images, num_a = len(labels), len(correct_by_config[0])
    rng = np.random.default_rng(seed)

    # Images on which the same models are right are interchangeable: draw how often each such pattern comes, not images.
    patterns, counts = np.unique(np.concatenate(correct_by_config).T, axis=0, return_counts=True)  # (P, Sa+Sb), (P,)
    drawn = rng.multinomial(num_images, counts / num_images, size=num_resamples)  # (R, P)
    accuracy = drawn @ patterns.astype(np.float64) / num_images  # (R, Sa+Sb)

    means, variances = [], []
    for correct, resampled in zip(correct_by_config, (accuracy[:, :num_a], accuracy[:, num_a:]), strict=True):
        num_seeds = len(correct)
        num_drawn = max(num_seeds - 1, 1)
        weights = rng.multinomial(num_drawn, np.full(num_seeds, 1 / num_seeds), size=num_resamples)  # (R, S)
        means.append((weights * resampled).sum(axis=1) / num_drawn)  # (R,)
        if num_seeds > 1:
            variances.append((float(correct.mean(axis=1).var(ddof=1)) / num_seeds, num_seeds - 1))
    variance = float(np.var(means[0] - means[1], ddof=1))
    spread = sum(value**2 / freedom for value, freedom in variances)
    half = _students_t(variance**2 / spread if spread else 1e9, 0.95) * math.sqrt(variance)
    difference = float(correct_by_config[0].mean() - correct_by_config[1].mean())
    return Comparison(a, b, difference, difference - half, difference + half, num_images, len(variances) == 2)


def compare_best(
    rows: Sequence[Row], summaries: Sequence[ConfigSummary], predictions: Mapping[str, np.ndarray]
) -> list[Comparison]:
    """Compare the best configuration with every other, in the order of their ranks, where predictions allow it."""
    scored = [one.config for one in summaries if any(model in predictions for model in one.models)]
    best = summaries[0].config if summaries else None
    return [compare(rows, best, other, predictions) for other in scored if other != best and best in scored]


def percent(value: float | Interval | None) -> str:
    """A fraction, or a mean with the half-width of its interval, in percent: `97.21` or `97.21 ± 0.65`."""
    if isinstance(value, Interval):
        return percent(value.mean) + ("" if value.half_width is None else f" ± {100 * value.half_width:.2f}")
    return "-" if value is None else f"{100 * value:.2f}"


def points(value: float) -> str:
    """A signed difference of fractions in percentage points, such as `+0.45` or `-0.10`."""
    return f"{100 * value:+.2f}"


def _difference(one: Comparison) -> str:
    """A difference and its interval in words."""
    interval = f"95 % interval {points(one.low)} to {points(one.high)}"
    return f"{points(one.difference)} points ({interval}{'' if one.counts_seeds else ' from the test images alone'})"


def verdict(
    summaries: Sequence[ConfigSummary],
    comparisons: Sequence[Comparison],
    metric: str = "accuracy",
    default: str = DEFAULT,
    recipes: Mapping[str, str] | None = None,
) -> str:
    """Say in one or two plain sentences which configuration to take, and how sure that is.

    Args:
        summaries: ranked.
        comparisons: of the best configuration with others.
        metric: that ranked them.
        default: the default recipe that shows what the search gained.
        recipes: what to call each default recipe, by its name; needed where there are several.
    """
    if not summaries:
        return "No final model has been trained and evaluated, so there is no verdict."
    best, others = summaries[0], [one.config for one in summaries[1:]]
    by_name = {one.b: one for one in comparisons if one.a == best.config}
    recipes = recipes or {DEFAULT: "the default recipe"}

    def against(other: str, name: str, tie: str) -> str:
        if other not in by_name:
            return f"how it compares with {name} is unknown, since predictions are missing"
        one = by_name[other]
        words = f"it beats {name}" if one.low > 0 else f"it is worse on test than {name}" if one.high < 0 else tie
        if not one.counts_seeds:
            words = f"one seed is too few to compare it with {name}"
        return f"{words}: {_difference(one)}"

    accuracy = best.test_accuracy
    seeds = f"95 % interval over {accuracy.n} seeds" if accuracy.n > 1 else "one seed, so no interval"
    first = f"test accuracy {percent(accuracy)} % ({seeds})" if accuracy.n else "test accuracy not measured"
    second = []
    if others and best.config == default:
        second.append(f"the search found nothing better than {recipes[default]}")
    elif default in others:
        tie = f"the search gained nothing measurable over {recipes[default]}"
        second.append(against(default, recipes[default], tie))
    if others and others[0] != default:
        name = f"the runner-up, {recipes[others[0]]}" if others[0] in recipes else f"the runner-up {others[0]}"
        second.append(against(others[0], name, f"it cannot be told apart from {name}"))
    first += f", the best by mean validation {metric}" if others else ""
    said = "; ".join(second)
    return f"Take {best.config}: {first}." + (f" {said[0].upper()}{said[1:]}." if said else "")


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
        metric: that ranked them.
    """
    winner, by_name = best[0], {one.b: one for one in comparisons if one.a == best[0].config}
    first = f"{winner.family} ranks first by mean validation {metric}"
    return [_family_against(winner, other, by_name.get(other.config), first) for other in best[1:]]


def _family_against(winner: ConfigSummary, other: ConfigSummary, found: Comparison | None, first: str) -> str:
    ratios = {}
    if winner.num_params and other.num_params:
        ratios["size"] = winner.num_params / other.num_params
    if winner.latency_ms_p50 and other.latency_ms_p50:
        ratios["speed"] = winner.latency_ms_p50 / other.latency_ms_p50
    things = {"size": ("parameters", "as many"), "speed": ("latency of one image", "the same")}
    cost = " and ".join(_times(ratio, *things[what]) for what, ratio in ratios.items())
    cost = cost and f", {'for' if min(ratios.values()) > 1 else 'with'} {cost}"

    if found is None:
        return f"{first}{cost}; how it compares with {other.family} on test is unknown, since predictions are missing."
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
