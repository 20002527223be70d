"""Scores the final models on the splits of the data, the sealed test split among them, in the processes of the run.

One of them times the models afterwards: it is there, and has imported all that it needs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cifar_ray.data.decode import Images
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import PROCESS, granted_device
from cifar_ray.distributed.processes import Processes
from cifar_ray.evaluation.latency import Latency, Timer
from cifar_ray.models.classifier import Classifier
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.records import CLEAN, CORRUPTIONS, Row
from cifar_ray.training.loop import eval_model

REST_S = 30.0
"""How long a process that is to time waits for the rest of its node."""

PATIENCE_S = 86_400.0
"""How long timing waits, while it holds nothing, for a node to be free of other runs."""


@dataclass(frozen=True)
class Score:
    """One model on one split."""

    probabilities: np.ndarray
    """(N, C) float32."""
    quality: Row
    """See :func:`~cifar_ray.evaluation.quality.split_quality`."""
    classes: list[Row]
    """See :func:`~cifar_ray.evaluation.quality.class_quality`."""
    precision: str
    """What it was computed in."""
    accuracy_fp32: float | None = None
    """Of a model on test images that computes in something else: its accuracy in fp32."""


def score_models(
    processes: Processes,
    models: Mapping[str, SavedModel],
    splits: Mapping[str, Images],
    on_corrupted: Sequence[str],
    to_corrupt: Images,
    on_result: Callable[[str], None],
) -> tuple[dict[str, dict[str, Score]], list[Row], dict[str, float]]:
    """Score every model on every split, and some of them under every corruption.

    Args:
        processes: score side by side.
        models: by name.
        splits: by name; `test` is among them.
        on_corrupted: names of the models that are scored under corruptions.
        to_corrupt: the images that are corrupted for them.
        on_result: is told of each model and each corruption that is done: `model NAME` or `corruption NAME`.

    Returns:
        Scores by model, then by split; what `robustness.score_corrupted` returns; and what it took, see
        `records.EVALUATION_SECONDS`.
    """
    num_threads = int(processes.workers.resources["CPU"])
    split_refs = {name: ray.put(split) for name, split in splits.items()}
    scorings = {f"model {name}": (partial(_score, model), split_refs) for name, model in models.items()}
    corruptions = {}
    if on_corrupted:
        refs = [ray.put([models[name] for name in on_corrupted]), ray.put(to_corrupt)]
        corruptions = {f"corruption {name}": (partial(_score_corrupted, name), refs) for name in (CLEAN, *CORRUPTIONS)}
    items = {key: (num_threads, *work) for key, work in {**scorings, **corruptions}.items()}
    results = processes.map(_timed, items, on_result)
    scores = {name: results[f"model {name}"][0] for name in models}
    corrupted = [row for key in corruptions for row in results[key][0]]
    spent = {"scoring": list(scorings), "corruptions": list(corruptions)}
    return scores, corrupted, {kind: sum(results[key][1] for key in keys) for kind, keys in spent.items()}


def _timed(num_threads: int, work: Callable[[Any], Any], refs: Any) -> tuple[Any, float]:
    """What a work returns, and the seconds that it took."""
    began = time.monotonic()
    PROCESS.reset(0, num_threads)
    return work(refs), time.monotonic() - began


def _score(model: SavedModel, refs: Mapping[str, ray.ObjectRef[Images]]) -> dict[str, Score]:
    return score_model(model, {name: ray.get(ref) for name, ref in refs.items()}, granted_device())


def score_model(model: SavedModel, splits: Mapping[str, Images], device: torch.device) -> dict[str, Score]:
    """Score a model on splits, by name; on `test` in fp32 too."""
    network = model.build(device)
    scores = {name: _score_split(network, split) for name, split in splits.items()}
    if network.precision != "fp32":
        network.precision = "fp32"
        test = splits["test"]
        right = _logits(network, test).argmax(1).cpu().numpy() == test.labels
        scores["test"] = replace(scores["test"], accuracy_fp32=float(right.mean()))
    return scores


def _score_split(network: Classifier, split: Images) -> Score:
    # Imported here, as below: only these processes need scikit-learn and torchvision, which take seconds of a start.
    from cifar_ray.evaluation.quality import class_quality, split_quality

    probabilities = _logits(network, split).softmax(1).cpu().numpy()
    classes = class_quality(probabilities, split.labels)
    return Score(probabilities, split_quality(probabilities, split.labels, classes), classes, network.precision)


def _logits(network: Classifier, split: Images) -> torch.Tensor:
    # Copied, one split at a time: the object store's arrays are read-only, which torch warns about.
    return eval_model(network, torch.tensor(split.images, device=network.normalize.mean.device))


def _score_corrupted(corruption: str, refs: Sequence[ray.ObjectRef[Any]]) -> list[Row]:
    from cifar_ray.evaluation.robustness import score_corrupted

    models, images = ray.get(list(refs))
    networks = {model.name: model.build(granted_device()) for model in models}
    return score_corrupted(networks, images, corruption, granted_device())


def time_alone(processes: Processes, models: Mapping[str, SavedModel], images: Images) -> dict[str, list[Latency]]:
    """Time models in one process that has every CPU of a node, and every GPU where trials use one.

    Args:
        processes: of which one is left afterwards, or none.
        models: by name; the first one is timed twice.
        images: what they are timed on.
    """
    node = node_for_timing(processes.workers.resources)
    args = dict(models), images.images, int(node["Resources"]["CPU"])
    there = processes.up()
    nodes = ray.get([processes.call(index, _node) for index in there])
    if node["NodeID"] in nodes:
        processes.keep([there[nodes.index(node["NodeID"])]])
        with _held(node, processes.workers, but_for_one=True, patience_s=REST_S) as held:
            if held:
                return ray.get(processes.call(0, _time, *args))
    # Other runs are on that node. Two that each held a part of it would wait for each other for ever.
    processes.release()
    with _held(node, processes.workers, but_for_one=False, patience_s=PATIENCE_S) as held:
        if not held:
            raise RuntimeError(f"no node was free of other runs for {PATIENCE_S:.0f} s: nothing could be timed")
        options = {"num_cpus": node["Resources"]["CPU"], "num_gpus": processes.workers.resources["GPU"]}
        placed = PlacementGroupSchedulingStrategy(held)
        return ray.get(ray.remote(_time).options(**options, scheduling_strategy=placed).remote(*args))


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _time(models: dict[str, SavedModel], images: np.ndarray, num_threads: int) -> dict[str, list[Latency]]:
    PROCESS.reset(0, num_threads)
    return Timer(images, granted_device()).time(models)


@contextlib.contextmanager
def _held(node: Mapping[str, Any], workers: Workers, but_for_one: bool, patience_s: float) -> Iterator[Any]:
    """Hold all CPUs of a node, and where workers have a GPU all GPUs.

    They are held by a placement group, which takes them all at once and starts no process.

    Args:
        node: its entry in `ray.nodes()`.
        workers: what one worker has.
        but_for_one: leave out what one worker has, which holds that already.
        patience_s: how long to wait for other runs to let go of them.

    Yields:
        The placement group; True where there is nothing to hold; None where it took too long.
    """
    kinds = ("CPU", "GPU") if workers.resources["GPU"] else ("CPU",)
    wanted = {kind: node["Resources"][kind] - but_for_one * workers.resources[kind] for kind in kinds}
    wanted = {kind: amount for kind, amount in wanted.items() if amount > 0}
    if not wanted:
        yield True
        return
    group = placement_group([wanted | {f"node:{node['NodeManagerAddress']}": 0.001}])
    try:
        yield group if group.wait(patience_s) else None
    finally:
        remove_placement_group(group)


def node_for_timing(resources: Mapping[str, float]) -> dict[str, Any]:
    """The entry in `ray.nodes()` of a node that a trial fits on: the driver's own, if it is one, else the largest."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in resources.items())
    ]
    return max(nodes, key=lambda node: (node["NodeID"] == here, node["Resources"]["CPU"]))
