"""What `python -m cifar_ray.train` does: train named models over several seeds, evaluate and report them."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import ray
import torch

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainSettings
from cifar_ray.config import ResNetConfig, Task, TrialConfig, trial_config, with_values
from cifar_ray.data.splits import DataSplits, load_data
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.probe import measure_speeds
from cifar_ray.driver.run import Run, check_batch_sizes
from cifar_ray.driver.stages import (
    NO_DATA,
    auto_image_size,
    begin,
    describe_data,
    finish,
    load_run_data,
    make_task,
    make_workload,
    recorded,
    share_weights,
    started,
    task_of,
)
from cifar_ray.errors import InputError
from cifar_ray.presets import PRESETS, preset
from cifar_ray.results.config_json import TO_TRAIN_AGAIN, Card, read_config
from cifar_ray.results.records import read_name
from cifar_ray.text import duration
from cifar_ray.training.seeds import derived_seed

DEFAULT_DATA, DEFAULT_MAX_EPOCHS, DEFAULT_METRIC = "cifar10", 30, "accuracy"
"""Of a model that no --config says otherwise of."""


def train(settings: TrainSettings) -> int:
    """Run `python -m cifar_ray.train`; return its exit code. Raises InputError, and then leaves no run folder."""
    if not settings.preset and not settings.config:
        raise InputError(f"give --preset NAME ({', '.join(PRESETS)}) or --config FILE, or several of them")
    for name in settings.preset:
        if name not in PRESETS:
            raise InputError(f"--preset: no preset {name!r}; take one of {', '.join(PRESETS)}")
    saved = [_read_config(path) for path in settings.config]
    names = [*settings.preset, *(one.name for one in saved)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--preset, --config: two models are called {double}; give one only, or copy its file")
    if settings.patience is not None and settings.resume is None:
        _check_patience(_named_configs(settings, NO_DATA, saved))
    settings = _with_defaults_of(settings, saved[0].card if saved else {})
    configs = _named_configs(settings, NO_DATA, saved).values()
    if settings.show:
        return _show(settings, saved)
    run, console = Run(settings, "train", "-".join(["train", *names])[:40], settings.resume), Console()
    run.check_unchanged(**{str(one.path): one.config.to_dict() for one in saved})
    load = partial(load_run_data, settings, str(settings.data), console, configs)
    with started(run, console, "training", load) as opened:
        return 0 if opened is None else _train(run, console, *opened, saved)


@dataclass(frozen=True)
class _Saved:
    """A configuration from a file: bare, or with the card of a saved model."""

    path: Path
    name: str
    config: TrialConfig
    card: Card
    """Empty where the configuration is bare."""


def _read_config(path: Path) -> _Saved:
    config, card = read_config(path)
    if card is None:
        return _Saved(path, path.parent.name if path.stem == "config" else path.stem, config, {})
    if missing := [name for name in TO_TRAIN_AGAIN if name not in card]:
        raise InputError(
            f"--config: {path}: has no {missing[0]}; take the config.json of a model, or its `config` alone"
        )
    return _Saved(path, read_name(card, "config_name", f"--config: {path}"), config, card)


def _train(
    run: Run[TrainSettings],
    console: Console,
    data: DataSplits,
    workers: Workers,
    storage: Path,
    saved: Sequence[_Saved],
) -> int:
    settings = run.settings
    assert settings.max_epochs is not None
    task = make_task(run, data, workers.device)
    models = _named_models(settings, task, saved)
    configs = {model.config_name: model.config for model in models}
    check_batch_sizes(workers, settings.workers_flag, configs.items())
    shared = TrialSettings(
        data=[ray.put(data.training_arrays())],
        num_classes=task.num_classes,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        metric=str(settings.metric),
        num_threads=settings.cpus_per_trial,
        pretrained=share_weights(run, console, configs.values()),
    )
    families = {config.family for config in configs.values()}
    work = make_workload(workers, data, settings.max_epochs, settings.seeds, num_on_corrupted=len(families))
    speeds = [measure_speeds(workers, config, shared)[0] for config in configs.values()]
    whole = work.finals_s(speeds) + work.evaluation_s(speeds)
    console.line(f"estimate    {duration(whole)} for {len(models)} models")
    begin(run, console, describe_data(data))
    with recorded(run, console, storage, "finals") as rows:
        rows += finish(run, console, workers, storage, data, shared, models)
    return 0 if rows else 1


def _with_defaults_of(settings: TrainSettings, card: Card) -> TrainSettings:
    """Fill in what was not given: from the first --config, so that it alone trains the same model again."""
    if settings.data is None and card:
        native = card["resize"]["rule"] == "native"
        settings = replace(
            settings,
            data=card["data"]["source"],
            train_size=settings.train_size or card["data"]["train_size"],
            image_size=settings.image_size or (None if native else card["resize"]["image_size"]),
        )
    return replace(
        settings,
        data=settings.data or DEFAULT_DATA,
        max_epochs=settings.max_epochs or card.get("max_epochs", DEFAULT_MAX_EPOCHS),
        metric=settings.metric or card.get("metric", DEFAULT_METRIC),
        patience=settings.patience or card.get("patience"),
    )


def _check_patience(configs: dict[str, TrialConfig]) -> None:
    for name, config in configs.items():
        if config.lr_schedule.anneals:
            raise InputError(
                f"--patience: the learning rate of {name} anneals to the last epoch ({config.lr_schedule.name}), and "
                "ending before that would cut it short; leave it out, or give --set lr_schedule/name=constant"
            )


def _show(settings: TrainSettings, saved: Sequence[_Saved]) -> int:
    """Print the configurations, those of presets for the images of `--data`."""
    task = NO_DATA  # its images are as those of cifar10, which need not be downloaded for that
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() and settings.gpus_per_trial != 0 else "cpu"
    if settings.preset and (settings.data, settings.image_size) != ("cifar10", None):
        configs = _named_configs(settings, task, saved).values()
        data = load_data(
            str(settings.data),
            train_size=settings.train_size,
            image_size=settings.image_size,
            data_dir=settings.data_dir,
            skip_bad_images=settings.skip_bad_images,
            auto_size=auto_image_size(configs),
        )
        task = task_of(data, settings, device)
    for config in _named_configs(settings, replace(task, device=device), saved).values():
        print(json.dumps(config.to_dict(), indent=2))
    return 0


def _named_models(settings: TrainSettings, task: Task, saved: Sequence[_Saved]) -> list[FinalModel]:
    """The models of `--preset` and `--config`, all their seeds.

    The first seed of a saved model is the one that it was trained with.
    """
    recorded = {one.name: one.card.get("training_seed") for one in saved}
    return [
        FinalModel(name, None, index, _training_seed(settings.seed, name, index, recorded.get(name)), config)
        for name, config in _named_configs(settings, task, saved).items()
        for index in range(settings.seeds)
    ]


def _named_configs(settings: TrainSettings, task: Task, saved: Sequence[_Saved]) -> dict[str, TrialConfig]:
    """What `--preset` and `--config` name, with what `--weights` and `--set` change."""
    configs = {name: preset(name, task) for name in settings.preset} | {one.name: one.config for one in saved}
    return {
        name: with_values(_with_weights(name, config, settings.weights), settings.fixed, f"--set: {name}")
        for name, config in configs.items()
    }


def _with_weights(name: str, config: TrialConfig, weights: str | None) -> TrialConfig:
    # A model that is to be trained from scratch stays so.
    if weights is None or not isinstance(config.model, ResNetConfig) or config.model.weights == "none":
        return config
    values = config.to_dict()
    values["model"]["weights"] = weights
    return trial_config(values, f"--weights {weights}: {name}")


def _training_seed(seed: int, name: str, seed_index: int, recorded: int | None) -> int:
    if seed_index == 0 and recorded is not None:
        return recorded
    return derived_seed(seed, zlib.crc32(name.encode()), seed_index)
