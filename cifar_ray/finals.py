"""After the search: train the finalists over several seeds, evaluate them, choose the best, write the report."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from cifar_ray.benchmark import Latency, SavedModel, Score, score_models, time_models
from cifar_ray.checkpoint import save_model
from cifar_ray.data import DataSplits
from cifar_ray.progress import Console
from cifar_ray.ranking import summarise
from cifar_ray.render import build_report, results_table
from cifar_ray.results import LATENCY_COLUMNS, RESULTS_COLUMNS, Row, RunFolder, write_csv, write_predictions
from cifar_ray.runtime import Hardware
from cifar_ray.watch import FinalsWatch, write_history
from cifar_ray.worker import Epoch, FinalModel, Trained, Workers, train_models


class Phases:
    """Seconds of each phase of a run, in order; the first one began with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic() - (time.time() - psutil.Process().create_time())

    def end(self, phase: str) -> float:
        """The phase that began with the last call ends now."""
        now = time.monotonic()
        self.seconds[phase] = now - self._began
        self._began = now
        return self.seconds[phase]


@dataclass(frozen=True)
class Place:
    """What all parts of a run use: where records go, what the terminal shows, and what there is to run on."""

    run: RunFolder
    console: Console
    phases: Phases
    hardware: Hardware
    storage: Path
    """A folder for Ray's own files, of no use afterwards."""


def train_finals(
    place: Place,
    models: Sequence[FinalModel],
    arrays: "ray.ObjectRef[dict[str, np.ndarray]]",
    data: DataSplits,
    max_epochs: int,
    workers: Workers,
) -> list[Trained]:
    """Train the models with Ray Train and save each one as it comes; failed ones are named and left out."""
    watch = FinalsWatch(place.run, place.console, len(models), max_epochs)
    finished: dict[str, Trained] = {}

    def on_message(message: Trained | Epoch) -> None:
        name = message.model.name
        if isinstance(message, Epoch):
            watch.epoch_ended(name, message.row)
            return
        watch.model_ended(name)
        if message.failure:
            place.console.line(f"final training of {name} failed: {message.failure}")
            return
        assert message.history is not None
        save_model(place.run.model(name), message.weights, message.model.config, model_card(message, data, max_epochs))
        write_history(place.run.model(name), message.history)
        finished[name] = message

    try:
        train_models(list(models), arrays, len(data.class_names), max_epochs, workers, place.storage, on_message)
    finally:
        watch.events.close_all()
    return [finished[model.name] for model in models if model.name in finished]


def model_card(trained: Trained, data: DataSplits, max_epochs: int) -> dict[str, Any]:
    """What a saved model's config.json says beside its configuration."""
    assert trained.best is not None
    return {
        "name": trained.model.name,
        "class_names": list(data.class_names),
        "resize": data.resize,
        "training_seed": trained.model.training_seed,
        "max_epochs": max_epochs,
        "best_epoch": trained.best["epoch"],
        "val_accuracy": trained.best["val_accuracy"],
        "data": {"source": data.source, "fingerprint": data.fingerprint},
    }


def evaluate_finals(
    place: Place, finals: Sequence[Trained], data: DataSplits, max_epochs: int, slots: int, resources: dict[str, float]
) -> list[Row]:
    """Score every model on the test split, time each configuration, and write the evaluation's records.

    This is the one place that reads the test split. The best validation seed of the configuration with the best mean
    validation metric is copied to `best/`.
    """
    models = {
        trained.model.name: SavedModel(
            trained.model.name, trained.weights, trained.model.config, model_card(trained, data, max_epochs)
        )
        for trained in finals
    }
    done: list[str] = []

    def on_result(name: str, score: Any) -> None:
        done.append(name)
        place.console.status(f"evaluation {len(done)}/{len(models)} scored")

    scores = score_models(models, data.test.images, data.test.labels, slots, resources, on_result)
    place.console.status("evaluation: timing on an otherwise idle node")
    first_of_config = {trained.model.config_name: models[trained.model.name] for trained in reversed(finals)}
    latencies = time_models(first_of_config, data.test.images)
    rows = [
        _results_row(trained, scores[trained.model.name], *latencies[trained.model.config_name]) for trained in finals
    ]
    run = place.run
    write_csv(run.results_csv, RESULTS_COLUMNS, rows)
    write_csv(
        run.latency_csv,
        LATENCY_COLUMNS,
        [{"config": name, **asdict(latency)} for name, timed in latencies.items() for latency in timed],
    )
    write_predictions(
        run.predictions_npz, data.test.labels, {name: score.probabilities for name, score in scores.items()}
    )
    best = summarise(rows)[0].best_model
    shutil.copytree(run.model(best), run.best, ignore=shutil.ignore_patterns("events.*"))
    return rows


def _results_row(trained: Trained, score: Score, single: Latency, batched: Latency) -> Row:
    model, best = trained.model, trained.best
    assert best is not None and trained.history is not None
    return {
        "model": model.name,
        "family": model.config.family,
        "trial": model.number,
        "seed": model.seed_index,
        "config": model.config_name,
        "train_accuracy": trained.train_accuracy,
        **{name: best[name] for name in ("val_accuracy", "val_metric", "val_loss")},
        "test_accuracy": score.test_accuracy,
        "test_loss": score.test_loss,
        "test_auc_macro_ovr": score.test_auc_macro_ovr,
        "latency_ms_p50": single.latency_ms_p50,
        "latency_ms_p95": single.latency_ms_p95,
        "images_per_s": batched.images_per_s,
        "device": single.device,
        "threads": single.threads,
        "num_params": trained.num_params,
        "size_mb": len(trained.weights) / 1e6,
        "epochs": len(trained.history),
        "best_epoch": best["epoch"],
        "train_s": sum(row["train_s"] for row in trained.history),
        "training_seed": model.training_seed,
        "torch": torch.__version__,
    }


def write_report(place: Place, rows: Sequence[Row]) -> None:
    """Write the report, and show the table and where everything is."""
    html, _ = build_report(place.run.root)
    if rows:
        place.console.line()
        place.console.line(results_table(summarise(rows)))
        place.console.line()
        place.console.line(f"best model  {place.run.best}")
    place.console.line(f"report      {html}")
