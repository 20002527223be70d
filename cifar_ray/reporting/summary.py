"""What a report says of the final models: the headline and their sections.

Knows nothing of HTML and Markdown, which only lay the sections out.
"""

from __future__ import annotations

import json
from typing import Any

from cifar_ray.reporting.parts import Section, Table, difference_text, score_text, with_unit
from cifar_ray.reporting.trials import search_gain
from cifar_ray.reporting.verdict import family_verdict, verdict
from cifar_ray.results.ranking import ConfigSummary, best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row, State
from cifar_ray.results.statistics import Comparison
from cifar_ray.text import counted, decimals, short, thousands


def _measured(records: Records, one: ConfigSummary) -> dict[str, str]:
    """Cells of what was measured of a configuration."""
    cells = (
        {}
        if records.metric == "accuracy"
        else {f"val {records.metric_name}": with_unit(records.metric, one.val_metric)}
    )
    cells |= {"val acc %": score_text(one.val_accuracy), "test acc %": score_text(one.test_accuracy)}
    cells["test AUC"] = score_text(one.test_auc, "auc")
    if records.metric == "f1":
        cells["test F1"] = score_text(one.test_f1, "f1")
    cells |= {"params": short(one.num_params), "MB": decimals(one.size_mb, 2), "p50 ms": short(one.latency_ms_p50)}
    return cells | {"p95 ms": short(one.latency_ms_p95), "images/s": short(one.images_per_s)}


def finalists(records: Records) -> Section:
    table = Table([], [])
    for rank, one in enumerate(records.summaries, start=1):
        words = {"#": str(rank), "configuration": one.config, **records.origin(one.config)}
        cells = words | _measured(records, one) | {"seeds": one.seeds}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
        table.marks[rank - 1] = ["best"] * (rank == 1) + ["baseline"] * records.is_default(one.config) + _tta(one)
    threads = next((row["threads"] for row in records.rows if row.get("threads")), None)
    device = next((row["device"] for row in records.rows if row.get("device")), records.device.get("name", "?"))
    table.note = (
        f"Ranked by mean validation {records.metric_name} over seeds (ties: lower validation loss, fewer parameters); "
        "the test split ranks nothing. In brackets: 95 % interval over seeds and images (of validation, and of test); "
        f"from few seeds it is rough itself. p50 and p95: latency of one image{_num_timed(records)} on {device}"
        + (f", {counted(threads, 'thread')}." if threads else ".")
    )
    text = [f"{one.config} stands on {one.failed}." for one in records.summaries if one.failures]
    if text:
        text.append("A configuration of which final trainings failed ranks below all others.")
    if any(one.test_accuracy.n and one.test_auc.n == 0 for one in records.summaries):
        table.note += " No AUC where the test split lacks a class."
    if any(_tta(one) for one in records.summaries):
        table.note += f" {FLIP_TTA}: {WHAT_FLIP_TTA}."
    return Section("Finalists", text, [table])


def _num_timed(records: Records) -> str:
    """Of how many images the latencies of one image are."""
    timed = [row["n"] for row in records.latency if row.get("batch_size") == 1 and row.get("n")]
    if not timed:
        return ""
    return f", n = {min(timed)}{'' if min(timed) == max(timed) else f' to {max(timed)}'} timed,"


FLIP_TTA = "flip TTA"
WHAT_FLIP_TTA = "each image is judged together with its mirror image, in all scores and in the latency"


def _tta(one: ConfigSummary) -> list[str]:
    return [FLIP_TTA] if one.tta == "flip" else []


def families(records: Records) -> Section:
    section = Section("The best of each family")
    if not records.several_families:
        return section
    section.text = [" ".join(family_verdict(records.best_of_families, records.comparisons, records.metric))]
    winner = records.best_of_families[0].config
    by_name = {one.b: one for one in records.comparisons if one.a == winner}
    table = Table([], [], num_text=2)
    for index, one in enumerate(records.best_of_families):
        table.marks[index] = ["best"] * (index == 0) + _tta(one)
        cells = {"family": str(one.family), "configuration": one.config, **_measured(records, one)}
        del cells["p95 ms"], cells["images/s"]
        cells |= {"train s": "-" if one.train_s is None else f"{one.train_s:,.1f}"}
        if found := by_name.get(one.config):  # of the winner with this one
            cells |= _difference_cells(records, -found.difference, -found.high, -found.low)
        else:
            cells |= {_unit(records): "-", "95 % interval": "-"}
        table.columns = list(cells)
        table.rows.append(list(cells.values()))
    table.note = (
        f"The configuration of best mean validation {records.metric_name} of each family: what was found here, not all "
        "that a family can do. p50: latency of one image. train s: the training of one model, mean over seeds, without "
        "validation"
    )
    heads = [one for one in records.best_of_families if records.trains_head_only(one)]
    table.note += " and without the features that a frozen backbone computed before." if heads else "."
    shown = [by_name[one.config] for one in records.best_of_families if one.config in by_name]
    if shown:
        table.note += f" {_about(records, shown, to=winner)}"
    section.tables.append(table)
    return section


def _unit(records: Records) -> str:
    """What differences of test scores are in: the heading of their column."""
    return "points" if records.metric == "accuracy" else records.metric_name


def _difference_cells(records: Records, difference: float, low: float, high: float) -> dict[str, str]:
    interval = f"{difference_text(low, records.metric)} to {difference_text(high, records.metric)}"
    return {_unit(records): difference_text(difference, records.metric), "95 % interval": interval}


def _about(records: Records, comparisons: list[Comparison], to: str = "") -> str:
    """What differences are, and what their intervals hold."""
    unit = ", in percentage points" if records.metric == "accuracy" else ""
    unit = f" to {to}{unit}" if to else unit
    text = (
        f"Difference of mean test {records.metric_name}{unit}. The interval counts both sources of noise, training "
        f"seeds and the {thousands(comparisons[0].num_images)} test images, the same for all models; from few seeds it "
        "is rough itself."
    )
    if not all(one.counts_seeds for one in comparisons):
        text += " Here it holds the test images alone where a configuration has one seed, and is then too narrow."
    return text


def headline_of(records: Records) -> str:
    """The verdict; before any final model is evaluated, the state of the search."""
    if records.summaries or not records.searched:
        names = [one.config for one in records.summaries]
        recipes = {name: records.recipe(name) for name in names if records.is_default(name)}
        # Where the default recipe of the same family is missing, that of another one tells more than none.
        default = (records.default_of(names[0], names) if names else None) or next(iter(recipes), None)
        return verdict(records.summaries, records.comparisons, records.metric, default, recipes)
    if not records.tried:
        return "No trial has finished yet, so there is nothing to recommend."
    best, count = records.tried[0], len(records.tried)
    score = with_unit(records.metric, best_value(best))
    return (
        f"No final model yet. The best of {counted(count, 'trial')} so far is {best['name']}, with validation "
        f"{records.metric_name} {score}: one seed, picked for being the best, so expect less of it on new images."
    )


def gain(records: Records) -> Section:
    names = [one.config for one in records.summaries]
    defaults = [name for name in names if records.is_default(name)]
    several = sum(records.is_default(name) for name in records.family_of) > 1
    section = Section(f"What the search gained over the default recipe{'s' * several}")
    searched = search_gain(records)
    if searched:
        searched = f"In the search (validation {records.metric_name}, one seed each), {searched}."
        section.text.append(searched)
    if len(names) > 1 and names[0] in defaults:
        first = f"Over the final seeds {records.recipe(names[0])} itself ranks first: the search gained nothing"
        section.text.append(f"{first} over it." if several else f"{first}.")
    if not records.comparisons:
        section.tables += _optimism(records)
        return section
    own = records.default_of(names[0], names)
    table = Table([], [])
    # The default recipes first, and before all others that of the same family.
    for one in sorted(records.comparisons, key=lambda one: (one.b != own, not records.is_default(one.b))):
        told = "better" if one.low > 0 else "worse" if one.high < 0 else "cannot be told apart"
        told += "" if one.counts_seeds else ", by one seed"
        words = {f"{names[0]} against": one.b, **records.origin(one.b), "on the test split it": told}
        cells = words | _difference_cells(records, one.difference, one.low, one.high)
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
    table.note = _about(records, records.comparisons)
    if several and own not in (None, names[0]):
        table.note += f" What the search gained is the difference to {own}: other spaces start from other recipes."
    if not defaults:
        section.heading = "How the configurations compare"
    section.tables += [table, *_optimism(records)]
    return section


def _optimism(records: Records) -> list[Table]:
    """What each final configuration reached in the search, what it reached when it was trained again, and on test."""
    in_search = {trial["name"]: trial for trial in records.tried}
    shown = [one for one in records.summaries if one.config in in_search and one.models]
    if not shown:
        return []
    unit = " %" if records.metric == "accuracy" else ""
    table = Table(["configuration", *(f"{what}{unit}" for what in ("in the search", "trained again", "on test"))], [])
    for row, one in enumerate(shown):
        trial = in_search[one.config]
        values = (best_value(trial), one.val_metric, one.test_score(records.metric).mean)
        table.rows.append([one.config, *(score_text(value, records.metric) for value in values)])
        if trial["state"] == State.PRUNED:
            table.marks[row] = [f"stopped after {counted(trial.get('epochs'), 'epoch')}"]
    table.note = (
        f"Validation {records.metric_name} of the one training in the search, then the mean over the final seeds, then "
        f"their mean on the test split. The first picked the finalists out of {counted(len(records.tried), 'trial')} "
        "and the second ranks them, and what is picked for a high value owes some of it to luck: expect of new images "
        "what the last says."
    )
    return [table]


def _json(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"  # the whole configuration, below the table, has all digits
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Row, prefix: str = "") -> dict[str, str]:
    """Dotted keys and the text of their values in a nested configuration."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _json(value)}
    return flat


def configuration(records: Records) -> Section:
    section = Section("The best configuration")
    if records.summaries:
        name, model = records.summaries[0].config, records.summaries[0].best_model
    elif records.tried:
        name = model = records.tried[0]["name"]
    else:
        return section
    # Keys of another family say nothing about this one.
    default = records.default_of(name, records.family_of)
    values = _flat(records.config(name, model))
    base = _flat(records.config(default, f"{default}-seed0")) if default else {}
    if default and name == default:
        section.text.append(f"It is {records.recipe(name)}.")
    elif default and values and base:
        keys = [key for key in {**base, **values} if base.get(key) != values.get(key)]
        rows = [[key, base.get(key, "-"), values.get(key, "-")] for key in keys]
        note = f"Where {name} differs from {records.recipe(default)}; all else is the same."
        section.tables.append(Table(["key", default, name], rows, note, num_text=3))
    if values:
        section.folded = (f"Whole configuration of {name}", json.dumps(records.config(name, model), indent=2))
    return section
