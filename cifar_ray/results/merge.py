"""The records of several runs in one folder, where they were evaluated on the same test split."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.errors import InputError
from cifar_ray.files import write_json
from cifar_ray.results.config_json import CARD
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import (
    CLASSES_COLUMNS,
    LATENCY_COLUMNS,
    QUALITY_COLUMNS,
    RESULTS_COLUMNS,
    ROBUSTNESS_COLUMNS,
    SPLITS,
    Row,
    RunFolder,
    read_predictions,
    write_csv,
    write_predictions,
)


def check_same_test_split(runs: Sequence[Records]) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        InputError: one has no evaluated model, ranks by another metric, or was evaluated on another test split.
    """
    first = runs[0]
    for run in runs:
        root = run.folder.root
        if not run.summaries or "labels" not in run.predictions:
            raise InputError(f"{root}: has no evaluated model: go on with this run (--resume), or leave it out")
        why = ""
        if run.metric != first.metric:
            why = f"ranks by another metric ({run.metric_name})"
        elif run.data.get("class_names") != first.data.get("class_names"):
            why = "has other classes"
        elif not np.array_equal(run.predictions["labels"], first.predictions["labels"]):
            why = "has other test images"
        elif not _same_images(run.data, first.data):
            why = "has other test images, or ones that have changed meanwhile"
        if why:
            raise InputError(f"{root}: {why} than {first.folder.root}: report on it apart")


def _same_images(one: Row, other: Row) -> bool:
    """Whether two runs had the same test images, as far as they have recorded that.

    Of images that were brought to other sizes the pixels do not tell; the labels are known to be equal.
    """
    if one.get("image_size") != other.get("image_size"):
        return one.get("source") == other.get("source")
    known = "test_fingerprint" if one.get("test_fingerprint") and other.get("test_fingerprint") else "fingerprint"
    return one.get(known) == other.get(known)


def merge(runs: Sequence[Records], target: RunFolder, about: Row) -> None:
    """Write the records of several runs as those of one, `target`, without the weights of the models.

    Args:
        runs: that were evaluated on the same test split, see :func:`check_same_test_split`.
        target: a folder that does not exist.
        about: what its run.json says beside what the first run's says of the data.
    """
    names = _names(runs)

    def renamed(row: Row, index: int) -> Row:
        new = dict(row)
        if row.get("model"):
            new["model"] = names[index, row["config"]] + str(row["model"]).removeprefix(str(row["config"]))
        return new | {"config": names[index, row["config"]]}

    tables: tuple[tuple[Path, tuple[str, ...], str], ...] = (
        (target.results_csv, RESULTS_COLUMNS, "rows"),
        (target.latency_csv, LATENCY_COLUMNS, "latency"),
        (target.quality_csv, QUALITY_COLUMNS, "quality"),
        (target.classes_csv, CLASSES_COLUMNS, "classes"),
        (target.robustness_csv, ROBUSTNESS_COLUMNS, "robustness"),
    )
    for path, columns, table in tables:
        write_csv(path, columns, [renamed(row, i) for i, run in enumerate(runs) for row in getattr(run, table)])
    for split in SPLITS:
        _merge_predictions(runs, target, split, renamed)
    for index, run in enumerate(runs):
        for row in run.rows:
            new = target.model(str(renamed(row, index)["model"]))
            for name in (CARD, "history.csv"):
                if (file := run.folder.model(str(row["model"])) / name).is_file():
                    new.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, new / name)
    first = runs[0]
    same_validation = len({str(run.data.get("fingerprint")) for run in runs}) == 1
    merged = [{"run": str(run.folder.root), "command": run.run.get("command")} for run in runs]
    write_json(
        target.run_json,
        {
            "metric": first.metric,
            "data": first.data,
            "device": first.device,
            "test_readings": _most_readings(runs),
            **about,
            "merged": merged,
            "same_validation": same_validation,
        },
    )


def _names(runs: Sequence[Records]) -> dict[tuple[int, str], str]:
    """What each configuration (run, name) is called: by its run too where another run has one of that name."""
    configs = [{str(row["config"]) for row in run.rows} for run in runs]
    names = {}
    for index, run in enumerate(runs):
        for config in configs[index]:
            alone = sum(config in others for others in configs) == 1
            names[index, config] = config if alone else f"{run.folder.root.name}.{config}"
    if len(set(names.values())) < len(names):
        raise InputError(f"{runs[-1].folder.root}: another run has this name too: rename its folder, or leave it out")
    return names


def _merge_predictions(runs: Sequence[Records], target: RunFolder, split: str, renamed: Any) -> None:
    """Of a split the models of the runs that have the same labels as the first run that has any."""
    labels: np.ndarray | None = None
    merged: dict[str, np.ndarray] = {}
    for index, run in enumerate(runs):
        found = read_predictions(run.folder.predictions(split))
        labels = found.get("labels") if labels is None else labels
        if labels is None or not np.array_equal(labels, found.get("labels", np.zeros(0))):
            continue
        configs = {str(row["model"]): row["config"] for row in run.rows}
        for model, probabilities in found.items():
            if model in configs:
                merged[renamed({"model": model, "config": configs[model]}, index)["model"]] = probabilities
    if labels is not None:
        write_predictions(target.predictions(split), labels, merged)


def _most_readings(runs: Sequence[Records]) -> Row:
    return max((run.test_readings for run in runs), key=lambda one: one.get("readings") or 0)
