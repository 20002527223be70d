"""What `python -m cifar_ray.ablate` does: train the arms of a design, and tell what each choice did."""

from dataclasses import asdict, replace
from functools import partial

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import AblateSettings
from cifar_ray.driver.named import design_of, named_configs, read_named, with_defaults_of
from cifar_ray.driver.run import Run
from cifar_ray.driver.start import NO_DATA, load_run_data, started
from cifar_ray.errors import InputError

DEFAULT_BASE = "small-cnn"


def ablate(settings: AblateSettings) -> int:
    """Run `python -m cifar_ray.ablate`; return its exit code. Raises InputError, and then leaves no run folder."""
    num_bases = len(settings.preset) + len(settings.config) + len(settings.module)
    if num_bases > 1:
        raise InputError("--preset, --config, --module: give one base, or none for --preset small-cnn")
    if not num_bases:
        settings = replace(settings, preset=(DEFAULT_BASE,))
    saved = read_named(settings)
    settings = with_defaults_of(settings, saved)
    design_of(settings, NO_DATA, saved)  # what is wrong with the flags is told before any data is loaded
    configs = named_configs(settings, NO_DATA, saved)
    run, console = Run(settings, "ablate", f"ablate-{next(iter(configs))}"[:40], settings.resume), Console()
    run.check_unchanged(**{str(one.path): asdict(one.config) for one in saved})
    load = partial(load_run_data, settings, str(settings.data), console, configs.values())
    with started(run, console, "ablation", load) as opened:
        if opened is None:
            return 0
        from cifar_ray.driver.ablation import train_arms  # torch, which the workers import meanwhile

        return train_arms(run, console, *opened, saved)
