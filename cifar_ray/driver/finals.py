"""The final training: every chosen configuration over several seeds, each model saved as it comes.

What is trained stands in `models/`, and the evaluation starts from there: a run that was interrupted goes on with what
is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cifar_ray.cli.console import Console
from cifar_ray.config import TrialConfig
from cifar_ray.data.splits import DataSplits
from cifar_ray.distributed.jobs import Checkpoint, Epochs, Kept, Message, Trained
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel, train_models, unpack_history
from cifar_ray.files import write_bytes, write_json
from cifar_ray.models.saved import save_model
from cifar_ray.results.records import CHECKPOINT, FAILED, Row, RunFolder, write_history
from cifar_ray.tracking.live import FinalsWatch
from cifar_ray.tracking.tensorboard import clear_training


def train_finals(
    run: RunFolder,
    console: Console,
    processes: Processes,
    storage: Path,
    models: Sequence[FinalModel],
    shared: TrialSettings,
    splits: Sequence[DataSplits],
    spend: Callable[[Mapping[str, float]], None],
) -> None:
    """Train what of `models` is missing, and save each one as it comes, or why it failed.

    `splits`: the data that they are trained on, as `FinalModel.split` counts it. `spend` is told the seconds of each
    training, by kind.

    One that an earlier session began goes on from its checkpoint. One that failed there is not tried again: with the
    same seed a non-finite loss would come again.
    """
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
    watch = FinalsWatch(run, console, len(missing), shared.max_epochs)
    resume: dict[str, bytes] = {}
    epochs: dict[str, list[Row]] = {model.name: [] for model in missing}
    for model in missing:
        clear_training(run.model(model.name))
        if found := read_checkpoint(run.model(model.name), console):
            resume[model.name], rows = found
            epochs[model.name] += rows
            watch.model_goes_on(model.name, rows)

    def save(model: FinalModel, trained: Trained, settings: TrialSettings) -> None:
        assert trained.history is not None
        folder = run.model(model.name)
        write_history(folder, trained.history)
        card = model_card(model, trained, splits[model.split], settings, processes.workers.workers_per_model)
        save_model(folder, trained.weights, model.config, card)

    def on_message(model: FinalModel, message: Message) -> None:
        folder = run.model(model.name)
        if isinstance(message, Epochs):
            for row in message.rows:
                watch.epoch_ended(model.name, row)
                epochs[model.name].append(row)
            return
        if isinstance(message, Checkpoint):
            write_bytes(folder / CHECKPOINT, message.packed)
            return
        watch.model_ended(model.name)
        spend(message.seconds or {})
        if message.failure:
            console.line(f"final training of {model.name} failed: {message.failure}")
            write_history(folder, epochs[model.name])  # of a loss that diverged it tells how
            write_json(folder / FAILED, {"failure": message.failure})
        else:
            # Where the model itself is saved, the training counts as done: it comes last.
            for patience, kept in message.kept.items():
                save(model.kept_models[patience], _stopped(message, kept), replace(shared, patience=patience))
            save(model, message, shared)
        (folder / CHECKPOINT).unlink(missing_ok=True)

    try:
        train_models(missing, shared, processes, storage, on_message, resume)
    finally:
        watch.events.close_all()


def _stopped(trained: Trained, kept: Kept) -> Trained:
    """What a training would have been, had the patience ended it that `kept` comes from."""
    assert trained.history is not None
    history = trained.history[: kept.epochs]
    return replace(
        trained, weights=kept.weights, history=history, best=kept.best, train_accuracy=kept.train_accuracy, kept={}
    )


def read_checkpoint(folder: Path, console: Console) -> tuple[bytes, Sequence[Row]] | None:
    """Return what an interrupted training goes on from and the rows it has behind it, and tell the user.

    None where there is no checkpoint, or none that can be read: that one is removed.
    """
    path = folder / CHECKPOINT
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None
    if rows := unpack_history(packed):
        console.line(f"            {folder.name} goes on after epoch {rows[-1]['epoch']}")
        return packed, rows
    console.line(f"            {folder.name} begins anew: {path} cannot be read")
    path.unlink()
    return None


def model_card(
    model: FinalModel, trained: Trained, data: DataSplits, shared: TrialSettings, workers: int
) -> dict[str, Any]:
    """What a saved model's config.json says beside its configuration: how to use it, and how it came about."""
    assert trained.best is not None and trained.history is not None
    return {
        "name": model.name,
        "config_name": model.config_name,
        "trial": model.number,
        "seed": model.seed_index,
        "training_seed": model.training_seed,
        **shared_card(data, shared, model.config),
        "workers": workers,
        "epochs": len(trained.history),
        "best_epoch": trained.best["epoch"],
        **{name: trained.best[name] for name in ("val_accuracy", "val_metric", "val_loss")},
        "train_accuracy": trained.train_accuracy,
        "num_params": trained.num_params,
        "train_s": sum(row["train_s"] for row in trained.history),
        "features": trained.history[0].get("features"),
        "torch": torch.__version__,
    }


def shared_card(data: DataSplits, shared: TrialSettings, config: TrialConfig) -> dict[str, Any]:
    """What of the card of a training it has from the run."""
    return {
        "class_names": list(data.class_names),
        "resize": data.resize,
        "max_epochs": shared.max_epochs,
        "patience": None if config.lr_schedule.anneals else shared.patience,
        "metric": shared.metric,
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "train_size": len(data.train.images) + len(data.val.images),
        },
    }


def failed_row(model: FinalModel, failure: str) -> Row:
    """The row of results.csv of a model whose training failed."""
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
