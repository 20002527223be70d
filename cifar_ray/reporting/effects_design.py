"""What the report of an ablation says before all else: its headline, what was tried, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterable

from cifar_ray.reporting.effects_words import and_list, base_level, bounds, level_at_rate, metric_name, size
from cifar_ray.reporting.experiment import PRIMARY, Experiment
from cifar_ray.reporting.parts import with_unit
from cifar_ray.results.ablation import EARLY_STOPPING
from cifar_ray.results.effects import is_effect, seed_correlation
from cifar_ray.results.records import Row
from cifar_ray.text import counted, short


def design(x: Experiment) -> list[str]:
    """What was tried on what, how it is judged, and what was left out."""
    arms = [arm for arm in x.levels if arm.get("patience") is None]
    of = x.design
    if not arms:
        return []
    base_seeds, seeds = of.get("base_seeds"), of.get("seeds")
    name = metric_name(x)
    own_base = next((base for base in x.bases if base is not x.base), None)
    own = ", at its learning rate or at one of its own," if any(arm.get("rate") == "own" for arm in arms) else ""
    first = (
        f"The base is {x.base_name} at a learning rate of {short(x.base.get('lr'))}, trained with "
        f"{counted(base_seeds, 'seed')}. Each of {len(arms)} other configurations differs from it in one choice"
        f"{' (in two where they are crossed)' if x.crosses else ''}{own} and is trained with {counted(seeds, 'seed')}, "
        f"all for {counted(of.get('max_epochs'), 'epoch')}. Stated in advance: what counts is the test {name} of the "
        "weights of the best validation epoch, and differences are of that. Convergence and stability come second"
    )
    target = "" if x.target is None else f", {with_unit(x.metric, x.target)}"
    first += f"; the target is 98 % of the base's mean best validation {name}{target}."
    if own_base:
        first += (
            f" The base's own best rate is {short(own_base.get('lr'))}: levels at rates of their own are compared with "
            "the base at that."
        )
    intervals = (
        "In brackets: 95 % intervals, simultaneous over a family of comparisons (one outcome of all levels at the "
        "base's rate, at their own, or stopped early): in 95 of 100 such experiments none of a family misses. A "
        "difference is told only where its interval leaves out zero. "
    )
    if of.get("resplit"):
        intervals += "Each seed draws its own training and validation images; the test images are the same for all."
    else:
        intervals += (
            "They count training seeds alone: all trainings share one split into training and validation images and "
            "one test split, and what is found holds for these."
        )
    methods = {str(row.get("method")).split(" (")[0] for row in x.records.effects if row.get("outcome") == PRIMARY
               and x.arms.get(str(row["arm"]), {}).get("patience") is None}  # fmt: skip
    intervals += _correlation(x, "paired" in methods)
    if methods & {"moderated", "own spread"}:
        intervals += " Some configurations vary more from seed to seed than others, and the intervals allow for that."
    if any(row.get("detectable") is not None for row in x.records.effects):
        intervals += (
            " What would have been seen, and the seeds that would settle a difference (twice as many of the base), are "
            "for a power of 80 %."
        )
    return [first, intervals, *_left_out(of.get("left_out") or [])]


def _correlation(x: Experiment, paired: bool) -> str:
    """How alike a seed makes the scores of all configurations, and whether they are compared seed by seed for it."""
    done = " Configurations are compared seed by seed" if paired else " Configurations are not paired by seed"
    found = seed_correlation(x.records.ablation_runs)
    if found is None:
        return f"{done}." if paired else ""
    pays = "will" if paired else "need not"
    return (
        f"{done}: over seeds the test {metric_name(x)} of two of them correlates by {found.estimate:.2f} (with 95 % "
        f"confidence by more than {found.low:.2f}), which {pays} make the intervals of pairs narrower."
    )


def _left_out(levels: Iterable[Row]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for one in levels:
        name = f"{one['factor']}={one['level']}" if one.get("level") else str(one["factor"])
        by_reason.setdefault(str(one.get("reason") or "no reason is recorded"), []).append(name)
    said = [f"{', '.join(names)} ({reason.rstrip('.')})" for reason, names in by_reason.items()]
    return [f"Left out: {'; '.join(said)}."] if said else []


def headline(x: Experiment) -> str:
    """What mattered most on test, or that nothing can be told."""
    factors = [str(one["name"]) for one in x.factors if one["name"] != EARLY_STOPPING]
    rows = [pair for factor in factors for pair in x.effects(PRIMARY, x.fair_arms(factor))]
    judged = [(arm, row) for arm, row in rows if row.get("low") is not None]
    diverged = [arm for arm, row in rows if row.get("low") is None and x.num_diverged(arm)]
    unstable = ""
    if diverged:
        names = and_list([f"{arm['factor']}={arm['level']}" for arm in diverged[:3]])
        more = f" and {len(diverged) - 3} more" if len(diverged) > 3 else ""
        unstable = f"; {names}{more} diverged in some trainings, and {'have' if len(diverged) > 1 else 'has'} no score"
    found = [(arm, row) for arm, row in judged if is_effect(row)]
    if found:
        arm, row = max(found, key=lambda one: abs(one[1]["difference"]))
        factor = str(arm["factor"])
        verb = "gains" if row["difference"] > 0 else "loses"
        with_effect = len({str(one["factor"]) for one, _ in found})
        return (
            f"{factor} mattered most: {level_at_rate(arm)} instead of {base_level(x, factor)} {verb} "
            f"{size(x, row['difference'])} of test {metric_name(x)} (95 % interval {bounds(x, row)}); of "
            f"{counted(len(factors), 'choice')}, {with_effect} {'has' if with_effect == 1 else 'have'} an effect that "
            f"can be told{unstable}."
        )
    if judged:
        seen = [row["detectable"] for _, row in judged if row.get("detectable") is not None]
        small = f": a difference of {size(x, max(seen))} or more would have been seen" if seen else ""
        seeds = counted(x.design.get("seeds"), "seed")
        return f"With {seeds} a level no choice can be told apart from {x.base_name} on test{small}{unstable}."
    if x.base and (num := x.num_diverged(x.base)):
        seeds = counted(len(x.runs(x.base)), "seed")
        return (
            f"{num} of {seeds} of the base diverged, so that nothing can be compared with it: lower its learning rate."
        )
    if diverged:
        return f"Nothing can be compared with {x.base_name}{unstable}."
    return "No configuration has been compared with the base yet, so there is nothing to tell."
