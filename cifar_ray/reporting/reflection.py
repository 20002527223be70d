"""What to make of a run, as an expert would say it: families against each other, fit, classes, and what to try next.

A clause is a function from `Records` to a sentence, or to None where the run has not recorded the number that it stands
on, or that number says nothing of the kind. The bounds that decide are rules of thumb, and stand above the clauses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev

import numpy as np

from cifar_ray.reporting.mistakes import confusion_counts
from cifar_ray.reporting.parts import Section, difference_text, score_text, shared_images, with_unit
from cifar_ray.reporting.robustness import Corrupted, corrupted
from cifar_ray.reporting.verdict import times
from cifar_ray.results.ranking import TEST_SCORES, ConfigSummary, best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.results.statistics import METRIC_NAMES
from cifar_ray.text import counted, decimals, share, short, thousands

Clause = Callable[[Records], str | None]

LARGE_GAP = 0.02
"""Train - test accuracy from which a model may be said to learn by heart."""
WIDE_GAP = 0.15
"""Train - test accuracy from which a model learns by heart, whatever else is wrong with it."""
LOW_TRAIN_ACCURACY = 0.95
"""Below it a model may be said not to have learned its training images."""
RARE = 0.5
"""A class is rare with less than this share of the median class's training images."""
CONFIDENT = 0.9
"""Probability from which a mistake is a confident one."""
LARGE_DROP = 0.05
"""Loss of accuracy under a corruption that is worth an augmentation."""


def reflection(records: Records) -> Section:
    """The section: a paragraph for each matter, and as points what to try next, each with its flag."""
    section = Section("What to make of it")
    section.text = [text for clauses in (FAMILIES, FIT, CLASSES, CAVEATS) if (text := _paragraph(clauses, records))]
    section.points = [said for clause in NEXT if (said := clause(records))]
    if section.points and records.run.get("kind") == "evaluate":
        section.text.append(
            "The flags below are those of python -m cifar_ray.train, which takes the configuration of a model by "
            "--config and its config.json."
        )
    return section


def _paragraph(clauses: Sequence[Clause], records: Records) -> str:
    return " ".join(said for clause in clauses if (said := clause(records)))


def _best(records: Records) -> ConfigSummary | None:
    """The configuration that ranks first, if it has a model."""
    return records.summaries[0] if records.summaries and records.summaries[0].models else None


def _shown(records: Records) -> list[ConfigSummary]:
    """The best of each family; where families are not known, the best of all."""
    best = _best(records)
    return records.best_of_families or ([best] if best else [])


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


def _train_and_test(records: Records, one: ConfigSummary) -> tuple[float, float] | None:
    train, test = (records.mean_quality(one.config, split, "accuracy") for split in ("train", "test"))
    return None if train is None or test is None else (train, test)


# The error on test images is that on training images and the gap between the two: the larger part says what to mend.


def _overfits(train: float, test: float) -> bool:
    return train - test >= max(1 - train, LARGE_GAP)


def _underfits(train: float, test: float) -> bool:
    return train < LOW_TRAIN_ACCURACY and train - test < 1 - train


def fit(records: Records) -> str | None:
    """Whether the best of each family learns by heart, or not even its training images."""
    return _joined([_fit(records, one) for one in _shown(records)])


def _fit(records: Records, one: ConfigSummary) -> str | None:
    found = _train_and_test(records, one)
    if found is None:
        return None
    train, test = found
    told = f"is right on {with_unit('accuracy', train)} of training and {with_unit('accuracy', test)} of test images"
    if _overfits(train, test):
        judged = "it overfits"
    elif _underfits(train, test):
        judged = "it underfits: most of its error is there on its own training images"
        judged += ", and the gap says that it learns by heart as well" if train - test >= WIDE_GAP else ""
    else:
        judged = "no sign of over- or underfitting"
    return f"{one.config} {told} ({difference_text(train - test)} points): {judged}."


def turned_loss(records: Records) -> str | None:
    """Whether the validation loss rose again after its best epoch, which is what overfitting looks like in time."""
    return _joined([_turned_loss(records, one) for one in _shown(records)])


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
    return [fmean(values) for values in zip(*_val_losses(records, one), strict=False)]


def seeds_differ(records: Records) -> str | None:
    """How much the score of the best depends on chance alone."""
    best, (_, column) = _best(records), TEST_SCORES[records.metric]
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
    best = _best(records)
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
    best = _best(records)
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
    found = _confident_mistakes(records)
    if found is None:
        return None
    num_confident, num_wrong = found
    made = {0: "none is", 1: "1 is"}.get(num_confident, f"{num_confident} are")
    return f"Of its {counted(num_wrong, 'mistake')}, {made} made with a probability of {100 * CONFIDENT:.0f} % or more."


def _confident_mistakes(records: Records) -> tuple[int, int] | None:
    best = _best(records)
    if best is None or best.best_model not in records.predictions:
        return None
    probabilities, labels = records.predictions[best.best_model], records.predictions["labels"]
    wrong = probabilities.argmax(axis=1) != labels
    num_confident = int((wrong & (probabilities.max(axis=1) >= CONFIDENT)).sum())
    return (num_confident, int(wrong.sum())) if wrong.any() else None


def calibration(records: Records) -> str | None:
    """Whether the best model is as often right as its probabilities say, before and after its temperature."""
    best = _best(records)
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
    best, num_test = _best(records), records.data.get("num_test")
    score = best.test_score(records.metric) if best else None
    if score is None or score.low is None or score.high is None or not num_test:
        return None
    return (
        f"With {thousands(num_test)} test images the test {records.metric_name} of the best is known to "
        f"{_size(records, (score.high - score.low) / 2)} either way: differences well below that are not to be seen "
        "here."
    )


CAVEATS = (images_in_two_splits, read_before, wide_interval)


# What to try next: each with the flag that does it.


def _val_losses(records: Records, one: ConfigSummary) -> list[list[float]]:
    """By epoch, of each seed that has more than one."""
    curves = [[row["val_loss"] for row in records.histories.get(model, [])] for model in one.models]
    return [curve for curve in curves if len(curve) > 1 and None not in curve]


def _still_falls(curves: Sequence[Sequence[float]]) -> bool:
    """Whether half of the curves or more are lowest at their end."""
    return bool(curves) and 2 * sum(min(curve) == curve[-1] for curve in curves) >= len(curves)


def train_longer(records: Records) -> str | None:
    """The validation loss was still falling when the training ended."""
    for one in _shown(records):
        curves = _val_losses(records, one)
        last = [curve for curve in curves if min(curve) == curve[-1]]
        if not _still_falls(curves):
            continue
        epochs = max(len(curve) for curve in last)
        schedule = (records.config(one.config, one.best_model).get("lr_schedule") or {}).get("name")
        anneals = " (in part since its learning rate anneals to the end)" * (schedule in ("one_cycle", "cosine"))
        return (
            f"Train longer: the validation loss of {one.config} was lowest in the last of {epochs} epochs in "
            f"{len(last)} of {counted(len(curves), 'seed')}, at {decimals(fmean(curve[-1] for curve in last), 3)}"
            f"{anneals}: --max-epochs {2 * epochs}"
        )
    return None


def regularise(records: Records) -> str | None:
    """It overfits: augment, or drop out, what does not do so yet."""
    for one in _shown(records):
        found = _train_and_test(records, one)
        config = records.config(one.config, one.best_model)
        value = _next_regulariser(config, int(records.data.get("image_size") or 32))
        if found is None or not _overfits(*found) or value is None:
            continue
        return (
            f"Regularise: {one.config} is {difference_text(found[0] - found[1])[1:]} points better on training than on "
            f"test images, and has not used this yet: --set {value}"
        )
    return None


def _next_regulariser(config: Row, image_size: int) -> str | None:
    """The first of some regularisers that a configuration does without, as a value for `--set`."""
    model, augment = config.get("model") or {}, config.get("augment") or {}
    if model.get("finetune") == "head" and model.get("feature_views") == 1:
        return "model/feature_views=4"  # augmentation needs several
    if augment.get("crop_padding") == 0:
        return f"augment/crop_padding={max(image_size // 8, 1)}"
    if augment.get("cutout") == 0:
        return f"augment/cutout={max(image_size // 4, 1)}"
    if model.get("dropout") == 0:
        return "model/dropout=0.1"
    if model.get("head_dropout") == 0:
        return "model/head_dropout=0.3"
    return None


def larger_model(records: Records) -> str | None:
    """It underfits, and not for want of epochs: it needs more capacity."""
    for one in _shown(records):
        found = _train_and_test(records, one)
        if found is None or not _underfits(*found) or _still_falls(_val_losses(records, one)):
            continue
        config = records.config(one.config, one.best_model).get("model") or {}
        value = None
        if config.get("widths"):
            value = "model/widths=[" + ",".join(str(2 * width) for width in config["widths"]) + "]"
        elif config.get("backbone") == "resnet18":
            value = "model/backbone=resnet50"
        if value is None:
            continue
        return (
            f"Larger model: {one.config} ({short(one.num_params)} parameters) is right on only "
            f"{with_unit('accuracy', found[0])} of its own training images: --set {value}"
        )
    return None


def pretrained_weights(records: Records) -> str | None:
    """A ResNet that started from random weights."""
    num_train = records.data.get("num_train")
    for one in _shown(records):
        model = records.config(one.config, one.best_model).get("model") or {}
        if model.get("weights") == "none" and num_train:
            return (
                f"Pretrained weights: {one.config} learned all of its {short(one.num_params)} parameters from "
                f"{thousands(num_train)} images: --weights DEFAULT"
            )
    return None


def more_seeds(records: Records) -> str | None:
    """The best cannot be told apart from the runner-up, or from the best of another family."""
    best = _best(records)
    if best is None:
        return None
    for other in [*records.summaries[1:2], *records.best_of_families[1:]]:
        found = records.comparison(best.config, other.config, records.metric) if other.models else None
        if found is None or not found.low <= 0 <= found.high:
            continue
        flag = f"--{'final-' * records.searched}seeds {2 * max(len(best.models), len(other.models))}"
        low, high = (difference_text(value, records.metric) for value in (found.low, found.high))
        return (
            f"More seeds: {best.config} and {other.config} cannot be told apart on test (95 % interval {low} to "
            f"{high}, {counted(len(best.models), 'seed')}): {flag}"
        )
    return None


def more_trials(records: Records) -> str | None:
    """The search had not come to rest, or found nothing."""
    trials = [trial for trial in records.tried if trial.get("number") is not None]
    if not records.searched or len(trials) < 5:
        return None
    best, count = trials[0], len(trials)
    if records.is_default(best["name"]):
        why = f"none of {count - 1} other trials did better than {best['name']} ({_val(records, best)})"
    elif sum(trial["number"] > best["number"] for trial in trials) < count / 3:
        why = f"the best of {count} trials was {best['name']}, one of the last ({_val(records, best)})"
    else:
        return None
    return f"Search on: {why}: --trials {2 * count}"


def _val(records: Records, trial: Row) -> str:
    return f"validation {records.metric_name} {with_unit(records.metric, best_value(trial))}"


def weigh_classes(records: Records) -> str | None:
    """The classes differ in size, and the ranking counts images."""
    train = records.class_counts.get("train")
    if not train or min(train) == 0 or max(train) < 2 * min(train):
        return None
    config = records.config(best.config, best.best_model) if (best := _best(records)) else {}
    flags = [flag for flag, open_yet in (("--metric f1", records.metric == "accuracy"),
             ("--set class_weights=balanced", config.get("class_weights") != "balanced")) if open_yet]  # fmt: skip
    if not flags:
        return None
    return (
        f"Rare classes: the largest has {thousands(max(train))} training images, the smallest {thousands(min(train))}: "
        f"{' '.join(flags)}"
    )


def smooth_labels(records: Records) -> str | None:
    """Most mistakes are confident ones, and the loss rewards confidence."""
    found, best = _confident_mistakes(records), _best(records)
    if found is None or best is None or found[0] < max(0.5 * found[1], 2):
        return None
    if records.config(best.config, best.best_model).get("label_smoothing") != 0:
        return None
    return f"Less confidence: {found[0]} of {found[1]} mistakes are confident ones: --set label_smoothing=0.1"


def shift_images(records: Records) -> str | None:
    """Shifted images are lost, and none were in training."""
    found, best = corrupted(records), _best(records)
    one: Corrupted | None = found.get(best.config) if best else None
    if one is None or best is None:
        return None
    of_shift = {severity: value for (name, severity), value in one.accuracies.items() if name == "shift"}
    augment = records.config(best.config, best.best_model).get("augment") or {}
    if not of_shift or one.clean - of_shift[min(of_shift)] < LARGE_DROP or augment.get("crop_padding") != 0:
        return None
    padding = max(int(records.data.get("image_size") or 32) // 8, 1)
    return (
        f"Shifts: the smallest one already takes {best.config} from {with_unit('accuracy', one.clean)} to "
        f"{score_text(of_shift[min(of_shift)])} %, and it saw none in training: --set augment/crop_padding={padding}"
    )


def raise_limit(records: Records) -> str | None:
    """Most of what was drawn was over the limit on parameters."""
    limit = (records.run.get("settings") or {}).get("max_params")
    num_over = sum(trial["state"] == "infeasible" for trial in records.trials)
    if not limit or 2 * num_over < len(records.trials) or not num_over:
        return None
    return (
        f"A higher limit: {num_over} of {counted(len(records.trials), 'configuration')} were over "
        f"{short(limit)} parameters and not tried: --max-params {short(2 * limit)}"
    )


NEXT = (
    train_longer, regularise, larger_model, pretrained_weights, smooth_labels, shift_images, weigh_classes, more_trials,
    raise_limit, more_seeds,
)  # fmt: skip
