"""Workers that train models: groups of ranks that take one training after another from a desk.

The ranks of a group train one model together (DDP): one `TorchTrainer` of Ray Train starts all of them. A group of one
rank is a process of the run that is up already. What comes of a training travels through the desk, in Ray's object
store: workers need not see the driver's disk. One that is stopped leaves nothing behind, since nothing was made for it.
"""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.config import TrialConfig
from cifar_ray.distributed.jobs import Desk, Job, Message, Trained
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.rank import Orders, why_lost, work_alone
from cifar_ray.results.records import Row

MAX_RESTARTS = 20
"""How often the workers of a pool are started anew after one of them was lost."""

CHECKPOINT_EVERY_S = 5.0
"""Least seconds between two checkpoints of a training."""

DRIVER = "driver"
"""The mailbox of all final trainings."""


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
    kept: tuple[tuple[int, str], ...] = ()
    """Patiences that do not end it, and what the model that each of them would have left is called: a config name."""
    split: int = 0
    """Which of the data it is trained on, see `process.TrialSettings`."""

    @property
    def name(self) -> str:
        """Name of the model and of its folder, such as `trial-0012-seed2`."""
        return f"{self.config_name}-seed{self.seed_index}"

    @property
    def kept_models(self) -> "dict[int, FinalModel]":
        """The models that come of the same training, by patience."""
        return {patience: replace(self, config_name=name, kept=()) for patience, name in self.kept}


@dataclass
class Pool:
    """Workers that take trainings from a desk."""

    desk: Any
    """The actor of a :class:`jobs.Desk`."""
    num_groups: int
    workers_per_model: int = 1
    """In each group."""
    error: BaseException | None = None
    """Why there are no workers any more."""

    def check(self) -> None:
        """Raise the error that ended the workers, if one did."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def open_pool(settings: TrialSettings, processes: Processes, storage: Path, judged: bool) -> Iterator[Pool]:
    """Let workers take trainings for the length of a block; when it has been left in peace, they are free again.

    Args:
        settings: shared by all trainings.
        processes: of the run; where several workers train a model, they make room for Ray Train's.
        storage: a folder for Ray Train's own files, of no use afterwards.
        judged: see :class:`jobs.Desk`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(judged)
    workers = processes.workers
    pool = Pool(desk, workers.num_groups, workers.workers_per_model)
    orders = Orders(settings, desk, judged, CHECKPOINT_EVERY_S, time.time())
    work: Callable[[], object]
    if workers.workers_per_model == 1:
        work = partial(_work_in, processes, orders)
    else:
        from cifar_ray.distributed.ddp import make_trainer  # Ray Train takes seconds of a start that does without it

        processes.release()
        work = make_trainer(orders, workers, storage, MAX_RESTARTS).fit

    def run() -> None:
        reason = "the workers ended early"
        try:
            work()
        except BaseException as error:  # handed to the caller's thread
            pool.error = error
            reason = f"the workers were given up: {' '.join(str(error).split()):.300}"
        finally:
            if ray.is_initialized():  # else the run was interrupted, and Ray would start anew for this call
                with contextlib.suppress(RayError):
                    ray.get(desk.give_up.remote(reason))

    # In a thread of its own, since it blocks, and fit() would take over Ctrl-C in the main one.
    thread = threading.Thread(target=run, name="workers", daemon=True)
    thread.start()
    try:
        yield pool
    except BaseException:
        desk.close.remote(stop=True)  # not waited for: whoever was interrupted has no time
        raise
    ray.get(desk.close.remote(stop=True))  # whatever may be left, nobody is there to hear of it
    while thread.is_alive():
        thread.join(0.2)
    ray.kill(desk)


def _work_in(processes: Processes, orders: Orders) -> None:
    """Let each process train as a group of its own, until the desk has no more; start those anew that are lost."""
    processes.start()
    num_restarts = 0
    at_work = {processes.call(group, work_alone, orders, group): group for group in range(processes.workers.num_groups)}
    while at_work:
        (ref,), _ = ray.wait(list(at_work))
        group = at_work.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            if num_restarts == MAX_RESTARTS:
                raise
            num_restarts += 1
            cause = error.cause if isinstance(error, RayTaskError) else error
            ray.get(orders.desk.lose.remote({group: why_lost(cause)}))
            processes.replace(group)
            at_work[processes.call(group, work_alone, orders, group)] = group


def train_models(
    models: list[FinalModel],
    settings: TrialSettings,
    processes: Processes,
    storage: Path,
    on_message: Callable[[FinalModel, Message], None],
    resume: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Train every model to the end, and hand over each epoch, each checkpoint and each result as it comes.

    Args:
        models: to train; the first ones are begun first.
        settings: shared by all of them.
        processes: see :func:`open_pool`.
        storage: a folder for Ray Train's own files, of no use afterwards.
        on_message: called in this thread.
        resume: checkpoints of an earlier session, by model name.

    Raises:
        Exception: the workers were lost again and again; that of the last time.
    """
    by_name = {model.name: model for model in models}
    with open_pool(settings, processes, storage, judged=False) as pool:
        for name, model in by_name.items():
            patiences = tuple(model.kept_models)
            job = Job(name, model.config, model.training_seed, resume.get(name), patiences, model.split)
            ray.get(pool.desk.submit.remote(job, DRIVER))
        missing = len(by_name)
        while missing:
            message = ray.get(pool.desk.next_message.remote(DRIVER))
            if isinstance(message, Trained):
                if message.failure:
                    pool.check()  # not this training failed, but all of them
                missing -= 1
            on_message(by_name[message.key], message)


def unpack_history(packed: bytes) -> list[Row] | None:
    """Return the rows of the epochs that a checkpoint holds; None where it cannot be read."""
    try:
        history = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)["history"]
        return history if history and all(row["epoch"] for row in history) else None
    except Exception:  # torch raises whatever the damage leads to
        return None
