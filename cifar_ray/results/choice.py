"""Which configuration to take under limits: the smallest, or the fastest, that is hardly worse than the best.

The question is one of non-inferiority (Walker & Nowacki 2011, "Understanding equivalence and noninferiority testing"):
how much worse a cheaper model may be is said beforehand, and it is taken where it is shown to be no worse than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cifar_ray.results.ranking import ConfigSummary
from cifar_ray.results.statistics import Comparison


@dataclass(frozen=True)
class Limits:
    """What a configuration may cost; None sets no limit."""

    max_params: int | None = None
    max_latency_ms: float | None = None
    """Median of one image."""
    within: float | None = None
    """Points, hundredths of the metric, by which it may be worse than the best; None takes the best."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it gives up."""

    why: str
    """`best`, `smallest` or `fastest` of those that come into question."""
    chosen: ConfigSummary
    best: ConfigSummary
    """Best on validation of those within the limits."""
    test: Comparison | None
    """Of the chosen one with the best on the test split; None where they are the same, or it is not known."""

    def confirmed(self, within: float) -> bool | None:
        """Whether the test split confirms that it is at most so many points worse; None where it does not tell.

        That it does where the whole 95 % interval of the difference lies above: one such test in 40 is wrong.
        """
        if self.test is None or not self.test.counts_seeds:
            return None
        return self.test.low > -within / 100


def within_limits(one: ConfigSummary, limits: Limits) -> bool:
    """Whether a configuration keeps the limits of size and latency; one of which that is not known does not."""
    small = limits.max_params is None or (one.num_params is not None and one.num_params <= limits.max_params)
    latency = one.latency_ms_p50
    fast = limits.max_latency_ms is None or (latency is not None and latency <= limits.max_latency_ms)
    return bool(one.models) and small and fast


def choose(
    summaries: Sequence[ConfigSummary], limits: Limits, compare: Callable[[str, str], Comparison | None]
) -> list[Choice]:
    """Choose on validation, and have the test split confirm it.

    Args:
        summaries: ranked, see :func:`~cifar_ray.results.ranking.summarise`.
        limits: of which at least one is set.
        compare: two configurations on the test split, the first minus the second.

    Returns:
        The best within the limits; with `within` instead the smallest and the fastest of those whose mean validation
        score is at most so many points below it. Empty where none keeps the limits.
    """
    kept = [one for one in summaries if within_limits(one, limits)]
    if not kept:
        return []
    best = kept[0]
    if limits.within is None or best.val_metric is None:
        return [Choice("best", best, best, None)]
    least = best.val_metric - limits.within / 100 - 1e-9  # means that differ in their last bit only are equal
    near = [one for one in kept if one.val_metric is not None and one.val_metric >= least]
    smallest = min(near, key=lambda one: float("inf") if one.num_params is None else one.num_params)
    fastest = min(near, key=lambda one: float("inf") if one.latency_ms_p50 is None else one.latency_ms_p50)
    return [
        Choice(why, chosen, best, None if chosen is best else compare(chosen.config, best.config))
        for why, chosen in (("smallest", smallest), ("fastest", fastest))
    ]
