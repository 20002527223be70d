"""Which model to take, and how sure that is, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.results.ranking import ConfigSummary
from cifar_ray.results.records import DEFAULT
from cifar_ray.results.statistics import METRIC_NAMES, Comparison, Interval


def _difference(one: Comparison) -> str:
    """A difference and its interval in words."""
    what = "points" if one.metric == "accuracy" else f"in {METRIC_NAMES[one.metric]}"
    low, high = difference_text(one.low, one.metric), difference_text(one.high, one.metric)
    interval = f"95 % interval {low} to {high}{'' if one.counts_seeds else ' from the test images alone'}"
    return f"{difference_text(one.difference, one.metric)} {what} ({interval})"


def verdict(
    summaries: Sequence[ConfigSummary],
    comparisons: Sequence[Comparison],
    metric: str = "accuracy",
    default: str | None = DEFAULT,
    recipes: Mapping[str, str] | None = None,
) -> str:
    """Say in one or two plain sentences which configuration to take, and how sure that is.

    Args:
        summaries: ranked.
        comparisons: of the best configuration with others.
        metric: that ranked them, and that they are compared by.
        default: the default recipe that shows what the search gained; None where there was no search.
        recipes: what to call each default recipe, by its name; needed where there are several.
    """
    if not summaries:
        return "No final model has been trained and evaluated, so there is no verdict."
    best, others = summaries[0], [one.config for one in summaries[1:]]
    if not best.models:
        return f"Every final training failed, so there is no verdict. {best.config}: {best.failed}."
    by_name = {one.b: one for one in comparisons if one.a == best.config}
    lost = [one.config for one in summaries if not one.models]
    recipes = recipes or ({DEFAULT: "the default recipe"} if default else {})
    score, what = best.test_score(metric), METRIC_NAMES[metric]
    lack = _lack(best, metric)

    def against(other: str, name: str, tie: str) -> str:
        if other not in by_name:
            return f"how it compares with {name} is unknown, since {'its trainings failed' if other in lost else lack}"
        one = by_name[other]
        words = f"it beats {name}" if one.low > 0 else f"it is worse on test than {name}" if one.high < 0 else tie
        if not one.counts_seeds:
            words = f"one seed is too few to compare it with {name}"
        return f"{words}: {_difference(one)}"

    first = f"test {what} {_with_interval(score, metric)}" if score.n else f"test {what} unknown"
    second = []
    if others and best.config == default:
        second.append(f"the search found nothing better than {recipes[default]}")
    elif default in others:
        tie = f"the search gained nothing measurable over {recipes[default]}"
        second.append(against(default, recipes[default], tie))
    if others and others[0] != default and others[0] not in lost:
        name = f"the runner-up, {recipes[others[0]]}" if others[0] in recipes else f"the runner-up {others[0]}"
        second.append(against(others[0], name, f"it cannot be told apart from {name}"))
    first += f", the best by mean validation {what}" if others else ""
    first += f" (on {best.failed})" if best.failures else ""
    said = "; ".join(second)
    return f"Take {best.config}: {first}." + (f" {said[0].upper()}{said[1:]}." if said else "")


def _lack(best: ConfigSummary, metric: str) -> str:
    """Why there is no comparison with the best."""
    undefined = metric == "auc" and best.test_accuracy.n and not best.test_auc.n
    return "the test split has no AUC" if undefined else "predictions are missing"


def _with_interval(score: Interval, metric: str) -> str:
    unit = " %" if metric == "accuracy" else ""
    if score.n == 1:
        return f"{score_text(score, metric)}{unit} (one seed, so no interval)"
    if score.low is None:
        return f"{score_text(score, metric)}{unit} (mean over {score.n} seeds)"
    low, high = score_text(score.low, metric), score_text(score.high, metric)
    return (
        f"{score_text(score.mean, metric)}{unit} (95 % interval {low} to {high}, over {score.n} seeds and test images)"
    )


def _times(ratio: float, thing: str, same: str) -> str:
    """So many times a thing, with two significant digits: `71 times the parameters`, `1.4 % of the parameters`."""
    if abs(ratio - 1) < 0.05:
        return f"about {same} {thing}"
    if ratio < 1:
        return f"{100 * ratio:.2g} % of the {thing}"
    return f"{ratio:,.0f} times the {thing}" if ratio >= 9.95 else f"{ratio:.1f} times the {thing}"


def family_verdict(
    best: Sequence[ConfigSummary], comparisons: Sequence[Comparison], metric: str = "accuracy"
) -> list[str]:
    """Say of the first family against each other one whether to take it, how sure that is, and what it costs.

    Args:
        best: the best configuration of each family, ranked.
        comparisons: of the first of them with others.
        metric: that ranked them, and that they are compared by.
    """
    winner, by_name = best[0], {one.b: one for one in comparisons if one.a == best[0].config}
    first = f"{winner.family} ranks first by mean validation {METRIC_NAMES[metric]}"
    lack = _lack(winner, metric)
    return [_family_against(winner, other, by_name.get(other.config) or lack, first) for other in best[1:]]


def _family_against(winner: ConfigSummary, other: ConfigSummary, found: Comparison | str, first: str) -> str:
    """`found`: how they compare, or why that is unknown."""
    ratios = {}
    if winner.num_params and other.num_params:
        ratios["size"] = winner.num_params / other.num_params
    if winner.latency_ms_p50 and other.latency_ms_p50:
        ratios["speed"] = winner.latency_ms_p50 / other.latency_ms_p50
    things = {"size": ("parameters", "as many"), "speed": ("latency of one image", "the same")}
    cost = " and ".join(_times(ratio, *things[what]) for what, ratio in ratios.items())
    cost = cost and f", {'for' if min(ratios.values()) > 1 else 'with'} {cost}"

    if isinstance(found, str):
        return f"{first}{cost}; how it compares with {other.family} on test is unknown, since {found}."
    said = f"{_difference(found)}{cost}"
    if not found.counts_seeds:
        return f"{first}, but one seed is too few to compare it with {other.family}: {said}."
    if found.low > 0:
        return f"Take {winner.family}, whose best configuration beats that of {other.family} on test: {said}."
    if found.high < 0:
        return f"No clear choice: {first}, but is worse on test than {other.family}: {said}."
    cheaper: dict[str | None, list[str]] = {}
    for what, ratio in ratios.items():
        if abs(ratio - 1) >= 0.05:
            cheaper.setdefault(winner.family if ratio < 1 else other.family, []).append(what)
    take = " and ".join(f"{family} where {' or '.join(whats)} counts" for family, whats in cheaper.items())
    return f"{first}, but cannot be told apart from {other.family} on test: {said}. Take {take or 'either'}."
