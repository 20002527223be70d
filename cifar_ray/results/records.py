"""The records of a run on disk: their paths, their columns, and how they are written and read.

What they say about the models is the matter of `ranking`. Needs neither torch nor ray, so that every process can
import it early.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cifar_ray.errors import InputError
from cifar_ray.files import plain, read_json, read_text, write_bytes, write_text
from cifar_ray.results.config_json import CARD, as_recorded

DEFAULT = "default"
"""Name of the configuration of trial 0, the default recipe, which is always among the finalists."""

# fmt: off
HISTORY_COLUMNS = (
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_metric", "lr", "grad_norm_max", "train_s",
)
RESULTS_COLUMNS = (
    "model", "family", "trial", "seed", "train_accuracy", "val_accuracy", "test_accuracy", "test_loss",
    "test_auc_macro_ovr", "num_params", "size_mb", "latency_ms_p50", "latency_ms_p95", "images_per_s",
    "config", "test_f1_macro", "val_metric", "val_loss", "epochs", "best_epoch", "train_s", "training_seed",
    "device", "threads", "torch", "tta", "failure", "precision", "test_accuracy_fp32", "latency_ms_p50_fp32",
    "images_per_s_fp32",
)
LATENCY_COLUMNS = (
    "config", "device", "threads", "batch_size", "n", "latency_ms_p50", "latency_ms_p95", "images_per_s", "tta",
    "round_ms_low", "round_ms_high", "again_ms_p50", "precision",
)
QUALITY_COLUMNS = (
    "model", "config", "split", "n", "accuracy", "top5_accuracy", "log_loss", "auc_macro_ovr", "f1_macro",
    "calibration_error", "scaled_calibration_error", "temperature",
)
FRONT_COLUMNS = (
    "config", "space", "family", "state", "epochs", "val_metric", "val_loss", "num_params", "latency_ms_p50",
    "on_front",
)
CLASSES_COLUMNS = ("model", "config", "split", "class", "n", "auc_ovr", "precision", "recall", "f1")
ROBUSTNESS_COLUMNS = ("model", "config", "family", "corruption", "severity", "n", "accuracy")
SWEEP_COLUMNS = ("arm", "lr", "seed", "val_metric", "val_loss", "chosen", "failure")
RUNS_COLUMNS = (
    "arm", "factor", "level", "rate", "control", "seed", "training_seed", "lr", "lr_schedule", "val_metric",
    "test_metric", "val_accuracy", "test_accuracy", "test_loss", "train_accuracy", "gap", "diverged", "failure",
    "epochs", "best_epoch", "epochs_to_target", "seconds_to_target", "loss_area", "grad_norm_max", "oscillation",
    "epoch_s", "num_params",
)
EFFECTS_COLUMNS = (
    "outcome", "factor", "level", "rate", "arm", "control", "n_control", "n", "mean_control", "mean", "difference",
    "low", "high", "low_alone", "high_alone", "method", "scale", "detectable", "seeds_needed", "reached_control",
    "reached", "reason",
)
TEXT_COLUMNS = frozenset({
    "model", "family", "config", "space", "state", "device", "torch", "tta", "failure", "split", "corruption",
    "arm", "factor", "level", "rate", "control", "lr_schedule", "outcome", "method", "scale", "reason",
})
# fmt: on
"""Columns that stay text even where they look like numbers (a preset called `2024`, torch `2.11`)."""

SPLITS = ("test", "val", "train")
"""What final models are scored on. Of `train` it may be a sample."""

CALIBRATION_BINS = 15
"""Of equal width: what the expected calibration error groups images into by their highest probability."""

CLEAN = "none"
"""The corruption of images that are as they were; its severity is 0."""

CORRUPTIONS = ("noise", "blur", "contrast", "brightness", "jpeg", "pixelation", "shift", "rotation")
"""What else the test images suffer from, see `evaluation.robustness`."""

SEVERITIES = (1, 2, 3)
"""Of each corruption."""

MAX_NAME_BYTES = 255
"""What file systems take as the name of a folder."""

CHECKPOINT = "checkpoint.pt"
"""In the folder of a training under way: what it goes on from."""

MODEL_WEIGHTS = "model.safetensors"
"""In the folder of a saved model: its weights and buffers."""

FAILED = "failed.json"
"""In the folder of a final training that failed: why."""

Row = dict[str, Any]


class State(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    """It reached its horizon or its patience."""
    PRUNED = "pruned"
    """ASHA stopped it early."""
    INFEASIBLE = "infeasible"
    """Over a limit, so it was not trained."""
    FAILED = "failed"
    """An error ended it."""


TRIED = (State.COMPLETE, State.PRUNED)
"""States of the trials that were trained and have a value."""

TRIAL_SECONDS = {
    "startup": "a process starts, and imports what it needs",
    "wait": "the slot is free and the next trial has not begun",
    "data": "images, or what a frozen backbone makes of them, come to the device",
    "setup": "the model and its optimizer are built",
    "train": "training",
    "eval": "validation, and the best weights kept",
    "checkpoint": "what a trial would go on from is packed and sent",
    "scheduler": "an epoch is reported, and ASHA decides",
}
"""Kinds of the seconds of a training's slot, from when the one before it ended there."""

EVALUATION_SECONDS = {
    "scoring": "a final model is scored on all splits",
    "corruptions": "corrupted test images are made, and some models scored on them",
    "timing": "one model at a time is timed, while nothing else runs on its node",
}
"""Kinds of the seconds of the slots in an evaluation."""


def slot_seconds(spent: Iterable[Mapping[str, float]], slot_s: float) -> dict[str, float]:
    """Where the slot time of a phase went, which is all of its slots times its length.

    Args:
        spent: seconds by kind (:data:`TRIAL_SECONDS`, :data:`EVALUATION_SECONDS`).
        slot_s: the slot time in seconds.

    Returns:
        Their sums, kinds without any left out, and `idle`, the rest: together `slot_s`.
    """
    spent = list(spent)
    kinds = {kind: sum(of.get(kind, 0.0) for of in spent) for kind in (*TRIAL_SECONDS, *EVALUATION_SECONDS)}
    idle = slot_s - sum(kinds.values())
    # Where Ray had a process ready before the one in whose place it came had ended, their seconds overlap.
    kinds["startup"] += min(idle, 0.0)
    return {**{kind: seconds for kind, seconds in kinds.items() if seconds > 0}, "idle": max(idle, 0.0)}


def run_name(what: str) -> str:
    """A name for a new run: what it is, and the time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    # The end tells apart runs that begin in the same second.
    return f"{_clip(what, MAX_NAME_BYTES // 2)}-{stamp}-{secrets.token_hex(2)}"


def _clip(text: str, num_bytes: int) -> str:
    """Return what of a text fits in so many bytes; what UTF-8 cannot hold (undecodable file names) becomes `?`."""
    return text.encode(errors="replace")[:num_bytes].decode(errors="ignore")


def folder_name(text: Any) -> str:
    """Return `text`, from a flag or a file, if it can name a folder of its own; raise ValueError if it cannot."""
    if not isinstance(text, str) or not text or text.startswith(".") or {"/", os.sep, "\0"} & set(text):
        raise ValueError(f"must be the name of a folder, not a path: {text!r:.300}")
    if len(os.fsencode(text)) > MAX_NAME_BYTES:
        raise ValueError(f"must be at most {MAX_NAME_BYTES} bytes long, not {len(os.fsencode(text))}")
    return text


def read_name(row: Mapping[str, Any], field: str, source: str) -> str:
    """Return the name in a field of a record. Raises InputError, with the `source`, where it cannot name a folder."""
    try:
        return folder_name(row.get(field))
    except ValueError as error:
        raise InputError(f"{source}: {field}: {error}") from None


class RunFolder:
    """Paths of the files of one run; creates nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_json = root / "run.json"
        self.study_journal = root / "study.journal"
        self.trials_jsonl = root / "trials.jsonl"
        self.models = root / "models"
        self.best = root / "best"
        self.evaluation = root / "evaluation"
        self.results_csv = self.evaluation / "results.csv"
        self.predictions_npz = self.predictions("test")
        self.quality_csv = self.evaluation / "quality.csv"
        self.classes_csv = self.evaluation / "classes.csv"
        self.robustness_csv = self.evaluation / "robustness.csv"
        self.examples_npz = self.evaluation / "examples.npz"
        self.samples_npz = self.evaluation / "samples.npz"
        self.latency_csv = self.evaluation / "latency.csv"
        self.ablation = root / "ablation"
        self.design_json = self.ablation / "design.json"
        self.runs_csv = self.ablation / "runs.csv"
        self.effects_csv = self.ablation / "effects.csv"
        self.sweep = root / "sweep"
        self.sweep_csv = self.ablation / "sweep.csv"
        self.front_csv = root / "front.csv"
        self.report_html = root / "report.html"
        self.report_md = root / "report.md"

    def predictions(self, split: str) -> Path:
        """The labels of a split (:data:`SPLITS`) and what each final model makes of it."""
        return self.evaluation / ("predictions.npz" if split == "test" else f"{split}_predictions.npz")

    def trial(self, number: int) -> Path:
        """Folder of one trial's history and TensorBoard events."""
        return self.root / "trials" / f"{number:04d}"

    def model(self, name: str) -> Path:
        """Folder of one final model, such as `trial-0012-seed2`."""
        return self.models / name

    def is_saved(self, name: str) -> bool:
        """Whether the final model `name` stands there, whole: one that a power cut left empty, or in part, does not."""
        try:
            read_json(self.model(name) / CARD)
            with safe_open(self.model(name) / MODEL_WEIGHTS, framework="numpy"):
                return True
        except (InputError, OSError, SafetensorError):
            return False

    def failure(self, name: str) -> str | None:
        """Why the final training `name` failed; None where it did not."""
        path = self.model(name) / FAILED
        return str(read_json(path)["failure"]) if path.exists() else None


def write_trials(path: Path, records: Iterable[Row]) -> None:
    """Write the records of trials atomically, one JSON object a line."""
    rows = [
        {**record, "config": as_recorded(record["config"])} if record.get("config") else record for record in records
    ]
    write_text(path, "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))


def read_trials(path: Path) -> list[Row]:
    """Read the records of trials; a missing file holds none. Raises InputError with the number of a broken line."""
    records = []
    for number, line in enumerate(read_text(path).split("\n") if path.exists() else [], start=1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: is no JSON: {error}") from None
    return records


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a header atomically. None, NaN, infinities and missing keys become empty cells.

    Raises:
        ValueError: a row has a key that is no column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _typed(column: str, cell: str | None) -> str | int | float | None:
    if not cell or column in TEXT_COLUMNS:
        return cell or None
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return cell


def read_csv(path: Path) -> list[Row]:
    """Read rows: int or float where a cell parses, None where empty or not finite. A missing file has no rows."""
    if not path.exists():
        return []
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    return [{column: _typed(column, cell) for column, cell in row.items() if column} for row in rows]


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def write_predictions(path: Path, labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> None:
    """Write the labels (N,) of a split and each model's class probabilities (N, C), atomically."""
    by_model = {name: values.astype(np.float32) for name, values in probabilities.items()}
    _write_arrays(path, {"labels": labels.astype(np.int64), **by_model})


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Read `labels` (N,) int64 and an array (N, C) float32 for each model; a missing file has none."""
    return _read_arrays(path)


def write_examples(path: Path, index: np.ndarray, images: np.ndarray) -> None:
    """Write thumbnails (K, C, H, W) uint8 of the test images of that index (K,), atomically."""
    _write_arrays(path, {"index": index.astype(np.int64), "images": images})


def read_examples(path: Path) -> dict[int, np.ndarray]:
    """Read thumbnails (C, H, W) uint8 by index into the test split; a missing file has none.

    Which index shows what of a model's predictions tells :func:`~cifar_ray.results.examples.find_examples`.
    """
    arrays = _read_arrays(path)
    return dict(zip(arrays["index"].tolist(), arrays["images"], strict=True)) if arrays else {}


def write_samples(path: Path, labels: np.ndarray, images: np.ndarray) -> None:
    """Write thumbnails (K, C, H, W) uint8 of training images, and their labels (K,), atomically."""
    _write_arrays(path, {"labels": labels.astype(np.int64), "images": images})


def read_samples(path: Path) -> dict[int, np.ndarray]:
    """Read thumbnails (K, C, H, W) uint8 of training images by class; a missing file has none."""
    arrays = _read_arrays(path)
    return {
        label: arrays["images"][arrays["labels"] == label] for label in np.unique(arrays.get("labels", [])).tolist()
    }


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write history.csv, the public part of what each epoch measured."""
    write_csv(folder / "history.csv", HISTORY_COLUMNS, [{name: row[name] for name in HISTORY_COLUMNS} for row in rows])
