"""How fast a configuration trains here, and in which precision: timed on every slot at once before a run begins."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor, nn

from cifar_ray.cli.console import Console
from cifar_ray.config import Precision, ResNetConfig, TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights
from cifar_ray.driver.estimate import Speed
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier, has_bf16
from cifar_ray.training.features import Features
from cifar_ray.training.loop import Training, eval_model

MIN_SPEEDUP = 1.15
"""How many times as fast bf16 has to be for `--precision auto` to choose it."""

ROUNDS_OF_EACH = 2
"""Both precisions take turns so often, so that what else the machine does meets them alike."""


def settle_precision(
    run: Run[Any], console: Console, workers: Workers, config: TrialConfig, shared: TrialSettings
) -> Precision:
    """Choose what the models of a run compute in, once; a run that is taken up again goes on with that.

    Args:
        run: is told, for its run.json.
        console: is told.
        workers: where the models will train.
        config: what both are tried with.
        shared: what it is trained on.

    Raises:
        InputError: `--precision bf16`, and not every worker has it; or the configuration cannot be trained.
    """
    asked = run.settings.precision or "auto"
    if "precision" not in run.about:
        used, why = "fp32", "as asked"
        if run.resumed:  # begun by an older version
            used, why = ("bf16" if workers.device == "cuda" else "fp32"), "as it was begun"
        elif asked != "fp32":
            used, why = _bf16_or_not(asked, workers, config, shared)
        run.about["precision"] = {"used": used, "why": why}
    chosen = run.about["precision"]
    console.line(f"precision   {chosen['used']}: {chosen['why']}")
    used = chosen["used"]
    return used


def _bf16_or_not(asked: str, workers: Workers, config: TrialConfig, shared: TrialSettings) -> tuple[str, str]:
    what = {"cpu": "processor", "cuda": "GPU"}[workers.device]
    speedups = _on_all_workers(workers, _bf16_speedup, config, shared)
    if None in speedups:
        if asked == "bf16":
            raise InputError(f"--precision bf16: this {what} does not compute in it; give --precision fp32 or auto")
        return "fp32", f"this {what} does not compute in bfloat16"
    if asked == "bf16":
        return "bf16", "as asked"
    speedup = statistics.fmean(speedups)
    used = "bf16" if speedup >= MIN_SPEEDUP else "fp32"
    return used, f"bf16 trains {speedup:.2f} times as fast as fp32 here"


def _bf16_speedup(config: TrialConfig, settings: TrialSettings) -> float | None:
    """How many times as fast as in fp32 it trains in bf16 in this process; None where that is not computed in."""
    if not has_bf16("cuda" if ray.get_gpu_ids() else "cpu"):
        return None
    trained = {}
    for precision in ("fp32", "bf16"):
        training = _training(replace(config, precision=precision), settings)
        trained[precision] = partial(_train_batches, training)
    speeds = {"fp32": 0.0, "bf16": 0.0}
    for _ in range(ROUNDS_OF_EACH):
        for precision, train in trained.items():
            speeds[precision] += _images_per_s(train, 0.5 / ROUNDS_OF_EACH)
    return speeds["bf16"] / speeds["fp32"]


def _on_all_workers(workers: Workers, measure: Callable[..., Any], config: TrialConfig, shared: TrialSettings) -> Any:
    """Call `measure` on all workers at once; raises InputError where the configuration cannot be trained."""
    task = ray.remote(num_cpus=workers.resources["CPU"], num_gpus=workers.resources["GPU"])(measure)
    try:
        return ray.get([task.remote(config, shared) for _ in range(workers.num_workers)])
    except RayTaskError as error:
        cause = " ".join(str(error.cause).split())
        raise InputError(f"this configuration cannot be trained here: {cause:.200} ({config})") from error


def measure_speeds(workers: Workers, config: TrialConfig, shared: TrialSettings) -> tuple[Speed, float]:
    """Time a configuration on all workers at once; return the speed of a trial, and the memory of a process in MB.

    Raises:
        InputError: it cannot be trained on this data.
    """
    measured = _on_all_workers(workers, measure_speed, config, shared)
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
    training = _training(config, settings)
    model = training.model
    images = training.data.val_images[: model.eval_batch_size]
    # A head is validated on so many features in no time.
    val_inputs = images if training.part is model else training.val_inputs
    speed = Speed(
        train=_images_per_s(partial(_train_batches, training), seconds),
        val=_images_per_s(partial(_eval, training.part, val_inputs), seconds),
        test=_images_per_s(partial(_eval, model, images), seconds),
        feature_views=len(training.features.train) if training.features else 0,
    )
    return speed, psutil.Process().memory_info().rss / 1e6


def _training(config: TrialConfig, settings: TrialSettings) -> Training:
    """A training with a horizon that it stays at the beginning of."""
    PROCESS.reset(0, settings.num_threads)
    data = PROCESS.load_data(settings.data[0], settings.num_classes)
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
    assert isinstance(config.model, ResNetConfig)
    head = model.get_submodule("network.head")
    width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    train, val = (torch.randn(len(images), width, device=images.device).half() for images in (train_images, val_images))
    return Features([train] * config.model.feature_views, val, images_per_s=float("nan"))
