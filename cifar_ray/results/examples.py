"""Which images of a split show what a model does: what it gets wrong, barely gets right, and mixes up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_MISTAKES, NUM_UNSURE = 12, 12

NUM_PAIRS, NUM_OF_PAIR = 6, 4
"""Pairs of classes, and examples of each."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are taken for another one."""

    true: int
    predicted: int
    count: int
    """Of such images."""
    examples: np.ndarray
    """(K,) indices of some, K <= :data:`NUM_OF_PAIR`, the most confident first."""


@dataclass(frozen=True)
class Examples:
    """Indices into a split."""

    mistakes: np.ndarray
    """(K,), K <= :data:`NUM_MISTAKES`: images whose predicted class is wrong, those of highest probability first."""
    unsure: np.ndarray
    """(K,), K <= :data:`NUM_UNSURE`: images whose predicted class is right, those of lowest probability first."""
    pairs: tuple[ConfusedPair, ...]
    """At most :data:`NUM_PAIRS`, those of most images first."""

    @property
    def indices(self) -> np.ndarray:
        """(K,) all of them, sorted, each once."""
        return np.unique(np.concatenate([self.mistakes, self.unsure, *(pair.examples for pair in self.pairs)]))


def find_examples(probabilities: np.ndarray, labels: np.ndarray) -> Examples:
    """Choose the images; of those that are equal in what counts the first, so that all who ask choose the same.

    Args:
        probabilities: (N, C), as `records.read_predictions` gives them.
        labels: (N,) int64.
    """
    predicted = probabilities.argmax(axis=1)  # (N,)
    confidence = probabilities.max(axis=1)  # (N,)
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")]
    unsure = right[np.argsort(confidence[right], kind="stable")]
    true_and_predicted, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]]).astype(np.int64), axis=1, return_counts=True
    )
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:NUM_PAIRS]:
        true, taken_for = true_and_predicted[:, place].tolist()
        of_pair = mistakes[(labels[mistakes] == true) & (predicted[mistakes] == taken_for)]
        pairs.append(ConfusedPair(true, taken_for, int(counts[place]), of_pair[:NUM_OF_PAIR]))
    return Examples(mistakes[:NUM_MISTAKES], unsure[:NUM_UNSURE], tuple(pairs))
