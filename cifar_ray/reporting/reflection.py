"""What to make of a run, as an expert would say it: families against each other, fit, classes, caveats.

What to try next stands in `advice`; what both look at, in `findings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, stdev

import numpy as np

from cifar_ray.reporting.advice import NEXT
from cifar_ray.reporting.findings import (
    CONFIDENT,
    WIDE_GAP,
    Clause,
    best_of,
    num_confident_mistakes,
    overfits,
    shown,
    train_and_test,
    underfits,
    val_losses,
)
from cifar_ray.reporting.mistakes import confusion_counts
from cifar_ray.reporting.parts import Section, difference_text, score_text, shared_images, with_unit
from cifar_ray.reporting.robustness import corrupted
from cifar_ray.reporting.verdict import times
from cifar_ray.results.ranking import TEST_SCORES, ConfigSummary
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.statistics import METRIC_NAMES
from cifar_ray.text import counted, decimals, share, short, thousands

RARE = 0.5
"""A class is rare with less than this share of the median class's training images."""


def reflection(records: Records) -> Section:
    """The section: a paragraph for each matter, and as points what to try next, each with its flag."""
    section = Section("What to make of it")
    section.text = [text for clauses in (FAMILIES, FIT, CLASSES, CAVEATS) if (text := _paragraph(clauses, records))]
    by_flags: dict[str, str] = {}
    for said in filter(None, (clause(records) for clause in NEXT)):
        by_flags.setdefault(said.rpartition(": ")[2], said)  # two findings may call for the same
    section.points = list(by_flags.values())
    if section.points and records.run.get("kind") == "evaluate":
        section.text.append(
            "The flags below are those of python -m cifar_ray.train, which takes the configuration of a model by "
            "--config and its config.json."
        )
    return section


def _paragraph(clauses: Sequence[Clause], records: Records) -> str:
    return " ".join(said for clause in clauses if (said := clause(records)))


def _rivals(records: Records) -> list[tuple[ConfigSummary, ConfigSummary]]:
    """The best family's best against that of each other family."""
    return [(records.best_of_families[0], other) for other in records.best_of_families[1:]]


def _joined(sentences: Sequence[str | None]) -> str | None:
    return " ".join(one for one in sentences if one) or None


# Families against each other.


def family_quality(records: Records) -> str | None:
    return _joined([_scores_of_two(records, *pair, records.metric) for pair in _rivals(records)])


def family_auc(records: Records) -> str | None:
    if records.metric == "auc":
        return None  # told already
    return _joined([_scores_of_two(records, *pair, "auc") for pair in _rivals(records)])


def _scores_of_two(records: Records, one: ConfigSummary, other: ConfigSummary, metric: str) -> str | None:
    found = records.comparison(one.config, other.config, metric)
    means = one.test_score(metric).mean, other.test_score(metric).mean
    if found is None or None in means:
        return None
    if not found.counts_seeds:
        told = "one seed is too few to tell them apart"
    elif found.low > 0:
        told = f"{one.family} is better"
    else:
        told = f"{other.family} is better" if found.high < 0 else "they cannot be told apart"
    unit = "points" if metric == "accuracy" else "in AUC" if metric == "auc" else f"in {METRIC_NAMES[metric]}"
    interval = f"{difference_text(found.low, metric)} to {difference_text(found.high, metric)}"
    return (
        f"Test {METRIC_NAMES[metric]}: {one.family} {with_unit(metric, means[0])}, {other.family} "
        f"{with_unit(metric, means[1])}; {told} ({difference_text(found.difference, metric)} {unit}, 95 % interval "
        f"{interval})."
    )


def family_size(records: Records) -> str | None:
    return _joined([_cost("Size", "parameters", "as many", "", (one, one.num_params), (other, other.num_params))
                    for one, other in _rivals(records)])  # fmt: skip


def family_speed(records: Records) -> str | None:
    what = ("Speed", "latency of one image", "the same", " ms")
    pairs = _rivals(records)
    return _joined([_cost(*what, (one, one.latency_ms_p50), (other, other.latency_ms_p50)) for one, other in pairs])


def family_training_time(records: Records) -> str | None:
    what = ("Training", "training time", "the same", " s")
    said = _joined([_cost(*what, (one, one.train_s), (other, other.train_s)) for one, other in _rivals(records)])
    if said and any(records.trains_head_only(one) for one in records.best_of_families):
        said += " Not counted: the features that a frozen backbone computed before."
    return said


def _cost(
    lead: str,
    what: str,
    same: str,
    unit: str,
    a: tuple[ConfigSummary, float | None],
    b: tuple[ConfigSummary, float | None],
) -> str | None:
    (one, of_one), (other, of_other) = a, b
    if not of_one or not of_other:
        return None
    against = f"{short(of_one)}{unit} against {short(of_other)}{unit} of {other.family}"
    return f"{lead}: {one.family} has {times(of_one / of_other, what, same)} ({against})."


def family_robustness(records: Records) -> str | None:
    found = corrupted(records)
    pairs = [pair for pair in _rivals(records) if all(one.config in found for one in pair)]

    def change(one: ConfigSummary) -> str:
        of = found[one.config]
        return f"{difference_text(of.mean - of.clean)} points to {with_unit('accuracy', of.mean)} for {one.family}"

    said = [
        f"Robustness: corruption changes accuracy by {change(one)}, and by {change(other)}." for one, other in pairs
    ]
    return _joined(said)


FAMILIES = (family_quality, family_auc, family_size, family_speed, family_training_time, family_robustness)


# Over- and underfitting.


def fit(records: Records) -> str | None:
    """Whether the best of each family learns by heart, or not even its training images."""
    return _joined([_fit(records, one) for one in shown(records)])


def _fit(records: Records, one: ConfigSummary) -> str | None:
    found = train_and_test(records, one)
    if found is None:
        return None
    train, test = found
    told = f"is right on {with_unit('accuracy', train)} of training and {with_unit('accuracy', test)} of test images"
    if overfits(train, test):
        judged = "it overfits"
    elif underfits(train, test):
        judged = "it underfits: most of its error is there on its own training images"
        judged += ", and the gap says that it learns by heart as well" if train - test >= WIDE_GAP else ""
    else:
        judged = "no sign of over- or underfitting"
    return f"{one.config} {told} ({difference_text(train - test)} points): {judged}."


def turned_loss(records: Records) -> str | None:
    """Whether the validation loss rose again after its best epoch, which is what overfitting looks like in time."""
    return _joined([_turned_loss(records, one) for one in shown(records)])


def _turned_loss(records: Records, one: ConfigSummary) -> str | None:
    curve = _mean_val_loss(records, one)
    if len(curve) < 5:
        return None
    lowest = int(np.argmin(curve))
    if lowest >= 0.8 * len(curve) or curve[-1] < 1.05 * curve[lowest]:
        return None
    return (
        f"The validation loss of {one.config} was lowest in epoch {lowest + 1} of {len(curve)} "
        f"({decimals(curve[lowest], 3)}) and rose to {decimals(curve[-1], 3)}: from there on it learned by heart."
    )


def _mean_val_loss(records: Records, one: ConfigSummary) -> list[float]:
    """By epoch, over the seeds, as far as all of them got."""
    return [fmean(values) for values in zip(*val_losses(records, one), strict=False)]


def seeds_differ(records: Records) -> str | None:
    """How much the score of the best depends on chance alone."""
    best, (_, column) = best_of(records), TEST_SCORES[records.metric]
    rows = [row for row in records.rows if best and row["config"] == best.config]
    scores = [row[column] for row in rows if row.get(column) is not None]
    if best is None or len(scores) < 2:
        return None
    return (
        f"From seed to seed the test {records.metric_name} of {best.config} varies by "
        f"{_size(records, stdev(scores))} (standard deviation of {len(scores)})."
    )


def _size(records: Records, difference: float) -> str:
    """A difference of scores without its sign: `0.46 points`, or `0.0046`."""
    points = " points" if records.metric == "accuracy" else ""
    return difference_text(abs(difference), records.metric)[1:] + points


FIT = (fit, turned_loss, seeds_differ)


# Classes.


def _confusions(records: Records) -> np.ndarray | None:
    best = best_of(records)
    known = best is not None and best.best_model in records.predictions
    return confusion_counts(records, best.best_model) if best and known else None


def _worst_class(counts: np.ndarray) -> int | None:
    """The class of lowest recall; None where no test image is judged wrongly."""
    totals, right = counts.sum(axis=1), counts.diagonal()
    recall = np.where(totals > 0, right / np.maximum(totals, 1), np.inf)
    return None if counts.sum() == right.sum() else int(np.argmin(recall))


def worst_class(records: Records) -> str | None:
    counts = _confusions(records)
    worst = None if counts is None else _worst_class(counts)
    best = best_of(records)
    if counts is None or worst is None or best is None:
        return None
    total, right = int(counts[worst].sum()), int(counts[worst, worst])
    whole = share(counts.trace(), counts.sum())
    return (
        f"{best.best_model} fails most on {records.class_name(worst)}: it finds {right} of {total} test images "
        f"({share(right, total)}; of all classes {whole})."
    )


def rare_class(records: Records) -> str | None:
    """Why the worst class may fail: it has few training images."""
    counts, train = _confusions(records), records.class_counts.get("train")
    worst = None if counts is None else _worst_class(counts)
    if worst is None or not train or train[worst] >= RARE * median(train):
        return None
    return (
        f"It has {thousands(train[worst])} training images where the median class has {thousands(median(train))}: more "
        "of them would help first."
    )


def confused_pair(records: Records) -> str | None:
    """Why the worst class may fail: half or more of its mistakes are one other class."""
    counts = _confusions(records)
    worst = None if counts is None else _worst_class(counts)
    if counts is None or worst is None:
        return None
    wrong = counts[worst].copy()
    wrong[worst] = 0
    other = int(np.argmax(wrong))
    if wrong.sum() < 2 or wrong[other] < 0.5 * wrong.sum():
        return None
    return (
        f"{wrong[other]} of its {wrong.sum()} mistakes are taken for {records.class_name(other)}: look at them below, "
        "whether these two can be told apart at this size and are labelled rightly."
    )


def confident_mistakes(records: Records) -> str | None:
    found = num_confident_mistakes(records)
    if found is None:
        return None
    num_confident, num_wrong = found
    made = {0: "none is", 1: "1 is"}.get(num_confident, f"{num_confident} are")
    return f"Of its {counted(num_wrong, 'mistake')}, {made} made with a probability of {100 * CONFIDENT:.0f} % or more."


def calibration(records: Records) -> str | None:
    """Whether the best model is as often right as its probabilities say, before and after its temperature."""
    best = best_of(records)
    rows = [row for row in records.quality if best and row["model"] == best.best_model and row["split"] == "test"]
    if not rows or rows[0].get("calibration_error") is None:
        return None
    error, mended, temperature = (rows[0].get(name) for name in CALIBRATION)
    said = f"Its probabilities are off by {score_text(error)} points on average (expected calibration error)"
    value = decimals(temperature, 2)
    if mended is None or temperature is None or round(temperature, 2) == 1:
        return f"{said}."
    sure = "too sure" if temperature > 1 else "not sure enough"
    return (
        f"{said}. On validation it is {sure}: with the temperature of {value} that mends this there, as "
        f"predict uses it, they are off by {score_text(mended)} points on test."
    )


CALIBRATION = ("calibration_error", "scaled_calibration_error", "temperature")
"""Columns of quality.csv."""

CLASSES = (worst_class, rare_class, confused_pair, confident_mistakes, calibration)


# What the numbers cannot tell.


def images_in_two_splits(records: Records) -> str | None:
    return _joined([f"{said[0].upper()}{said[1:]}." for said in shared_images(records.data)])


def read_before(records: Records) -> str | None:
    """Whether the test split has been read before: scores after a choice by it are too good."""
    readings = records.test_readings
    if readings.get("readings", 0) < 2:
        return None
    return (
        f"This test split has been read {readings['readings']} times in {counted(readings['runs'], 'run')}: as far as "
        "a reading led to a choice, the scores of the next one look too good."
    )


def wide_interval(records: Records) -> str | None:
    """How small a difference this test split can show at all."""
    best, num_test = best_of(records), records.data.get("num_test")
    score = best.test_score(records.metric) if best else None
    if score is None or score.low is None or score.high is None or not num_test:
        return None
    return (
        f"With {thousands(num_test)} test images the test {records.metric_name} of the best is known to "
        f"{_size(records, (score.high - score.low) / 2)} either way: differences well below that are not to be seen "
        "here."
    )


CAVEATS = (images_in_two_splits, read_before, wide_interval)
