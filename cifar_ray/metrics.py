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
