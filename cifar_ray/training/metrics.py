"""Named numbers from logits and labels."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0..1) of logits (N, C) against labels (N,); one device-to-host copy."""
    logits = logits.float()
    loss = functional.cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).float().mean()
    values = torch.stack([loss, accuracy]).tolist()
    return values[0], values[1]


def auc_macro_ovr(probabilities: Tensor, labels: Tensor) -> float | None:
    """Macro one-vs-rest area under the ROC curve of probabilities (N, C) against labels (N,).

    None where a class is absent from the labels or is the only one: its curve is undefined.
    """
    # Imported here: the import takes most of a second, which trial processes need not pay.
    from torchmetrics.functional.classification import multiclass_auroc

    num_classes = probabilities.shape[1]
    present = torch.bincount(labels, minlength=num_classes)
    if bool((present == 0).any()) or bool((present == len(labels)).any()):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("error")  # torchmetrics only warns where a class has no curve
        return float(multiclass_auroc(probabilities.float(), labels, num_classes=num_classes, average="macro"))


def f1_macro(scores: Tensor, labels: Tensor) -> float:
    """Macro F1 of the highest of scores (N, C) against labels (N,): the mean of the classes' F1.

    A class that is neither in the labels nor predicted does not count, as in scikit-learn.
    """
    from torchmetrics.functional.classification import multiclass_f1_score  # as above

    return float(multiclass_f1_score(scores.argmax(1), labels, num_classes=scores.shape[1], average="macro"))


def ranking_metric(name: str, logits: Tensor, labels: Tensor) -> float | None:
    """What models are ranked by (0..1, higher is better), of logits (N, C) against labels (N,).

    Args:
        name: `accuracy`, `auc` (macro one-vs-rest area under the ROC curve) or `f1` (macro F1).
        logits: (N, C) float.
        labels: (N,) int64.

    Returns:
        None where `auc` is undefined, see :func:`auc_macro_ovr`.
    """
    if name == "auc":
        return auc_macro_ovr(logits.softmax(1), labels)
    if name == "f1":
        return f1_macro(logits, labels)
    assert name == "accuracy", name
    return loss_and_accuracy(logits, labels)[1]
