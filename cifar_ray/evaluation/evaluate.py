"""The evaluation of the final models on the test split, and its records."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from cifar_ray.data.decode import Images
from cifar_ray.evaluation.latency import Latency, time_models
from cifar_ray.evaluation.scores import Score, score_models
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.card import IN_RESULTS
from cifar_ray.results.ranking import summarise
from cifar_ray.results.records import (
    CHECKPOINT,
    LATENCY_COLUMNS,
    RESULTS_COLUMNS,
    Row,
    RunFolder,
    write_csv,
    write_predictions,
)


def evaluate(
    folder: RunFolder,
    names: Iterable[str],
    failed: Sequence[Row],
    test: Images,
    num_actors: int,
    resources: dict[str, float],
    tell: Callable[[str], None],
) -> list[Row]:
    """Score saved models on the test split, time each configuration, and write the evaluation's records.

    This is the one place that reads the test split. The best validation seed of the configuration that ranks first is
    copied to `best/`.

    Args:
        folder: of the run, with the models in it.
        names: of the models.
        failed: rows of results.csv of those that have no model.
        test: the test split.
        num_actors: how many score side by side.
        resources: of each of them, by Ray's names.
        tell: is told how far it has come.

    Returns:
        The rows of results.csv that have scores.
    """
    models = {name: SavedModel.read(folder.model(name)) for name in names}
    if not models:
        write_csv(folder.results_csv, RESULTS_COLUMNS, failed)
        return []
    done: list[str] = []

    def on_result(name: str, score: Any) -> None:
        done.append(name)
        tell(f"evaluation {len(done)}/{len(models)} scored")

    scores = score_models(models, test.images, test.labels, num_actors, resources, on_result)
    tell("evaluation: timing on an otherwise idle node")
    first_of_config = {saved.card["config_name"]: saved for saved in reversed(models.values())}
    latencies = time_models(first_of_config, test.images, resources)
    rows = [_results_row(saved, scores[name], *latencies[saved.card["config_name"]]) for name, saved in models.items()]
    write_csv(folder.results_csv, RESULTS_COLUMNS, [*rows, *failed])
    write_csv(
        folder.latency_csv,
        LATENCY_COLUMNS,
        [{"config": name, **asdict(latency)} for name, timed in latencies.items() for latency in timed],
    )
    write_predictions(
        folder.predictions_npz, test.labels, {name: score.probabilities for name, score in scores.items()}
    )
    best = summarise([*rows, *failed])[0].best_model
    shutil.rmtree(folder.best, ignore_errors=True)  # of an evaluation that was interrupted
    shutil.copytree(folder.model(best), folder.best, ignore=shutil.ignore_patterns("events.*", CHECKPOINT))
    return rows


def _results_row(saved: SavedModel, score: Score, single: Latency, batched: Latency) -> Row:
    return {
        "model": saved.name,
        "config": saved.card["config_name"],
        "family": saved.config.family,
        **{name: saved.card[name] for name in IN_RESULTS},
        "test_accuracy": score.test_accuracy,
        "test_loss": score.test_loss,
        "test_auc_macro_ovr": score.test_auc_macro_ovr,
        "test_f1_macro": score.test_f1_macro,
        "latency_ms_p50": single.latency_ms_p50,
        "latency_ms_p95": single.latency_ms_p95,
        "images_per_s": batched.images_per_s,
        "device": single.device,
        "threads": single.threads,
        "tta": saved.config.tta,
        "size_mb": len(saved.weights) / 1e6,
    }
