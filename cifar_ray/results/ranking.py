"""How the records of a run rank its trials and final models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np

from cifar_ray.results.records import DEFAULT, TRIED, Row, State
from cifar_ray.results.statistics import (
    Comparison,
    Interval,
    compare,
    image_scores,
    num_effective_images,
    score_interval,
)


def best_value(trial: Row) -> Any:
    """The best validation value of a trial; None where it has none."""
    return (trial.get("best") or {}).get("val_metric")


def is_default(config: str) -> bool:
    """Whether that names a default recipe: `default`, or with several spaces also one such as `default-resnet`."""
    return config == DEFAULT or config.startswith(f"{DEFAULT}-")


@dataclass(frozen=True)
class ConfigSummary:
    """One configuration over its seeds. Latencies are of one image, in milliseconds; `train_s` is a mean."""

    config: str
    family: str | None
    tta: str | None
    """Test-time augmentation, which scores and latencies include."""
    trial: int | None
    models: list[str]
    """Those that were trained and evaluated; without any, nothing below is known."""
    failures: list[str]
    """Why the others failed."""
    best_model: str
    val_metric: float | None
    val_loss: float | None
    val_accuracy: Interval
    test_accuracy: Interval
    test_auc: Interval
    test_f1: Interval
    num_params: int | None
    size_mb: float | None
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    images_per_s: float | None
    train_s: float | None

    def test_score(self, metric: str) -> Interval:
        """What `metric` (accuracy, auc or f1) is on the test split."""
        return {"accuracy": self.test_accuracy, "auc": self.test_auc, "f1": self.test_f1}[metric]

    @property
    def seeds(self) -> str:
        """How many seeds it stands on: `3`, or `1 of 3` where final trainings failed."""
        asked = len(self.models) + len(self.failures)
        return f"{len(self.models)} of {asked}" if self.failures else str(asked)

    @property
    def failed(self) -> str:
        """What came of its seeds where some failed: `1 of 3 seeds; 2 failed: non-finite loss`."""
        reasons = dict.fromkeys(failure.split(" in epoch ")[0] for failure in self.failures)  # seeds differ in epochs
        return f"{self.seeds} seeds; {len(self.failures)} failed: {', '.join(reasons)}"


def _rank_key(metric: float | None, loss: float | None, num_params: float | None) -> tuple[float, float, float]:
    # Rounded, so that means that differ in their last bit only (the order of the sum) count as ties.
    return (
        math.inf if metric is None else -round(metric, 9),
        math.inf if loss is None else round(loss, 9),
        math.inf if num_params is None else num_params,
    )


def summarise(
    rows: Iterable[Row], num_val: int | None = None, predictions: Mapping[str, np.ndarray] = MappingProxyType({})
) -> list[ConfigSummary]:
    """Group the rows of results.csv by configuration and rank the groups, best first.

    Ranked by mean `val_metric` over seeds; ties go to the lower mean `val_loss`, then to fewer parameters. One of whose
    seeds some failed comes after all others: the mean of the survivors flatters it. The best model of a configuration
    is the seed of best `val_metric`. The test split ranks nothing.

    Args:
        rows: of results.csv.
        num_val: number of validation images; without it, validation accuracies have no interval.
        predictions: see `records.read_predictions`; without them, test scores have no interval.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["config"]), []).append(row)
    summaries = []
    for config, group in groups.items():
        finished = [row for row in group if not row.get("failure")]
        best = min(
            finished or group, key=lambda row: _rank_key(row.get("val_metric"), row.get("val_loss"), row.get("seed"))
        )
        fields: dict[str, Any] = {name: _mean(finished, name) for name in ("val_metric", "val_loss", "train_s")}
        fields["val_accuracy"] = score_interval((row.get("val_accuracy") for row in finished), num_val)
        for metric, (name, column) in TEST_SCORES.items():
            fields[name] = _test_interval(finished, metric, column, predictions)
        same = ("family", "tta", "trial", "num_params", "size_mb", "latency_ms_p50", "latency_ms_p95", "images_per_s")
        for name in same:
            # The same for every seed, and latency is measured for one of them: take the first that is known.
            fields[name] = next((row[name] for row in group if row.get(name) is not None), None)
        fields["failures"] = [row["failure"] for row in group if row.get("failure")]
        models = [row["model"] for row in finished]
        summaries.append(ConfigSummary(config=config, models=models, best_model=best["model"], **fields))
    return sorted(
        summaries, key=lambda one: (bool(one.failures), _rank_key(one.val_metric, one.val_loss, one.num_params))
    )


TEST_SCORES = {
    "accuracy": ("test_accuracy", "test_accuracy"),
    "auc": ("test_auc", "test_auc_macro_ovr"),
    "f1": ("test_f1", "test_f1_macro"),
}
"""Of each metric: its name in a summary, and its column of results.csv."""


def _mean(rows: Iterable[Row], column: str) -> float | None:
    known = [row[column] for row in rows if row.get(column) is not None]
    return fmean(known) if known else None


def _test_interval(rows: Sequence[Row], metric: str, column: str, predictions: Mapping[str, np.ndarray]) -> Interval:
    scores = [row.get(column) for row in rows]
    labels = predictions.get("labels", np.zeros(0, np.int64))  # (N,)
    by_model = [image_scores(metric, predictions[row["model"]], labels) for row in rows if row["model"] in predictions]
    known = [of_images for of_images in by_model if of_images is not None]
    if not known:
        return score_interval(scores, None)
    image_variance = float(np.mean(known, axis=0).var()) / len(labels)
    return score_interval(scores, num_effective_images(metric, labels), image_variance)


def best_of_families(summaries: Iterable[ConfigSummary]) -> list[ConfigSummary]:
    """The first configuration of each family, of ranked summaries and in their order; unknown families are left out."""
    best: dict[str, ConfigSummary] = {}
    for one in summaries:
        if one.family is not None and one.models:
            best.setdefault(one.family, one)
    return list(best.values())


def compare_best(
    rows: Sequence[Row],
    summaries: Sequence[ConfigSummary],
    predictions: Mapping[str, np.ndarray],
    metric: str = "accuracy",
) -> list[Comparison]:
    """Compare the best configuration with every other, in the order of their ranks, where predictions allow it."""
    scored = [one.config for one in summaries if any(model in predictions for model in one.models)]
    best = summaries[0].config if summaries and summaries[0].test_score(metric).n else None
    return [compare(rows, best, other, predictions, metric) for other in scored if other != best and best in scored]


def front(trials: Iterable[Row]) -> list[Row]:
    """The complete trials that no other one matches with as few parameters, the smallest first, each a better one."""
    complete = [one for one in trials if one["state"] == State.COMPLETE and one.get("num_params")]
    found: list[Row] = []
    for trial in sorted(complete, key=lambda one: (one["num_params"], -best_value(one))):
        if not found or best_value(trial) > best_value(found[-1]):
            found.append(trial)
    return found


def finalists(records: Sequence[Row], number: int) -> list[Row]:
    """The best `number` different configurations by validation metric, and beside them each space's best and default.

    Ties go to the lower validation loss. Pruned trials come after all complete ones: they are needed only where few
    trials reached their horizon. Failed and infeasible ones are left out.
    """
    usable = [record for record in records if record["state"] in TRIED]
    usable.sort(key=lambda r: (r["state"] == State.PRUNED, -r["best"]["val_metric"], r["best"]["val_loss"]))
    different: dict[str, Row] = {}
    for record in usable:
        different.setdefault(json.dumps(record["config"], sort_keys=True), record)
    best_of_space: dict[str, Row] = {}
    for record in different.values():
        best_of_space.setdefault(record["space"], record)
    chosen = list(different.values())[:number]
    defaults = [record for record in usable if is_default(record["name"])]
    for record in [*best_of_space.values(), *defaults]:
        if record not in chosen:
            chosen.append(record)
    return chosen
