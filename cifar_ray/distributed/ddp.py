"""Ray Train: groups of ranks that train one model together (DDP), all started by one `TorchTrainer`."""

import socket
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import FailureConfig
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.jobs import DIED, Seat
from cifar_ray.distributed.rank import Orders, why_lost, work
from cifar_ray.distributed.ray_internals import is_lost_worker
from cifar_ray.training.loop import Ranks

STUCK_S = 1800
"""Seconds after which a rank that waits for another one gives up."""


def make_trainer(orders: Orders, workers: Workers, storage: Path, max_restarts: int) -> TorchTrainer:
    """The trainer whose ranks carry out the orders; it starts them all anew, so often at most, when one is lost.

    Args:
        storage: a folder for Ray Train's own files, of no use afterwards.
    """
    return TorchTrainer(
        _work_as_rank,
        train_loop_config={"orders": orders, "workers_per_model": workers.workers_per_model},
        torch_config=_NoRendezvous(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_groups * workers.workers_per_model,
            use_gpu=workers.resources.get("GPU", 0) > 0,
            resources_per_worker={name: n for name, n in workers.resources.items() if n},
        ),
        # (mypy sees the classes of Ray Train's version 1.)
        run_config=ray.train.RunConfig(
            name="search" if orders.judged else "finals",
            storage_path=str(storage),
            # -1, the default, would try again for ever and in silence.
            failure_config=FailureConfig(max_failures=max_restarts, controller_failure_limit=3),  # type: ignore[call-arg]
            callbacks=[_TellTheDesk(orders.desk, workers.workers_per_model)],  # type: ignore[list-item]
        ),
    )


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
            why = (DIED, True) if is_lost_worker(error) else why_lost(error)
            # What the others of a group say when one dies tells nothing.
            if group not in groups or groups[group][0] == DIED:
                groups[group] = why
        self.desk.lose.remote(groups)


def _work_as_rank(settings: dict[str, Any]) -> None:
    """Run on every rank of Ray Train's: train what the desk has for this rank's group, until there is no more."""
    orders: Orders = settings["orders"]
    world_rank, num_ranks = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    group, rank = divmod(world_rank, settings["workers_per_model"])
    groups = range(num_ranks // settings["workers_per_model"])
    generation = broadcast_from_rank_zero(ray.get(orders.desk.begin.remote(groups)) if world_rank == 0 else None)
    ranks = Ranks(rank, settings["workers_per_model"])
    _join_group(ranks, group)
    work(orders, Seat(group, generation), ranks, get_device())
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
