"""What the report says of an ablation: what each choice did, what to keep, and the pictures of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean

from cifar_ray.reporting import effects_design, effects_reflection, effects_words
from cifar_ray.reporting.effects_cross import interactions
from cifar_ray.reporting.effects_figures import (
    BASE_STYLE,
    ForestRow,
    LevelCurves,
    file_part,
    forest_figure,
    level_curves_figure,
    level_styles,
)
from cifar_ray.reporting.effects_words import base_level, difference_cell, metric_name
from cifar_ray.reporting.experiment import (
    EPOCHS,
    GAP,
    GRADIENT,
    LOSS_AREA,
    OSCILLATION,
    PRIMARY,
    VALIDATION,
    Experiment,
    ratio_of,
)
from cifar_ray.reporting.figures import png
from cifar_ray.reporting.parts import Image, Section, Table, difference_text, score_text
from cifar_ray.results.ablation import EARLY_STOPPING
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import decimals, short


def effects(records: Records) -> list[Section]:
    """The sections of an ablation; empty ones where it has not recorded them."""
    x = Experiment(records)
    if not x.arms:
        return []
    return [choices(x), reflection(x), *[interactions(x, cross) for cross in x.crosses], level_curves(x)]


def effects_headline(records: Records) -> str:
    """What mattered most, in one sentence."""
    return effects_design.headline(Experiment(records))


def choices(x: Experiment) -> Section:
    """The design, what each factor did, forest plots, and a table of all levels."""
    section = Section("What each choice did")
    factors = [str(one["name"]) for one in x.factors]
    entries = [effects_words.entry(x, factor) for factor in factors]
    section.entries = [(term, said) for term, said in entries if said]
    section.images = forests(x)
    section.tables = all_levels(x)
    if not section.empty:
        section.text = effects_design.design(x)
        section.folded = (f"Whole configuration of the base, {x.base_name}", json.dumps(x.design.get("base"), indent=2))
    return section


def reflection(x: Experiment) -> Section:
    """What to change, keep, drop and try next; decided on validation."""
    section = Section("What to keep, and what to try next")
    section.text = [said for clause in effects_reflection.REFLECTION if (said := clause(x))]
    section.points = [said for clause in effects_reflection.NEXT if (said := clause(x))]
    return section


# All levels in tables.


def all_levels(x: Experiment) -> list[Table]:
    """Two tables: performance and cost; convergence and stability."""
    arms = [arm for arm in [*x.bases, *_in_groups(x)] if x.runs(arm) or x.effect(PRIMARY, arm)]
    performance = _table(x, arms, lambda arm: _scores(x, arm) | _cost(x, arm))
    unit = ", in percentage points" if x.metric == "accuracy" else ""
    performance.note = (
        f"Means over seeds. In brackets: the standard deviation over seeds behind a score, the simultaneous 95 % "
        f"interval behind a difference{unit}. s/epoch: seconds of training."
    )
    if any(x.num_failed(arm) for arm in arms):
        performance.note += (
            " Where a training diverged or failed there is no mean: that of the others would flatter it."
        )
    course = _table(x, [arm for arm in arms if arm.get("patience") is None], lambda arm: _course(x, arm))
    target = "" if x.target is None else f" ({score_text(x.target, x.metric)})"
    course.note = (
        f"Convergence and stability. In brackets: how many seeds came to the target{target} behind the epochs to it, "
        "where one that never does counts with all epochs; simultaneous 95 % intervals behind all else. swings: mean "
        "change of the validation loss from epoch to epoch in the last third, and gradient: the largest norm in a "
        "training, both as multiples of the base's. loss: mean validation loss over the epochs, the area under its "
        "curve."
    )
    return [table for table in (performance, course) if table.rows]


def _table(x: Experiment, arms: Sequence[Row], cells_of: Callable[[Row], dict[str, str]]) -> Table:
    table = Table([], [], num_text=2)
    for index, arm in enumerate(arms):
        diverged, failed = x.num_diverged(arm), x.num_failed(arm)
        table.marks[index] = (
            ["base"] * (arm in x.bases)
            + [f"own rate {short(arm.get('lr'))}"] * (arm.get("rate") == "own")
            + [f"{failed} of {len(x.runs(arm))} {'diverged' if diverged == failed else 'failed'}"] * bool(failed)
        )
        cells = {"choice": str(arm.get("factor") or "-"), "level": str(arm.get("level") or x.base_name)}
        cells |= cells_of(arm)
        table.columns = list(cells)
        table.rows.append(list(cells.values()))
    return table


def _in_groups(x: Experiment) -> list[Row]:
    """All arms but the base, the levels of a factor together."""
    factors = dict.fromkeys(str(arm.get("factor") or "") for arm in x.levels)
    return [arm for factor in factors for arm in (x.arms_of(factor) if factor else
            [arm for arm in x.levels if not arm.get("factor")])]  # fmt: skip


def _scores(x: Experiment, arm: Row) -> dict[str, str]:
    """Scores; a mean of survivors would flatter an arm that lost some of its trainings."""
    percent = " %" if x.metric == "accuracy" else ""
    whole = not x.num_failed(arm)
    test, spread = (x.mean(arm, PRIMARY), x.spread(arm, PRIMARY)) if whole else (None, None)
    return {
        f"test {metric_name(x)}{percent}": score_text(test, x.metric)
        + (f" ({score_text(spread, x.metric)})" if spread is not None else ""),
        "difference": difference_cell(x, x.effect(PRIMARY, arm)),
        f"val {metric_name(x)}{percent}": score_text(x.mean(arm, VALIDATION) if whole else None, x.metric),
        "gap": _gap(x, arm) if whole else "-",
    }


def _gap(x: Experiment, arm: Row) -> str:
    """Training - validation accuracy, in percentage points whatever the metric is."""
    gap = x.mean(arm, GAP)
    return "-" if gap is None else difference_text(gap)


def _course(x: Experiment, arm: Row) -> dict[str, str]:
    """Convergence and stability."""
    runs, epochs, area = x.runs(arm), x.effect(EPOCHS, arm), x.effect(LOSS_AREA, arm)
    cells = dict.fromkeys(("epochs to target", "difference", "loss", "difference of loss", "swings", "gradient"), "-")
    if epochs is not None and epochs.get("mean") is not None:
        cells["epochs to target"] = f"{epochs['mean']:.1f}" + (
            f" ({epochs['reached']})" if epochs.get("reached") is not None else ""
        )
    elif arm in x.bases and x.target is not None and runs and not x.num_failed(arm):
        found = x.values(arm, EPOCHS)
        # A training that never got there counts with all of its epochs, as in effects.csv.
        never = [float(x.design.get("max_epochs") or 0)] * (len(runs) - len(found))
        cells["epochs to target"] = f"{fmean([*found, *never]):.1f} ({len(found)} of {len(runs)})"
    if epochs is not None and epochs.get("low") is not None:
        cells["difference"] = f"{epochs['difference']:+.1f} ({epochs['low']:+.1f} to {epochs['high']:+.1f})"
    if not x.num_failed(arm):
        cells["loss"] = decimals(x.mean(arm, LOSS_AREA), 3)
    if area is not None and area.get("low") is not None:
        cells["difference of loss"] = f"{area['difference']:+.3f} ({area['low']:+.3f} to {area['high']:+.3f})"
    for outcome, name in ((OSCILLATION, "swings"), (GRADIENT, "gradient")):
        cells[name] = "1" if arm in x.bases else _ratio(x.effect(outcome, arm))
    return cells


def _ratio(row: Row | None) -> str:
    if row is None or row.get("difference") is None:
        return "-"
    text = f"{ratio_of(row['difference']):.2f}"
    if row.get("low") is None:
        return text
    return f"{text} ({ratio_of(row['low']):.2f} to {ratio_of(row['high']):.2f})"


def _cost(x: Experiment, arm: Row) -> dict[str, str]:
    kept = None if arm.get("patience") is None else effects_words.epochs_saved(x, arm)
    epochs = f"{kept[0]:.1f}" if kept else decimals(None if x.num_failed(arm) else x.mean(arm, "epochs"), 0)
    return {"epochs": epochs, "s/epoch": short(x.mean(arm, "epoch_s")), "params": short(x.mean(arm, "num_params"))}


# Forest plots.


def forests(x: Experiment) -> list[Image]:
    scale = 100.0 if x.metric == "accuracy" else 1.0
    unit = " (points)" if x.metric == "accuracy" else ""
    plots = (
        ("performance", PRIMARY, f"difference of test {metric_name(x)}{unit}", ("better", "worse"), scale,
         f"Performance, the primary outcome: test {metric_name(x)} against the base"),
        ("convergence", EPOCHS, "difference of epochs to the target", ("sooner", "later"), 1.0,
         "Convergence: epochs to the target validation score against the base"),
        ("swings", OSCILLATION, "times the base's swings of validation loss", ("calmer", "less calm"), 1.0,
         "Stability: swings of the validation loss in the last third, as a multiple of the base's"),
        ("gradients", GRADIENT, "times the base's largest gradient norm", ("smaller", "larger"), 1.0,
         "Stability: largest gradient norm of a training, as a multiple of the base's"),
    )  # fmt: skip
    images = []
    for name, outcome, what, words, by, title in plots:
        log = outcome in (OSCILLATION, GRADIENT)
        figure = forest_figure(_forest_rows(x, outcome, by), what, words, higher_is_better=outcome == PRIMARY, log=log)
        if figure:
            if outcome == EPOCHS and any(x.other_schedule(arm) for arm in x.levels):
                title += ". Not to be compared across schedules (†): annealing fixes when a training converges"
            images.append(Image(f"effects-{name}.png", title, png(figure)))
    return images


def _forest_rows(x: Experiment, outcome: str, scale: float) -> list[ForestRow]:
    rows: list[ForestRow] = []
    heading = None
    for arm, row in x.effects(outcome, _in_groups(x)):
        if arm.get("patience") is not None and outcome != PRIMARY:
            continue  # the same trainings as its control's
        if arm.get("factor") != heading:
            heading = arm.get("factor")
            base = "" if arm.get("cells") else f" (base: {base_level(x, str(heading))})"
            base = " (full length)" if arm.get("patience") is not None else base
            rows.append(ForestRow(f"{heading}{base}", heading=True))
        label = str(arm.get("level") or "the base")
        label += ", own rate" if arm.get("rate") == "own" else ""
        label += " †" if outcome == EPOCHS and x.other_schedule(arm) else ""
        if row.get("low") is None or row.get("difference") is None:
            rows.append(ForestRow(label, note=str(row.get("reason") or "no interval")))
            continue
        low, high, difference = (scale * row[name] for name in ("low", "high", "difference"))
        alone = None if row.get("low_alone") is None else (scale * row["low_alone"], scale * row["high_alone"])
        rows.append(ForestRow(label, difference=difference, simultaneous=(low, high), alone=alone))
    return rows


# Learning curves.


def level_curves(x: Experiment) -> Section:
    """A figure for each factor: its levels, and the base in grey."""
    section = Section("Learning curves by choice")
    num_classes = len(x.records.data.get("class_names") or [])
    chance = 2 * math.log(num_classes) if num_classes > 1 else None  # the loss of a guess, twice
    base = x.histories(x.base) if x.base else []
    for factor in (str(one["name"]) for one in x.factors if one["name"] != EARLY_STOPPING):
        arms = [LevelCurves(f"{base_level(x, factor)} (base)", base, BASE_STYLE)] if base else []
        levels = list(dict.fromkeys(str(arm["level"]) for arm in x.arms_of(factor)))
        styles = dict(zip(levels, level_styles(len(levels)), strict=True))
        for arm in x.arms_of(factor):
            seeds = x.histories(arm)
            if not seeds:
                continue
            label = f"{arm['level']}{', own rate' if arm.get('rate') == 'own' else ''}"
            label += f" ({len(seeds)} of {len(x.runs(arm))})" if x.num_failed(arm) else ""
            style = styles[str(arm["level"])] | ({"linestyle": "-."} if arm.get("rate") == "own" else {})
            arms.append(LevelCurves(label, seeds, style))
        if len(arms) > bool(base):
            figure = level_curves_figure(arms, metric_name(x), chance)
            section.images.append(Image(f"curves-{file_part(factor)}.png", factor, png(figure)))
    if section.images:
        section.text.append(
            "Lines: means over seeds; bands: from the lowest to the highest seed. The scales leave out the first fifth "
            "of the epochs, and differ from figure to figure."
        )
        if any(x.num_failed(arm) for arm in x.arms.values()):
            section.text[0] += " In brackets: how many of the seeds came to their end; only these are drawn."
        if any(arm.get("rate") == "own" for arm in x.levels):
            section.text[0] += " Dash-dotted: the level at its own learning rate."
    return section


def base_model(records: Records) -> str | None:
    """The name of the base's configuration in results.csv."""
    base = Experiment(records).base
    return str(base["name"]) if base else None
