"""A pool of actors that score the final models on the splits of the data, the sealed test split among them.

One of them times the models afterwards: its process is there, and has imported all that it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.data.decode import Images
from cifar_ray.evaluation.latency import Latency, Timer
from cifar_ray.models.classifier import Classifier
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.records import CLEAN, CORRUPTIONS, Row
from cifar_ray.training.loop import eval_model

MAX_ROUNDS = 3
"""How often what dead actors left behind is given to new ones."""

PATIENCE_S = 86_400.0
"""How long timing waits for a node to be free of other runs."""


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


def use_granted_resources() -> torch.device:
    """Take the threads that Ray granted this actor, and return the device it granted."""
    granted = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
    return torch.device("cuda" if granted.get("GPU") else "cpu")


@ray.remote
class Scorer:
    """Scores models one by one, some of them under one corruption after another, and times them."""

    def __init__(self, to_corrupt: Images, **splits: Images) -> None:
        self.device = use_granted_resources()
        self.to_corrupt = to_corrupt
        self.splits = splits

    def score(self, key: str, model: SavedModel) -> tuple[str, dict[str, Score]]:
        network = model.build(self.device)
        scores = {name: self._score_split(network, split) for name, split in self.splits.items()}
        if network.precision != "fp32":
            network.precision = "fp32"
            test = self.splits["test"]
            right = self._logits(network, test).argmax(1).cpu().numpy() == test.labels
            scores["test"] = replace(scores["test"], accuracy_fp32=float(right.mean()))
        return key, scores

    def score_corrupted(self, key: str, corruption: str, models: Sequence[SavedModel]) -> tuple[str, list[Row]]:
        # Imported here, as below: only actors need torchvision and scikit-learn, which take seconds of a start.
        from cifar_ray.evaluation.robustness import score_corrupted

        networks = {model.name: model.build(self.device) for model in models}
        return key, score_corrupted(networks, self.to_corrupt, corruption, self.device)

    def node(self) -> str:
        """The node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def time(self, models: dict[str, SavedModel], num_threads: int) -> dict[str, list[Latency]]:
        torch.set_num_threads(num_threads)
        return Timer(self.splits["test"].images, self.device).time(models)

    def _score_split(self, network: Classifier, split: Images) -> Score:
        from cifar_ray.evaluation.quality import class_quality, split_quality

        probabilities = self._logits(network, split).softmax(1).cpu().numpy()
        classes = class_quality(probabilities, split.labels)
        return Score(probabilities, split_quality(probabilities, split.labels, classes), classes, network.precision)

    def _logits(self, network: Classifier, split: Images) -> torch.Tensor:
        # Copied, one split at a time: the object store's arrays are read-only, which torch warns about.
        return eval_model(network, torch.tensor(split.images, device=self.device))


def map_over_actors(
    make_actor: Callable[[], Any],
    num_actors: int,
    submit: Callable[[Any, str, Any], Any],
    items: dict[str, Any],
    on_result: Callable[[str, Any], None] = lambda key, result: None,
) -> tuple[dict[str, Any], list[Any]]:
    """Give every item to one of a pool of actors; what an actor took along when it died goes to another one.

    Args:
        make_actor: starts an actor.
        num_actors: in the pool.
        submit: calls the actor with a key and its item; the call returns (key, result).
        items: by key.
        on_result: called for each result as it comes.

    Returns:
        Results by key, one for every item, in the order of the items; and actors, those of the last round, if none of
        them died.

    Raises:
        RuntimeError: items were lost in every round.
    """
    results: dict[str, Any] = {}
    actors: list[Any] = []
    for _ in range(MAX_ROUNDS):
        missing = {key: item for key, item in items.items() if key not in results}
        if not missing:
            break
        actors = [make_actor() for _ in range(min(num_actors, len(missing)))]
        pool = ActorPool(actors)
        for entry in missing.items():
            pool.submit(lambda actor, entry: submit(actor, *entry), entry)
        some_died = False
        while pool.has_next():
            try:
                key, result = pool.get_next_unordered()
            except RayActorError:
                some_died = True
                continue  # the pool drops the actor; its item is still missing and goes into the next round
            results[key] = result
            on_result(key, result)
        if some_died:
            _kill(actors)
    lost = [key for key in items if key not in results]
    if lost:
        raise RuntimeError(f"evaluation actors died {MAX_ROUNDS} times over: no result for {', '.join(lost)}")
    return {key: results[key] for key in items}, actors


def _kill(actors: list[Any]) -> None:
    """End actors, and forget them."""
    while actors:
        ray.kill(actors.pop())


class ScorerPool:
    """Scores and times models on the same images; a context manager, which ends its actors.

    Args:
        splits: by name; `test` is among them.
        to_corrupt: the images that are corrupted.
        num_actors: how many score side by side.
        resources: of each of them, by Ray's names.
    """

    def __init__(
        self, splits: Mapping[str, Images], to_corrupt: Images, num_actors: int, resources: dict[str, float]
    ) -> None:
        self.num_actors = num_actors
        self.resources = resources
        self._splits = {name: ray.put(split) for name, split in splits.items()}
        self._to_corrupt = ray.put(to_corrupt)
        self._actors: list[Any] = []

    def __enter__(self) -> ScorerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        _kill(self._actors)

    def _start(self, **options: Any) -> Any:
        granted = {"num_cpus": self.resources["CPU"], "num_gpus": self.resources["GPU"], **options}
        return Scorer.options(**granted).remote(self._to_corrupt, **self._splits)  # type: ignore[attr-defined]

    def score(
        self,
        models: Mapping[str, SavedModel],
        on_corrupted: Sequence[str],
        on_result: Callable[[str, Any], None],
    ) -> tuple[dict[str, dict[str, Score]], list[Row]]:
        """Score every model on every split, and some of them under every corruption.

        Args:
            models: by name.
            on_corrupted: names of the models that are scored under corruptions.
            on_result: is told of each model and each corruption that is done: `model NAME` or `corruption NAME`.

        Returns:
            Scores by model, then by split; and what `robustness.score_corrupted` returns.
        """
        on_corrupted_ref = ray.put([models[name] for name in on_corrupted])
        scorings = {f"model {name}": model for name, model in models.items()}
        corruptions = {f"corruption {name}": name for name in (CLEAN, *CORRUPTIONS)} if on_corrupted else {}

        def submit(actor: Any, key: str, item: SavedModel | str) -> Any:
            if isinstance(item, SavedModel):
                return actor.score.remote(key, item)
            return actor.score_corrupted.remote(key, item, on_corrupted_ref)

        items = {**scorings, **corruptions}
        results, self._actors = map_over_actors(self._start, self.num_actors, submit, items, on_result)
        scores = {model.name: results[key] for key, model in scorings.items()}
        return scores, [row for key in corruptions for row in results[key]]

    def time(self, models: Mapping[str, SavedModel]) -> dict[str, list[Latency]]:
        """Time models with one actor that holds every CPU of a node, and every GPU where trials use one.

        Args:
            models: by name; the first one is timed twice.
        """
        node = node_for_timing(self.resources)
        nodes = ray.get([actor.node.remote() for actor in self._actors])
        here = [actor for actor, of_actor in zip(self._actors, nodes, strict=True) if of_actor == node["NodeID"]]
        _kill([actor for actor in self._actors if actor not in here[:1]])
        self._actors = here[:1]
        if not self._actors:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            self._actors = [self._start(scheduling_strategy=pinned)]
        with _rest_of(node, self.resources):
            return ray.get(self._actors[0].time.remote(dict(models), int(node["Resources"]["CPU"])))


@contextlib.contextmanager
def _rest_of(node: Mapping[str, Any], resources: Mapping[str, float]) -> Iterator[None]:
    """Hold all CPUs of a node but those of one actor that has `resources`, and where that has a GPU all GPUs."""
    kinds = ("CPU", "GPU") if resources["GPU"] else ("CPU",)
    rest = {kind: node["Resources"][kind] - resources[kind] for kind in kinds}
    rest = {kind: amount for kind, amount in rest.items() if amount > 0}
    if not rest:
        yield
        return
    # Of a placement group, which takes resources without starting a process; it waits for what other runs hold.
    held = placement_group([rest | {f"node:{node['NodeManagerAddress']}": 0.001}])
    try:
        held.wait(PATIENCE_S)
        yield
    finally:
        remove_placement_group(held)


def node_for_timing(resources: Mapping[str, float]) -> dict[str, Any]:
    """The entry in `ray.nodes()` of a node that a trial fits on: the driver's own, if it is one, else the largest."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in resources.items())
    ]
    return max(nodes, key=lambda node: (node["NodeID"] == here, node["Resources"]["CPU"]))
