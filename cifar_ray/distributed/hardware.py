"""What a Ray session offers: nodes, CPUs, GPUs; and the workers that a run has there."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.errors import InputError


@dataclass(frozen=True)
class Node:
    """What one machine offers."""

    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class Hardware:
    """What the session can use."""

    kind: str
    """`cuda` where Ray sees a GPU, else `cpu`."""
    name: str
    """Of the GPU, else of the processor; of each kind, where the nodes differ."""
    num_cpus: int
    """Of all nodes, as `num_gpus`."""
    num_gpus: int
    nodes: tuple[Node, ...]

    def slots(self, cpus_per_trial: int, gpus_per_trial: float) -> int:
        """How many trials run side by side; each of them has to fit on one node."""
        return sum(
            min(
                node.num_cpus // cpus_per_trial,
                int(node.num_gpus / gpus_per_trial) if gpus_per_trial else node.num_cpus,
            )
            for node in self.nodes
        )


@dataclass(frozen=True)
class Workers:
    """How many processes train, in groups of how many, and what each of them holds."""

    num_workers: int
    """Side by side; the last ones that make no whole group stay idle."""
    workers_per_model: int
    resources: dict[str, float]
    """Of one worker, by Ray's names (`CPU`, `GPU`)."""

    @property
    def num_groups(self) -> int:
        """How many models, or trials, train side by side; the workers of one may be on several nodes."""
        return self.num_workers // self.workers_per_model

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What kind of device each of them trains on."""
        return "cuda" if self.resources["GPU"] else "cpu"


def plan_workers(
    hardware: Hardware, cpus_per_trial: int, gpus_per_trial: int | None, workers_per_model: int, workers_flag: str
) -> Workers:
    """As many workers as fit on the hardware.

    Args:
        hardware: of the session.
        cpus_per_trial: of each worker.
        gpus_per_trial: of each worker; None takes one where there are any.
        workers_per_model: how many of them train one model together.
        workers_flag: that asked for so many, for errors.

    Raises:
        InputError: not even one model can be trained.
    """
    num_gpus = min(1, hardware.num_gpus) if gpus_per_trial is None else gpus_per_trial
    num_workers = hardware.slots(cpus_per_trial, num_gpus)
    workers = Workers(num_workers, workers_per_model, {"CPU": cpus_per_trial, "GPU": num_gpus})
    if num_gpus > hardware.num_gpus:
        raise InputError(f"--gpus-per-trial: {num_gpus} GPUs are more than the {hardware.num_gpus} there are")
    if num_gpus > 1:
        raise InputError(f"--gpus-per-trial: a trial uses at most 1 GPU, not {num_gpus}")
    if num_workers < 1:
        raise InputError(
            f"--cpus-per-trial: no node has {cpus_per_trial} CPUs for a trial "
            f"({hardware.num_cpus} CPUs, {hardware.num_gpus} GPUs in all)"
        )
    if workers.num_groups < 1:
        raise InputError(
            f"{workers_flag}: {workers_per_model} workers are more than the {num_workers} that fit on "
            f"{hardware.num_cpus} CPUs and {hardware.num_gpus} GPUs; give fewer, or fewer --cpus-per-trial"
        )
    return workers


def find_hardware() -> Hardware:
    # Nodes without CPUs, as many heads are, run no trial.
    entries = [entry for entry in ray.nodes() if entry["Alive"] and entry["Resources"].get("CPU", 0) >= 1]
    nodes = [Node(int(entry["Resources"]["CPU"]), int(entry["Resources"].get("GPU", 0))) for entry in entries]
    num_gpus = sum(node.num_gpus for node in nodes)
    if num_gpus:
        found = [name for entry in entries for name in entry["Resources"] if name.startswith("accelerator_type:")]
        names = [name.split(":")[1] for name in found] or ["GPU"]
    else:
        names = _processor_names([entry["NodeID"] for entry in entries])
    name = ", ".join(dict.fromkeys(names))
    return Hardware("cuda" if num_gpus else "cpu", name, sum(node.num_cpus for node in nodes), num_gpus, tuple(nodes))


def _processor_names(node_ids: Sequence[str]) -> list[str]:
    here = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0)(_processor_name)
    there = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id in node_ids
        if node_id != here
    ]
    return [_processor_name()] * (here in node_ids) + ray.get(there)


def _processor_name() -> str:
    """What the processor calls itself, as far as the platform says."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
