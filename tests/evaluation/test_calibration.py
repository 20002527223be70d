"""The calibration error against torchmetrics and by hand; temperatures that are known beforehand."""

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_ray.errors import InputError
from cifar_ray.evaluation.calibration import TEMPERATURES, calibration_error, fit_temperature, scaled
from cifar_ray.results.config_json import temperature_of


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def drawn(count: int, num_classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C), and labels (N,) that are drawn by their softmax: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, num_classes))
    labels = (softmax(logits).cumsum(1) < rng.uniform(size=(count, 1))).sum(1)
    return logits, np.minimum(labels, num_classes - 1)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_calibration_error_is_that_of_torchmetrics(factor: float) -> None:
    logits, labels = drawn(700)
    probabilities = softmax(factor * logits).astype(np.float32)
    expected = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 5, n_bins=15, norm="l1")
    assert calibration_error(probabilities, labels) == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.0, 1.0]])
    # Bins: 0.9 twice, once right; 0.7 right; 1.0 right.
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx((0.8 + 0.3 + 0.0) / 4)
    assert calibration_error(np.array([[np.nan, 0.5]]), np.array([0])) is None


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_probabilities_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000)
    probabilities = softmax(logits * temperature).astype(np.float32)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    mended = calibration_error(scaled(probabilities, found), labels)
    assert mended is not None and mended < 0.012
    np.testing.assert_allclose(scaled(probabilities, temperature), softmax(logits), atol=2e-5)


def test_a_model_without_a_mistake_is_not_made_as_sure_as_can_be() -> None:
    labels = np.arange(40) % 4
    probabilities = softmax(2.0 * np.eye(4)[labels])
    found = fit_temperature(probabilities, labels)
    assert found is not None and TEMPERATURES[0] < found < 1
    assert scaled(probabilities, found).max() == pytest.approx(1 - 1 / 42, abs=1e-3)


@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 0.7, 3.0, TEMPERATURES[1]])
def test_a_temperature_changes_no_rank(temperature: float) -> None:
    logits, _ = drawn(500, seed=3)
    probabilities = softmax(logits).astype(np.float32)
    probabilities[0] = [1, 0, 0, 0, 0]  # as float32 makes it of large logits
    after = scaled(probabilities, temperature)
    np.testing.assert_array_equal(probabilities.argsort(1, kind="stable"), after.argsort(1, kind="stable"))
    assert np.isfinite(after).all() and after.sum(1) == pytest.approx(1)


def test_probabilities_that_are_not_finite_have_no_temperature() -> None:
    assert fit_temperature(np.array([[np.nan, 1.0]]), np.array([0])) is None


@pytest.mark.parametrize("value", ["warm", 0, -1.0, float("nan"), None])
def test_a_card_with_a_wrong_temperature_is_refused(value: Any) -> None:
    assert temperature_of({}) == 1.0 and temperature_of({"temperature": 2}) == 2.0
    with pytest.raises(InputError, match=r"config.json: `temperature` must be a number above 0"):
        temperature_of({"temperature": value})
