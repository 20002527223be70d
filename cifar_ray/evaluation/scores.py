"""A pool of actors that score the final models on the splits of the data, the sealed test split among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool

from cifar_ray.data.decode import Images
from cifar_ray.evaluation.quality import class_quality, split_quality
from cifar_ray.models.classifier import Classifier
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.records import Row
from cifar_ray.training.loop import eval_model

MAX_ROUNDS = 3
"""How often what dead actors left behind is given to new ones."""


@dataclass(frozen=True)
class Score:
    """One model on one split."""

    probabilities: np.ndarray
    """(N, C) float32."""
    quality: Row
    """See :func:`~cifar_ray.evaluation.quality.split_quality`."""
    classes: list[Row]
    """See :func:`~cifar_ray.evaluation.quality.class_quality`."""


def use_granted_resources() -> torch.device:
    """Take the threads that Ray granted this actor, and return the device it granted."""
    granted = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
    return torch.device("cuda" if granted.get("GPU") else "cpu")


@ray.remote
class Scorer:
    """Scores models one by one."""

    def __init__(self, **splits: Images) -> None:
        self.device = use_granted_resources()
        self.splits = splits

    def score(self, key: str, model: SavedModel) -> tuple[str, dict[str, Score]]:
        network = model.build(self.device)
        return key, {name: self._score_split(network, split) for name, split in self.splits.items()}

    def _score_split(self, network: Classifier, split: Images) -> Score:
        # Copied, one split at a time: the object store's arrays are read-only, which torch warns about.
        logits = eval_model(network, torch.tensor(split.images, device=self.device))
        probabilities = logits.softmax(1).cpu().numpy()
        classes = class_quality(probabilities, split.labels)
        return Score(probabilities, split_quality(probabilities, split.labels, classes), classes)


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
    models: Mapping[str, SavedModel],
    splits: Mapping[str, Images],
    num_actors: int,
    resources: dict[str, float],
    on_result: Callable[[str, Any], None],
) -> dict[str, dict[str, Score]]:
    """Score every model on every split, `num_actors` models side by side; scores by model, then by split."""
    refs = {name: ray.put(split) for name, split in splits.items()}
    return map_over_actors(
        lambda: Scorer.options(num_cpus=resources["CPU"], num_gpus=resources["GPU"]).remote(**refs),  # type: ignore[attr-defined]
        num_actors,
        lambda actor, key, model: actor.score.remote(key, model),
        dict(models),
        on_result,
    )
