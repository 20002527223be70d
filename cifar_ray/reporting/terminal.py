"""The results as plain-text tables of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import fmean

from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.results.ablation import BASE
from cifar_ray.results.effects import is_effect
from cifar_ray.results.ranking import ConfigSummary, best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.results.statistics import METRIC_NAMES
from cifar_ray.text import decimals, short


def table_of(records: Records) -> str | None:
    """What a run has come to, as a plain-text table of at most 80 columns; None where it has come to nothing yet."""
    if records.effects:
        return effects_table(records.ablation_runs, records.effects, records.metric)
    if records.summaries:
        return results_table(records.summaries, records.metric)
    return trials_table(records.trials, records.metric) if records.trials else None


def results_table(summaries: Sequence[ConfigSummary], metric: str = "accuracy") -> str:
    """The finalists as a plain-text table of at most 80 columns, best first."""
    name = "acc %" if metric == "accuracy" else METRIC_NAMES[metric]
    rows = [["#", "config", f"val {name}", f"test {name}", "params", "p50 ms", "img/s", "seeds"]]
    for rank, one in enumerate(summaries, start=1):
        scores = [score_text(one.val_metric, metric), score_text(one.test_score(metric), metric)]
        numbers = [short(one.num_params), short(one.latency_ms_p50), short(one.images_per_s), one.seeds]
        rows.append([str(rank), one.config, *scores, *numbers])
    notes = [textwrap.shorten(f"{one.config}: {one.failed}", 80) for one in summaries if one.failures]
    if any(one.test_score(metric).low is not None for one in summaries):
        notes.append("in brackets: 95 % interval over seeds and test images")
    flipped = [one.config for one in summaries if one.tta == "flip"]
    notes += [f"scored and timed with flip test-time augmentation: {', '.join(flipped)}"] if flipped else []
    return "\n".join([_text_table(rows), *notes])


def effects_table(runs: Sequence[Row], effects: Sequence[Row], metric: str) -> str:
    """What each level of an ablation did to the test metric, as a plain-text table of at most 80 columns."""
    name = "acc %" if metric == "accuracy" else METRIC_NAMES[metric]
    rows = [["seeds", "arm", f"test {name}", "difference", "95 % interval", ""]]
    base = [run["test_metric"] for run in runs if run["arm"] == BASE and run["test_metric"] is not None]
    if base:
        rows.append([str(len(base)), BASE, score_text(fmean(base), metric), "", "", ""])
    for one in effects:
        if one["outcome"] != "test_metric":
            continue
        difference, interval = "-", textwrap.shorten(str(one["reason"] or ""), 24, placeholder=" …")
        if one["low"] is not None:
            difference = difference_text(one["difference"], metric)
            interval = " to ".join(difference_text(one[bound], metric) for bound in ("low", "high"))
        cells = [score_text(one["mean"], metric), difference, interval, "*" if is_effect(one) else ""]
        rows.append([str(one["n"]), one["arm"], *cells])
    notes = "*: told from its control, the base or for early stopping the full training; the intervals hold together"
    return "\n".join([_text_table(rows), *textwrap.wrap(notes, 80)])


def trials_table(trials: Sequence[Row], metric: str, num_shown: int = 5) -> str:
    """The best trials of a search that has not come to final models, as a plain-text table of at most 80 columns."""
    tried = [trial for trial in trials if best_value(trial) is not None]
    tried.sort(key=lambda trial: -best_value(trial))
    rows = [["#", "trial", "state", "epochs", f"val {metric}", "params"]]
    for rank, one in enumerate(tried[:num_shown], start=1):
        cells = [str(one["epochs"]), decimals(best_value(one)), short(one.get("num_params"))]
        rows.append([str(rank), one["name"], one["state"], *cells])
    return _text_table(rows)


def _text_table(rows: list[list[str]]) -> str:
    """Rows under a header as text; the second column, a name, is cut where the whole would be wider than 80 columns.

    In its middle: names of presets begin alike, and those of trials end differently.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    widths[1] = min(widths[1], 80 - 2 * (len(widths) - 1) - (sum(widths) - widths[1]))
    lines = []
    for row in rows:
        name, left = row[1], widths[1] - 1
        if len(name) > widths[1]:
            name = f"{name[: left - left // 2]}…{name[len(name) - left // 2 :]}"
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([cells[0], name.ljust(widths[1]), *cells[2:]]))
    return "\n".join(lines)
