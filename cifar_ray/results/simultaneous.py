"""Intervals of several differences at once, that all hold together in 95 % of experiments.

Arms are compared with one control by the means of their values (one a seed). What the intervals cover was simulated:
`benchmarks/effects_coverage.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# scipy is imported where it is needed: a report, which reads what was computed here, starts faster without it.

LEVEL = 0.95
"""How often all the intervals of a family hold together."""

POWER = 0.8
"""How often a difference that is called detectable is found."""

OWN_SPREAD = 2.0
"""How many times the mean variance that of an arm may be before it is judged by its own spread."""

MAX_SEEDS = 1000


@lru_cache(maxsize=4096)
def dunnett_critical(sizes: tuple[int, ...], control_size: int, freedom: int, level: float = LEVEL) -> float:
    """How many standard errors simultaneous two-sided intervals reach to each side, of Dunnett (1955).

    The differences of arms from one control are correlated by it: given the control's mean they are independent, so
    that the probability is an integral over that mean (Gauss-Hermite) and over the spread (Gauss-Legendre).

    Args:
        sizes: the seeds of each arm.
        control_size: those of the control.
        freedom: degrees of freedom of the pooled variance.
        level: of all intervals together.
    """
    from scipy import special
    from scipy.optimize import brentq

    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    weights /= weights.sum()
    ranks, rank_weights = np.polynomial.legendre.leggauss(64)
    spread = np.sqrt(special.chdtri(freedom, (1 - ranks) / 2) / freedom)
    share = np.array(sizes) / (np.array(sizes) + control_size)  # of a difference's variance, from the control
    centre = np.sqrt(share)[:, None, None] * nodes[:, None]  # (arms, nodes, 1)
    own = np.sqrt(1 - share)[:, None, None]

    def above_level(critical: float) -> float:
        half = critical * spread
        within = special.ndtr((centre + half) / own) - special.ndtr((centre - half) / own)
        return float(weights @ within.prod(axis=0) @ rank_weights / 2) - level

    return float(brentq(above_level, 0.5, 1e4, xtol=1e-6))


def t_quantile(freedom: float, probability: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def students_t(freedom: float, number: int = 1) -> float:
    """The same for `number` intervals whose estimates need not share a control or a variance (Sidak 1967)."""
    return t_quantile(freedom, (1 + LEVEL ** (1 / number)) / 2)


def variance_prior(variances: np.ndarray, freedoms: np.ndarray) -> tuple[float, float]:
    """What several variances tell about each other: an empirical-Bayes prior for each of them (Smyth 2004, "Linear
    models and empirical Bayes methods for assessing differential expression", section 6.2).

    Args:
        variances: (G,) of the arms, above 0.
        freedoms: (G,) their degrees of freedom.

    Returns:
        The prior's degrees of freedom, infinite where the variances differ by no more than chance lets them, and its
        variance.
    """
    from scipy import special

    logs = np.log(variances) - special.digamma(freedoms / 2) + np.log(freedoms / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, freedoms / 2).mean() if len(logs) > 1 else 0.0
    if excess <= 1e-6:
        return math.inf, float(np.exp(logs.mean()))
    half = 0.5 + 1 / excess  # solves trigamma(half) = excess by Newton's method on its inverse
    for _ in range(50):
        value = special.polygamma(1, half)
        half += value * (1 - value / excess) / special.polygamma(2, half)
    return float(2 * half), float(np.exp(logs.mean() + special.digamma(half) - np.log(half)))


@dataclass(frozen=True)
class Margin:
    """How uncertain one difference is."""

    half: float
    """Half the width of its simultaneous interval."""
    half_alone: float
    """The same for an interval that stands alone."""
    critical: float
    standard_error: float
    freedom: float
    """Degrees of freedom if the same seeds were trained anew and judged by their own spread: which of the methods a new
    experiment calls for is not known."""
    number: int
    """Of intervals in the family."""
    method: str

    @property
    def detectable(self) -> float:
        """The smallest true difference that such an experiment finds with a probability of `POWER`."""
        critical = max(self.critical, students_t(self.freedom, self.number))
        return (critical + t_quantile(self.freedom, POWER)) * self.standard_error


class Spread:
    """The variances of a family of arms over seeds, and the margins that follow from them.

    Where the arms' variances differ no more than chance lets them (:func:`variance_prior`), they are pooled, and the
    margins are Dunnett's. Where they differ more, each is drawn towards the others ("moderated"), with Satterthwaite's
    (1946) degrees of freedom and Sidak's level. Drawing an arm of few seeds towards steadier ones promises too much of
    it, so a margin is then never below Welch's ("own spread"), nor is it where an arm's variance is more than
    `OWN_SPREAD` times the pooled one. Welch's degrees of freedom are at most those that equal variances would have.

    Args:
        variances: of each arm and the control, by name; one at least is above 0.
        sizes: their seeds, at least two each.
        pooled_freedom: of the pooled variance, where it is less than the sum, since something was estimated before.
    """

    def __init__(
        self, variances: Mapping[str, float], sizes: Mapping[str, int], pooled_freedom: int | None = None
    ) -> None:
        self.sizes = sizes
        freedoms = {name: sizes[name] - 1 for name in variances}
        total = sum(freedoms.values())
        self.pooled = sum(variances[name] * freedoms[name] for name in variances) / total
        self.pooled_freedom = pooled_freedom or total
        self.freedoms = freedoms
        # Seeds that all scored the same had luck or reached a bound: that proves no variance of zero.
        self.own = {name: value if value > 1e-12 * self.pooled else self.pooled for name, value in variances.items()}
        told = [name for name in variances if variances[name] > 1e-12 * self.pooled]
        self.prior_freedom, self.prior_variance = variance_prior(
            np.array([variances[name] for name in told]), np.array([freedoms[name] for name in told])
        )

    @property
    def equal(self) -> bool:
        return math.isinf(self.prior_freedom)

    def _moderated(self, name: str) -> float:
        own, prior = self.freedoms[name], self.prior_freedom
        return (prior * self.prior_variance + own * self.own[name]) / (prior + own)

    def _satterthwaite(self, weights: Mapping[str, float], of: Mapping[str, float], more: float = 0.0) -> float:
        parts = {name: weight**2 * of[name] / self.sizes[name] for name, weight in weights.items()}
        spread = sum(part**2 / (self.freedoms[name] + more) for name, part in parts.items())
        return sum(parts.values()) ** 2 / spread

    def _error(self, weights: Mapping[str, float], of: Mapping[str, float]) -> float:
        return math.sqrt(sum(weight**2 * of[name] / self.sizes[name] for name, weight in weights.items()))

    def margin(self, weights: Mapping[str, float], number: int, arms: Sequence[str] | None = None) -> Margin:
        """The margin of a weighted sum of means.

        Args:
            weights: of each arm in the sum, such as 1 for an arm and -1 for its control.
            number: of such sums in the family.
            arms: the family's arms where each is compared with the same control, the last of `weights`.
        """
        same = dict.fromkeys(weights, self.pooled)
        welch = self._satterthwaite(weights, same)
        candidates = []
        if self.equal:
            if arms is not None:
                sizes = tuple(sorted(self.sizes[arm] for arm in arms))
                critical = dunnett_critical(sizes, self.sizes[list(weights)[-1]], self.pooled_freedom)
            else:
                critical = students_t(self.pooled_freedom, number)
            method = "pooled" if arms is None else "pooled (Dunnett)"
            candidates.append((critical, self._error(weights, same), float(self.pooled_freedom), method))
        else:
            moderated = {name: self._moderated(name) for name in weights}
            freedom = min(self._satterthwaite(weights, moderated, self.prior_freedom), self.pooled_freedom)
            candidates.append((students_t(freedom, number), self._error(weights, moderated), freedom, "moderated"))
        if not self.equal or any(self.own[name] > OWN_SPREAD * self.pooled for name in weights):
            freedom = min(self._satterthwaite(weights, self.own), welch)
            own = (students_t(freedom, number), self._error(weights, self.own), freedom, "own spread (Welch)")
            candidates.append(own)
        critical, error, _, method = max(candidates, key=lambda one: one[0] * one[1])
        alone = max(students_t(freedom) * error for _, error, freedom, _ in candidates)
        return Margin(critical * error, min(alone, critical * error), critical, error, welch, number, method)


def seeds_needed(difference: float, margin: Margin, size: int, shrink: float) -> int:
    """Seeds a level that would find a true difference as large as this one with a probability of `POWER`.

    Args:
        difference: observed.
        margin: of it.
        size: seeds a level now.
        shrink: the squared standard error with as many seeds a level as now and those of the control as they would
            be, over the present one.

    Returns:
        More than `size`, at most `MAX_SEEDS`.
    """
    if difference == 0 or size >= MAX_SEEDS:
        return MAX_SEEDS

    def finds(seeds: int) -> bool:
        freedom = margin.freedom * (seeds - 1) / (size - 1)
        error = margin.standard_error * math.sqrt(shrink * size / seeds)
        return (students_t(freedom, margin.number) + t_quantile(freedom, POWER)) * error <= abs(difference)

    return size + 1 + bisect_left(range(size + 1, MAX_SEEDS), True, key=finds)


@dataclass(frozen=True)
class Correlation:
    """How alike the seeds make the values of different arms."""

    estimate: float
    """Mean correlation over seeds between arms (the intraclass correlation), at most 1."""
    low: float
    """It is above this with a confidence of 95 %."""
    num_arms: int
    num_seeds: int


def intraclass_correlation(values: np.ndarray) -> Correlation | None:
    """Mean correlation over seeds between arms (Shrout & Fleiss 1979, two-way, single values, consistency).

    Args:
        values: (arms, seeds), at least 2 of each.

    Returns:
        None where the values have no spread over seeds.
    """
    from scipy.special import fdtri

    num_arms, num_seeds = values.shape
    centred = values - values.mean(axis=1, keepdims=True)
    of_seeds = centred.mean(axis=0)
    between = num_arms * float((of_seeds**2).sum()) / (num_seeds - 1)
    freedom = (num_arms - 1) * (num_seeds - 1)
    within = float(((centred - of_seeds) ** 2).sum()) / freedom
    if between + within <= 0:
        return None
    bound = float(fdtri(num_seeds - 1, freedom, 0.95)) * within

    def correlation(noise: float) -> float:
        return (between - noise) / (between + (num_arms - 1) * noise)

    return Correlation(correlation(within), correlation(bound), num_arms, num_seeds)
