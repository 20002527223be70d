"""A network of the user's own is tried before anything is trained: one step, and one answer, on noise."""

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from cifar_ray.config import ModuleConfig, Task, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.models.module import call_text, error_text
from cifar_ray.models.saved import pack_weights


def check_network(config: TrialConfig, task: Task) -> Classifier:
    """Build a model with a network of the user's own, try it on the CPU and return it.

    It is to give finite logits of the right shape, for several images in train mode and for several and one in eval
    mode, gradients that are finite too, and to come back from what is saved of it.

    Raises:
        InputError: it does not, or cannot be built.
    """
    assert isinstance(config.model, ModuleConfig)
    sizes = {"num_classes": task.num_classes, "channels": task.channels, "image_size": task.image_size}
    called = call_text(config.model, **sizes | {"image_size": config.image_size or task.image_size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, **sizes)
        try:
            _step(model, task)
            model.eval()
            with torch.inference_mode():
                for num_images in (2, 1):
                    _logits(model, task, num_images)
        except _FaultError as error:
            raise InputError(f"{called} gives {error}") from None
        except Exception as error:
            mode = "train" if model.training else "eval"
            raise InputError(f"{called} fails in {mode} mode: {error_text(config.model, error)}") from error
        again = build_model(config, **sizes)
        if again.network is model.network:
            raise InputError(f"{called} gives the same network each time it is called: make a new one")
        try:
            again.load_state_dict(safetensors.torch.load(pack_weights(model)))
        except Exception as error:
            told = error_text(config.model, error)
            raise InputError(f"{called} has a state that cannot be saved and loaded again: {told}") from error
    return model


class _FaultError(Exception):
    """What a network gives is wrong."""


def _step(model: Classifier, task: Task) -> None:
    model.train()
    logits = _logits(model, task, num_images=2)
    functional.cross_entropy(logits, torch.arange(2) % task.num_classes).backward()
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise _FaultError(f"gradients of {name} that are not finite, in the first step")


def _logits(model: Classifier, task: Task, num_images: int) -> Tensor:
    """Logits (B, num_classes), checked, of noise as images are once they are normalised."""
    images = torch.randn(num_images, task.channels, model.image_size, model.image_size)
    logits = model.network(images)
    wanted = (num_images, task.num_classes)
    if not isinstance(logits, Tensor):
        raise _FaultError(f"a {type(logits).__name__}, not a tensor of logits {wanted}")
    if logits.shape != wanted:
        raise _FaultError(f"logits of shape {tuple(logits.shape)} for images {tuple(images.shape)}, not {wanted}")
    if not logits.isfinite().all():
        raise _FaultError("logits that are not finite, for images of noise")
    return logits.float()
