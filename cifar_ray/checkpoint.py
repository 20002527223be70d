"""A saved model: `model.safetensors` and a `config.json` that rebuilds it alone."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cifar_ray.config import InputError, TrialConfig, trial_config
from cifar_ray.models import Classifier, build_model


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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict(), **card}, indent=2) + "\n")


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Return a saved model in eval mode; it takes uint8 images (B, C, H, W) and gives logits (B, num_classes).

    Raises:
        InputError: the folder is no saved model, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / "config.json").read_text())
        weights = (folder / "model.safetensors").read_bytes()
        return unpack_model(weights, trial_config(card["config"], str(folder)), card).to(device)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{folder}: not a saved model: {message:.200}") from None


def unpack_model(weights: bytes, config: TrialConfig, card: dict[str, Any]) -> Classifier:
    """Build the model of `config` and give it the packed `weights`; the card is that of :func:`save_model`."""
    resize = card["resize"]
    model = build_model(
        config, num_classes=len(card["class_names"]), channels=resize["channels"], image_size=resize["image_size"]
    )
    model.load_state_dict(safetensors.torch.load(weights))
    return model.to(memory_format=torch.channels_last).eval()
