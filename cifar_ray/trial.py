"""A Tune trial: the training loop in a process that many trials use one after the other."""

import gc
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray import tune
from torch import nn

from cifar_ray.config import ResNetConfig, TrialConfig, trial_config
from cifar_ray.desk import Checkpoint, Epoch, Job
from cifar_ray.estimate import Speed
from cifar_ray.loop import DeviceData, NonFiniteLossError, Row, eval_model, run_experiment, train_epoch
from cifar_ray.models import build_model
from cifar_ray.optim import LRSchedule, make_optimizer
from cifar_ray.pretrained import Pretrained, get_weights
from cifar_ray.results import TRIAL_SECONDS

ROWS = "rows"
"""Key of the rows in what a trial reports."""


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a search share."""

    data: list["ray.ObjectRef[dict[str, np.ndarray]]"]
    """One reference to the arrays of `DeviceData.from_arrays`; in a list, so that Ray passes it on as it is."""
    num_classes: int
    max_epochs: int
    patience: int | None
    """See `loop.run_experiment`; None is none."""
    metric: str
    """What best weights are chosen by, and what is told to ASHA and Optuna."""
    num_threads: int
    """CPU threads of a trial."""
    pretrained: Pretrained = field(default_factory=dict)
    """What backbones start from."""


class _Clock:
    """Seconds of this process's slot by kind (`results.TRIAL_SECONDS`); `wait` is what no other kind accounts for."""

    def __init__(self) -> None:
        self.slot_free_since: float | None = None

    def start(self, search_began: float) -> None:
        """A trial begins, of a search that began at that time (seconds since the epoch)."""
        self.seconds = dict.fromkeys(TRIAL_SECONDS, 0.0)
        if self.slot_free_since is None:
            # Ray may have had the process ready before.
            self.slot_free_since = max(psutil.Process().create_time(), search_began)
            self.seconds["startup"] = time.time() - self.slot_free_since
        self.began = self.slot_free_since

    def count(self, row: Row) -> None:
        """Count an epoch, and what led to it."""
        for kind in ("setup", "train", "eval", "checkpoint"):
            self.seconds[kind] += row[f"{kind}_s"]
        self.seconds["data"] += row["features"]["seconds"] if "features" in row else 0.0

    def read(self) -> dict[str, float]:
        """Return the seconds since the slot became free; the trial may be stopped right after."""
        self.slot_free_since = time.time()
        counted = sum(value for kind, value in self.seconds.items() if kind != "wait")
        self.seconds["wait"] = self.slot_free_since - self.began - counted
        return dict(self.seconds)


_clock = _Clock()
_device_data: dict[str, DeviceData] = {}  # at most one data set: a process serves one search


REDUCTION_FACTOR = 3
"""ASHA lets one in so many trials go on at each rung."""

REPORT_EVERY_S = 1.0
"""Epochs wait at most about so long to be reported, since a report takes as long as an epoch of a small network."""


def grace_period(max_epochs: int) -> int:
    """Epochs before ASHA may stop a trial: a fifth of the horizon, rounded up.

    With a tenth, recipes that warm up slowly were stopped whatever they would have become: `benchmarks/README.md`.
    """
    return -(-max_epochs // 5)


def rungs(max_epochs: int) -> list[int]:
    """Epochs after which ASHA decides whether a trial goes on."""
    found = [grace_period(max_epochs)]
    while found[-1] * REDUCTION_FACTOR < max_epochs:
        found.append(found[-1] * REDUCTION_FACTOR)
    return found


def train_trial(config: dict[str, Any], settings: TrialSettings, search_began: float) -> None:
    """Train one configuration under Tune and report its epochs: at every rung, at the end, and once a second.

    The first report, which has none, lets Tune end a trial that was drawn before the time was up, and begins after it.

    Args:
        config: `config` (a nested dict for :func:`trial_config`) and `seed`.
        settings: shared by all trials.
        search_began: seconds since the epoch.
    """
    reset_process(config["seed"], settings.num_threads)
    _clock.start(search_began)  # after the imports of the first reset, which belong to the start-up
    send([])
    began = time.perf_counter()
    data = load_device_data(settings.data[0], settings.num_classes)
    _clock.seconds["data"] = time.perf_counter() - began

    unsent: list[Row] = []
    sent_at = time.monotonic()
    decisive = rungs(settings.max_epochs)

    def report(row: Row) -> None:
        nonlocal sent_at
        _clock.count(row)
        unsent.append({**row, "seconds": _clock.read()})
        if row["finished"] or row["epoch"] in decisive or time.monotonic() - sent_at >= REPORT_EVERY_S:
            send(unsent)
            unsent.clear()
            sent_at = time.monotonic()

    def fail(reason: str) -> None:
        send([*unsent, {"failure": reason, "seconds": _clock.read()}])

    trial = trial_config(config["config"], "trial")
    try:
        run_experiment(
            trial,
            data,
            seed=config["seed"],
            max_epochs=settings.max_epochs,
            patience=settings.patience,
            metric=settings.metric,
            pretrained=get_weights(settings.pretrained, trial),
            report=report,
        )
    except NonFiniteLossError as error:
        fail(str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = f"out of memory: {error!s:.200}"
        del error
        gc.collect()
        torch.cuda.empty_cache()
        fail(reason)
    except Exception as error:
        # Nobody knows what state this leaves the process in: let Tune replace it, once the reason is on record.
        fail(f"{type(error).__name__}: {error!s:.300}")
        raise


def relay_trial(config: dict[str, Any], desk: Any, search_began: float) -> None:
    """Let the workers of a pool train one configuration, and report every epoch under Tune.

    Args:
        config: `config` and `seed` as for :func:`train_trial`, the `number` of the trial, and perhaps `resume`, a
            reference (in a list) to a checkpoint of it.
        desk: the actor of the pool's :class:`desk.Desk`.
        search_began: seconds since the epoch.
    """
    _clock.start(search_began)
    send([])
    key = str(config["number"])
    resume = ray.get(config["resume"][0]) if "resume" in config else None
    try:
        ray.get(desk.submit.remote(Job(key, trial_config(config["config"], "trial"), config["seed"], resume)))
        while True:
            message = ray.get(desk.next_message.remote(key))
            if isinstance(message, Checkpoint):
                send([{"checkpoint": message.packed, "seconds": _clock.read()}])
            elif isinstance(message, Epoch):
                _clock.count(message.row)
                send([{**message.row, "seconds": _clock.read()}])
                if message.row["finished"]:
                    return
                # Tune has decided by now: a trial that it stops does not come back from `send`.
                ray.get(desk.judge.remote(key, message.row["epoch"]))
            else:
                send([{"failure": message.failure, "seconds": _clock.read()}])
                return
    finally:
        desk.drop.remote(key)


def send(rows: Sequence[Row]) -> None:
    """Report rows to the driver; the values that ASHA reads stand beside them, if the last one has them."""
    began = time.time()
    last = rows[-1] if rows else {}
    known: Row = {name: last[name] for name in ("epoch", "best_val_metric") if name in last}
    tune.report({**known, ROWS: list(rows)})
    _clock.seconds["scheduler"] += time.time() - began  # of a trial that goes on: what stops one is raised above


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
