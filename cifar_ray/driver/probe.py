"""How fast a configuration trains here, timed on every slot at once before a run begins."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import ray
import torch
from ray.exceptions import RayTaskError
from torch import nn

from cifar_ray.config import ResNetConfig, TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings, load_device_data, reset_process
from cifar_ray.driver.estimate import Speed
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import build_model
from cifar_ray.training.loop import eval_model, train_epoch
from cifar_ray.training.optim import LRSchedule, make_optimizer


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
    reset_process(0, settings.num_threads)
    data = load_device_data(settings.data[0], settings.num_classes)
    num_train, channels, _, image_size = data.train_images.shape
    device = data.train_images.device
    model = build_model(config, num_classes=data.num_classes, channels=channels, image_size=image_size)
    model = model.to(device).to(memory_format=torch.channels_last)
    part: nn.Module = model
    val_inputs, features, views = data.val_images[: model.eval_batch_size], None, 0
    if isinstance(config.model, ResNetConfig) and config.model.finetune == "head":
        part, views = model.get_submodule("network.head"), config.model.feature_views
        width = next(layer.in_features for layer in part.modules() if isinstance(layer, nn.Linear))
        features = torch.randn(num_train, width, device=device)
        val_inputs = features[: len(data.val_images)]
    optimizer = make_optimizer(config.optimizer, model)
    lr_schedule = LRSchedule(config.lr_schedule, optimizer, 10**6)
    order = torch.randperm(num_train)[: 2 * config.batch_size].to(device)

    def images_per_s(work: Callable[[], object], num_images: int) -> float:
        work()  # warm-up: the first batch allocates and chooses kernels
        done, began = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - began < seconds:
            work()
            done += num_images
        return done / (time.perf_counter() - began)

    def train() -> None:
        train_epoch(part, data, optimizer, lr_schedule, config, order, features=features).tolist()

    batch_size = min(config.batch_size, len(order))
    images = data.val_images[: model.eval_batch_size]
    speed = Speed(
        train=images_per_s(train, len(order) // batch_size * batch_size),
        val=images_per_s(lambda: eval_model(part, val_inputs).sum().item(), len(val_inputs)),
        test=images_per_s(lambda: eval_model(model, images).sum().item(), len(images)),
        feature_views=views,
    )
    return speed, psutil.Process().memory_info().rss / 1e6
