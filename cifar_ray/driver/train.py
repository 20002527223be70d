"""What `python -m cifar_ray.train` does: train named models over several seeds, evaluate and report them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Literal

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainSettings
from cifar_ray.config import TrialConfig
from cifar_ray.data.sources import DEFAULT_DATA
from cifar_ray.data.splits import load_data
from cifar_ray.driver.named import Saved, named_configs, read_named, with_defaults_of
from cifar_ray.driver.run import Run
from cifar_ray.driver.start import NO_DATA, auto_image_size, load_run_data, started, task_of
from cifar_ray.errors import InputError
from cifar_ray.presets import PRESETS


def train(settings: TrainSettings) -> int:
    """Run `python -m cifar_ray.train`; return its exit code. Raises InputError, and then leaves no run folder."""
    if not (settings.preset or settings.config or settings.module):
        raise InputError(
            f"give --preset NAME ({', '.join(PRESETS)}), --config FILE or --module FILE.py:NAME, or several of them"
        )
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
    run.check_unchanged(**{str(one.path): asdict(one.config) for one in saved})
    load = partial(load_run_data, settings, str(settings.data), console, configs)
    with started(run, console, "training", load) as opened:
        if opened is None:
            return 0
        from cifar_ray.driver.training import train_named  # torch, which the workers import meanwhile

        return train_named(run, console, *opened, saved)


def _check_patience(configs: dict[str, TrialConfig]) -> None:
    for name, config in configs.items():
        if config.lr_schedule.anneals:
            raise InputError(
                f"--patience: the learning rate of {name} anneals to the last epoch ({config.lr_schedule.name}), and "
                "ending before that would cut it short; leave it out, or give --set lr_schedule/name=constant"
            )


def _show(settings: TrainSettings, saved: Sequence[Saved]) -> int:
    """Print the configurations, those of presets and the recipes of own networks for the images of `--data`."""
    import torch

    task = NO_DATA  # its images are as those of the default, which need not be downloaded for that
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() and settings.gpus_per_trial != 0 else "cpu"
    if (settings.preset or settings.module) and (settings.data, settings.image_size) != (DEFAULT_DATA, None):
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
