"""A pool of actors that score the final models on the splits of the data, the sealed test split among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool

from cifar_ray.data.decode import Images
from cifar_ray.models.classifier import Classifier
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.records import CLEAN, CORRUPTIONS, Row
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
    """Scores models one by one, and some of them under one corruption after another."""

    def __init__(self, to_corrupt: Images, **splits: Images) -> None:
        self.device = use_granted_resources()
        self.to_corrupt = to_corrupt
        self.splits = splits

    def score(self, key: str, model: SavedModel) -> tuple[str, dict[str, Score]]:
        network = model.build(self.device)
        return key, {name: self._score_split(network, split) for name, split in self.splits.items()}

    def score_corrupted(self, key: str, corruption: str, models: Sequence[SavedModel]) -> tuple[str, list[Row]]:
        # Imported here, as below: only actors need torchvision and scikit-learn, which take seconds of a start.
        from cifar_ray.evaluation.robustness import score_corrupted

        networks = {model.name: model.build(self.device) for model in models}
        return key, score_corrupted(networks, self.to_corrupt, corruption, self.device)

    def _score_split(self, network: Classifier, split: Images) -> Score:
        from cifar_ray.evaluation.quality import class_quality, split_quality

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
    on_corrupted: Sequence[str],
    to_corrupt: Images,
    num_actors: int,
    resources: dict[str, float],
    on_result: Callable[[str, Any], None],
) -> tuple[dict[str, dict[str, Score]], list[Row]]:
    """Score every model on every split, and some of them under every corruption, with a pool of actors.

    Args:
        models: by name.
        splits: by name.
        on_corrupted: names of the models that are scored under corruptions.
        to_corrupt: the images that are corrupted.
        num_actors: how many score side by side.
        resources: of each of them, by Ray's names.
        on_result: is told of each model and each corruption that is done: `model NAME` or `corruption NAME`.

    Returns:
        Scores by model, then by split; and what `robustness.score_corrupted` returns.
    """
    refs = {name: ray.put(split) for name, split in splits.items()}
    to_corrupt_ref, on_corrupted_ref = ray.put(to_corrupt), ray.put([models[name] for name in on_corrupted])
    scorings = {f"model {name}": model for name, model in models.items()}
    corruptions = {f"corruption {name}": name for name in (CLEAN, *CORRUPTIONS)} if on_corrupted else {}

    def make_actor() -> Any:
        options = Scorer.options(num_cpus=resources["CPU"], num_gpus=resources["GPU"])  # type: ignore[attr-defined]
        return options.remote(to_corrupt_ref, **refs)

    def submit(actor: Any, key: str, item: SavedModel | str) -> Any:
        if isinstance(item, SavedModel):
            return actor.score.remote(key, item)
        return actor.score_corrupted.remote(key, item, on_corrupted_ref)

    results = map_over_actors(make_actor, num_actors, submit, {**scorings, **corruptions}, on_result)
    scores = {model.name: results[key] for key, model in scorings.items()}
    return scores, [row for key in corruptions for row in results[key]]
