"""Configurations that have a name: presets, what a config.json holds, and networks of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cifar_ray.cli.flags import AblateSettings, NamedSettings
from cifar_ray.config import (
    PARAMS,
    BackboneConfig,
    ModuleConfig,
    Precision,
    Task,
    TrialConfig,
    trial_config,
    with_values,
)
from cifar_ray.data.sources import DEFAULT_DATA
from cifar_ray.errors import InputError
from cifar_ray.presets import check_preset, module_recipe, preset
from cifar_ray.results.config_json import MODULE, TO_TRAIN_AGAIN, Card, read_config, require_trust
from cifar_ray.results.records import folder_name, read_name
from cifar_ray.search.design import Design, make_design

DEFAULT_MAX_EPOCHS, DEFAULT_METRIC = 30, "accuracy"
"""Of a model that no --config says otherwise of."""

Settings = TypeVar("Settings", bound=NamedSettings)


@dataclass(frozen=True)
class Saved:
    """A configuration from a file: bare, or with the card of a saved model; or a network from a Python file."""

    path: Path
    name: str
    config: TrialConfig | ModuleConfig
    """Of a Python file the network alone, whose recipe is made for the images."""
    card: Card
    """Empty where the configuration is bare."""

    def config_for(self, task: Task) -> TrialConfig:
        """The whole configuration."""
        return module_recipe(self.config, task) if isinstance(self.config, ModuleConfig) else self.config


def read_named(settings: NamedSettings) -> list[Saved]:
    """Check the names of `--preset`, and read the files of `--config` and of `--module`, which are run.

    Raises:
        InputError: there is no such preset, a file is no configuration or has no such network, one comes with code that
            is not trusted, or two models have one name.
    """
    for name in settings.preset:
        check_preset(name)
    saved = [read_saved(path, settings.trust_code) for path in settings.config]
    saved += [_read_own(text) for text in settings.module]
    names = [*settings.preset, *(one.name for one in saved)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"--preset, --config, --module: two models are called {double}; give one only, or copy its file"
        )
    return saved


def _read_own(text: str) -> Saved:
    from cifar_ray.models.module import read_module  # torch, which such a network needs anyway

    network = read_module(text)
    path = Path(text.rpartition(":")[0])
    try:
        return Saved(path, folder_name(f"{path.stem}.{network.name}"), network, {})
    except ValueError as error:
        raise InputError(f"--module: {error}") from None


def read_saved(path: Path, trust_code: bool = False) -> Saved:
    """Read a configuration from a file. Raises InputError where it is none, or comes with code that is not trusted."""
    config, card = read_config(path)
    require_trust(path if card is None else path.parent / MODULE, config, trust_code)
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
    first = saved[0].config if card else None
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
        precision=settings.precision or (first.precision if isinstance(first, TrialConfig) else "auto"),
    )


def named_configs(
    settings: NamedSettings, task: Task, saved: Sequence[Saved], precision: Precision | None = None
) -> dict[str, TrialConfig]:
    """What the flags name, with what `--weights` and `--set` change, in the precision of the run."""
    configs = {name: preset(name, task) for name in settings.preset} | {one.name: one.config_for(task) for one in saved}
    configs = {
        name: with_values(_with_weights(name, config, settings.weights), fixed, f"--set: {name}")
        for name, config in configs.items()
        for fixed in [_fixed_of(config, settings.fixed, configs.values())]
    }
    return {name: replace(config, precision=precision or config.precision) for name, config in configs.items()}


def _fixed_of(config: TrialConfig, fixed: Mapping[str, str], configs: Iterable[TrialConfig]) -> Mapping[str, str]:
    """What `--set` gives one of the configurations: parameters of the user's own networks go to these alone."""
    if config.family == "module" or all(one.family != "module" for one in configs):
        return fixed
    return {key: text for key, text in fixed.items() if not key.startswith(f"{PARAMS}/")}


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
