"""What is found of the best models before anything is said of them: which they are, how they fit, how sure they err.

The bounds that decide are rules of thumb.
"""

from __future__ import annotations

from collections.abc import Callable

from cifar_ray.results.ranking import ConfigSummary
from cifar_ray.results.recorded_run import Records

Clause = Callable[[Records], str | None]
"""From `Records` to a sentence, or to None where the run has not recorded the number that it stands on, or that number
says nothing of the kind."""

LARGE_GAP = 0.02
"""Train - test accuracy from which a model may be said to learn by heart."""
WIDE_GAP = 0.15
"""Train - test accuracy from which a model learns by heart, whatever else is wrong with it."""
LOW_TRAIN_ACCURACY = 0.95
"""Below it a model may be said not to have learned its training images."""
CONFIDENT = 0.9
"""Probability from which a mistake is a confident one."""


def best_of(records: Records) -> ConfigSummary | None:
    """The configuration that ranks first, if it has a model."""
    return records.summaries[0] if records.summaries and records.summaries[0].models else None


def shown(records: Records) -> list[ConfigSummary]:
    """The best of each family; where families are not known, the best of all."""
    best = best_of(records)
    return records.best_of_families or ([best] if best else [])


def train_and_test(records: Records, one: ConfigSummary) -> tuple[float, float] | None:
    train, test = (records.mean_quality(one.config, split, "accuracy") for split in ("train", "test"))
    return None if train is None or test is None else (train, test)


# The error on test images is that on training images and the gap between the two: the larger part says what to mend.


def overfits(train: float, test: float) -> bool:
    return train - test >= max(1 - train, LARGE_GAP)


def underfits(train: float, test: float) -> bool:
    return train < LOW_TRAIN_ACCURACY and train - test < 1 - train


def num_confident_mistakes(records: Records) -> tuple[int, int] | None:
    best = best_of(records)
    if best is None or best.best_model not in records.predictions:
        return None
    probabilities, labels = records.predictions[best.best_model], records.predictions["labels"]
    wrong = probabilities.argmax(axis=1) != labels
    num_confident = int((wrong & (probabilities.max(axis=1) >= CONFIDENT)).sum())
    return (num_confident, int(wrong.sum())) if wrong.any() else None


def val_losses(records: Records, one: ConfigSummary) -> list[list[float]]:
    """By epoch, of each seed that has more than one."""
    curves = [[row["val_loss"] for row in records.histories.get(model, [])] for model in one.models]
    return [curve for curve in curves if len(curve) > 1 and None not in curve]
