"""A world to search in without training: what a recorded table says of any configuration, and how seeds scatter.

Random forests over the table's parameters tell the curve of a configuration, its speed, whether it fails, and its
holdout accuracy. What they miss of a recorded one of about that quality is added, drawn once for each configuration:
else none would be better than its neighbours, and there would be nothing to find. Of what is missed it has the part
that validation and holdout images agree on. That is the truth of this world. A training adds what two recorded
trainings of one configuration of about that quality differed by, the whole curve of it, so that its epochs scatter as
real ones do.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from record_table import Curve, Recorded
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold
from tasks import SearchTask

NUM_TREES = 100
NUM_FOLDS = 10
NUM_NEAR = 30
"""Recorded configurations, of about the same quality, that a training's scatter is drawn from, and what is missed."""


@dataclass(frozen=True)
class Training:
    """A training that was made up."""

    accuracy: np.ndarray
    """(epochs,), on validation images; ends early where it fails."""
    loss: np.ndarray
    epoch_s: float
    failed: bool


class Encoder:
    """Parameters as numbers for trees: one column a number, one a choice; -1 for what is not drawn."""

    def __init__(self, table: Sequence[Recorded]) -> None:
        names = sorted({name for one in table for name in one.params})
        self.choices: dict[str, list[str] | None] = {}
        for name in names:
            values = [one.params[name] for one in table if name in one.params]
            words = sorted({value for value in values if isinstance(value, str)})
            self.choices[name] = words or None

    def __call__(self, params: Mapping[str, Any]) -> np.ndarray:
        row: list[float] = []
        for name, words in self.choices.items():
            if words is None:
                row.append(float(params.get(name, -1)))
            else:
                row += [float(params.get(name) == word) if name in params else -1.0 for word in words]
        return np.array(row, np.float32)


class Forest:
    """Trees that are asked for one configuration at a time, which scikit-learn's own `predict` is slow at."""

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.model = RandomForestRegressor(
            NUM_TREES, min_samples_leaf=2, max_features=0.4, random_state=0, n_jobs=2, oob_score=True
        )
        self.model.fit(features, targets)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        row = features.reshape(1, -1)
        return np.mean([tree.tree_.predict(row).reshape(-1) for tree in self.model.estimators_], 0)


class World:
    """See the module."""

    def __init__(self, task: SearchTask, table: Sequence[Recorded]) -> None:
        self.task = task
        self.encode = Encoder(table)
        features = np.stack([self.encode(one.params) for one in table])
        finished = np.array([any(curve.holdout for curve in one.curves) for one in table])
        targets = np.stack([_targets(task, one) for one, known in zip(table, finished, strict=True) if known])
        self._forest = Forest(features[finished], targets)
        self._told = self._forest.model.oob_prediction_
        self._missed = targets - self._told
        default = np.array([one.origin == "default" for one in table])[finished]
        self._default = features[finished][default][0].tobytes(), targets[default].mean(0)
        failed = [[np.mean([curve.holdout is None for curve in one.curves])] for one in table]
        self._failures = Forest(features, np.array(failed))
        self._known: dict[bytes, np.ndarray] = {}
        both = [one for one in table if all(curve.holdout for curve in one.curves)]
        first, second = (np.stack([_path(task, one.curves[seed]) for one in both]) for seed in (0, 1))
        self._halves = (first - second) / np.sqrt(2)  # (configurations, 2 * epochs)
        self._level = np.mean([first[:, -1], second[:, -1]], 0)

    def _expected(self, params: Mapping[str, Any]) -> np.ndarray:
        features = self.encode(params)
        key = features.tobytes()
        if key not in self._known:
            told = self._forest(features)
            whole = self._default[1] if key == self._default[0] else told + self._own(told, key)
            self._known[key] = np.concatenate([whole, self._failures(features)])
        return self._known[key]

    def _own(self, told: np.ndarray, key: bytes) -> np.ndarray:
        """What a configuration, of which the forest tells so much, has of its own."""
        end = self.task.max_epochs - 1  # the accuracy after the last epoch
        near = np.argsort(np.abs(self._told[:, end] - told[end]))[:NUM_NEAR]
        missed, holdout = self._missed[near], self._missed[near, -2]
        # Validation and holdout images are others: what of the two goes together is the configuration's, and not luck.
        share = np.clip(np.mean(missed[:, end] * holdout) / np.mean(missed[:, end] ** 2), 0, 1) ** 0.5
        own: np.ndarray = missed[zlib.crc32(key) % NUM_NEAR].copy()
        own[:-1] *= share
        own[-2] = own[end]
        return own

    def truth(self, params: Mapping[str, Any]) -> float:
        """Expected holdout accuracy, in percent, of a training that does not fail."""
        return float(100 * _inverse_logit(self._expected(params)[-3]))

    def train(self, params: Mapping[str, Any], rng: np.random.Generator) -> Training:
        """Make a training up."""
        num_epochs = self.task.max_epochs
        expected = self._expected(params)
        path = expected[: 2 * num_epochs]
        near = np.argsort(np.abs(self._level - path[-1]))[:NUM_NEAR]
        path = path + rng.choice((-1, 1)) * self._halves[rng.choice(near)]
        accuracy = np.round(_inverse_logit(path[:num_epochs]) * self.task.num_val) / self.task.num_val
        failed = rng.random() < expected[-1]
        end = rng.integers(1, num_epochs) if failed else num_epochs
        return Training(accuracy[:end], np.exp(path[num_epochs:])[:end], float(np.exp(expected[-2])), failed)


def cross_validate(task: SearchTask, table: Sequence[Recorded]) -> str:
    """How well the forests tell what configurations that they have not seen come to, and how well one training does."""
    encode = Encoder(table)
    table = [one for one in table if any(curve.holdout for curve in one.curves)]
    features = np.stack([encode(one.params) for one in table])
    targets = np.stack([_targets(task, one) for one in table])
    found = np.empty_like(targets)
    for train, held_out in KFold(NUM_FOLDS, shuffle=True, random_state=0).split(features):
        found[held_out] = Forest(features[train], targets[train]).model.predict(features[held_out])
    accuracy, guess = (100 * _inverse_logit(values[:, -2]) for values in (targets, found))
    loss, loss_guess = (values[:, 2 * task.max_epochs - 1] for values in (targets, found))
    top, top_by_loss = accuracy >= np.quantile(accuracy, 0.9), loss <= np.quantile(loss, 0.1)
    both = [one for one in table if all(curve.holdout for curve in one.curves)]
    seeds = np.array(
        [[100 * _accuracy(task, curve.holdout[0]) for curve in one.curves if curve.holdout] for one in both]
    )
    losses = np.array([[curve.loss[-1] for curve in one.curves] for one in both])
    first_best = seeds[:, 0] >= np.quantile(seeds[:, 0], 0.9)
    first_lowest = losses[:, 0] <= np.quantile(losses[:, 0], 0.1)
    top_pairs = seeds[seeds.mean(1) >= np.quantile(seeds.mean(1), 0.9)]
    return (
        f"forests miss {_rms(accuracy - guess):.1f} points ({_rms((accuracy - guess)[top]):.1f} in the top tenth), "
        f"rank correlation {_ranks(accuracy, guess):.2f} ({_ranks(accuracy[top], guess[top]):.2f} in the top tenth, "
        f"{_ranks(loss[top_by_loss], loss_guess[top_by_loss]):.2f} in that by log-loss); one seed's with another's in "
        f"its top tenth {_ranks(*seeds[first_best].T):.2f} ({_ranks(*losses[first_lowest].T):.2f} by log-loss); "
        f"standard deviation of seeds {_rms(seeds[:, 0] - seeds[:, 1]) / 2**0.5:.1f} points "
        f"({_rms(top_pairs[:, 0] - top_pairs[:, 1]) / 2**0.5:.1f} in the top tenth)"
    )


def _ranks(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other)[0])


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _targets(task: SearchTask, one: Recorded) -> np.ndarray:
    """(2 * epochs + 2,): path, logit of the holdout accuracy, log seconds an epoch; means over seeds that finished."""
    finished = [curve for curve in one.curves if curve.holdout]
    holdout = [_logit(_accuracy(task, curve.holdout[0])) for curve in finished if curve.holdout]
    epoch_s = [np.log(curve.epoch_s) for curve in finished]
    return np.concatenate(
        [np.mean([_path(task, curve) for curve in finished], 0), [np.mean(holdout), np.mean(epoch_s)]]
    )


def _path(task: SearchTask, curve: Curve) -> np.ndarray:
    """(2 * epochs,): logit of the accuracy, then logarithm of the log-loss."""
    right, loss = np.array(curve.right), np.array(curve.loss)
    return np.concatenate([_logit((right + 0.5) / (task.num_val + 1)), np.log(np.maximum(loss, 1e-3))])


def _accuracy(task: SearchTask, right: int) -> float:
    return (right + 0.5) / (task.num_holdout + 1)


def _logit(share: Any) -> Any:
    return np.log(share) - np.log1p(-share)


def _inverse_logit(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))
