"""Pretrained weights on their way from the driver, which reads them, to the processes that train."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cifar_ray.config import InputError, ResNetConfig, Task, TrialConfig
from cifar_ray.settings import WEIGHTS
from cifar_ray.weights import load_weights, published, weights_of_file

Pretrained = dict[str, "ray.ObjectRef[dict[str, np.ndarray]]"]
"""References to the weights by :func:`_key`."""


def backbones_with(weights: str) -> tuple[str, ...]:
    """The backbones that a space may draw, given the weights that they start from (see `ResNetConfig.weights`).

    Raises:
        InputError: it is a file without such weights.
    """
    usual = Task.backbones
    if weights in ("DEFAULT", "none"):
        return usual
    if weights in WEIGHTS:
        return tuple(backbone for backbone in usual if weights in published(backbone))
    return (weights_of_file(Path(weights)).backbone,)


def put_weights(configs: Iterable[TrialConfig]) -> tuple[Pretrained, list[dict[str, Any]]]:
    """Read all weights that the configurations start from, and put them where every process finds them.

    Returns:
        What :func:`get_weights` takes, and the facts for run.json: `backbone`, `source` and `sha256`.

    Raises:
        InputError: some cannot be read or downloaded.
    """
    refs: Pretrained = {}
    facts = []
    for config in configs:
        key = _key(config)
        if key is None or key in refs:
            continue
        assert isinstance(config.model, ResNetConfig)
        found = load_weights(config.model.backbone, config.model.weights)
        refs[key] = ray.put(found.tensors)
        facts.append({"backbone": found.backbone, "source": found.source, "sha256": found.sha256})
    return refs, facts


def get_weights(refs: Pretrained, config: TrialConfig) -> Mapping[str, np.ndarray] | None:
    """The weights that a configuration starts from, if it has any; shared by the processes of a machine."""
    key = _key(config)
    if key is not None and key not in refs:
        raise InputError(f"the weights {key} were not among those of the configurations sampled at the start")
    return None if key is None else ray.get(refs[key])


def _key(config: TrialConfig) -> str | None:
    model = config.model
    return f"{model.backbone} {model.weights}" if isinstance(model, ResNetConfig) and model.weights != "none" else None
