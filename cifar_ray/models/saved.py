"""A saved model: `model.safetensors` and a `config.json` that rebuilds it alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cifar_ray.config import TrialConfig, trial_config
from cifar_ray.errors import InputError
from cifar_ray.files import write_bytes, write_json
from cifar_ray.models.classifier import Classifier, build_model


def pack_weights(model: Classifier) -> bytes:
    """Return the model's weights and buffers as the bytes of a safetensors file (contiguous, on no device)."""
    tensors: dict[str, Tensor] = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors)


def save_model(folder: Path, weights: bytes, config: TrialConfig, card: dict[str, Any]) -> None:
    """Write a model folder that :func:`load_model` reads.

    Args:
        folder: created if absent.
        weights: from :func:`pack_weights`.
        config: what the model was trained from.
        card: what else belongs to it: `class_names` and `resize` (`channels`, `image_size`, `rule`) are needed.
    """
    write_bytes(folder / "model.safetensors", weights, durable=True)
    write_json(folder / "config.json", {"config": config.to_dict(), **card})  # last: where it is, the model is whole


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Return a saved model in eval mode; it takes uint8 images (B, C, H, W) and gives logits (B, num_classes).

    Raises:
        InputError: the folder is no saved model, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    weights, config, card = read_model(folder)
    try:
        return unpack_model(weights, config, card).to(device)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _not_a_model(folder, error) from None


def read_model(folder: Path) -> tuple[bytes, TrialConfig, dict[str, Any]]:
    """Return what a model folder holds: packed weights, configuration, and its card (see :func:`save_model`).

    Raises:
        InputError: the folder is no saved model.
    """
    try:
        card = json.loads((folder / "config.json").read_text())
        return (folder / "model.safetensors").read_bytes(), trial_config(card.pop("config"), str(folder)), card
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_model(folder, error) from None


def _not_a_model(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: not a saved model: {' '.join(str(error).split()):.200}")


def unpack_model(weights: bytes, config: TrialConfig, card: dict[str, Any]) -> Classifier:
    """Build the model of `config` and give it the packed `weights`; the card is that of :func:`save_model`."""
    resize = card["resize"]
    model = build_model(
        config, num_classes=len(card["class_names"]), channels=resize["channels"], image_size=resize["image_size"]
    )
    model.load_state_dict(safetensors.torch.load(weights))
    return model.to(memory_format=torch.channels_last).eval()


@dataclass(frozen=True)
class SavedModel:
    """A final model as it travels to an evaluation actor."""

    name: str
    weights: bytes
    config: TrialConfig
    card: dict[str, Any]
    """The rest of its config.json, see :func:`save_model`."""

    def build(self, device: torch.device) -> Classifier:
        return unpack_model(self.weights, self.config, self.card).to(device)
