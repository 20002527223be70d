"""How fast a configuration trains here, timed on every slot at once before a run begins."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor, nn

from cifar_ray.config import ResNetConfig, TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights
from cifar_ray.driver.estimate import Speed
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier
from cifar_ray.training.features import Features
from cifar_ray.training.loop import Training, eval_model


def measure_speeds(workers: Workers, config: TrialConfig, shared: TrialSettings) -> tuple[Speed, float]:
    """Time a configuration on all workers at once; return the speed of a trial, and the memory of a process in MB.

    Raises:
        InputError: it cannot be trained on this data.
    """
    task = ray.remote(num_cpus=workers.resources["CPU"], num_gpus=workers.resources["GPU"])(measure_speed)
    try:
        measured = ray.get([task.remote(config, shared) for _ in range(workers.num_workers)])
    except RayTaskError as error:
        cause = " ".join(str(error.cause).split())
        raise InputError(f"this configuration cannot be trained here: {cause:.200} ({config})") from error
    speeds = [speed for speed, _ in measured]
    # Workers that train a model together are taken to be as fast as each alone; they do not quite get there.
    mean = replace(
        speeds[0],
        train=workers.workers_per_model * statistics.fmean(speed.train for speed in speeds),
        val=workers.workers_per_model * statistics.fmean(speed.val for speed in speeds),
        test=workers.workers_per_model * statistics.fmean(speed.test for speed in speeds),
    )
    return mean, statistics.fmean(memory_mb for _, memory_mb in measured)


def measure_speed(config: TrialConfig, settings: TrialSettings, seconds: float = 0.5) -> tuple[Speed, float]:
    """Time `config` in a trial process for some `seconds`.

    Returns:
        Its speed, and what the process holds in memory afterwards, in MB.
    """
    PROCESS.reset(0, settings.num_threads)
    data = PROCESS.load_data(settings.data[0], settings.num_classes)
    # A horizon that it stays at the beginning of.
    experiment = replace(settings.experiment(config, seed=0), max_epochs=10**6)
    training = Training(experiment, data, get_weights(settings.pretrained, config), make_features=_random_features)
    model = training.model
    order = torch.randperm(len(data.train_labels))[: 2 * config.batch_size].to(data.train_labels.device)
    batch_size = min(config.batch_size, len(order))
    images = data.val_images[: model.eval_batch_size]
    # A head is validated on so many features in no time.
    val_inputs = images if training.part is model else training.val_inputs

    def images_per_s(work: Callable[[], object], num_images: int) -> float:
        work()  # warm-up: the first batch allocates and chooses kernels
        done, began = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - began < seconds:
            work()
            done += num_images
        return done / (time.perf_counter() - began)

    speed = Speed(
        train=images_per_s(
            lambda: training.train_batches(order, epoch=1).tolist(), len(order) // batch_size * batch_size
        ),
        val=images_per_s(lambda: eval_model(training.part, val_inputs).sum().item(), len(val_inputs)),
        test=images_per_s(lambda: eval_model(model, images).sum().item(), len(images)),
        feature_views=len(training.features.train) if training.features else 0,
    )
    return speed, psutil.Process().memory_info().rss / 1e6


def _random_features(
    model: Classifier, config: TrialConfig, train_images: Tensor, val_images: Tensor, images_key: str, fill: Tensor
) -> Features:
    """In place of those that a backbone computes of all images: a head is as fast on these."""
    assert isinstance(config.model, ResNetConfig)
    head = model.get_submodule("network.head")
    width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    train, val = (torch.randn(len(images), width, device=images.device).half() for images in (train_images, val_images))
    return Features([train] * config.model.feature_views, val, images_per_s=float("nan"))
