"""A Tune trial: the training loop in a process that many trials use one after the other."""

import gc
import os
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray import tune

from cifar_ray.config import TrialConfig, trial_config
from cifar_ray.loop import DeviceData, NonFiniteLossError, Row, eval_model, run_experiment, train_epoch
from cifar_ray.models import build_model
from cifar_ray.optim import LRSchedule, make_optimizer

ROW = "row"
"""Key of the row in what a trial reports."""


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a search share."""

    data: list["ray.ObjectRef[dict[str, np.ndarray]]"]
    """One reference to the arrays of `DeviceData.from_arrays`; in a list, so that Ray passes it on as it is."""
    num_classes: int
    max_epochs: int
    patience: int
    metric: str
    """What best weights are chosen by, and what is told to ASHA and Optuna."""
    num_threads: int
    """CPU threads of a trial."""


class _Clock:
    """Seconds of this process's slot by kind; `wait` is what nobody else accounts for."""

    def __init__(self) -> None:
        self.slot_free_since: float | None = None

    def start(self) -> None:
        self.seconds = {"startup": 0.0, "data": 0.0, "capture": 0.0, "train": 0.0, "eval": 0.0, "wait": 0.0}
        if self.slot_free_since is None:
            self.slot_free_since = psutil.Process().create_time()
            self.seconds["startup"] = time.time() - self.slot_free_since
        self.began = self.slot_free_since

    def read(self) -> dict[str, float]:
        """Return the seconds since the slot became free; the trial may be stopped right after."""
        self.slot_free_since = time.time()
        counted = sum(value for kind, value in self.seconds.items() if kind != "wait")
        self.seconds["wait"] = self.slot_free_since - self.began - counted
        return dict(self.seconds)


_clock = _Clock()
_device_data: dict[str, DeviceData] = {}  # at most one data set: a process serves one search


def train_trial(config: dict[str, Any], settings: TrialSettings) -> None:
    """Train one configuration under Tune and report every epoch.

    Args:
        config: `config` (a nested dict for :func:`trial_config`) and `seed`.
        settings: shared by all trials.
    """
    _clock.start()
    reset_process(config["seed"], settings.num_threads)
    began = time.perf_counter()
    data = load_device_data(settings.data[0], settings.num_classes)
    _clock.seconds["data"] = time.perf_counter() - began

    def report(row: Row) -> None:
        _clock.seconds["train"] += row["train_s"]
        _clock.seconds["eval"] += row["eval_s"]
        send({**row, "seconds": _clock.read()})

    try:
        run_experiment(
            trial_config(config["config"], "trial"),
            data,
            seed=config["seed"],
            max_epochs=settings.max_epochs,
            patience=settings.patience,
            metric=settings.metric,
            report=report,
        )
    except NonFiniteLossError as error:
        send({"failure": str(error), "seconds": _clock.read()})
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = f"out of memory: {error!s:.200}"
        del error
        gc.collect()
        torch.cuda.empty_cache()
        send({"failure": reason, "seconds": _clock.read()})
    except Exception as error:
        # Nobody knows what state this leaves the process in: let Tune replace it, once the reason is on record.
        send({"failure": f"{type(error).__name__}: {error!s:.300}", "seconds": _clock.read()})
        raise


def send(row: Row) -> None:
    """Report a row to the driver; the values that ASHA reads stand beside it, if it has them."""
    known: Row = {name: row[name] for name in ("epoch", "best_val_metric") if name in row}
    tune.report({**known, ROW: [row]})  # in a list, since Tune flattens nested dicts


def reset_process(seed: int, num_threads: int) -> None:
    """Bring a reused process into the state of a fresh one, as far as a training can see it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.set_grad_enabled(True)
    if "TUNE_ORIG_WORKING_DIR" in os.environ:
        os.chdir(os.environ["TUNE_ORIG_WORKING_DIR"])


def trial_device() -> torch.device:
    """The device that Ray gave to this process."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def load_device_data(ref: "ray.ObjectRef[dict[str, np.ndarray]]", num_classes: int) -> DeviceData:
    """Return the data of `ref` on this process's device, uploaded once a process."""
    key = ref.hex()
    if key not in _device_data:
        _device_data.clear()
        _device_data[key] = DeviceData.from_arrays(ray.get(ref), num_classes, trial_device())
    return _device_data[key]


def measure_speed(config: TrialConfig, settings: TrialSettings, seconds: float = 0.5) -> dict[str, float]:
    """Time `config` in a trial process for some `seconds`.

    Returns:
        `train_images_per_s`, `eval_images_per_s`, and `memory_mb`, what the process holds in memory afterwards.
    """
    reset_process(0, settings.num_threads)
    data = load_device_data(settings.data[0], settings.num_classes)
    num_train, channels, _, image_size = data.train_images.shape
    model = build_model(config, num_classes=data.num_classes, channels=channels, image_size=image_size)
    model = model.to(data.train_images.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config.optimizer, model)
    lr_schedule = LRSchedule(config.lr_schedule, optimizer, 10**6)
    order = torch.randperm(num_train)[: 2 * config.batch_size].to(data.train_images.device)

    def images_per_s(work: Any, num_images: int) -> float:
        work()  # warm-up: the first batch allocates and chooses kernels
        done, began = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - began < seconds:
            work()
            done += num_images
        return done / (time.perf_counter() - began)

    def train() -> None:
        train_epoch(model, data, optimizer, lr_schedule, config, order).tolist()

    def evaluate() -> None:
        eval_model(model, data.val_images[:500]).sum().item()

    num_trained = len(order) // min(config.batch_size, len(order)) * min(config.batch_size, len(order))
    return {
        "train_images_per_s": images_per_s(train, num_trained),
        "eval_images_per_s": images_per_s(evaluate, min(500, len(data.val_images))),
        "memory_mb": psutil.Process().memory_info().rss / 1e6,
    }
