"""Final training with Ray Train: one `TorchTrainer` whose groups of ranks walk a list of models side by side.

The ranks of a group train one model together (DDP). What a group finishes travels to the driver through a queue in
Ray's object store: workers need not see the driver's disk.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Queue

from cifar_ray.checkpoint import pack_weights
from cifar_ray.config import TrialConfig
from cifar_ray.loop import DeviceData, NonFiniteLossError, Ranks, Row, eval_model, run_experiment
from cifar_ray.metrics import loss_and_accuracy
from cifar_ray.models import count_params

STUCK_S = 1800
"""Seconds after which a rank that waits for another one gives up."""


@dataclass(frozen=True)
class FinalModel:
    """One model to train to the full horizon."""

    config_name: str
    """Name of its configuration, such as `default` or `trial-0012`."""
    number: int | None
    """Number of the trial that drew it, if one did."""
    seed_index: int
    training_seed: int
    config: TrialConfig

    @property
    def name(self) -> str:
        """Name of the model and of its folder, such as `trial-0012-seed2`."""
        return f"{self.config_name}-seed{self.seed_index}"


@dataclass
class Trained:
    """What a group of ranks hands over; `failure` says why there is no model."""

    model: FinalModel
    weights: bytes = b""
    history: list[Row] | None = None
    best: Row | None = None
    train_accuracy: float | None = None
    """Of the best weights, on the training images without augmentation."""
    num_params: int | None = None
    seconds: float = 0.0
    failure: str | None = None


@dataclass(frozen=True)
class Epoch:
    """An epoch of a model under way."""

    model: FinalModel
    row: Row


@dataclass(frozen=True)
class Workers:
    """How many processes train, in groups of how many, and what each of them holds."""

    num_workers: int
    workers_per_model: int
    resources: dict[str, float]
    """Of one worker, by Ray's names."""

    @property
    def num_groups(self) -> int:
        return self.num_workers // self.workers_per_model


def train_models(
    models: list[FinalModel],
    data: "ray.ObjectRef[dict[str, np.ndarray]]",
    num_classes: int,
    max_epochs: int,
    metric: str,
    workers: Workers,
    storage: Path,
    on_message: Callable[[Trained | Epoch], None],
) -> None:
    """Train every model to `max_epochs` and hand over each epoch and each result as it comes.

    Args:
        models: in an order that shares the work well: group g of G takes models g, g + G, ...
        data: reference to the arrays of `DeviceData.from_arrays`.
        num_classes: of the data.
        max_epochs: horizon of each training.
        metric: that best weights are chosen by, see `loop.run_experiment`.
        workers: processes and their resources.
        storage: a folder for Ray Train's own files, of no use afterwards.
        on_message: called in this thread.

    Raises:
        ray.train.TrainingFailedError: a worker died or raised an error.
    """
    messages = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _train_models_of_a_group,
        train_loop_config={
            "models": models,
            "data": [data],
            "num_classes": num_classes,
            "max_epochs": max_epochs,
            "metric": metric,
            "workers": workers,
            "messages": messages,
        },
        torch_config=TorchConfig(timeout_s=STUCK_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.resources.get("GPU", 0) > 0,
            resources_per_worker={name: n for name, n in workers.resources.items() if n},
        ),
        run_config=ray.train.RunConfig(
            name="finals",
            storage_path=str(storage),
            # -1, the default, would try again for ever and in silence. (mypy sees the class of Ray Train's version 1.)
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),  # type: ignore[call-arg]
        ),
    )
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)

    # In a thread of its own, since fit() blocks and would take over Ctrl-C in the main one.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    try:
        while True:
            running = thread.is_alive()
            try:
                on_message(messages.get(timeout=0.5 if running else 0.01))
            except queue.Empty:
                if not running:
                    break
        if errors:
            raise errors[0]
    finally:
        messages.shutdown()


def _train_models_of_a_group(settings: dict[str, Any]) -> None:
    """Run on every rank: train this group's share of the models."""
    context = ray.train.get_context()
    workers: Workers = settings["workers"]
    torch.set_num_threads(max(1, int(workers.resources.get("CPU", 1))))
    group_index, rank = divmod(context.get_world_rank(), workers.workers_per_model)
    ranks = Ranks(rank, workers.workers_per_model, _own_process_group(workers, group_index))
    data = DeviceData.from_arrays(ray.get(settings["data"][0]), settings["num_classes"], get_device())
    for model in settings["models"][group_index :: workers.num_groups]:
        trained = _train_model(model, data, settings, ranks)
        if rank == 0:
            settings["messages"].put(trained)
    ray.train.report({})  # every rank has to report at least once


def _own_process_group(workers: Workers, group_index: int) -> Any:
    if workers.workers_per_model == 1:
        return None
    size = workers.workers_per_model
    # Every rank has to take part in making every group.
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, workers.num_workers, size)]
    return groups[group_index]


def _train_model(model: FinalModel, data: DeviceData, settings: dict[str, Any], ranks: Ranks) -> Trained:
    def report(row: Row) -> None:
        if ranks.rank == 0:
            settings["messages"].put(Epoch(model, row))

    began = time.perf_counter()
    try:
        outcome = run_experiment(
            model.config,
            data,
            seed=model.training_seed,
            max_epochs=settings["max_epochs"],
            metric=settings["metric"],
            report=report,
            ranks=ranks,
        )
    except NonFiniteLossError as error:
        return Trained(model, failure=str(error))
    _, train_accuracy = loss_and_accuracy(eval_model(outcome.model, data.train_images, ranks), data.train_labels)
    return Trained(
        model,
        weights=pack_weights(outcome.model),
        history=outcome.history,
        best=outcome.best,
        train_accuracy=train_accuracy,
        num_params=count_params(outcome.model),
        seconds=time.perf_counter() - began,
    )
