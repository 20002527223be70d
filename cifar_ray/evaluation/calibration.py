"""Whether a model is as often right as its probabilities say, and the temperature that mends it.

Needs neither torch nor ray: it works on kept probabilities, so that anyone can work the numbers out again.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from cifar_ray.results.records import CALIBRATION_BINS

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature."""


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Images are grouped by their highest probability into 15 bins of equal width, (0, 1/15], (1/15, 2/15] and so on
    (:data:`~cifar_ray.results.records.CALIBRATION_BINS`); the error is the mean over images of how far the accuracy of
    their bin is from its mean probability.

    Args:
        probabilities: (N, C), N >= 1.
        labels: (N,) int64.

    Returns:
        A fraction in 0..1; None where a probability is not finite.
    """
    values = probabilities.astype(np.float64)
    if not np.isfinite(values).all():
        return None
    highest, right = values.max(1), values.argmax(1) == labels
    bins = np.clip(np.ceil(highest * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)  # (N,)
    return float(np.abs(np.bincount(bins, right - highest, CALIBRATION_BINS)).sum() / len(labels))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The softmax of logits that are divided by a temperature, from the softmax (N, C) of the logits; float64.

    The order of the classes of an image stays. Probabilities that float32 made 0 count as its smallest number.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).smallest_subnormal)) / temperature
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature of lowest log-loss (Guo et al. 2017, arXiv:1706.04599), of validation images.

    A model that is right on all of a few images would be made as sure as possible. So each label counts as another
    class with a probability of 1 / (N + 2), as in Platt (1999): what N images without a mistake leave open.

    Args:
        probabilities: (N, C), N >= 1 and C >= 2.
        labels: (N,) int64.

    Returns:
        A number above 0, above 1 where the model is too sure; None where a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        return None
    num_images, num_classes = probabilities.shape
    doubt = 1 / (num_images + 2)
    targets = np.full((num_images, num_classes), doubt / (num_classes - 1))
    targets[np.arange(num_images), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        values = scaled(probabilities, float(np.exp(log_temperature)))
        return float(-(targets * np.log(np.maximum(values, 1e-300))).sum() / num_images)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))
