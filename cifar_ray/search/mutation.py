"""Configurations like one that is known: a few of its parameters are drawn anew, and those that come with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, FrozenTrial

from cifar_ray.config import Task, TrialConfig
from cifar_ray.search.space import Space

MAX_REDRAWS = 20
"""How often a value is drawn that is not to be what it was, before it may be that."""

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
