"""What the report says of quality: training, validation and test side by side."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray.reporting.parts import SPLITS, Section, Table, difference_text, score_text
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import CALIBRATION_BINS
from cifar_ray.text import counted, decimals, thousands

SCORES = {
    "accuracy": "accuracy %",
    "auc_macro_ovr": "AUC",
    "f1_macro": "F1",
    "log_loss": "log-loss",
    "top5_accuracy": "top-5 accuracy %",
}
"""Columns of quality.csv, and what the report calls them."""

COMPARED = {"accuracy": "accuracy", "auc_macro_ovr": "auc", "f1_macro": "f1"}
"""Those that configurations are compared by, and the names of these metrics."""


def quality(records: Records) -> Section:
    """A table for each score: the finalists, their mean over seeds on each split, and train - test."""
    section = Section("Quality on training, validation and test images")
    sizes = {row["split"]: row["n"] for row in records.quality}
    splits = [split for split in SPLITS if split in sizes]  # of images that came later, `test` alone
    tables = {column: _scores(records, column, name, splits) for column, name in SCORES.items()}
    section.tables = [table for table in tables.values() if table.rows]
    if not section.tables:
        return section
    if splits == ["test"]:
        section.heading = "Quality on test images"
    images = ", ".join(f"{thousands(sizes[split])} {split}" for split in splits)
    seeds = sorted({len(one.models) for one in records.summaries if one.models})
    of_seeds = " to ".join(dict.fromkeys((str(seeds[0]), counted(seeds[-1], "seed"))))
    of_seeds = counted(seeds[0], "seed") if len(seeds) == 1 else of_seeds
    said = [
        f"Means over {of_seeds}, on {images} images"
        + ", training images as they are, without augmentation" * ("train" in splits)
        + "."
    ]
    if tables["auc_macro_ovr"].rows:
        said.append("AUC and F1 are means over classes (AUC one-vs-rest).")
    elif tables["f1_macro"].rows:
        said.append("F1 is the mean over classes.")
    said += ["gap: train - test, what a model has learned by heart."] if _has_gap(splits) else []
    section.text.append(" ".join(said))
    if calibration := _calibration(records):
        section.tables.append(calibration)
    marks = [mark for table in section.tables for of_row in table.marks.values() for mark in of_row]
    if "tie" in marks:
        section.text.append(
            "best: ranks first by validation. tie: on test it cannot be told apart from that one by this score, "
            "since the 95 % interval of their difference holds 0."
        )
    return section


def _has_gap(splits: Sequence[str]) -> bool:
    return "train" in splits and "test" in splits


def _scores(records: Records, column: str, name: str, splits: Sequence[str]) -> Table:
    metric = "accuracy" if name.endswith("%") else column
    table = Table([name, *splits, *["gap"] * _has_gap(splits)], [])
    best = records.summaries[0].config if records.summaries else None
    for one in records.summaries:
        values = {split: records.mean_quality(one.config, split, column) for split in splits}
        if all(value is None for value in values.values()):
            continue
        train, test = values.get("train"), values.get("test")
        gap = "-" if train is None or test is None else difference_text(train - test, metric)
        marks = ["best"] if one.config == best else ["tie"] if _ties(records, best, one.config, column) else []
        table.marks[len(table.rows)] = marks
        cells = [score_text(value, metric) for value in values.values()]
        table.rows.append([one.config, *cells, *[gap] * _has_gap(splits)])
    return table


def _calibration(records: Records) -> Table | None:
    """How far probabilities are from how often they are right, as the model gives them and as `predict` scales them."""
    rows = []
    for one in records.summaries:
        columns = ("calibration_error", "scaled_calibration_error", "temperature")
        error, mended, temperature = (records.mean_quality(one.config, "test", column) for column in columns)
        if error is not None:
            rows.append([one.config, score_text(error), score_text(mended), decimals(temperature, 2)])
    note = (
        f"Expected calibration error on test images, in percentage points, in {CALIBRATION_BINS} bins of equal width; "
        "scaled: after division of the logits by a temperature that was chosen on validation, as predict does it. It "
        "changes no accuracy and no rank, and all else in this report is without it."
    )
    return Table(["calibration error", "as trained", "scaled", "temperature"], rows, note) if rows else None


def _ties(records: Records, best: str | None, config: str, column: str) -> bool:
    metric = COMPARED.get(column)
    found = records.comparison(best, config, metric) if best and metric else None
    return found is not None and found.low <= 0 <= found.high
