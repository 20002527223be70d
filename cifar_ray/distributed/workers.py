"""Workers that train models: one `TorchTrainer` whose groups of ranks take one training after another from a desk.

The ranks of a group train one model together (DDP). What comes of it travels through the desk, in Ray's object store:
workers need not see the driver's disk. A training that is stopped leaves nothing behind, since nothing was made for it.
"""

import contextlib
import gc
import io
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.config import TrialConfig
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.jobs import DIED, Checkpoint, Desk, Job, Kept, Message, Trained
from cifar_ray.distributed.process import PROCESS, TrialSettings, get_weights
from cifar_ray.distributed.ray_internals import is_lost_worker
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import count_params
from cifar_ray.models.saved import pack_weights
from cifar_ray.results.records import Row
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import NonFiniteLossError, Outcome, Ranks, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy

STUCK_S = 1800
"""Seconds after which a rank that waits for another one gives up."""

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
    error: BaseException | None = None
    """Why there are no workers any more."""

    def check(self) -> None:
        """Raise the error that ended the workers, if one did."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def open_pool(settings: TrialSettings, workers: Workers, storage: Path, judged: bool) -> Iterator[Pool]:
    """Start workers, and end them with the block; when it has been left in peace, all they held is free again.

    Args:
        settings: shared by all trainings.
        workers: how many and what each of them holds.
        storage: a folder for Ray Train's own files, of no use afterwards.
        judged: see :class:`jobs.Desk`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(judged)
    pool = Pool(desk, workers.num_groups)
    trainer = TorchTrainer(
        _train_as_rank,
        train_loop_config={
            "settings": settings,
            "workers": workers,
            "desk": desk,
            "judged": judged,
            "checkpoint_every_s": CHECKPOINT_EVERY_S,
        },
        torch_config=_NoRendezvous(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_groups * workers.workers_per_model,
            use_gpu=workers.resources.get("GPU", 0) > 0,
            resources_per_worker={name: n for name, n in workers.resources.items() if n},
        ),
        # (mypy sees the classes of Ray Train's version 1.)
        run_config=ray.train.RunConfig(
            name="search" if judged else "finals",
            storage_path=str(storage),
            # -1, the default, would try again for ever and in silence.
            failure_config=FailureConfig(max_failures=MAX_RESTARTS, controller_failure_limit=3),  # type: ignore[call-arg]
            callbacks=[_TellTheDesk(desk, workers.workers_per_model)],  # type: ignore[list-item]
        ),
    )

    def fit() -> None:
        reason = "the workers ended early"
        try:
            trainer.fit()
        except BaseException as error:  # handed to the caller's thread
            pool.error = error
            reason = f"the workers were given up: {' '.join(str(error).split()):.300}"
        finally:
            with contextlib.suppress(RayError):
                ray.get(desk.give_up.remote(reason))

    # In a thread of its own, since fit() blocks and would take over Ctrl-C in the main one.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
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


class _NoRendezvous(TorchConfig):
    """Leaves it to the ranks to find each other.

    Ray Train would make one process group of them all, also where each one trains alone, and its store listens on every
    interface and takes what anybody writes.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _NoBackend


class _NoBackend(Backend):
    share_cuda_visible_devices = True  # as Ray Train's own for torch


class _TellTheDesk(ray.train.UserCallback):
    """Tells the desk which groups lost a worker, from the process that starts the next ones."""

    def __init__(self, desk: Any, workers_per_model: int) -> None:
        self.desk = desk
        self.workers_per_model = workers_per_model

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        groups: dict[int, tuple[str, bool]] = {}
        for rank, error in sorted(worker_exceptions.items()):
            group = rank // self.workers_per_model
            reason = _reason(error)
            # What the others of a group say when one dies tells nothing.
            if group not in groups or groups[group][0] == DIED:
                # Another try would need as much memory.
                groups[group] = reason, not reason.startswith("out of memory")
        self.desk.lose.remote(groups)


def _reason(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"out of memory: {error!s:.200}"
    lost_peer = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    if lost_peer or is_lost_worker(error) or isinstance(error, RayError):
        return DIED
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def train_models(
    models: list[FinalModel],
    settings: TrialSettings,
    workers: Workers,
    storage: Path,
    on_message: Callable[[FinalModel, Message], None],
    resume: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Train every model to the end, and hand over each epoch, each checkpoint and each result as it comes.

    Args:
        models: to train; the first ones are begun first.
        settings: shared by all of them.
        workers: processes and their resources.
        storage: a folder for Ray Train's own files, of no use afterwards.
        on_message: called in this thread.
        resume: checkpoints of an earlier session, by model name.

    Raises:
        ray.train.TrainingFailedError: the workers were lost again and again.
    """
    by_name = {model.name: model for model in models}
    with open_pool(settings, workers, storage, judged=False) as pool:
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


class _StoppedError(Exception):
    """The desk wants no more of a training."""


def _train_as_rank(settings: dict[str, Any]) -> None:
    """Run on every rank: train what the desk has for this rank's group, until there is no more."""
    workers: Workers = settings["workers"]
    shared: TrialSettings = settings["settings"]
    desk = settings["desk"]
    world_rank = ray.train.get_context().get_world_rank()
    group_index, rank = divmod(world_rank, workers.workers_per_model)
    generation = broadcast_from_rank_zero(ray.get(desk.begin.remote()) if world_rank == 0 else None)
    ranks = Ranks(rank, workers.workers_per_model)
    if ranks.world_size > 1:
        _join_group(ranks, group_index)
    torch.set_num_threads(shared.num_threads)
    splits: dict[int, DeviceData] = {}  # one at most
    for number in itertools.count():
        job: Job | None = ray.get(desk.next_job.remote(generation, group_index, number))
        if job is None:
            break
        PROCESS.reset(job.seed, shared.num_threads)
        if job.split not in splits:
            splits.clear()  # what it held is free before more is uploaded
            splits[job.split] = DeviceData.from_arrays(
                ray.get(shared.data[job.split]), shared.num_classes, get_device()
            )
        trained = _train(job, splits[job.split], settings, generation, ranks)
        if rank == 0 and trained is not None:
            ray.get(desk.post.remote(generation, trained))
        del trained
        gc.collect()  # a model under DDP is part of a cycle, and would stay in the device's memory
    ray.train.report({})  # every rank has to report at least once, and all wait for each other here
    if dist.is_initialized():
        dist.destroy_process_group()


def _join_group(ranks: Ranks, group_index: int) -> None:
    """Make the process group of the ranks that train a model together."""
    # The first rank of all groups keeps the store through which all of them find each other.
    store = _open_store() if ray.train.get_context().get_world_rank() == 0 else None
    host, port = broadcast_from_rank_zero(store and (store.host, store.port))
    store = store or dist.TCPStore(host, port, is_master=False)
    dist.init_process_group(
        "nccl" if get_device().type == "cuda" else "gloo",
        store=dist.PrefixStore(f"group {group_index}", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=STUCK_S),
    )


def _open_store() -> dist.TCPStore:
    host = ray.util.get_node_ip_address()
    if not ip_address(host).is_loopback:
        return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    # In a private session. torch itself would listen on every interface.
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _train(job: Job, data: DeviceData, settings: dict[str, Any], generation: int, ranks: Ranks) -> Trained | None:
    """Train one model; None where nothing is to be handed over. What goes wrong on this rank alone is raised."""
    shared: TrialSettings = settings["settings"]
    desk = settings["desk"]
    began = packed_at = time.perf_counter()

    def report(row: Row) -> None:
        if not ray.get(desk.report.remote(generation, job.key, row["epoch"], row if ranks.rank == 0 else None)):
            raise _StoppedError

    def checkpoint(row: Row, pack: Callable[[], bytes]) -> None:
        nonlocal packed_at
        if ranks.rank == 0 and time.perf_counter() - packed_at >= settings["checkpoint_every_s"]:
            ray.get(desk.post.remote(generation, Checkpoint(job.key, pack())))
            packed_at = time.perf_counter()

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
    except _StoppedError:
        return None
    except (NonFiniteLossError, InputError) as error:  # raised on every rank alike
        return Trained(job.key, failure=str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        if ranks.world_size > 1:
            raise  # the other ranks may be waiting for this one
        return Trained(job.key, failure=_reason(error))
    if settings["judged"]:
        return None
    trained = Trained(
        job.key,
        weights=pack_weights(outcome.model),
        history=outcome.history,
        best=outcome.best,
        train_accuracy=_train_accuracy(outcome, data, ranks),
        num_params=count_params(outcome.model),
        seconds=time.perf_counter() - began,
    )
    for patience, stopped in outcome.stopped.items():
        outcome.part.load_state_dict(stopped.weights)
        accuracy = _train_accuracy(outcome, data, ranks)
        trained.kept[patience] = Kept(pack_weights(outcome.model), stopped.epoch, stopped.best, accuracy)
    return trained


def _train_accuracy(outcome: Outcome, data: DeviceData, ranks: Ranks) -> float:
    """Of the weights that the model has, on the training images without augmentation."""
    return loss_and_accuracy(eval_model(outcome.part, outcome.train_inputs, ranks), data.train_labels)[1]
