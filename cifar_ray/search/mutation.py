"""Configurations like one that is known: a few of its parameters are drawn anew, and those that come with them.

And the sampler that searches so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from cifar_ray.config import Task, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.search.space import Space

MAX_REDRAWS = 20
"""How often a value is drawn that is not to be what it was, before it may be that."""

MAX_ATTEMPTS = 1000
"""How often a configuration is drawn that the space does not allow."""

NUM_UNIFORM = 10
"""Trials that are drawn from all of a space that has no default recipe, before the best of them is changed."""

Params = dict[str, Any]
"""Values of parameters by name."""


@dataclass(frozen=True)
class Candidate:
    """A configuration that a space gave, and what it was drawn from."""

    params: Params
    distributions: dict[str, BaseDistribution]
    config: TrialConfig


def draw(
    space: Space, task: Task, rng: np.random.Generator, like: Mapping[str, Any], anew: Collection[str]
) -> Candidate:
    """Draw a configuration that has the values of another one, but for some that are drawn anew, uniformly.

    What the space draws only because of the new values is drawn too, and so is what can no longer have its value.

    Args:
        space: what to draw from.
        task: what the space may look at.
        rng: what to draw with.
        like: values of the other configuration; with none of them, all is drawn.
        anew: names of those that change, where they have another choice.

    Raises:
        InputError: the space does not allow it.
    """
    trial = _Redrawn(like, anew, rng)
    config = space.config(trial, task)
    return Candidate(dict(trial.params), dict(trial.distributions), config)


def mutate(
    space: Space, task: Task, rng: np.random.Generator, like: Candidate | FrozenTrial, num_changes: int
) -> Candidate:
    """Draw a configuration that differs from another one in so many parameters, and in those that come with them.

    Raises:
        InputError: the space does not allow it.
    """
    names = sorted(name for name, distribution in like.distributions.items() if not distribution.single())
    anew = rng.choice(len(names), size=min(num_changes, len(names)), replace=False)
    return draw(space, task, rng, like.params, {names[i] for i in anew})


def draw_value(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw uniformly, of a logarithmic range in its logarithm."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[rng.integers(len(distribution.choices))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        return min(max(round(value), low), high) if isinstance(distribution, IntDistribution) else value
    if step is None:
        return rng.uniform(low, high)
    return type(low)(low + step * rng.integers(math.floor((high - low) / step + 1e-9) + 1))


class _Redrawn(FixedTrial):
    """Gives values that are known, and draws the others when it is asked for them."""

    def __init__(self, like: Mapping[str, Any], anew: Collection[str], rng: np.random.Generator) -> None:
        super().__init__({})
        self._like = like
        self._anew = anew
        self._rng = rng
        self._settled: Params = {}
        self._ranges: dict[str, BaseDistribution] = {}

    @property
    def params(self) -> Params:
        return self._settled

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return self._ranges

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._settle(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._settle(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._settle(name, CategoricalDistribution(choices))

    def _settle(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._settled:
            self._ranges[name] = distribution
            self._settled[name] = self._value(name, distribution)
        return self._settled[name]

    def _value(self, name: str, distribution: BaseDistribution) -> Any:
        known = name in self._like and _contains(distribution, self._like[name])
        if known and name not in self._anew:
            return self._like[name]
        value = draw_value(distribution, self._rng)
        for _ in range(MAX_REDRAWS if known else 0):
            if value != self._like[name]:
                break
            value = draw_value(distribution, self._rng)
        return value


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool)
                   for choice in distribution.choices)  # fmt: skip
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return bool(distribution.low <= value <= distribution.high)


class MutationSampler(optuna.samplers.BaseSampler):
    """Changes the best trial so far in one parameter or a few; at first the default recipe.

    In spaces of some 25 parameters, with tens of noisy trials, good configurations are near one that is known to be
    good: there they can be found, and a search that stays there does not lose it. One parameter changes in half of the
    draws, two in a quarter, and so on, so that nothing is out of reach; those that come with their values change too.
    Where a limit is set (constraints), trials within it count as better; among others, those that are nearer to it.

    Args:
        space: what to draw from.
        task: what the space may look at.
        seed: of the draws.
    """

    def __init__(self, space: Space, task: Task, seed: int) -> None:
        self.space = space
        self.task = task
        self._rng = np.random.default_rng(seed)
        self._drawn: Params = {}

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
        like = self._to_change(trials)
        known = [trial.params for trial in trials]
        for attempt in range(MAX_ATTEMPTS):
            try:
                if like is None:
                    return draw(self.space, self.task, self._rng, {}, ())
                found = mutate(self.space, self.task, self._rng, like, int(self._rng.geometric(0.5)))
            except InputError:
                continue  # the space does not allow it
            if found.params not in known or attempt > MAX_REDRAWS:
                return found
        raise InputError(f"{self.space.name}: none of {MAX_ATTEMPTS} draws gave a configuration: see what it allows")

    def _to_change(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The best trial so far, or before any has ended the default recipe; None where there is none of these."""
        if self.space.default is None and len(trials) <= NUM_UNIFORM:
            return None
        drawn = [trial for trial in trials if trial.params]
        ended = [trial for trial in drawn if trial.state == TrialState.COMPLETE or trial.constraints]
        return max(ended, key=_rank, default=drawn[0] if drawn else None)


def _rank(trial: FrozenTrial) -> tuple[float, float]:
    over = max(trial.constraints.values(), default=0.0)
    complete = trial.state == TrialState.COMPLETE and trial.value is not None
    return -max(over, 0.0), trial.value if complete and trial.value is not None else -math.inf
