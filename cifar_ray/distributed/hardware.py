"""What a Ray session offers: nodes, CPUs, GPUs, and how many trials fit on them."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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

    @staticmethod
    def resources(cpus_per_trial: int, gpus_per_trial: float) -> dict[str, float]:
        """What one trial takes, by Ray's names."""
        return {"CPU": cpus_per_trial, "GPU": gpus_per_trial}


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
