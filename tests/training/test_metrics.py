"""Metrics against scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from cifar_ray.training.metrics import auc_macro_ovr, f1_macro, loss_and_accuracy, ranking_metric


def sampled(kind: str, count: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 probabilities (N, C) whose rows add up to 1, and labels (N,) that hold every class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, count - num_classes)])
    logits = rng.normal(size=(count, num_classes)) + 0.7 * np.eye(num_classes)[labels]
    if kind == "skewed":  # one rare class, and nearly certain wherever it is wrong
        labels = np.where(
            np.arange(count) < num_classes, labels, rng.choice([0, num_classes - 1], count, p=[0.95, 0.05])
        )
        logits *= 30
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    if kind == "tied":  # quarters add up exactly in float32
        quarters = rng.multinomial(4, np.full(num_classes, 1 / num_classes), size=count)
        probabilities = quarters / 4
    return probabilities.astype(np.float32), labels


@pytest.mark.parametrize("kind", ["random", "tied", "skewed"])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_the_auc_is_that_of_scikit_learn(kind: str, num_classes: int, seed: int) -> None:
    probabilities, labels = sampled(kind, 200, num_classes, seed)
    scores = probabilities.astype(np.float64)
    if num_classes > 2:
        expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    else:  # scikit-learn takes one column of two classes, but the columns differ where float32 rounds to a tied 1.0
        expected = np.mean([roc_auc_score(labels == column, scores[:, column]) for column in (0, 1)])
    auc = auc_macro_ovr(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert auc == pytest.approx(expected, abs=1e-5)


def test_the_auc_is_one_where_every_image_is_right_and_a_half_where_nothing_is_known() -> None:
    labels = torch.arange(30) % 3
    assert auc_macro_ovr(torch.eye(3)[labels], labels) == pytest.approx(1.0)
    assert auc_macro_ovr(torch.full((30, 3), 1 / 3), labels) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "num_classes"), [([0, 1, 1, 0], 3), ([1, 2, 2, 1], 3), ([0, 0, 0], 2), ([1, 1], 2), ([0, 0], 1)]
)
def test_there_is_no_auc_where_a_class_is_absent_or_alone(labels: list[int], num_classes: int) -> None:
    probabilities = torch.full((len(labels), num_classes), 1 / num_classes)
    assert auc_macro_ovr(probabilities, torch.tensor(labels)) is None


@pytest.mark.parametrize("kind", ["random", "skewed"])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_the_f1_is_that_of_scikit_learn(kind: str, num_classes: int, seed: int) -> None:
    probabilities, labels = sampled(kind, 200, num_classes, seed)
    expected = f1_score(labels, probabilities.argmax(1), average="macro")
    assert f1_macro(torch.from_numpy(probabilities), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("predicted", "labels", "expected"),
    [
        ([0, 1, 2], [0, 1, 2], 1.0),
        ([1, 0], [0, 1], 0.0),
        ([0, 0, 0, 1], [0, 0, 1, 1], (0.8 + 2 / 3) / 2),
        ([0, 0], [0, 0], 1.0),  # classes 1 and 2 are nowhere: they do not count
        ([0, 2], [0, 0], (2 / 3 + 0.0) / 2),  # class 2 is predicted, so it does
    ],
)
def test_the_f1_of_a_few_images_is_what_was_worked_out_by_hand(
    predicted: list[int], labels: list[int], expected: float
) -> None:
    assert f1_macro(torch.eye(3)[predicted], torch.tensor(labels)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_what_models_are_ranked_by_is_the_metric_of_that_name(seed: int) -> None:
    probabilities, label_array = sampled("random", 200, 3, seed)
    # Between 0 and 1, where torchmetrics would take logits for probabilities.
    logits, labels = torch.from_numpy(probabilities).log(), torch.from_numpy(label_array)
    logits = (logits - logits.min()) / (logits.max() - logits.min())
    assert ranking_metric("accuracy", logits, labels) == loss_and_accuracy(logits, labels)[1]
    assert ranking_metric("f1", logits, labels) == f1_macro(logits, labels)
    odds = np.exp(logits.double().numpy())
    expected = roc_auc_score(label_array, odds / odds.sum(1, keepdims=True), multi_class="ovr", average="macro")
    assert ranking_metric("auc", logits, labels) == pytest.approx(expected, abs=1e-5)
    assert ranking_metric("auc", logits, torch.zeros_like(labels)) is None


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_loss_and_accuracy_are_those_of_scikit_learn(num_classes: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(101, num_classes))).astype(np.float32)
    labels = rng.integers(0, num_classes, 101)
    loss, accuracy = loss_and_accuracy(torch.from_numpy(logits), torch.from_numpy(labels))
    exact = logits.astype(np.float64)
    exact -= exact.max(1, keepdims=True)
    log_probabilities = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    assert loss == pytest.approx(-log_probabilities[np.arange(101), labels].mean(), rel=1e-5)
    assert accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    if scale == 1.0:  # scikit-learn clips probabilities
        assert loss == pytest.approx(log_loss(labels, np.exp(log_probabilities)), rel=1e-5)


def test_half_precision_logits_are_scored_in_full_precision() -> None:
    logits = torch.tensor([[10.0, 0.0], [0.0, 10.0]], dtype=torch.bfloat16)
    loss, accuracy = loss_and_accuracy(logits, torch.tensor([0, 1]))
    assert loss == pytest.approx(np.log1p(np.exp(-10.0)), rel=1e-3)
    assert accuracy == 1.0


def test_a_logit_that_is_not_a_number_gives_a_loss_that_is_none_either() -> None:
    loss, _ = loss_and_accuracy(torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]))
    assert np.isnan(loss)
