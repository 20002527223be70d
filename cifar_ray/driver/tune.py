"""What `python -m cifar_ray.tune` does: search each space, then train, evaluate and report the finalists."""

from dataclasses import replace
from functools import partial

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import Task, family_of, trial_config
from cifar_ray.driver.run import Run
from cifar_ray.driver.start import NO_DATA, load_run_data, started
from cifar_ray.search.space import load_spaces, sample_space

NUM_LOOKED_AT = 5
"""Configurations of each space that are drawn before the data is there: they tell how images are to be read."""


def tune(settings: TuneSettings) -> int:
    """Run `python -m cifar_ray.tune`; return its exit code. Raises InputError, and then leaves no run folder."""
    spaces = [replace(space, fixed=settings.fixed) for space in load_spaces(settings.space)]
    names = [space.name for space in spaces]
    backbones = _backbones(settings)
    provisional = replace(NO_DATA, weights=settings.weights or "DEFAULT", backbones=backbones)
    configs = [config for space in spaces for _, config in sample_space(space, provisional, NUM_LOOKED_AT)]
    run, console = Run(settings, "tune", "-".join(names), settings.resume), Console()
    run.check_unchanged(**{f"the code of space {space.name}": space.sha256 for space in spaces})
    load = partial(load_run_data, settings, str(settings.data), console, configs)
    with started(run, console, f"search of {' and '.join(names)}", load) as opened:
        if opened is None:
            return 0
        from cifar_ray.driver.search import search  # torch and Tune, which the workers import meanwhile

        return search(run, console, *opened, spaces, backbones)


def _backbones(settings: TuneSettings) -> tuple[str, ...]:
    """What spaces may draw; a backbone that is fixed may be any that is known."""
    usual = Task.backbones
    if fixed := settings.fixed.get("model/backbone"):
        trial_config({"family": family_of(fixed) or "resnet", "model": {"backbone": fixed}}, "--set")
        usual = (fixed,)
    if settings.weights is None:
        return usual
    from cifar_ray.models.pretrained import backbones_with  # torch

    return backbones_with(settings.weights, usual)
