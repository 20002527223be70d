"""What a worker does: it takes one training after another from the desk, alone or as one of several ranks."""

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError

from cifar_ray.distributed.jobs import DIED, Checkpoint, Job, Kept, Seat, Trained
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights, granted_device
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import count_params
from cifar_ray.models.saved import pack_weights
from cifar_ray.results.records import TRIAL_SECONDS, Row
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import NonFiniteLossError, Outcome, Ranks, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy

REPORT_EVERY_S = 1.0
"""Epochs of a worker that trains alone wait at most about so long to be reported, unless they are decisive.

A report takes as long as an epoch of a small network.
"""


CHEAP_S = 0.25
"""Checkpoints that take longer are made less often in proportion, so that they take a twentieth of the time at most."""


@dataclass(frozen=True)
class Orders:
    """What all workers of a pool are told."""

    settings: TrialSettings
    desk: Any
    """The actor of a :class:`jobs.Desk`."""
    judged: bool
    """See :class:`jobs.Desk`."""
    checkpoint_every_s: float
    """Least seconds between two checkpoints of a training."""
    began_s: float
    """When the pool was opened, in seconds since the epoch."""


def work_alone(orders: Orders, group: int) -> None:
    """Train as a group of one rank, until the desk has no more."""
    generation = ray.get(orders.desk.begin.remote([group]))
    work(orders, Seat(group, generation), Ranks(), granted_device())


def work(orders: Orders, seat: Seat, ranks: Ranks, device: torch.device) -> None:
    """Train what the desk has for this rank's group, until there is no more.

    Raises:
        Exception: whatever goes wrong on this rank alone, or makes its process one that nobody should trust.
    """
    shared, clock = orders.settings, SlotClock(orders.began_s)
    for number in itertools.count():
        job: Job | None = ray.get(orders.desk.next_job.remote(seat, number))
        if job is None:
            return
        clock.start()
        PROCESS.reset(job.seed, shared.num_threads)
        with clock.measure("data"):
            data = PROCESS.load_data(shared.data[job.split], shared.num_classes, device)
        try:
            trained = train(job, data, orders, seat, ranks, clock)
        except Exception as error:
            if ranks.world_size == 1:
                failed = Trained(job.key, failure=why_lost(error)[0], seconds=clock.read())
                ray.get(orders.desk.post.remote(seat, failed))
            raise
        if ranks.rank == 0 and trained is not None:
            ray.get(orders.desk.post.remote(seat, replace(trained, seconds=clock.read())))
        del trained
        if ranks.world_size > 1:
            gc.collect()  # a model under DDP is part of a cycle, and would stay in the memory of the device


class SlotClock:
    """Seconds of a worker's slot by kind (`records.TRIAL_SECONDS`); `wait` is what no other kind accounts for."""

    def __init__(self, pool_began_s: float) -> None:
        self.seconds = dict.fromkeys(TRIAL_SECONDS, 0.0)
        """Of the training under way."""
        self._is_first = True
        # A process that takes the place of one that was lost is younger than the pool.
        self._free_since_s = max(psutil.Process().create_time(), pool_began_s)
        """When the last training's end, or the start, left the slot to the next one, in seconds since the epoch."""
        self._began_s = self._free_since_s

    def start(self) -> None:
        """A training begins."""
        self.seconds = dict.fromkeys(TRIAL_SECONDS, 0.0)
        if self._is_first:
            self._is_first = False
            self.seconds["startup"] = time.time() - self._free_since_s
        self._began_s = self._free_since_s

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count a block under `kind`, unless it raises: one that is stopped in there has been counted already."""
        began = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - began

    def count(self, row: Row) -> None:
        """Count an epoch, and what led to it."""
        for kind in ("setup", "train", "eval", "checkpoint"):
            self.seconds[kind] += row[f"{kind}_s"]
        self.seconds["data"] += row["features"]["seconds"] if "features" in row else 0.0

    def read(self) -> dict[str, float]:
        """Return the seconds since the slot became free; the training may be stopped right after."""
        self._free_since_s = time.time()
        counted = sum(value for kind, value in self.seconds.items() if kind != "wait")
        self.seconds["wait"] = self._free_since_s - self._began_s - counted
        return dict(self.seconds)


class _StoppedError(Exception):
    """The desk wants no more of a training."""


class _Reporter:
    """Reports the epochs of one training to the desk.

    Raises:
        _StoppedError: it is not to go on.
    """

    def __init__(self, job: Job, orders: Orders, seat: Seat, ranks: Ranks, clock: SlotClock) -> None:
        self.job = job
        self.orders = orders
        self.seat = seat
        self.ranks = ranks
        self.clock = clock
        self._rows: list[Row] = []
        self._sent_at = time.monotonic()

    def __call__(self, row: Row) -> None:
        self.clock.count(row)
        self._rows.append({**row, "seconds": self.clock.read()})
        decisive = self.orders.judged and (self.job.decisive is None or row["epoch"] in self.job.decisive)
        # Ranks of a group ask after the same epochs: each after all of them.
        due = self.ranks.world_size > 1 or time.monotonic() - self._sent_at >= REPORT_EVERY_S
        if row["finished"] or decisive or due:
            self.send()

    def send(self) -> None:
        """Send the rows that were not sent yet."""
        if not self._rows:
            return
        rows = self._rows if self.ranks.rank == 0 else []
        epoch = self._rows[-1]["epoch"]
        self._rows = []
        with self.clock.measure("scheduler"):  # of one that goes on: one that is stopped has been counted already
            if not ray.get(self.orders.desk.report.remote(self.seat, self.job.key, epoch, rows)):
                raise _StoppedError
        self._sent_at = time.monotonic()


def train(job: Job, data: DeviceData, orders: Orders, seat: Seat, ranks: Ranks, clock: SlotClock) -> Trained | None:
    """Train one model; None where nothing is to be handed over. What goes wrong on this rank alone is raised."""
    shared = orders.settings
    due_at = time.perf_counter() + orders.checkpoint_every_s
    report = _Reporter(job, orders, seat, ranks, clock)

    def checkpoint(row: Row, pack: Callable[[], bytes]) -> None:
        nonlocal due_at
        if ranks.rank == 0 and (began := time.perf_counter()) >= due_at:
            report.send()  # what it goes on from holds no epoch that nobody has heard of
            ray.get(orders.desk.post.remote(seat, Checkpoint(job.key, pack())))
            now = time.perf_counter()
            due_at = now + orders.checkpoint_every_s * max(1.0, (now - began) / CHEAP_S)

    try:
        try:
            outcome = run_experiment(
                replace(shared.experiment(job.config, job.seed), kept_patiences=job.kept_patiences),
                data,
                pretrained=get_weights(shared.pretrained, job.config),
                report=report,
                checkpoint=checkpoint,
                resume=job.resume,
                ranks=ranks,
            )
        except NonFiniteLossError:
            report.send()
            raise
    except _StoppedError:
        return None
    except (NonFiniteLossError, InputError) as error:  # raised on every rank alike
        return Trained(job.key, failure=str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        if ranks.world_size > 1:
            raise  # the other ranks may be waiting for this one
        failure = why_lost(error)[0]
    else:
        return None if orders.judged else _trained(job, outcome, data, ranks)
    gc.collect()
    torch.cuda.empty_cache()
    return Trained(job.key, failure=failure)


def why_lost(error: Exception) -> tuple[str, bool]:
    """Why a training failed or a worker was lost, and whether it is worth another try."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"out of memory: {error!s:.200}", False  # another try would need as much
    lost_peer = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    if lost_peer or isinstance(error, RayError):
        return DIED, True
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}", True


def _trained(job: Job, outcome: Outcome, data: DeviceData, ranks: Ranks) -> Trained:
    trained = Trained(
        job.key,
        weights=pack_weights(outcome.model),
        history=outcome.history,
        best=outcome.best,
        train_accuracy=_train_accuracy(outcome, data, ranks),
        num_params=count_params(outcome.model),
    )
    for patience, stopped in outcome.stopped.items():
        outcome.part.load_state_dict(stopped.weights)
        accuracy = _train_accuracy(outcome, data, ranks)
        trained.kept[patience] = Kept(pack_weights(outcome.model), stopped.epoch, stopped.best, accuracy)
    return trained


def _train_accuracy(outcome: Outcome, data: DeviceData, ranks: Ranks) -> float:
    """Of the weights that the model has, on the training images without augmentation."""
    return loss_and_accuracy(eval_model(outcome.part, outcome.train_inputs, ranks), data.train_labels)[1]
