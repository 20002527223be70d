"""A saved model: `model.safetensors`, and a `config.json` (see `results.config_json`) that rebuilds it alone."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cifar_ray.config import TrialConfig
from cifar_ray.errors import one_line
from cifar_ray.files import write_bytes
from cifar_ray.models.classifier import Classifier, build_model, has_bf16
from cifar_ray.results.config_json import MODULE, Card, not_a_model, read_card, require_trust, write_card
from cifar_ray.results.records import MODEL_WEIGHTS


def pack_weights(model: Classifier) -> bytes:
    """Return the model's weights and buffers as the bytes of a safetensors file (contiguous, on no device)."""
    tensors: dict[str, Tensor] = {
        # A copy, since weights that have two names would share their memory.
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def save_model(folder: Path, weights: bytes, config: TrialConfig, card: Card) -> None:
    """Write a model folder that :func:`load_model` reads.

    Args:
        folder: created if absent.
        weights: from :func:`pack_weights`.
        config: what the model was trained from.
        card: what else belongs to it.
    """
    write_bytes(folder / MODEL_WEIGHTS, weights, durable=True)
    write_card(folder, config, card)  # last: where it is, the model is whole


def load_model(folder: Path | str, device: torch.device | str = "cpu", trust_code: bool = False) -> Classifier:
    """Return a saved model in eval mode; it takes uint8 images (B, C, H, W) and gives logits (B, num_classes).

    They are those that it was trained to give: whoever wants the probabilities that `predict` prints divides them by
    the card's temperature before the softmax, see :func:`~cifar_ray.results.config_json.temperature_of`.

    Args:
        folder: of the saved model.
        device: to load it to.
        trust_code: run the code that comes with a model whose network is somebody's own (`--module`).

    Raises:
        InputError: the folder is no saved model, its weights do not fit its configuration, or it comes with code that
            is not trusted.
    """
    folder = Path(folder)
    saved = SavedModel.read(folder)
    require_trust(folder / MODULE, saved.config, trust_code)
    try:
        return saved.build(device)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise not_a_model(folder, one_line(error)) from None


@dataclass(frozen=True)
class SavedModel:
    """A saved model as it is read, and as it travels to an evaluation actor."""

    name: str
    weights: bytes
    """From :func:`pack_weights`."""
    config: TrialConfig
    card: Card

    @classmethod
    def read(cls, folder: Path) -> "SavedModel":
        """Read a model folder. Raises InputError where it is no saved model."""
        config, card = read_card(folder)
        try:
            return cls(folder.name, (folder / MODEL_WEIGHTS).read_bytes(), config, card)
        except OSError as error:
            raise not_a_model(folder, f"{MODEL_WEIGHTS}: {one_line(error)}") from None

    def build(self, device: torch.device | str = "cpu") -> Classifier:
        """Build the model, in eval mode, and give it its weights. Of a network of the user's own this runs the code.

        It computes in the precision that it was trained in, or in fp32 where this machine does not have that one.
        """
        resize, num_classes = self.card["resize"], len(self.card["class_names"])
        model = build_model(
            self.config, num_classes=num_classes, channels=resize["channels"], image_size=resize["image_size"]
        )
        model.load_state_dict(safetensors.torch.load(self.weights))
        if not has_bf16(torch.device(device).type):
            model.precision = "fp32"
        return model.to(memory_format=model.memory_format).eval().to(device)
