"""The `config.json` of a saved model, its card: what rebuilds the model, how to use it, and how it came about.

Whoever reads one does it here; what else a saved model is stands in `models.saved`, which needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_ray.config import ModuleConfig, TrialConfig, source_sha256, trial_config
from cifar_ray.errors import InputError, one_line
from cifar_ray.files import read_json, read_text, write_bytes, write_json

CARD = "config.json"
"""In the folder of a saved model. It is written last: where it is, the model is whole."""

MODULE = "module.py"
"""In the folder of a saved model whose network is the user's own: its source."""

Card = dict[str, Any]
"""All of a card but its `config`: `class_names` and `resize` (`channels`, `image_size`, `rule`), without which no model
can be built, and what a training adds, see `driver.finals.model_card`; the evaluation adds `temperature`, which see
:func:`temperature_of`."""

TO_TRAIN_AGAIN = ("config_name", "data", "max_epochs", "metric", "resize", "training_seed")
"""What of a card says how the same model is trained again."""

IN_RESULTS = (
    "trial", "seed", "train_accuracy", "val_accuracy", "val_metric", "val_loss", "num_params", "epochs", "best_epoch",
    "train_s", "training_seed", "torch",
)  # fmt: skip
"""What of a card stands in results.csv too."""


def write_card(folder: Path, config: TrialConfig, card: Card, durable: bool = True) -> None:
    """Write the card of a training, and in front of it the source of a network of the user's own."""
    if isinstance(config.model, ModuleConfig):
        write_bytes(folder / MODULE, config.model.source.encode(), durable)
    write_json(folder / CARD, {"config": as_recorded(config.to_dict()), **card}, durable)


def as_recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as records hold it: instead of the source of a network of the user's own its SHA-256."""
    model = dict(config.get("model") or {})
    if "source" in model:
        model["sha256"] = source_sha256(model.pop("source"))
        return {**config, "model": model}
    return dict(config)


def _with_source(values: Any, folder: Path) -> Any:
    """What :func:`as_recorded` gave, with the source from the folder in place of its SHA-256; all else as it is."""
    model = values.get("model") if isinstance(values, dict) and values.get("family") == "module" else None
    if not isinstance(model, dict):
        return values
    if "source" in model or "sha256" not in model:  # what is read before it is trusted must be what is run
        raise not_a_model(folder, f"the source of its network must stand in {MODULE}, and its SHA-256 in {CARD}")
    try:
        source = read_text(folder / MODULE)
    except InputError as error:
        raise not_a_model(folder, one_line(error)) from None
    others = {key: value for key, value in model.items() if key != "sha256"}
    if source_sha256(source) != model["sha256"]:
        raise not_a_model(folder, f"its {MODULE} is not the one that it was saved with: bring that back")
    return {**values, "model": {**others, "source": source}}


def require_trust(where: Path, config: TrialConfig, trusted: bool) -> None:
    """Refuse a configuration that comes with code, unless that is trusted.

    Raises:
        InputError: says what it is, and `where`.
    """
    if isinstance(config.model, ModuleConfig) and not trusted:
        raise InputError(
            f"{where}: is code (SHA-256 {source_sha256(config.model.source)[:12]}), and {config.model.name} in it is "
            "the network: read it, and where you trust it let it be run: --trust-code (load_model: trust_code=True)"
        )


def read_card(folder: Path) -> tuple[TrialConfig, Card]:
    """Read the card of a saved model.

    Raises:
        InputError: there is none, or its configuration is wrong; what else is wrong shows when the model is built.
    """
    if not (folder / CARD).is_file():
        raise not_a_model(folder, f"give a folder such as runs/NAME/best, with a {CARD}")
    try:
        values = read_json(folder / CARD)
    except InputError as error:
        raise not_a_model(folder, one_line(error)) from None
    if not isinstance(values, dict) or "config" not in values:
        raise not_a_model(folder, f"its {CARD} has no `config`")
    return trial_config(_with_source(values.pop("config"), folder), str(folder)), values


def temperature_of(card: Card) -> float:
    """What the logits of a model are divided by before their softmax, so that its probabilities hold on new images.

    Chosen on validation; 1 where the card has none, as in models of older versions.

    Raises:
        InputError: it is no number above 0.
    """
    value = card.get("temperature", 1.0)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{CARD}: `temperature` must be a number above 0, not {value!r:.50}: mend it, or leave it out")
    return float(value)


def read_config(path: Path) -> tuple[TrialConfig, Card | None]:
    """Read a configuration from a JSON file, bare, which has no card, or in the card of a saved model.

    Raises:
        InputError: the file is missing, is not JSON, or is no configuration.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read a configuration: {error}") from None
    if not isinstance(values, dict) or "config" not in values:
        return trial_config(values, str(path)), None
    return trial_config(_with_source(values.pop("config"), path.parent), str(path)), values


def recorded_config(folder: Path) -> Card:
    """The configuration of a saved model as it was written, perhaps by another version; empty where there is none."""
    values = read_json(folder / CARD) if (folder / CARD).exists() else {}
    config: Card = values.get("config", values)
    return config


def not_a_model(folder: Path, why: str) -> InputError:
    """The error of a folder that was given for a saved model."""
    return InputError(f"{folder}: not a saved model: {why[:200]}")
