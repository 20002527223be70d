"""One actor, alone on its node, that times each configuration."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.evaluation.scorers import use_granted_resources
from cifar_ray.models.classifier import Classifier, forward
from cifar_ray.models.saved import SavedModel

BATCHES_TIMED = {1: 200, 256: 20}
"""How many batches of which size are timed; those of large images are smaller."""

NUM_WARMUP = 10
"""Batches of each size that do not count."""

MAX_WARMUP_S, MAX_TIMED_S = 2.0, 20.0
"""Seconds after which a slow model is warm enough, and after which no more batches of a size are timed."""

NUM_TIMED_IMAGES = sum((NUM_WARMUP + n) * batch_size for batch_size, n in BATCHES_TIMED.items())
"""Images that a configuration is timed with."""

MAX_TIMING_S = len(BATCHES_TIMED) * (MAX_WARMUP_S + MAX_TIMED_S)
"""Seconds that it takes to time a slow configuration."""

MIN_TIMED = 3
"""Batches of each size that are timed however long they take."""


@dataclass(frozen=True)
class Latency:
    """How long one configuration takes from a batch of uint8 images to logits, on one device."""

    device: str
    threads: int
    batch_size: int
    n: int
    """Batches timed."""
    latency_ms_p50: float
    """Median time of a whole batch, in milliseconds."""
    latency_ms_p95: float
    images_per_s: float
    """At the median time."""
    tta: str
    """Test-time augmentation, which the times include."""


@ray.remote
class Timer:
    """Times models, alone on its node."""

    def __init__(self, images: np.ndarray) -> None:
        self.device = use_granted_resources()
        self.images = torch.tensor(images[:1000], device=self.device)

    @torch.inference_mode()
    def time(self, model: SavedModel) -> list[Latency]:
        """Time single images, then batches; one entry each."""
        network = model.build(self.device)
        return [
            self._time_batches(network, min(batch_size, network.eval_batch_size), n)
            for batch_size, n in BATCHES_TIMED.items()
        ]

    def _time_batches(self, network: Classifier, batch_size: int, n: int) -> Latency:
        warmup: list[float] = []
        timed: list[float] = []
        while len(warmup) < NUM_WARMUP and sum(warmup) < MAX_WARMUP_S:
            warmup.append(self._time_batch(network, batch_size, len(warmup)))
        while len(timed) < n and (sum(timed) < MAX_TIMED_S or len(timed) < MIN_TIMED):
            timed.append(self._time_batch(network, batch_size, len(warmup) + len(timed)))
        p50, p95 = np.percentile(timed, [50, 95])
        return Latency(
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
            batch_size=batch_size,
            n=len(timed),
            latency_ms_p50=float(p50 * 1e3),
            latency_ms_p95=float(p95 * 1e3),
            images_per_s=float(batch_size / p50),
            tta=network.tta,
        )

    def _time_batch(self, network: Classifier, batch_size: int, index: int) -> float:
        """Seconds of one batch, of other images each time; a small test split is used several times over."""
        wanted = torch.arange(index * batch_size, (index + 1) * batch_size) % len(self.images)
        images = self.images[wanted.to(self.device)].contiguous(memory_format=torch.channels_last)
        self._wait_for_device()
        began = time.perf_counter()
        forward(network, images)
        self._wait_for_device()
        return time.perf_counter() - began

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def time_models(
    models: dict[str, SavedModel], images: np.ndarray, resources: dict[str, float]
) -> dict[str, list[Latency]]:
    """Time each model with one actor that holds every CPU of a node, and every GPU where trials use one.

    Args:
        models: by name.
        images: (N, C, H, W) uint8.
        resources: of one trial, by Ray's names.
    """
    node = _node_for_timing(resources)
    timer = Timer.options(  # type: ignore[attr-defined]
        num_cpus=node["Resources"]["CPU"],
        num_gpus=node["Resources"]["GPU"] if resources["GPU"] else 0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    ).remote(ray.put(images))
    latencies = {name: ray.get(timer.time.remote(model)) for name, model in models.items()}
    ray.kill(timer)
    return latencies


def _node_for_timing(resources: dict[str, float]) -> dict[str, Any]:
    """The entry in `ray.nodes()` of a node that a trial fits on: the driver's own, if it is one, else the largest."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in resources.items())
    ]
    return max(nodes, key=lambda node: (node["NodeID"] == here, node["Resources"]["CPU"]))
