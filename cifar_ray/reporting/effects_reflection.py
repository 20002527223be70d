"""What to make of an ablation: what to change, to keep and to drop, and what to try next.

Decided on validation, never on test, which only confirms. As in `effects_words`, each sentence is a function of the
rows, and absent where its numbers are.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from cifar_ray.reporting.effects_words import (
    base_level,
    bounds,
    cost_words,
    epochs_saved,
    level_at_rate,
    metric_name,
    points,
    size,
)
from cifar_ray.reporting.experiment import PRIMARY, VALIDATION, Experiment
from cifar_ray.results.ablation import EARLY_STOPPING
from cifar_ray.results.effects import ALIKE, is_effect
from cifar_ray.results.records import Row
from cifar_ray.text import counted

CHEAPER = 0.9
"""Share of the base's seconds an epoch, or parameters, from which down a level is worth taking for its cost."""
FEW_SEEDS = 40
"""Seeds a level up to which it is advised to settle a difference by more of them."""


def _factors(x: Experiment) -> list[str]:
    return [str(one["name"]) for one in x.factors if one["name"] != EARLY_STOPPING]


def better_level(x: Experiment, factor: str) -> Row | None:
    """The level to change to: the largest gain on validation that is an effect, of those that lost no training."""
    better = [(arm, row) for arm, row in x.effects(VALIDATION, x.arms_of(factor))
              if is_effect(row) and row["difference"] > 0 and not x.num_failed(arm)]  # fmt: skip
    return max(better, key=lambda one: one[1]["difference"])[0] if better else None


def worse_levels(x: Experiment, factor: str) -> list[str]:
    """Levels that lose on validation, each at its own rate, or diverge: why to keep what the base has."""
    said = []
    for arm in x.fair_arms(factor):
        row = x.effect(VALIDATION, arm)
        if row is not None and is_effect(row) and row["difference"] < 0:
            said.append(f"{arm['level']} {points(x, row['difference'])}, {bounds(x, row)}")
        elif diverged := x.num_diverged(arm):
            said.append(f"{arm['level']}: {diverged} of {counted(len(x.runs(arm)), 'seed')} diverged")
    return said


def changes(x: Experiment) -> str | None:
    """What is better than the base has it, and whether the test split confirms it."""
    said = []
    for factor in _factors(x):
        arm = better_level(x, factor)
        row = x.effect(VALIDATION, arm) if arm else None
        if arm is None or row is None:
            continue
        text = (
            f"{factor} from {base_level(x, factor)} to {level_at_rate(arm)}: validation {metric_name(x)} "
            f"{points(x, row['difference'])} ({bounds(x, row)})"
        )
        test = x.effect(PRIMARY, arm)
        if test is not None and test.get("low") is not None:
            told = "confirmed" if test["low"] > 0 else "contradicted" if test["high"] < 0 else "not confirmed"
            text += f", {told} by test: {points(x, test['difference'])} ({bounds(x, test)})"
        cost = cost_words(x, arm)
        said.append(f"{text}{cost and f', for {cost}'}")
    return f"Change {'; '.join(said)}." if said else None


def keeps(x: Experiment) -> str | None:
    """What the base has and is worth it: other levels lose."""
    said = [
        f"{factor} {base_level(x, factor)} ({'; '.join(worse)})"
        for factor in _factors(x)
        if better_level(x, factor) is None and (worse := worse_levels(x, factor))
    ]
    return f"Keep, since other levels lose validation {metric_name(x)} or diverge: {'; '.join(said)}." if said else None


def cheaper_levels(x: Experiment, factor: str) -> list[str]:
    """Levels that cannot be told apart from the base on validation, and take less."""
    said = []
    for arm in x.fair_arms(factor):
        row = x.effect(VALIDATION, arm)
        ratios = [ratio for column in ("epoch_s", "num_params") if (ratio := x.ratio(arm, column))]
        if row is None or row.get("low") is None or is_effect(row) or not ratios:
            continue
        if min(ratios) > CHEAPER or max(ratios) > 1 / CHEAPER:
            continue  # no cheaper, or dearer in another way
        most = f"{size(x, row['low'])} of validation {metric_name(x)}"
        said.append(
            f"{factor} {level_at_rate(arm)} instead of {base_level(x, factor)} takes {cost_words(x, arm)}, and loses "
            f"{most} at most by its interval"
        )
    return said


def drops(x: Experiment) -> str | None:
    """What the base has and does not show: a level that is cheaper cannot be told apart."""
    said = [one for factor in _factors(x) if better_level(x, factor) is None for one in cheaper_levels(x, factor)]
    return f"Where cost counts, what is cheaper and cannot be told apart: {'; '.join(said)}." if said else None


def open_yet(x: Experiment) -> str | None:
    """Factors of which nothing can be told on validation, and no level is cheaper."""
    names = []
    for factor in _factors(x):
        pairs = x.effects(VALIDATION, x.fair_arms(factor))
        known = any(row.get("low") is not None for _, row in pairs)
        if not known or better_level(x, factor) or worse_levels(x, factor) or cheaper_levels(x, factor):
            continue
        seen = [str(arm["level"]) for arm, row in x.effects(PRIMARY, x.fair_arms(factor)) if is_effect(row)]
        # Taking it for that would be a choice by the test split.
        names.append(f"{factor} ({', '.join(seen)} differs on test alone, which must not choose)" if seen else factor)
    if not names:
        return None
    return (
        f"No reason to change, nor to insist on: {', '.join(names)}. That no difference can be told does not say that "
        "there is none; the table says how large one may be."
    )


def stopping(x: Experiment) -> str | None:
    """Whether ending early pays: a patience that loses nothing, or the least by its interval, or that none does."""
    pairs = x.effects(VALIDATION, x.arms_of(EARLY_STOPPING))
    saved = {str(arm["name"]): 1 - kept[0] / kept[1] for arm, _ in pairs if (kept := epochs_saved(x, arm))}
    pays = [(arm, row) for arm, row in pairs if saved.get(str(arm["name"]), 0.0) > 0]

    def saves(arm: Row) -> str:
        share = f"{100 * saved[str(arm['name'])]:.0f} %"
        return f"Early stopping with a patience of {arm['level']} saves {share} of the epochs, and "

    same = [arm for arm, row in pays if row.get("reason") == ALIKE]
    if same:
        arm = max(same, key=lambda one: saved[str(one["name"])])
        return f"{saves(arm)}keeps the weights that the full training keeps with every seed."
    arms = [(arm, row) for arm, row in pairs if row.get("low") is not None]
    free = [(arm, row) for arm, row in pays if row.get("low") is not None and not is_effect(row)]
    if free:
        arm, row = max(free, key=lambda one: one[1]["low"])
        return f"{saves(arm)}loses {size(x, row['low'])} of validation {metric_name(x)} at most by its interval."
    if arms and all(is_effect(row) and row["difference"] < 0 for _, row in arms):
        losses = ", ".join(f"{arm['level']}: {points(x, row['difference'])}" for arm, row in arms)
        return f"Early stopping loses validation {metric_name(x)} at every patience that was tried ({losses})."
    return None


def caution(x: Experiment) -> str | None:
    """What single changes do not tell."""
    if not any(row.get("low") is not None for _, row in x.effects(VALIDATION, x.levels)):
        return None
    return (
        "This was decided on validation; the test split only confirms. Each is one change at a time around this base: "
        "together they need not add up, and around another base, or with more epochs or images, they may differ."
    )


REFLECTION = (changes, keeps, drops, stopping, open_yet, caution)


# What to try next: each with the flag that does it.


def train_together(x: Experiment) -> str | None:
    """All changes that gain, in one configuration."""
    arms = [arm for factor in _factors(x) if (arm := better_level(x, factor))]
    values: dict[str, object] = {}
    for arm in arms:
        values |= x.changes(arm)
    if not values:
        return None
    flags = " ".join(f"--set {path}={_flag_value(value)}" for path, value in values.items())
    several = f"the {len(arms)} changes that gain, together" if len(arms) > 1 else "the change that gains"
    return f"A better base: start the next experiment, or a training, with {several}: {flags}"


def _flag_value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if text.replace("_", "").replace(".", "").replace("-", "").isalnum() else f"'{text}'"


def more_seeds(x: Experiment) -> str | None:
    """Levels that look better on validation, and that a few more seeds would settle."""
    found = {}
    for factor in _factors(x):
        rows = [(arm, row) for arm, row in x.effects(VALIDATION, x.fair_arms(factor))
                if row.get("low") is not None and not is_effect(row) and row["difference"] > 0
                and (row.get("seeds_needed") or FEW_SEEDS + 1) <= FEW_SEEDS]  # fmt: skip
        if rows and better_level(x, factor) is None:
            found[factor] = min(rows, key=lambda one: one[1]["seeds_needed"])
    if not found:
        return None
    best = sorted(found.items(), key=lambda one: one[1][1]["seeds_needed"])[:3]
    names = ", ".join(f"{factor}={arm['level']}" for factor, (arm, _) in best)
    seeds = max(int(row["seeds_needed"]) for _, (_, row) in best)
    flags = " ".join(f"--vary {factor}" for factor, _ in best)
    return f"More seeds for what looks better and is not settled ({names}): {flags} --seeds {seeds}"


def cross(x: Experiment) -> str | None:
    """The two factors of the largest effects, those that gain first, if nothing was crossed."""
    if x.crosses:
        return None
    gaining = [factor for factor in _factors(x) if better_level(x, factor)]
    largest: dict[str, float] = {}
    for factor in _factors(x):
        rows = [row for _, row in x.effects(VALIDATION, x.fair_arms(factor)) if is_effect(row)]
        if rows:
            largest[factor] = max(abs(row["difference"]) for row in rows)
    first = sorted(largest, key=lambda factor: (factor not in gaining, -largest[factor]))[:2]
    if len(first) < 2:
        return None
    flags = f"--vary {first[0]} --vary {first[1]} --cross {','.join(first)}"
    what = "gains" if set(first) <= set(gaining) else "effects"
    return f"Whether the two largest {what}, of {first[0]} and {first[1]}, add up: {flags}"


def lower_rate(x: Experiment) -> str | None:
    """The base, or a level without a learning rate of its own, that diverged."""
    if x.base and x.num_diverged(x.base) and x.base.get("lr"):
        return f"A lower learning rate for the base, which diverged: --set optimizer/lr={_third(x.base['lr'])}"
    for factor in _factors(x):
        for arm in x.fair_arms(factor):
            if x.num_diverged(arm) and arm.get("rate") != "own" and arm.get("lr"):
                values = x.changes(arm) | {"optimizer/lr": _third(arm["lr"])}
                flags = " ".join(f"--set {path}={_flag_value(value)}" for path, value in values.items())
                return f"A lower learning rate for {factor}={arm['level']}, which diverged: {flags}"
    return None


def _third(rate: float) -> float:
    return float(f"{rate / 3:.2g}")


def longer(x: Experiment) -> str | None:
    """The base still gained at its end: what converges later was cut short."""
    epochs, runs = x.design.get("max_epochs"), x.runs(x.base) if x.base else []
    last = [row for row in runs if row.get("best_epoch") and row["best_epoch"] == epochs]
    if not epochs or not last or 2 * len(last) < len(runs):
        return None
    anneals = " (in part since its learning rate anneals to the end)" * bool(x.base.get("anneals"))
    return (
        f"Longer trainings: {len(last)} of {counted(len(runs), 'seed')} of the base were best in the last of {epochs} "
        f"epochs{anneals}, and levels that are slow at first may gain: --max-epochs {2 * epochs}"
    )


def other_splits(x: Experiment) -> str | None:
    """Effects hold for one split of the images so far."""
    if x.design.get("resplit") or not any(is_effect(row) for _, row in x.effects(VALIDATION, x.levels)):
        return None
    return "Whether it holds for other training and validation images: --resplit"


NEXT: tuple[Callable[[Experiment], str | None], ...] = (
    train_together, more_seeds, cross, lower_rate, longer, other_splits,
)  # fmt: skip
