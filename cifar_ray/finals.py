"""After the search: train the finalists over several seeds, evaluate them, choose the best, write the report.

What is trained stands in `models/`, and the evaluation starts from there: a run that was interrupted goes on with what
is missing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cifar_ray.benchmark import Latency, SavedModel, Score, score_models, time_models
from cifar_ray.checkpoint import read_model, save_model
from cifar_ray.data import DataSplits
from cifar_ray.desk import Checkpoint, Epoch, Message, Trained
from cifar_ray.launch import Place
from cifar_ray.ranking import summarise
from cifar_ray.records import Records
from cifar_ray.render import build_report, results_table, trials_table
from cifar_ray.results import (
    CHECKPOINT,
    FAILED,
    LATENCY_COLUMNS,
    RESULTS_COLUMNS,
    Row,
    read_trials,
    write_bytes,
    write_csv,
    write_json,
    write_predictions,
)
from cifar_ray.trial import TrialSettings
from cifar_ray.watch import FinalsWatch, clear_training, write_history
from cifar_ray.worker import FinalModel, Workers, train_models, unpack_history


def train_finals(place: Place, models: Sequence[FinalModel], shared: TrialSettings, data: DataSplits) -> None:
    """Train with Ray Train what of `models` is missing, and save each one as it comes, or why it failed.

    One that an earlier session began goes on from its checkpoint. One that failed there is not tried again: with the
    same seed a non-finite loss would come again.
    """
    run, console = place.folder, place.console
    shared = replace(shared, patience=place.run.settings.patience)  # that of trials is for trials
    failures = {model.name: failure for model in models if (failure := run.failure(model.name))}
    for name, failure in failures.items():
        path = run.model(name) / FAILED
        console.line(f"            {name} failed before, remove {path} to try it again: {failure}")
    missing = [model for model in models if not run.is_saved(model.name) and model.name not in failures]
    if num_saved := len(models) - len(missing) - len(failures):
        console.line(f"            {num_saved} of {len(models)} final models are there already")
    if not missing:
        return
    annealed = dict.fromkeys(model.config_name for model in missing if model.config.lr_schedule.anneals)
    if shared.patience is not None and annealed:
        console.line(f"patience    does not end {', '.join(annealed)}: the learning rate anneals to the last epoch")
    workers = Workers(min(place.slots, len(missing)) * place.workers, place.workers, place.resources)
    watch = FinalsWatch(run, console, len(missing), shared.max_epochs)
    resume: dict[str, bytes] = {}
    for model in missing:
        clear_training(run.model(model.name))
        if found := read_checkpoint(place, run.model(model.name)):
            resume[model.name], rows = found
            watch.model_goes_on(model.name, rows)

    def on_message(model: FinalModel, message: Message) -> None:
        folder = run.model(model.name)
        if isinstance(message, Epoch):
            watch.epoch_ended(model.name, message.row)
            return
        if isinstance(message, Checkpoint):
            write_bytes(folder / CHECKPOINT, message.packed)
            return
        watch.model_ended(model.name)
        if message.failure:
            console.line(f"final training of {model.name} failed: {message.failure}")
            write_json(folder / FAILED, {"failure": message.failure})
        else:
            assert message.history is not None
            write_history(folder, message.history)
            card = model_card(model, message, data, shared, place.workers)
            save_model(folder, message.weights, model.config, card)
        (folder / CHECKPOINT).unlink(missing_ok=True)

    try:
        train_models(missing, shared, workers, place.storage, on_message, resume)
    finally:
        watch.events.close_all()


def read_checkpoint(place: Place, folder: Path) -> tuple[bytes, Sequence[Row]] | None:
    """Return what an interrupted training goes on from and the rows it has behind it, and tell the user.

    None where there is no checkpoint, or none that can be read: that one is removed.
    """
    path = folder / CHECKPOINT
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None
    if rows := unpack_history(packed):
        place.console.line(f"            {folder.name} goes on after epoch {rows[-1]['epoch']}")
        return packed, rows
    place.console.line(f"            {folder.name} begins anew: {path} cannot be read")
    path.unlink()
    return None


def model_card(
    model: FinalModel, trained: Trained, data: DataSplits, shared: TrialSettings, workers: int
) -> dict[str, Any]:
    """What a saved model's config.json says beside its configuration: how to use it, and how it came about."""
    assert trained.best is not None and trained.history is not None
    return {
        "name": model.name,
        "class_names": list(data.class_names),
        "resize": data.resize,
        "config_name": model.config_name,
        "trial": model.number,
        "seed": model.seed_index,
        "training_seed": model.training_seed,
        "max_epochs": shared.max_epochs,
        "patience": None if model.config.lr_schedule.anneals else shared.patience,
        "metric": shared.metric,
        "workers": workers,
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "train_size": len(data.train.images) + len(data.val.images),
        },
        "epochs": len(trained.history),
        "best_epoch": trained.best["epoch"],
        **{name: trained.best[name] for name in ("val_accuracy", "val_metric", "val_loss")},
        "train_accuracy": trained.train_accuracy,
        "num_params": trained.num_params,
        "train_s": sum(row["train_s"] for row in trained.history),
        "features": trained.history[0].get("features"),
        "torch": torch.__version__,
    }


def _read_saved(folder: Path) -> SavedModel:
    weights, config, card = read_model(folder)
    return SavedModel(folder.name, weights, config, card)


def evaluate_finals(place: Place, finals: Sequence[FinalModel], data: DataSplits) -> list[Row]:
    """Score the trained models on the test split, time each configuration, and write the evaluation's records.

    This is the one place that reads the test split. The best validation seed of the configuration that ranks first is
    copied to `best/`.

    Returns:
        The rows of results.csv that have scores; those of models that failed stand there too.
    """
    run = place.folder
    failed = [_failed_row(model, failure) for model in finals if (failure := run.failure(model.name))]
    models = {model.name: _read_saved(run.model(model.name)) for model in finals if run.is_saved(model.name)}
    if not models:
        write_csv(run.results_csv, RESULTS_COLUMNS, failed)
        return []
    done: list[str] = []

    def on_result(name: str, score: Any) -> None:
        done.append(name)
        place.console.status(f"evaluation {len(done)}/{len(models)} scored")

    scores = score_models(models, data.test.images, data.test.labels, place.worker_slots, place.resources, on_result)
    place.console.status("evaluation: timing on an otherwise idle node")
    first_of_config = {saved.card["config_name"]: saved for saved in reversed(models.values())}
    latencies = time_models(first_of_config, data.test.images, place.resources)
    rows = [_results_row(saved, scores[name], *latencies[saved.card["config_name"]]) for name, saved in models.items()]
    write_csv(run.results_csv, RESULTS_COLUMNS, rows + failed)
    write_csv(
        run.latency_csv,
        LATENCY_COLUMNS,
        [{"config": name, **asdict(latency)} for name, timed in latencies.items() for latency in timed],
    )
    write_predictions(
        run.predictions_npz, data.test.labels, {name: score.probabilities for name, score in scores.items()}
    )
    best = summarise(rows + failed)[0].best_model
    shutil.rmtree(run.best, ignore_errors=True)  # of an evaluation that was interrupted
    shutil.copytree(run.model(best), run.best, ignore=shutil.ignore_patterns("events.*", CHECKPOINT))
    return rows


FROM_CARD = (
    "trial", "seed", "train_accuracy", "val_accuracy", "val_metric", "val_loss", "num_params", "epochs", "best_epoch",
    "train_s", "training_seed", "torch",
)  # fmt: skip
"""Columns of results.csv that a model's config.json knows."""


def _results_row(saved: SavedModel, score: Score, single: Latency, batched: Latency) -> Row:
    return {
        "model": saved.name,
        "config": saved.card["config_name"],
        "family": saved.config.family,
        **{name: saved.card[name] for name in FROM_CARD},
        "test_accuracy": score.test_accuracy,
        "test_loss": score.test_loss,
        "test_auc_macro_ovr": score.test_auc_macro_ovr,
        "test_f1_macro": score.test_f1_macro,
        "latency_ms_p50": single.latency_ms_p50,
        "latency_ms_p95": single.latency_ms_p95,
        "images_per_s": batched.images_per_s,
        "device": single.device,
        "threads": single.threads,
        "tta": saved.config.tta,
        "size_mb": len(saved.weights) / 1e6,
    }


def _failed_row(model: FinalModel, failure: str) -> Row:
    return {
        "model": model.name,
        "config": model.config_name,
        "family": model.config.family,
        "trial": model.number,
        "seed": model.seed_index,
        "training_seed": model.training_seed,
        "tta": model.config.tta,
        "failure": failure,
    }


def write_report(place: Place, rows: Sequence[Row]) -> None:
    """Write the report, and show the table and where everything is; `rows` are those that have scores."""
    html, _ = build_report(place.folder.root)
    metric = str(place.run.settings.metric)
    if summaries := Records(place.folder).summaries:
        place.console.line()
        place.console.line(results_table(summaries, metric))
        place.console.line()
        if rows:
            place.console.line(f"best model  {place.folder.best}")
    elif trials := read_trials(place.folder.trials_jsonl):
        place.console.line()
        place.console.line(trials_table(trials, metric))
        place.console.line()
    place.console.line(f"report      {html}")
