"""What the report says of accuracy against size, over all trials of the search."""

from __future__ import annotations

from cifar_ray.reporting.figures import png, size_figure
from cifar_ray.reporting.parts import Image, Section, Table, score_text
from cifar_ray.results.config_json import CARD
from cifar_ray.results.ranking import best_value, front
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row, State
from cifar_ray.text import counted, short

NUM_SHOWN = 8
"""Rows of the table, at most: the largest ones."""


def sizes(records: Records) -> Section:
    """The trials that none of the others matches with as few parameters; nothing where all have the same size."""
    section = Section("Accuracy against size")
    complete = [one for one in records.tried if one["state"] == State.COMPLETE and one.get("num_params")]
    if len({one["num_params"] for one in complete}) < 2:
        return section
    best, latencies = front(complete), _latencies(records)
    default = next((one["name"] for one in complete if records.is_default(one["name"])), None)
    figure = size_figure(records.tried, best, default, records.metric_name)
    title = f"Validation {records.metric_name} of each trial against its parameters; the line joins the front"
    section.images.append(Image("sizes.png", title, png(figure)))
    told = f"{len(best)} are on the front: none of the others is as good with as few parameters."
    if len(best) == 1:
        told = f"{best[0]['name']} is both the best and the smallest."
    section.text.append(f"Of {counted(len(complete), 'complete trial')} {told}")
    score = f"val {records.metric_name}" + (" %" if records.metric == "accuracy" else "")
    table = Table([], [])
    for row, one in enumerate(best[-NUM_SHOWN:]):
        words = {"trial": one["name"], **records.origin(one["name"])}
        cells = words | {score: score_text(best_value(one), records.metric), "params": short(one["num_params"])}
        cells["p50 ms"] = short(latencies.get(one["name"]))
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
        table.marks[row] = ["finalist"] if one["name"] in latencies else []
    table.note = "One training each, the best of many: expect less of new images. p50: latency of one image, if timed."
    paths = [records.folder.trial(one["number"]) / CARD for one in best if one["name"] not in latencies]
    if known := [path for path in paths if path.exists()]:
        table.note += f" To train another one over several seeds: python -m cifar_ray.train --config {known[-1]}"
    section.tables.append(table)
    return section


def front_rows(records: Records) -> list[Row]:
    """The rows of front.csv: every trial with a value, the smallest first."""
    best, latencies = {one["name"] for one in front(records.tried)}, _latencies(records)
    rows = []
    for one in sorted(records.tried, key=lambda one: one.get("num_params") or 0):
        row = {name: one.get(name) for name in ("space", "state", "epochs", "num_params")}
        row |= {name: one["best"].get(name) for name in ("val_metric", "val_loss")}
        row |= {"config": one["name"], "family": records.family_of[one["name"]]}
        rows.append(row | {"latency_ms_p50": latencies.get(one["name"]), "on_front": int(one["name"] in best)})
    return rows


def _latencies(records: Records) -> dict[str, float | None]:
    """Of one image, in milliseconds, by final configuration."""
    return {one.config: one.latency_ms_p50 for one in records.summaries}
