"""What `python -m cifar_ray.tune` does: search each space, then train, evaluate and report the finalists."""

from dataclasses import replace
from functools import partial

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import ModuleConfig, Task, family_of, source_sha256, trial_config
from cifar_ray.driver.run import Run
from cifar_ray.driver.start import NO_DATA, load_run_data, started
from cifar_ray.errors import InputError
from cifar_ray.search.space import load_spaces, sample_space
from cifar_ray.search.warm_start import warm_starts

NUM_LOOKED_AT = 5
"""Configurations of each space that are drawn before the data is there: they tell how images are to be read."""


def tune(settings: TuneSettings) -> int:
    """Run `python -m cifar_ray.tune`; return its exit code. Raises InputError, and then leaves no run folder."""
    module = _module(settings.module)
    spaces = [replace(space, fixed=settings.fixed, module=module) for space in load_spaces(settings.space)]
    names = [space.name for space in spaces]
    backbones = _backbones(settings)
    provisional = replace(NO_DATA, weights=settings.weights or "DEFAULT", backbones=backbones)
    configs = [config for space in spaces for _, config in sample_space(space, provisional, NUM_LOOKED_AT)]
    if module and not any(config.family == "module" for config in configs):
        raise InputError(
            f"--module: nothing that {settings.space} draws is of family module; give --space module, which searches "
            "the training recipe of your network, or a space of your own"
        )
    for path in settings.warm_start if settings.resume is None else ():
        warm_starts(path, spaces, provisional)  # what is wrong with it is told before the data is loaded
    run, console = Run(settings, "tune", "-".join(names), settings.resume), Console()
    run.check_unchanged(**{f"the code of space {space.name}": space.sha256 for space in spaces})
    if module:
        run.check_unchanged(**{f"the code of {module.file}": source_sha256(module.source)})
    load = partial(load_run_data, settings, str(settings.data), console, configs)
    with started(run, console, f"search of {' and '.join(names)}", load) as opened:
        if opened is None:
            return 0
        from cifar_ray.driver.search import search  # torch and Tune, which the workers import meanwhile

        return search(run, console, *opened, spaces, backbones)


def _module(text: str | None) -> ModuleConfig | None:
    if text is None:
        return None
    from cifar_ray.models.module import read_module  # torch, which such a network needs anyway

    return read_module(text)


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
