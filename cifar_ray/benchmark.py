"""The evaluation: actors score the final models on the sealed test split, then one actor times each configuration."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.checkpoint import unpack_model
from cifar_ray.config import TrialConfig
from cifar_ray.loop import eval_model
from cifar_ray.metrics import auc_macro_ovr, f1_macro, loss_and_accuracy
from cifar_ray.models import Classifier, forward

MAX_ROUNDS = 3
"""How often what dead actors left behind is given to new ones."""

BATCHES_TIMED = {1: 200, 256: 20}
"""How many batches of which size are timed; those of large images are smaller."""

NUM_WARMUP = 10
"""Batches of each size that do not count."""

MAX_WARMUP_S, MAX_TIMED_S = 2.0, 20.0
"""Seconds after which a slow model is warm enough, and after which no more batches of a size are timed."""

MIN_TIMED = 3
"""Batches of each size that are timed however long they take."""


@dataclass(frozen=True)
class SavedModel:
    """A final model as it travels to an evaluation actor."""

    name: str
    weights: bytes
    config: TrialConfig
    card: dict[str, Any]
    """The rest of its config.json, see `checkpoint.save_model`."""

    def build(self, device: torch.device) -> Classifier:
        return unpack_model(self.weights, self.config, self.card).to(device)


@dataclass(frozen=True)
class Score:
    """One model on the test split."""

    probabilities: np.ndarray
    """(N, C) float32."""
    test_accuracy: float
    test_loss: float
    test_auc_macro_ovr: float | None
    test_f1_macro: float


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


def _use_granted_resources() -> torch.device:
    """Take the threads that Ray granted this actor, and return the device it granted."""
    granted = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
    return torch.device("cuda" if granted.get("GPU") else "cpu")


@ray.remote
class Scorer:
    """Scores models one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.device = _use_granted_resources()
        # Copied: the object store's arrays are read-only, which torch warns about, and the test split is small.
        self.images = torch.tensor(images, device=self.device)
        self.labels = torch.tensor(labels, device=self.device)

    def score(self, key: str, model: SavedModel) -> tuple[str, Score]:
        logits = eval_model(model.build(self.device), self.images)
        loss, accuracy = loss_and_accuracy(logits, self.labels)
        probabilities = logits.softmax(1)
        auc, f1 = auc_macro_ovr(probabilities, self.labels), f1_macro(logits, self.labels)
        return key, Score(probabilities.cpu().numpy(), accuracy, loss, auc, f1)


@ray.remote
class Timer:
    """Times models, alone on its node."""

    def __init__(self, images: np.ndarray) -> None:
        self.device = _use_granted_resources()
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


def map_over_actors(
    make_actor: Callable[[], Any],
    num_actors: int,
    submit: Callable[[Any, str, Any], Any],
    items: dict[str, Any],
    on_result: Callable[[str, Any], None] = lambda key, result: None,
) -> dict[str, Any]:
    """Give every item to one of a pool of actors; what an actor took along when it died goes to another one.

    Args:
        make_actor: starts an actor.
        num_actors: in the pool.
        submit: calls the actor with a key and its item; the call returns (key, result).
        items: by key.
        on_result: called for each result as it comes.

    Returns:
        Results by key, one for every item, in the order of the items.

    Raises:
        RuntimeError: items were lost in every round.
    """
    results: dict[str, Any] = {}
    for _ in range(MAX_ROUNDS):
        missing = {key: item for key, item in items.items() if key not in results}
        if not missing:
            break
        actors = [make_actor() for _ in range(min(num_actors, len(missing)))]
        pool = ActorPool(actors)
        for entry in missing.items():
            pool.submit(lambda actor, entry: submit(actor, *entry), entry)
        while pool.has_next():
            try:
                key, result = pool.get_next_unordered()
            except RayActorError:
                continue  # the pool drops the actor; its item is still missing and goes into the next round
            results[key] = result
            on_result(key, result)
        for actor in actors:
            ray.kill(actor)
    lost = [key for key in items if key not in results]
    if lost:
        raise RuntimeError(f"evaluation actors died {MAX_ROUNDS} times over: no result for {', '.join(lost)}")
    return {key: results[key] for key in items}


def score_models(
    models: dict[str, SavedModel],
    images: np.ndarray,
    labels: np.ndarray,
    num_actors: int,
    resources: dict[str, float],
    on_result: Callable[[str, Any], None],
) -> dict[str, Score]:
    """Score every model on the test images (N, C, H, W) uint8 with labels (N,), `num_actors` side by side."""
    refs = ray.put(images), ray.put(labels)
    return map_over_actors(
        lambda: Scorer.options(num_cpus=resources["CPU"], num_gpus=resources["GPU"]).remote(*refs),  # type: ignore[attr-defined]
        num_actors,
        lambda actor, key, model: actor.score.remote(key, model),
        models,
        on_result,
    )


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
