"""Which images are taken: so many of each class, and copies of an image together."""

from __future__ import annotations

import hashlib

import numpy as np

SPLIT_SEED = 0  # not the run's seed: all runs over the same data see the same splits


def image_ids(images: np.ndarray) -> np.ndarray:
    """Return a number (N,) uint64 for each of `images` (N, ...), the same where all pixels are the same."""
    digests = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def stratified_split(
    labels: np.ndarray,
    num_taken: int,
    *,
    min_taken: int = 1,
    min_left: int = 1,
    ids: np.ndarray | None = None,
    part_copies: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted positions of `labels` (N,) left behind and taken, the latter `num_taken` in all.

    Each class gives in proportion to its size (largest remainder; ties go to the lower label), at least `min_taken` and
    all but `min_left`; `num_taken` moves to the nearest number that allows it. The same labels give the same split.

    Args:
        ids: (N,), equal where images are. They count for the class of the first of them and stay together, so that
            classes with copies give a few images more or fewer; `min_taken` and `min_left` do not count copies.
        part_copies: take exactly `num_taken`, copies of an image after all others of its class, instead.
    """
    ids = np.arange(len(labels)) if ids is None else ids
    _, first, group, num_equal = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    first = first[group]  # (N,) of each image the first that equals it
    labels, is_copy = labels[first], first != np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    low, high = np.full_like(sizes, min_taken), sizes - min_left
    assert (low <= high).all(), "a class is too small to split"
    num_taken = int(np.clip(num_taken, low.sum(), high.sum()))
    counts = np.clip(sizes * num_taken // len(labels), low, high)
    while (missing := num_taken - counts.sum()) != 0:  # at most a few rounds per class
        owed = sizes * num_taken - counts * len(labels)  # integers, so that ties are exact
        if missing > 0:
            counts[np.where(counts < high, owed, np.iinfo(np.int64).min).argmax()] += 1
        else:
            counts[np.where(counts > low, owed, np.iinfo(np.int64).max).argmin()] -= 1
    rng = np.random.RandomState(SPLIT_SEED)  # the one whose stream no later version of numpy may change
    taken = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, counts, strict=True):
        order = rng.permutation(np.flatnonzero((labels == label) & ~is_copy))
        if part_copies:
            taken[np.concatenate([order, np.flatnonzero((labels == label) & is_copy)])[:count]] = True
        else:
            taken[order[_fill(num_equal[group[order]].tolist(), count, min_taken, len(order) - min_left)]] = True
    if not part_copies:
        taken = taken[first]
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _fill(sizes: list[int], room: int, at_least: int, at_most: int) -> list[int]:
    """Return the positions of those `sizes` that, one after another, still fit into `room`, of so many in number."""
    assert at_least <= at_most, "a class is too small to split"
    chosen: list[int] = []
    for i, size in enumerate(sizes):
        if size <= room and len(chosen) < at_most:
            chosen.append(i)
            room -= size
    if len(chosen) < at_least:
        rest = sorted(set(range(len(sizes))) - set(chosen), key=lambda i: (sizes[i], i))
        chosen += rest[: at_least - len(chosen)]
    return chosen
