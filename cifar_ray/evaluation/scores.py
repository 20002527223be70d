"""A pool of actors that score the final models on the sealed test split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool

from cifar_ray.models.saved import SavedModel
from cifar_ray.training.loop import eval_model
from cifar_ray.training.metrics import auc_macro_ovr, f1_macro, loss_and_accuracy

MAX_ROUNDS = 3
"""How often what dead actors left behind is given to new ones."""


@dataclass(frozen=True)
class Score:
    """One model on the test split."""

    probabilities: np.ndarray
    """(N, C) float32."""
    test_accuracy: float
    test_loss: float
    test_auc_macro_ovr: float | None
    test_f1_macro: float


def use_granted_resources() -> torch.device:
    """Take the threads that Ray granted this actor, and return the device it granted."""
    granted = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
    return torch.device("cuda" if granted.get("GPU") else "cpu")


@ray.remote
class Scorer:
    """Scores models one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.device = use_granted_resources()
        # Copied: the object store's arrays are read-only, which torch warns about, and the test split is small.
        self.images = torch.tensor(images, device=self.device)
        self.labels = torch.tensor(labels, device=self.device)

    def score(self, key: str, model: SavedModel) -> tuple[str, Score]:
        logits = eval_model(model.build(self.device), self.images)
        loss, accuracy = loss_and_accuracy(logits, self.labels)
        probabilities = logits.softmax(1)
        auc, f1 = auc_macro_ovr(probabilities, self.labels), f1_macro(logits, self.labels)
        return key, Score(probabilities.cpu().numpy(), accuracy, loss, auc, f1)


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
