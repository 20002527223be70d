"""Configurations that have a name: presets, and what a config.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cifar_ray.cli.flags import AblateSettings, NamedSettings
from cifar_ray.config import BackboneConfig, Precision, Task, TrialConfig, trial_config, with_values
from cifar_ray.data.sources import DEFAULT_DATA
from cifar_ray.errors import InputError
from cifar_ray.presets import check_preset, preset
from cifar_ray.results.config_json import TO_TRAIN_AGAIN, Card, read_config
from cifar_ray.results.records import read_name
from cifar_ray.search.design import Design, make_design

DEFAULT_MAX_EPOCHS, DEFAULT_METRIC = 30, "accuracy"
"""Of a model that no --config says otherwise of."""

Settings = TypeVar("Settings", bound=NamedSettings)


@dataclass(frozen=True)
class Saved:
    """A configuration from a file: bare, or with the card of a saved model."""

    path: Path
    name: str
    config: TrialConfig
    card: Card
    """Empty where the configuration is bare."""


def read_named(settings: NamedSettings) -> list[Saved]:
    """Check the names of `--preset`, and read the files of `--config`.

    Raises:
        InputError: there is no such preset, a file is no configuration, or two models have one name.
    """
    for name in settings.preset:
        check_preset(name)
    saved = [read_saved(path) for path in settings.config]
    names = [*settings.preset, *(one.name for one in saved)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--preset, --config: two models are called {double}; give one only, or copy its file")
    return saved


def read_saved(path: Path) -> Saved:
    """Read a configuration from a file. Raises InputError where it is none."""
    config, card = read_config(path)
    if card is None:
        return Saved(path, path.parent.name if path.stem == "config" else path.stem, config, {})
    if missing := [name for name in TO_TRAIN_AGAIN if name not in card]:
        raise InputError(
            f"--config: {path}: has no {missing[0]}; take the config.json of a model, or its `config` alone"
        )
    return Saved(path, read_name(card, "config_name", f"--config: {path}"), config, card)


def with_defaults_of(settings: Settings, saved: Sequence[Saved]) -> Settings:
    """Fill in what was not given: from the card of the first --config, so that it alone trains the same model again."""
    card = saved[0].card if saved else {}
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
        precision=settings.precision or (saved[0].config.precision if card else "auto"),
    )


def named_configs(
    settings: NamedSettings, task: Task, saved: Sequence[Saved], precision: Precision | None = None
) -> dict[str, TrialConfig]:
    """What `--preset` and `--config` name, with what `--weights` and `--set` change, in the precision of the run."""
    configs = {name: preset(name, task) for name in settings.preset} | {one.name: one.config for one in saved}
    configs = {
        name: with_values(_with_weights(name, config, settings.weights), settings.fixed, f"--set: {name}")
        for name, config in configs.items()
    }
    return {name: replace(config, precision=precision or config.precision) for name, config in configs.items()}


def design_of(
    settings: AblateSettings, task: Task, saved: Sequence[Saved], precision: Precision | None = None
) -> Design:
    """The design of an ablation of the one configuration that is named."""
    assert settings.max_epochs is not None
    (base,) = named_configs(settings, task, saved, precision).values()
    return make_design(base, settings.vary, settings.cross, task, settings.max_epochs)


def _with_weights(name: str, config: TrialConfig, weights: str | None) -> TrialConfig:
    # A model that is to be trained from scratch stays so.
    if weights is None or not isinstance(config.model, BackboneConfig) or config.model.weights == "none":
        return config
    values = config.to_dict()
    values["model"]["weights"] = weights
    return trial_config(values, f"--weights {weights}: {name}")
