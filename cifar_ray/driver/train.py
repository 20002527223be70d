"""What `python -m cifar_ray.train` does: train named models over several seeds, evaluate and report them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import ray
import torch

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainSettings
from cifar_ray.config import TrialConfig
from cifar_ray.data.splits import DataSplits, load_data
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.named import Saved, named_configs, read_named, with_defaults_of
from cifar_ray.driver.probe import measure_speeds, settle_precision
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
from cifar_ray.presets import PRESETS
from cifar_ray.text import duration
from cifar_ray.training.seeds import derived_seed


def train(settings: TrainSettings) -> int:
    """Run `python -m cifar_ray.train`; return its exit code. Raises InputError, and then leaves no run folder."""
    if not settings.preset and not settings.config:
        raise InputError(f"give --preset NAME ({', '.join(PRESETS)}) or --config FILE, or several of them")
    saved = read_named(settings)
    names = [*settings.preset, *(one.name for one in saved)]
    if settings.patience is not None and settings.resume is None:
        _check_patience(named_configs(settings, NO_DATA, saved))
    card = saved[0].card if saved else {}
    settings = replace(with_defaults_of(settings, saved), patience=settings.patience or card.get("patience"))
    configs = named_configs(settings, NO_DATA, saved).values()
    if settings.show:
        return _show(settings, saved)
    run, console = Run(settings, "train", "-".join(["train", *names])[:40], settings.resume), Console()
    run.check_unchanged(**{str(one.path): one.config.to_dict() for one in saved})
    load = partial(load_run_data, settings, str(settings.data), console, configs)
    with started(run, console, "training", load) as opened:
        return 0 if opened is None else _train(run, console, *opened, saved)


def _train(
    run: Run[TrainSettings],
    console: Console,
    data: DataSplits,
    processes: Processes,
    storage: Path,
    saved: Sequence[Saved],
) -> int:
    settings = run.settings
    assert settings.max_epochs is not None
    workers = processes.workers
    task = make_task(run, data, workers.device)
    configs = named_configs(settings, task, saved)
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
    precision = settle_precision(run, console, processes, next(iter(configs.values())), shared)
    configs = named_configs(settings, task, saved, precision)
    models = _named_models(settings, configs, saved)
    families = {config.family for config in configs.values()}
    work = make_workload(workers, data, settings.max_epochs, settings.seeds, num_on_corrupted=len(families))
    speeds = [measure_speeds(processes, config, shared)[0] for config in configs.values()]
    whole = work.finals_s(speeds) + work.evaluation_s(speeds)
    console.line(f"estimate    {duration(whole)} for {len(models)} models")
    begin(run, console, describe_data(data))
    with recorded(run, console, storage, "finals") as rows:
        rows += finish(run, console, processes, storage, data, shared, models)
    return 0 if rows else 1


def _check_patience(configs: dict[str, TrialConfig]) -> None:
    for name, config in configs.items():
        if config.lr_schedule.anneals:
            raise InputError(
                f"--patience: the learning rate of {name} anneals to the last epoch ({config.lr_schedule.name}), and "
                "ending before that would cut it short; leave it out, or give --set lr_schedule/name=constant"
            )


def _show(settings: TrainSettings, saved: Sequence[Saved]) -> int:
    """Print the configurations, those of presets for the images of `--data`."""
    task = NO_DATA  # its images are as those of cifar10, which need not be downloaded for that
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() and settings.gpus_per_trial != 0 else "cpu"
    if settings.preset and (settings.data, settings.image_size) != ("cifar10", None):
        configs = named_configs(settings, task, saved).values()
        data = load_data(
            str(settings.data),
            train_size=settings.train_size,
            image_size=settings.image_size,
            data_dir=settings.data_dir,
            skip_bad_images=settings.skip_bad_images,
            auto_size=auto_image_size(configs),
        )
        task = task_of(data, settings, device)
    for config in named_configs(settings, replace(task, device=device), saved).values():
        print(json.dumps(config.to_dict(), indent=2))
    return 0


def _named_models(
    settings: TrainSettings, configs: Mapping[str, TrialConfig], saved: Sequence[Saved]
) -> list[FinalModel]:
    """The models of `--preset` and `--config`, all their seeds.

    The first seed of a saved model is the one that it was trained with.
    """
    recorded = {one.name: one.card.get("training_seed") for one in saved}
    return [
        FinalModel(name, None, index, _training_seed(settings.seed, name, index, recorded.get(name)), config)
        for name, config in configs.items()
        for index in range(settings.seeds)
    ]


def _training_seed(seed: int, name: str, seed_index: int, recorded: int | None) -> int:
    if seed_index == 0 and recorded is not None:
        return recorded
    return derived_seed(seed, zlib.crc32(name.encode()), seed_index)
