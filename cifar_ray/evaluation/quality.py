"""How good kept predictions are: on a whole split, and class by class. Needs neither torch nor ray.

All numbers are scikit-learn's, in float64, of the float32 probabilities that stand in `predictions.npz`, so that anyone
can work them out again. What is predicted is the class of highest probability, of equal ones the first. Where
scikit-learn has no value, or would put one in its place with a warning, there is None.
"""

import numpy as np
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score, top_k_accuracy_score

from cifar_ray.evaluation.calibration import calibration_error
from cifar_ray.results.records import Row

TOP = 5
"""How many classes, those of highest probability, the top-5 accuracy looks at."""


def class_quality(probabilities: np.ndarray, labels: np.ndarray) -> list[Row]:
    """How good a model is for each class.

    Args:
        probabilities: (N, C), N >= 1 and C >= 2; each row adds up to 1, up to rounding.
        labels: (N,) int64.

    Returns:
        Parts of rows of classes.csv, one a class, in their order:

        - `class`: its index.
        - `n`: images of that class.
        - `auc_ovr`: area under the ROC curve of its probability, against all other classes. None where the class is
          absent from the labels or the only one, or where a probability is not finite.
        - `precision`: None where it is never predicted. `recall`: None where it is absent. `f1`: None where both.
    """
    num_classes = probabilities.shape[1]
    precision, recall, f1, n = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(num_classes), zero_division=np.nan
    )
    return [
        {
            "class": index,
            "n": int(n[index]),
            "auc_ovr": _area_under_roc_curve(probabilities[:, index], labels == index),
            "precision": _known(precision[index]),
            "recall": _known(recall[index]),
            "f1": _known(f1[index]),
        }
        for index in range(num_classes)
    ]


def split_quality(probabilities: np.ndarray, labels: np.ndarray, classes: list[Row]) -> Row:
    """How good a model is on a split.

    Args:
        probabilities: as in :func:`class_quality`.
        labels: as there.
        classes: what it returns for these.

    Returns:
        Part of a row of quality.csv:

        - `n`: number of images.
        - `accuracy`.
        - `top5_accuracy`: None with 5 or fewer classes. Of equal probabilities that of the later class comes first, as
          in scikit-learn.
        - `log_loss`: in nats. A probability below 2.2e-16 counts as that, as in scikit-learn. None where one is not
          finite.
        - `auc_macro_ovr`: mean of the classes' `auc_ovr`; None where one of them is None. Where a class is absent from
          the labels torchmetrics takes the mean of the others instead, and scikit-learn has none.
        - `calibration_error`: see :func:`~cifar_ray.evaluation.calibration.calibration_error`.
        - `f1_macro`: mean of the `f1` of the classes that are in the labels or predicted, as in scikit-learn.
    """
    num_classes = probabilities.shape[1]
    values = probabilities.astype(np.float64)
    finite = bool(np.isfinite(values).all())
    names = range(num_classes)
    areas = [row["auc_ovr"] for row in classes]
    row: Row = {"n": len(labels), "accuracy": float((values.argmax(1) == labels).mean())}
    row["top5_accuracy"] = (
        float(top_k_accuracy_score(labels, values, k=TOP, labels=names)) if finite and num_classes > TOP else None
    )
    # Rows whose sum is 1 in float32 are off by 1e-7 in float64, which scikit-learn warns about.
    normalised = values / values.sum(1, keepdims=True)
    row["log_loss"] = float(log_loss(labels, normalised, labels=names)) if finite else None
    row["auc_macro_ovr"] = None if None in areas else float(np.mean(areas))
    row["f1_macro"] = float(np.mean([row["f1"] for row in classes if row["f1"] is not None]))
    row["calibration_error"] = calibration_error(probabilities, labels)
    return row


def _area_under_roc_curve(scores: np.ndarray, of_class: np.ndarray) -> float | None:
    """Of scores (N,) for booleans (N,)."""
    if of_class.all() or not of_class.any() or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(of_class, scores.astype(np.float64)))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
