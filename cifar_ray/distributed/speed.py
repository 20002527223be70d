"""How fast a configuration trains in this process, and in which precision."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import psutil
import ray
import torch
from torch import Tensor, nn

from cifar_ray.config import BackboneConfig, TrialConfig
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights, granted_device
from cifar_ray.distributed.ray_internals import free_memory_here
from cifar_ray.models.classifier import Classifier, has_bf16
from cifar_ray.training.features import Features
from cifar_ray.training.loop import Training, eval_model

MEASURED_S = 0.4
"""Seconds of each measurement."""

ROUNDS_OF_EACH = 2
"""Both precisions take turns so often, so that what else the machine does meets them alike."""


@dataclass(frozen=True)
class Speed:
    """Images a second of one configuration on one slot, where all slots are busy."""

    train: float
    val: float
    """In the validation of an epoch."""
    test: float
    """Of the whole model; that differs from `val` where features of a frozen backbone are kept."""
    feature_views: int = 0
    """Versions of the training images whose features are computed before a head trains on them."""


def bf16_speedup(config: TrialConfig, settings: TrialSettings) -> float | None:
    """How many times as fast as in fp32 it trains in bf16 in this process; None where that is not computed in."""
    if not has_bf16(granted_device().type):
        return None
    trained = {}
    for precision in ("fp32", "bf16"):
        training = _training(replace(config, precision=precision), settings)
        trained[precision] = partial(_train_batches, training)
    speeds = {"fp32": 0.0, "bf16": 0.0}
    for _ in range(ROUNDS_OF_EACH):
        for precision, train in trained.items():
            speeds[precision] += _images_per_s(train, MEASURED_S / ROUNDS_OF_EACH)
    return speeds["bf16"] / speeds["fp32"]


@dataclass(frozen=True)
class Memory:
    """In MB, of a process and of what it runs on."""

    node: str
    """Ray's id of it."""
    own: float
    """What this process holds, and shares with no other."""
    free: float
    """Of the node, or of its container."""


def measure_speed(config: TrialConfig, settings: TrialSettings) -> tuple[Speed, Memory]:
    """Time `config` in this process, what is trained and what is validated; and return what that holds in memory."""
    training = _training(config, settings)
    model = training.model
    images = training.data.val_images[: model.eval_batch_size]
    train = _images_per_s(partial(_train_batches, training), MEASURED_S)
    test = _images_per_s(partial(_eval, model, images), MEASURED_S)
    if training.features is None:
        speed = Speed(train, val=test, test=test)
    else:  # a head is validated on so many features in no time
        val = _images_per_s(partial(_eval, training.part, training.val_inputs), MEASURED_S)
        speed = Speed(train, val, test, feature_views=len(training.features.train))
    node, own = ray.get_runtime_context().get_node_id(), psutil.Process().memory_full_info().uss
    return speed, Memory(node, own / 1e6, free_memory_here() / 1e6)


def _training(config: TrialConfig, settings: TrialSettings) -> Training:
    """A training with a horizon that it stays at the beginning of."""
    PROCESS.reset(0, settings.num_threads)
    data = PROCESS.load_data(settings.data[0], settings.num_classes, granted_device())
    experiment = replace(settings.experiment(config, seed=0), max_epochs=10**6)
    return Training(experiment, data, get_weights(settings.pretrained, config), make_features=_random_features)


def _images_per_s(work: Callable[[], int], seconds: float) -> float:
    """How many images a second `work` does, which returns how many it did."""
    work()  # warm-up: the first batch allocates and chooses kernels
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def _train_batches(training: Training) -> int:
    """Train on two batches, or what there is."""
    labels, batch_size = training.data.train_labels, training.experiment.config.batch_size
    order = torch.arange(min(len(labels), 2 * batch_size), device=labels.device)
    training.train_batches(order, epoch=1).tolist()
    return len(order) // min(batch_size, len(order)) * min(batch_size, len(order))


def _eval(model: nn.Module, inputs: Tensor) -> int:
    eval_model(model, inputs).sum().item()
    return len(inputs)


def _random_features(
    model: Classifier, config: TrialConfig, train_images: Tensor, val_images: Tensor, images_key: str, fill: Tensor
) -> Features:
    """In place of those that a backbone computes of all images: a head is as fast on these."""
    assert isinstance(config.model, BackboneConfig)
    head = model.get_submodule("network.head")
    width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    train, val = (torch.randn(len(images), width, device=images.device).half() for images in (train_images, val_images))
    return Features([train] * config.model.feature_views, val, images_per_s=float("nan"))
