"""A sampler that learns what each choice adds, and changes the best configuration so far accordingly.

With few trials, many parameters and noisy values there is not enough to learn how parameters act together. What each
choice adds to the default recipe can be learned: every trial that has it tells of it, whatever else it changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cifar_ray.config import Task
from cifar_ray.errors import InputError
from cifar_ray.search.mutation import Candidate, draw, draw_value, mutate
from cifar_ray.search.space import Space

PRIOR_SD = 0.08
"""Standard deviation, between configurations, that what one choice adds has before anything is known; in logits.

Smaller than what choices really add: some 60 weights are unknown, and where draws of all of them are wide, the luck of
what was never tried outshines what was learned.
"""

NOISE_SD = 0.08
"""That of outcomes around the sum. As large as the other: the ratio of the two is what predicted best, on digits."""

SHARE_UNIFORM = 0.15
"""Share of the trials that are drawn from all of the space."""

MAX_CHANGES = 4
"""Parameters, at most, that a mutation draws anew."""

WORST = -1.5
"""Outcomes below it count as that: how bad a bad trial is tells nothing of good ones."""

EARLY_NOISE = 1.0
"""How much larger the noise of a trial is that was stopped at once, as a part of that of one that was not."""

LIMIT_PRIOR_SD, LIMIT_NOISE_SD = 1.0, 0.2
"""The same of the logarithm of the number of parameters."""


class AdditiveSampler(optuna.samplers.BaseSampler):
    """Thompson sampling (Russo et al. 2018, arXiv:1707.02038) with a linear model of how trials differ from trial 0.

    The outcome of a trial is how far the logit of its validation metric lies above that of trial 0 after as many
    epochs, so that trials that were stopped early count as well. Each choice and each number adds to it, with a prior
    around zero. A draw of the weights from their posterior chooses among mutations of the best trial so far.

    Args:
        space: what to draw from.
        task: what the space may look at.
        seed: of the draws.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        seed: int,
        num_candidates: int = 40,
    ) -> None:
        self.space = space
        self.task = task
        self.num_candidates = num_candidates
        self._rng = np.random.default_rng(seed)
        self._drawn: dict[str, Any] = {}
        self._model: AdditiveModel | None = None
        self._reference: dict[int, float] = {}
        """The metric so far, by epoch, of the trial that outcomes are differences from: the first one that has any."""
        self._known: set[int] = set()
        """Numbers of the trials that were taken in."""
        self._best: tuple[float, FrozenTrial] | None = None
        self._limits: AdditiveModel | None = None
        """Of how far trials are from the limit that they have, if there is one."""
        self._nearest: tuple[float, FrozenTrial] | None = None
        """The trial that is farthest below the limit, or least above it."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        drawn = self._draw(study.get_trials(deepcopy=False))
        self._drawn = drawn.params
        return drawn.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return draw_value(param_distribution, self._rng)

    def _draw(self, trials: Sequence[FrozenTrial]) -> Candidate:
        for trial in trials:
            if trial.number not in self._known and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._learn(trial)
        like: FrozenTrial | None = None
        if trials[0].params and self._rng.random() >= SHARE_UNIFORM:
            _, like = self._best or self._nearest or (0.0, trials[0])
        if like is None and self._limits is None:
            return self._valid(None)
        candidates = self._within_limits([self._valid(like) for _ in range(self.num_candidates)])
        if like is None or self._model is None or len(candidates) == 1:
            return candidates[0]
        gains = self._model.predict(candidates, self._rng)
        return candidates[int(np.argmax(gains))]

    def _learn(self, trial: FrozenTrial) -> None:
        """Take in a trial that has ended."""
        limits = trial.constraints
        if limits:
            self._limits = self._limits or AdditiveModel(
                trial.params, LIMIT_PRIOR_SD, LIMIT_NOISE_SD, offset=max(limits.values())
            )
            self._limits.add(trial.params, trial.distributions, max(limits.values()))
            if self._nearest is None or max(limits.values()) < self._nearest[0]:
                self._nearest = max(limits.values()), trial
        metrics = trial.intermediate_values
        self._known.add(trial.number)
        if not metrics:
            return
        if self._model is None:
            self._model, self._reference = AdditiveModel(trial.params), metrics
        epoch = min(max(metrics), max(self._reference))
        outcome = max(WORST, _logit(metrics[epoch]) - _logit(self._reference[epoch]))
        share_left = 1 - epoch / max(self._reference)
        self._model.add(trial.params, trial.distributions, outcome, (1 + EARLY_NOISE * share_left) ** -2)
        if trial.state == TrialState.COMPLETE and (self._best is None or outcome > self._best[0]):
            self._best = outcome, trial

    def _within_limits(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Those that seem to be within the limit of the search, or else the one that seems nearest."""
        if self._limits is None:
            return candidates
        over = self._limits.predict(candidates, self._rng)
        return [one for one, by in zip(candidates, over, strict=True) if by <= 0] or [candidates[int(np.argmin(over))]]

    def _valid(self, like: FrozenTrial | None) -> Candidate:
        while True:
            try:
                if like is None:
                    return draw(self.space, self.task, self._rng, {}, ())
                num_changes = int(self._rng.integers(1, MAX_CHANGES + 1))
                return mutate(self.space, self.task, self._rng, like, num_changes)
            except InputError:
                continue  # the space does not allow it


def _logit(metric: float) -> float:
    return math.log((metric + 1e-3) / (1 - metric + 1e-3))  # which is finite for all metrics from 0 to 1


class AdditiveModel:
    """Bayesian linear regression on how configurations differ from one of them, whose outcome is zero.

    A categorical parameter has a weight for each other choice; a number has two, for its distance in its range and for
    the square of that. What it costs to add an outcome, or to draw weights, does not grow with how many there are.

    Args:
        reference: parameters of the configuration that others are compared with.
        prior_sd: standard deviation of what one choice adds, before anything is known.
        noise_sd: that of outcomes around the sum.
        offset: outcome of the reference.
    """

    def __init__(
        self,
        reference: Mapping[str, Any],
        prior_sd: float = PRIOR_SD,
        noise_sd: float = NOISE_SD,
        offset: float = 0.0,
    ) -> None:
        self.reference = reference
        self.prior_sd = prior_sd
        self.noise_sd = noise_sd
        self.offset = offset
        self._columns: dict[tuple[str, Any], int] = {("", "other than the reference"): 0}
        self._gram = np.zeros((64, 64))
        self._moment = np.zeros(64)

    def features(self, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[int, float]:
        """What is not zero of a configuration's features, by column."""
        found: dict[int, float] = {}
        for name, value in params.items():
            distribution = distributions[name]
            known = name in self.reference
            if isinstance(distribution, CategoricalDistribution):
                if not known or value != self.reference[name]:
                    found[self._column(name, value)] = 1.0
                continue
            offset = 2 * (
                _position(distribution, value) - _position(distribution, self.reference[name] if known else None)
            )
            if offset:
                found[self._column(name, "linear")] = offset
                found[self._column(name, "square")] = offset**2
        if found:
            found[0] = 1.0  # what seeds did to the reference is in every difference
        return found

    def _column(self, name: str, what: Any) -> int:
        column = self._columns.setdefault((name, what), len(self._columns))
        if column == len(self._moment):
            self._gram = np.pad(self._gram, (0, 64))
            self._moment = np.pad(self._moment, (0, 64))
        return column

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        outcome: float,
        weight: float = 1.0,
    ) -> None:
        """Learn from one outcome; its noise has a variance of that of others divided by `weight`."""
        features = self.features(params, distributions)
        columns, values = np.array(list(features), int), np.array(list(features.values()))
        self._gram[np.ix_(columns, columns)] += weight * np.outer(values, values)
        self._moment[columns] += weight * (outcome - self.offset) * values

    def predict(self, candidates: Sequence[Candidate], rng: np.random.Generator | None) -> np.ndarray:
        """Outcomes (N,) of configurations by weights that :meth:`draw_weights` gives."""
        rows = [self.features(one.params, one.distributions) for one in candidates]
        weights = self.draw_weights(rng)
        sums = [sum(weights[column] * value for column, value in row.items()) for row in rows]
        return self.offset + np.array(sums)

    def draw_weights(self, rng: np.random.Generator | None) -> np.ndarray:
        """Weights by column, drawn from their posterior, or without `rng` its mean."""
        d = len(self._columns)
        precision = self._gram[:d, :d] / self.noise_sd**2 + np.eye(d) / self.prior_sd**2
        weights: np.ndarray = np.linalg.solve(precision, self._moment[:d] / self.noise_sd**2)
        if rng is not None:
            root = np.linalg.cholesky(precision)
            weights = weights + np.linalg.solve(root.T, rng.standard_normal(d))
        return weights


def _position(distribution: BaseDistribution, value: float | None) -> float:
    """Where in its range a number lies, from 0 to 1; in the middle where there is none."""
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if low == high or value is None:
        return 0.5
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)
