"""What is said of predictions, against scikit-learn asked plainly, torchmetrics and sums by hand."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from cifar_ray.evaluation.quality import class_quality, split_quality


def quality(probabilities: Any, labels: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both at once; whatever scikit-learn warns about is an error."""
    probabilities, labels = np.asarray(probabilities, np.float32), np.asarray(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes = class_quality(probabilities, labels)
        return split_quality(probabilities, labels, classes), classes


def sampled(kind: str, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C) float32 and labels (N,) of a random number of images."""
    rng = np.random.default_rng([seed, num_classes])
    count = int(rng.integers(2 * num_classes, 300))
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, count - num_classes)])
    logits = rng.normal(size=(count, num_classes)) + 0.7 * np.eye(num_classes)[labels]
    if kind == "certain":  # float32 makes exact zeros and ones of these
        logits *= 400
    if kind == "rare":  # a class with one image, one that is never predicted, one that is absent
        labels = np.where(np.arange(count) > 0, np.minimum(labels, max(num_classes - 3, 1)), 0)
        logits[:, -1] -= 50
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    if kind == "tied":
        probabilities = rng.multinomial(4, np.full(num_classes, 1 / num_classes), size=count) / 4
    return probabilities.astype(np.float32), labels


@pytest.mark.parametrize("kind", ["plain", "certain", "rare", "tied"])
@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 10])
@pytest.mark.parametrize("seed", range(5))
def test_every_number_is_scikit_learns(kind: str, num_classes: int, seed: int) -> None:
    probabilities, labels = sampled(kind, num_classes, seed)
    row, classes = quality(probabilities, labels)
    names, predicted = list(range(num_classes)), probabilities.argmax(1)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    assert row["n"] == len(labels) == sum(of_class["n"] for of_class in classes)
    assert row["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted), abs=1e-6)
    assert row["f1_macro"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert row["log_loss"] == pytest.approx(metrics.log_loss(labels, exact, labels=names), abs=1e-6)
    if num_classes > 5:
        assert row["top5_accuracy"] == metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=names)
    else:
        assert row["top5_accuracy"] is None
    present, certain = set(labels.tolist()), set(predicted.tolist())
    areas = []
    for index, of_class in enumerate(classes):
        hits = (metrics.precision_score, "precision", certain), (metrics.recall_score, "recall", present)
        for function, name, defined in (*hits, (metrics.f1_score, "f1", present | certain)):
            expected = function(labels == index, predicted == index, zero_division=0) if index in defined else None
            assert of_class[name] == (None if expected is None else pytest.approx(expected, abs=1e-6))
        areas.append(metrics.roc_auc_score(labels == index, probabilities[:, index]) if index in present else None)
        assert of_class["auc_ovr"] == (None if areas[-1] is None else pytest.approx(areas[-1], abs=1e-6))
    assert row["auc_macro_ovr"] == (None if None in areas else pytest.approx(np.mean(areas), abs=1e-6))
    if num_classes > 2 and None not in areas and kind != "certain":  # of which scikit-learn refuses the sums
        assert row["auc_macro_ovr"] == pytest.approx(metrics.roc_auc_score(labels, exact, multi_class="ovr"), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees_where_every_class_is_present(seed: int) -> None:
    probabilities, labels = sampled("plain", 6, seed)
    row, classes = quality(probabilities, labels)
    given = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert row["f1_macro"] == pytest.approx(float(multiclass_f1_score(*given, 6, average="macro")), abs=1e-6)
    areas = multiclass_auroc(*given, 6, average=None).tolist()
    assert [of_class["auc_ovr"] for of_class in classes] == pytest.approx(areas, abs=1e-6)


def test_a_few_images_worked_out_by_hand() -> None:
    row, classes = quality([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [0, 0, 1, 2])
    # Predicted: 0, 1, 0 (of equal ones the first), 2.
    assert [of_class["n"] for of_class in classes] == [2, 1, 1]
    assert [of_class["precision"] for of_class in classes] == [0.5, 0.0, 1.0]
    assert [of_class["recall"] for of_class in classes] == [0.5, 0.0, 1.0]
    assert [of_class["f1"] for of_class in classes] == [0.5, 0.0, 1.0]
    # Class 0: 0.5 and 0.25 against 0.5 and 0.0. Class 1: 0.5 against 0.25, 0.5 and 0.0. Class 2: 1 above all.
    assert [of_class["auc_ovr"] for of_class in classes] == pytest.approx([2.5 / 4, 2.5 / 3, 1.0])
    assert row["accuracy"] == 0.5 and row["f1_macro"] == pytest.approx(0.5)
    assert row["log_loss"] == pytest.approx((np.log(2) + np.log(4) + np.log(2)) / 4)


def test_what_is_certain_and_wrong_costs_a_finite_loss() -> None:
    row, _ = quality([[1.0, 0.0], [0.0, 1.0]], [1, 1])
    assert row["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)
    assert quality([[1.0, 0.0], [0.0, 1.0]], [0, 1])[0]["log_loss"] == pytest.approx(0.0, abs=1e-12)


def test_a_split_of_one_class_has_no_area() -> None:
    row, classes = quality([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    assert (row["auc_macro_ovr"], row["accuracy"]) == (None, 0.5)
    assert classes[0] == {"class": 0, "n": 2, "auc_ovr": None, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert classes[1] == {"class": 1, "n": 0, "auc_ovr": None, "precision": 0.0, "recall": None, "f1": 0.0}
    assert quality([[0.9, 0.1]], [0])[1][1]["f1"] is None  # neither there nor predicted


def test_probabilities_that_are_not_finite_leave_what_rests_on_them_empty() -> None:
    probabilities = np.full((7, 7), np.nan)
    probabilities[1:] = np.eye(7)[:6]
    row, classes = quality(probabilities, np.arange(7))
    assert (row["log_loss"], row["top5_accuracy"], row["auc_macro_ovr"]) == (None, None, None)
    assert row["accuracy"] == pytest.approx(1 / 7) and classes[0]["auc_ovr"] is None
