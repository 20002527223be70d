"""Which model to take, and how sure that is, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.results.ranking import ConfigSummary, best_of_families
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
    best, others = summaries[0], summaries[1:]
    if not best.models:
        return f"Every final training failed, so there is no verdict. {best.config}: {best.failed}."
    recipes = recipes or ({DEFAULT: "the default recipe"} if default else {})
    by_name = {one.b: one for one in comparisons if one.a == best.config}
    said = [
        _against_default(best, others, by_name, metric, default, recipes),
        _against_runner_up(best, others, by_name, metric, default, recipes),
        *_against_families(summaries, by_name, metric, default),
    ]
    second = "; ".join(words for words in said if words)
    on_test = by_name.get(default or "")
    lead = f"Take {best.config}"
    if default and on_test and on_test.counts_seeds and on_test.high < 0:  # validation, which chose it, misled
        lead = f"No clear choice between {best.config} and {recipes[default]}"
    first = f"{lead}: {_score_of_best(best, bool(others), metric)}."
    return first + (f" {second[0].upper()}{second[1:]}." if second else "")


def _score_of_best(best: ConfigSummary, has_others: bool, metric: str) -> str:
    """What the best reaches on test, and what it is the best by."""
    score, what = best.test_score(metric), METRIC_NAMES[metric]
    said = f"test {what} {_with_interval(score, metric)}" if score.n else f"test {what} unknown"
    said += f", the best by mean validation {what}" if has_others else ""
    return said + (f" (on {best.failed})" if best.failures else "")


def _against_default(
    best: ConfigSummary,
    others: Sequence[ConfigSummary],
    by_name: Mapping[str, Comparison],
    metric: str,
    default: str | None,
    recipes: Mapping[str, str],
) -> str:
    """What the search gained; empty without one."""
    if others and default and best.config == default:
        return f"it is {recipes[default]}, and the search found nothing better"
    for one in others:
        if default and one.config == default:
            tie = f"the search gained nothing measurable over {recipes[default]}"
            return _against(best, one, by_name.get(default), metric, recipes[default], tie)
    return ""


def _against_runner_up(
    best: ConfigSummary,
    others: Sequence[ConfigSummary],
    by_name: Mapping[str, Comparison],
    metric: str,
    default: str | None,
    recipes: Mapping[str, str],
) -> str:
    """How sure it is that the second is not as good; empty where there is none, or the default was told of already."""
    if not others or others[0].config == default or not others[0].models:
        return ""
    other = others[0].config
    name = f"the runner-up, {recipes[other]}" if other in recipes else f"the runner-up {other}"
    return _against(best, others[0], by_name.get(other), metric, name, f"it cannot be told apart from {name}")


def _against_families(
    summaries: Sequence[ConfigSummary], by_name: Mapping[str, Comparison], metric: str, default: str | None
) -> list[str]:
    """Each family whose best is as good on test, or better, and was not told of yet: it may cost far less."""
    best, runner_up = summaries[0], summaries[1].config if len(summaries) > 1 else None
    said = []
    for other in best_of_families(summaries)[1:]:
        found = by_name.get(other.config)
        if found is None or found.low > 0 or other.config in (runner_up, default):
            continue
        size = _cost_ratios(other, best).get("size", 1.0)
        smaller = f", which has {times(size, 'parameters', 'as many')}" if size < 0.95 else ""
        name = f"the best of {other.family}, {other.config}{smaller}"
        said.append(_against(best, other, found, metric, name, f"it cannot be told apart from {name}"))
    return said


def _against(
    best: ConfigSummary, other: ConfigSummary, found: Comparison | None, metric: str, name: str, tie: str
) -> str:
    """How the best compares with another, called `name`; `tie` says that they cannot be told apart."""
    if found is None:
        why = _lack(best, metric) if other.models else "its trainings failed"
        return f"how it compares with {name} is unknown, since {why}"
    words = f"it beats {name}" if found.low > 0 else f"it is worse on test than {name}" if found.high < 0 else tie
    if not found.counts_seeds:
        words = f"one seed is too few to compare it with {name}"
    return f"{words}: {_difference(found)}"


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


def times(ratio: float, thing: str, same: str) -> str:
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
    ratios = _cost_ratios(winner, other)
    cost = _cost(ratios)
    if isinstance(found, str):
        return f"{first}{cost}; how it compares with {other.family} on test is unknown, since {found}."
    said = f"{_difference(found)}{cost}"
    if not found.counts_seeds:
        return f"{first}, but one seed is too few to compare it with {other.family}: {said}."
    if found.low > 0:
        return f"Take {winner.family}, whose best configuration beats that of {other.family} on test: {said}."
    if found.high < 0:
        return f"No clear choice: {first}, but is worse on test than {other.family}: {said}."
    take = _cheaper(winner, other, ratios)
    return f"{first}, but cannot be told apart from {other.family} on test: {said}. Take {take or 'either'}."


def _cost_ratios(winner: ConfigSummary, other: ConfigSummary) -> dict[str, float]:
    """How many times the other's size and single-image latency the winner has, as far as both are known."""
    ratios = {}
    if winner.num_params and other.num_params:
        ratios["size"] = winner.num_params / other.num_params
    if winner.latency_ms_p50 and other.latency_ms_p50:
        ratios["speed"] = winner.latency_ms_p50 / other.latency_ms_p50
    return ratios


def _cost(ratios: Mapping[str, float]) -> str:
    things = {"size": ("parameters", "as many"), "speed": ("latency of one image", "the same")}
    cost = " and ".join(times(ratio, *things[what]) for what, ratio in ratios.items())
    return cost and f", {'for' if min(ratios.values()) > 1 else 'with'} {cost}"


def _cheaper(winner: ConfigSummary, other: ConfigSummary, ratios: Mapping[str, float]) -> str:
    """Which family to take for what, where neither is better; empty where they cost the same."""
    cheaper: dict[str | None, list[str]] = {}
    for what, ratio in ratios.items():
        if abs(ratio - 1) >= 0.05:
            cheaper.setdefault(winner.family if ratio < 1 else other.family, []).append(what)
    return " and ".join(f"{family} where {' or '.join(whats)} counts" for family, whats in cheaper.items())
