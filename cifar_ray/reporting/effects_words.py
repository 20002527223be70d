"""What an ablation found, in sentences: the headline, and for each factor what its levels do.

A clause is a function from an `Experiment` and the name of a factor to a sentence, or to None where the numbers that it
stands on are not there, or say nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from cifar_ray.reporting.experiment import (
    EPOCH_SECONDS,
    EPOCHS,
    GAP,
    GRADIENT,
    LOSS_AREA,
    OSCILLATION,
    PRIMARY,
    Experiment,
    ratio_of,
    reached,
)
from cifar_ray.reporting.parts import difference_text
from cifar_ray.reporting.verdict import times
from cifar_ray.results.ablation import EARLY_STOPPING
from cifar_ray.results.effects import is_effect
from cifar_ray.results.records import Row
from cifar_ray.results.simultaneous import MAX_SEEDS
from cifar_ray.results.statistics import METRIC_NAMES
from cifar_ray.text import counted, decimals, short

Clause = Callable[[Experiment, str], str | None]

OTHER_TIME = 0.1
"""Part by which the time of an epoch must differ before it is told: clocks of a busy machine differ by less."""
OTHER_SIZE = 0.02
"""The same of the number of parameters, which is exact."""
BARE = ("none", "true", "false", "True", "False", "on", "off")
"""Levels that need the name of their factor before them."""


# Pieces of sentences.


def metric_name(x: Experiment) -> str:
    return METRIC_NAMES[x.metric]


def points(x: Experiment, difference: float) -> str:
    """A signed difference of scores with its unit: `-3.10 points`, or `-0.0310`."""
    return difference_text(difference, x.metric) + (" points" if x.metric == "accuracy" else "")


def size(x: Experiment, difference: float) -> str:
    """The same without its sign."""
    return points(x, abs(difference))[1:]


def bounds(x: Experiment, row: Row) -> str:
    """The simultaneous interval of a difference of scores: `-4.00 to -2.20`."""
    return f"{difference_text(row['low'], x.metric)} to {difference_text(row['high'], x.metric)}"


def difference_cell(x: Experiment, row: Row | None) -> str:
    """A difference of scores with its interval, as a cell of a table."""
    if row is None or row.get("difference") is None:
        return "-"
    interval = f" ({bounds(x, row)})" if row.get("low") is not None else " (no interval)"
    return difference_text(row["difference"], x.metric) + interval


def and_list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def base_level(x: Experiment, factor: str) -> str:
    """What the base has of a factor."""
    level = next((one.get("base_level") for one in x.factors if one["name"] == factor), None)
    return "the base" if level is None else str(level)


def called(x: Experiment, arm: Row) -> str:
    """The level of an arm, with its learning rate where the level was tried at two."""
    if not arm.get("factor"):
        return "the base"
    factor, name = str(arm["factor"]), _level(arm)
    if arm.get("rate") == "own":
        return f"{name} at its own rate of {short(arm.get('lr'))}"
    both = any(one["level"] == arm["level"] and one.get("rate") == "own" for one in x.arms_of(factor))
    return f"{name} at the base's rate of {short(arm.get('lr'))}" if both else name


def _level(arm: Row) -> str:
    """The level of an arm; a number, or a word such as `none`, says nothing without its factor."""
    level = str(arm["level"])
    if arm.get("patience") is not None:
        return f"a patience of {level}"
    return level if level[:1].isalpha() and level not in BARE else f"{str(arm['factor']).split('/')[-1]} {level}"


def _reason(why: str) -> str:
    """Why there is no interval; where that lies with another arm it reads `base: 1 of 10 seeds diverged`."""
    arm, colon, what = why.partition(": ")
    return what.replace("seeds", f"seeds of {arm}", 1) if colon else why


def _compared(x: Experiment, row: Row, base: str) -> str:
    """What comes of the comparison of an arm with its control, as the rest of a sentence about the arm."""
    if row.get("low") is None:
        why = str(row.get("reason") or "too little is known")
        if row.get("difference") is None or "diverged" in why:
            return f"cannot be compared, since {_reason(why)}"
        return f"has no interval ({_reason(why)}): {points(x, row['difference'])}"
    found = f"{points(x, row['difference'])} ({bounds(x, row)})"
    if not is_effect(row):
        return f"cannot be told apart from {base}: {found}"
    return f"is {'better' if row['difference'] > 0 else 'worse'} than {base}: {found}"


# What a factor does: its clauses.


def performance(x: Experiment, factor: str) -> str | None:
    """Each level against the base's, on test: at the base's rate and at its own where both were tried."""
    if factor == EARLY_STOPPING:
        return None  # see `stopping_early`
    base, said = base_level(x, factor), []
    open_yet: list[tuple[Row, Row]] = []
    for fair in x.fair_arms(factor):
        arms = x.effects(PRIMARY, [arm for arm in x.arms_of(factor) if arm["level"] == fair["level"]])
        if len(arms) == 1 and arms[0][1].get("low") is not None and not is_effect(arms[0][1]):
            open_yet += arms
            continue
        for i, (arm, row) in enumerate(arms):
            # Of two arms the second is the same level at its own rate.
            name = f"at its own rate of {short(arm.get('lr'))} it" if i else called(x, arm)
            said.append(f"{name} {_compared(x, row, base)}")
    if len(open_yet) == 1:
        said.append(f"{called(x, open_yet[0][0])} {_compared(x, open_yet[0][1], base)}")
    elif open_yet:
        found = [f"{called(x, arm)} {points(x, row['difference'])} ({bounds(x, row)})" for arm, row in open_yet]
        said.append(f"{and_list(found)} cannot be told apart from {base}")
    return f"On test, {'; '.join(said)}." if said else None


def power(x: Experiment, factor: str) -> str | None:
    """Where nothing can be told: which difference would have been seen, and how many seeds would settle this one."""
    rows = [(arm, row) for arm, row in x.effects(PRIMARY, x.arms_of(factor))
            if row.get("low") is not None and not is_effect(row)]  # fmt: skip
    known = [(called(x, arm), row["detectable"]) for arm, row in rows if row.get("detectable") is not None]
    seen = [detectable for _, detectable in known if detectable < 1]
    hopeless = [name for name, detectable in known if detectable >= 1]  # more than any two scores can differ by
    needed = [(called(x, arm), row["seeds_needed"]) for arm, row in rows if row.get("seeds_needed") is not None]
    said = []
    if seen:
        said.append(f"a difference of {size(x, max(seen))} would have been seen here")
    if hopeless:
        varies = "varies" if len(hopeless) == 1 else "vary"
        said.append(f"{and_list(hopeless)} {varies} too much from seed to seed for any difference to be seen here")
    if needed:
        seeds = [f"{_seeds(number)}{f' for {name}' if len(rows) > 1 else ''}" for name, number in needed]
        what = "one as large as this" if len(needed) == 1 else "differences as large as these"
        said.append(f"to settle {what} takes {and_list(seeds)}")
    return _sentence(said)


def _seeds(number: float) -> str:
    return f"{MAX_SEEDS:,} seeds a level or more" if number >= MAX_SEEDS else f"about {number:.0f} seeds a level"


def shared_rate(x: Experiment, factor: str) -> str | None:
    """The levels for which the sweep of learning rates found none better than the base's, or none that holds."""
    shared, none = [], []
    for arm in x.fair_arms(factor):
        tried = [row for row in x.records.sweep if row["arm"] == arm["name"]]
        if arm.get("rate") == "own" or not tried:
            continue
        chosen = [row["lr"] for row in tried if row.get("chosen")]
        if not chosen:
            none.append(_level(arm))
        elif math.isclose(chosen[0], arm["lr"]):
            shared.append(_level(arm))
    said = []
    if shared:
        said.append(f"of the learning rates that were tried the base's, {short(x.base.get('lr'))}, is the best for "
                    f"{and_list(shared)}, too")  # fmt: skip
    if none:
        said.append(
            f"none of the learning rates that were tried holds for {and_list(none)}: with each a training failed"
        )
    return _sentence(said)


def level_at_rate(arm: Row) -> str:
    """The level of an arm, with its learning rate where that is its own."""
    own = f" at its own learning rate of {short(arm.get('lr'))}" if arm.get("rate") == "own" else ""
    return f"{arm['level']}{own}"


def besides(x: Experiment, factor: str) -> str | None:
    """What else can be told of the levels: convergence, stability, the gap of training and validation accuracy.

    Their intervals stand in the table and the figures.
    """
    if factor == EARLY_STOPPING:
        return None  # the same trainings
    told = {called(x, arm): words for arm in x.arms_of(factor) if (words := _besides(x, arm))}
    if told:
        return f"Besides, {'; '.join(f'{name} {and_list(words)}' for name, words in told.items())}."
    rows = [row for outcome in (EPOCHS, LOSS_AREA, OSCILLATION, GRADIENT, GAP)
            for _, row in x.effects(outcome, x.arms_of(factor))]  # fmt: skip
    if any(row.get("low") is not None for row in rows):
        return "No difference in convergence, stability or the gap can be told."
    return None


def _besides(x: Experiment, arm: Row) -> list[str]:
    """The effects of an arm on all but its score, as predicates."""
    said = []
    epochs, area = x.effect(EPOCHS, arm), x.effect(LOSS_AREA, arm)
    if epochs is not None and epochs.get("low") is not None:
        num, n = reached(epochs) or (1, 1)
        some = f"{num} of {n} seeds" if num < n else ""
        if num == 0:
            said.append("never gets to the target")
        elif is_effect(epochs):
            late = "later" if epochs["difference"] > 0 else "sooner"
            said.append(
                f"gets to the target {abs(epochs['difference']):.1f} epochs {late}{f' ({some} do)' * bool(some)}"
            )
        elif some:
            said.append(f"gets to the target in {some}")
    if area is not None and is_effect(area) and not is_effect(epochs):
        more = "higher" if area["difference"] > 0 else "lower"
        said.append(f"has a {more} validation loss on its way (by {decimals(abs(area['difference']), 3)})")
    swings, gradient, gap = (x.effect(outcome, arm) for outcome in (OSCILLATION, GRADIENT, GAP))
    if swings is not None and is_effect(swings):
        said.append(f"lets the validation loss swing {ratio_of(swings['difference']):.2g} times as much")
    if gradient is not None and is_effect(gradient):
        said.append(f"has {ratio_of(gradient['difference']):.2g} times the largest gradient norm")
    if gap is not None and is_effect(gap):
        verb = "widens" if gap["difference"] > 0 else "narrows"
        # The gap is one of accuracies, whatever the metric is.
        said.append(f"{verb} the gap to training accuracy by {difference_text(abs(gap['difference']))[1:]} points")
    return said


def timetable(x: Experiment, factor: str) -> str | None:
    """What a comparison of convergence across schedules does not tell."""
    arms = [arm for arm in x.arms_of(factor) if x.other_schedule(arm)]
    if not any(x.effects(outcome, arms) for outcome in (EPOCHS, LOSS_AREA)):
        return None
    return (
        "Convergence is not to be compared across schedules: annealing fixes when a training converges, since its "
        "score rises until the learning rate has come down, whatever the network could do before."
    )


def divergences(x: Experiment, factor: str) -> str | None:
    """How many trainings of a level diverged, and in which direction a lower rate would lie."""
    said = []
    for arm in x.arms_of(factor):
        diverged = x.num_diverged(arm)
        told = x.effect(PRIMARY, arm)
        if diverged and (told is None or "diverged" not in str(told.get("reason") or "")):
            said.append(f"{diverged} of {counted(len(x.runs(arm)), 'seed')} of {called(x, arm)} diverged")
    return _sentence(said)


def stopping_early(x: Experiment, factor: str) -> str | None:
    """What each patience saves and loses, and where stopping early means nothing."""
    if factor != EARLY_STOPPING:
        return None
    said = []
    for arm in x.arms_of(factor):
        row, saved = x.effect(PRIMARY, arm), epochs_saved(x, arm)
        clauses = []
        if saved is not None:
            kept, full = saved
            clauses.append(f"ends after {kept:.1f} of {full:.0f} epochs ({100 * (1 - kept / full):.0f} % saved)")
        if row is not None:
            clauses.append(_compared(x, row, "the full training"))
        if clauses:
            said.append(f"{_level(arm)} {' and '.join(clauses)}")
    if not said:
        return None
    controls = list(dict.fromkeys(str(arm.get("control")) for arm in x.arms_of(factor)))
    where = and_list(["the base" if name == "base" else name for name in controls])
    text = f"On {where}, each compared with the same trainings at full length: {'; '.join(said)}."
    annealing = _annealing(x)
    if annealing:
        text += (
            f" With {and_list(annealing)} it means nothing: there the learning rate anneals to the end, the score "
            "rises with it up to the last epochs, and a training that is stopped before is not a shorter one but one "
            "cut short."
        )
    return text


def epochs_saved(x: Experiment, arm: Row) -> tuple[float, float] | None:
    """Mean epochs of the stopped trainings of an arm, and of the same seeds at full length."""
    full = {row["seed"]: row["epochs"] for row in x.runs(x.control(arm)) if row.get("epochs")}
    pairs = [(row["epochs"], full[row["seed"]]) for row in x.runs(arm) if row.get("epochs") and row["seed"] in full]
    return (fmean(kept for kept, _ in pairs), fmean(whole for _, whole in pairs)) if pairs else None


def _annealing(x: Experiment) -> list[str]:
    """The schedules of this experiment that anneal to the end."""
    arms = [arm for arm in x.arms.values() if arm.get("anneals") and arm.get("patience") is None]
    return list(dict.fromkeys(name for arm in arms if (name := x.schedule(arm))))


def cost(x: Experiment, factor: str) -> str | None:
    """What the levels take of time and parameters, against their control."""
    if factor == EARLY_STOPPING:
        return None
    arms = x.fair_arms(factor)
    said = [f"{_level(arm)} takes {words}" for arm in arms if (words := cost_words(x, arm))]
    known = any(x.ratio(arm, column) for arm in arms for column in ("epoch_s", "num_params"))
    unsure = [arm for arm in arms if _unsure_of_time(x, arm)]
    if unsure:
        seconds = [value for arm in unsure for value in x.values(arm, EPOCH_SECONDS)]
        of_base = [value for arm in unsure for value in x.values(x.control(arm), EPOCH_SECONDS)]
        said.append(
            f"how long {and_list([_level(arm) for arm in unsure])} {'takes' if len(unsure) == 1 else 'take'} cannot be "
            f"told ({short(min(seconds))} to {short(max(seconds))} seconds an epoch by seed, against "
            f"{short(min(of_base))} to {short(max(of_base))})"
        )
    if said:
        return f"Cost: {'; '.join(said)}."
    return "Cost: about the same time and parameters." if known else None


def _unsure_of_time(x: Experiment, arm: Row) -> bool:
    """Whether an arm may be slower or faster than its control by more than is worth telling, or not."""
    row = x.effect(EPOCH_SECONDS, arm)
    if row is None or row.get("low") is None or row.get("high") is None or is_effect(row):
        return False
    return bool(max(row["high"], -row["low"]) > math.log1p(OTHER_TIME) and x.values(arm, EPOCH_SECONDS))


def cost_words(x: Experiment, arm: Row) -> str:
    """`1.3 times the seconds an epoch (0.82 against 0.63)`, and the same of parameters; empty where they are alike."""
    said = []
    for column, what, least in (("epoch_s", "seconds an epoch", OTHER_TIME), ("num_params", "parameters", OTHER_SIZE)):
        ratio = x.ratio(arm, column)
        if ratio is not None and abs(ratio - 1) >= least:
            pair = f"{short(x.mean(arm, column))} against {short(x.mean(x.control(arm), column))}"
            factor = times(ratio, what, "as many") if abs(ratio - 1) >= 0.05 else f"{100 * ratio:.0f} % of the {what}"
            if column == EPOCH_SECONDS and _is_head(arm) != _is_head(x.control(arm)):
                pair += "; without the features of the images, which a frozen backbone computes once"
            said.append(f"{factor} ({pair})")
    return " and ".join(said)


def _is_head(arm: Row) -> bool:
    """Whether an arm trains a head on features that were computed before."""
    return ((arm.get("config") or {}).get("model") or {}).get("finetune") == "head"


PLAIN: tuple[Clause, ...] = (performance, stopping_early, divergences)
"""What a factor does to the primary outcome."""
MORE: tuple[Clause, ...] = (power, shared_rate, cost, besides, timetable)


def entry(x: Experiment, factor: str) -> tuple[str, list[str]]:
    """A factor with what the base has of it; the plain sentence, and what more there is to say. Empty without any."""
    term = factor if factor == EARLY_STOPPING else f"{factor} (base: {base_level(x, factor)})"
    paragraphs = [" ".join(said for clause in clauses if (said := clause(x, factor))) for clauses in (PLAIN, MORE)]
    return term, [text for text in paragraphs if text]


def _sentence(clauses: Sequence[str]) -> str | None:
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}." if text else None
