"""The evaluation of the final models on the splits of the data, the sealed test split among them, and its records."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cifar_ray.data.decode import Images, take_images
from cifar_ray.data.stratified import stratified_split
from cifar_ray.distributed.processes import Processes
from cifar_ray.evaluation.calibration import calibration_error, fit_temperature, scaled
from cifar_ray.evaluation.latency import Latency
from cifar_ray.evaluation.pictures import sample_indices, thumbnails
from cifar_ray.evaluation.scorers import Score, score_models, time_alone
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.config_json import IN_RESULTS, temperature_of, write_card
from cifar_ray.results.examples import find_examples
from cifar_ray.results.ranking import ConfigSummary, best_of_families, is_default, summarise
from cifar_ray.results.records import (
    CHECKPOINT,
    CLASSES_COLUMNS,
    LATENCY_COLUMNS,
    QUALITY_COLUMNS,
    RESULTS_COLUMNS,
    ROBUSTNESS_COLUMNS,
    SPLITS,
    Row,
    RunFolder,
    write_csv,
    write_examples,
    write_predictions,
    write_samples,
)

MAX_TRAIN_IMAGES = 5000
"""Training images that a model is scored on, at most: enough for how much better it is there than on the others."""

MAX_CORRUPTED = 1000
"""Test images that are corrupted, at most."""


@dataclass(frozen=True)
class Group:
    """Models that take the same images, and those images.

    All models of a run do. Those of several runs may want the same test images brought to different sizes: a group for
    each way, of the same test images in the same order. Their `val` and `train` may differ, with how many images the
    models were trained on: those that are not the first group's are not looked at, since records hold one of each.
    """

    names: Sequence[str]
    """Of the models, in the run's folder; not empty."""
    splits: Mapping[str, Images]
    """`test`, and where they are known `val` and `train`."""


def evaluate(
    folder: RunFolder,
    groups: Sequence[Group],
    failed: Sequence[Row],
    processes: Processes,
    tell: Callable[[str], None],
    spend: Callable[[Mapping[str, float]], None],
    scores_only: bool = False,
) -> list[Row]:
    """Score saved models, time each configuration, and write the evaluation's records.

    This is the one place that reads the test split. The best validation seed of the configuration that ranks first is
    copied to `best/`.

    Args:
        folder: of the run, with the models in it.
        groups: the models, and what they are scored on: all images of `test` and `val`, and stratified samples of
            `train` and, corrupted, of `test`.
        failed: rows of results.csv of those that have no model.
        processes: score side by side.
        tell: is told how far it has come.
        spend: is told the seconds of slots, by kind.
        scores_only: neither time the configurations nor corrupt any images.

    Returns:
        The rows of results.csv that have scores.
    """
    if not groups:
        write_csv(folder.results_csv, RESULTS_COLUMNS, failed)
        return []
    groups = _in_common(groups)
    models = {name: SavedModel.read(folder.model(name)) for group in groups for name in group.names}
    known = {name: _known_row(saved) for name, saved in models.items()}
    ranked = summarise([*known.values(), *failed])
    best, best_of = ranked[0].best_model, [one.best_model for one in best_of_families(ranked)]

    scored = [Group(group.names, _with_sample_of_train(group.splits)) for group in groups]
    on_corrupted = [] if scores_only else _on_corrupted(ranked)
    measured = _measure(models, scored, on_corrupted, processes, tell, spend, timed=not scores_only)
    scores, corrupted, latencies = measured
    rows = [row | _test_scores(scores[name]["test"]) for name, row in known.items()]
    rows = [row | (_speed(*latencies[row["config"]]) if latencies else {}) for row in rows]
    write_csv(folder.results_csv, RESULTS_COLUMNS, [*rows, *failed])
    write_csv(
        folder.latency_csv,
        LATENCY_COLUMNS,
        [{"config": name, **asdict(latency)} for name, timed in latencies.items() for latency in timed],
    )
    _write_predictions(folder, scored, scores)
    temperatures = _temperatures(folder, models, scored, scores)
    _write_quality(folder, models, scored, scores, temperatures)
    write_csv(
        folder.robustness_csv,
        ROBUSTNESS_COLUMNS,
        [{name: known[row["model"]][name] for name in ("config", "family")} | row for row in corrupted],
    )
    _write_pictures(folder, groups, best, [scores[name]["test"] for name in best_of])
    shutil.rmtree(folder.best, ignore_errors=True)  # of an evaluation that was interrupted
    shutil.copytree(folder.model(best), folder.best, ignore=shutil.ignore_patterns("events.*", CHECKPOINT))
    return rows


def _on_corrupted(ranked: Sequence[ConfigSummary]) -> list[str]:
    """Which models are scored under corruptions: of the best of each family and of each default, the best seed."""
    best = best_of_families(ranked)
    return [one.best_model for one in ranked if one in best or (is_default(one.config) and one.models)]


def _known_row(saved: SavedModel) -> Row:
    """What of a row of results.csv is known before anything is scored; models are ranked by that."""
    return {
        "model": saved.name,
        "config": saved.card["config_name"],
        "family": saved.config.family,
        **{name: saved.card[name] for name in IN_RESULTS},
        "tta": saved.config.tta,
        "size_mb": len(saved.weights) / 1e6,
    }


def _test_scores(score: Score) -> Row:
    return {
        "test_accuracy": score.quality["accuracy"],
        "test_loss": score.quality["log_loss"],
        "test_auc_macro_ovr": score.quality["auc_macro_ovr"],
        "test_f1_macro": score.quality["f1_macro"],
        "precision": score.precision,
        "test_accuracy_fp32": score.accuracy_fp32,
    }


def _speed(single: Latency, batched: Latency, *in_fp32: Latency) -> Row:
    return {
        "latency_ms_p50": single.latency_ms_p50,
        "latency_ms_p95": single.latency_ms_p95,
        "images_per_s": batched.images_per_s,
        "device": single.device,
        "threads": single.threads,
        "latency_ms_p50_fp32": in_fp32[0].latency_ms_p50 if in_fp32 else None,
        "images_per_s_fp32": in_fp32[1].images_per_s if in_fp32 else None,
    }


def _in_common(groups: Sequence[Group]) -> list[Group]:
    """The groups without what they do not have in common: what others of `val` and `train` than the first one have."""
    first: dict[str, np.ndarray] = {}
    for group in groups:
        for split, images in group.splits.items():
            first.setdefault(split, images.labels)
    common = [
        Group(group.names, {name: of for name, of in group.splits.items() if np.array_equal(of.labels, first[name])})
        for group in groups
    ]
    assert all("test" in group.splits for group in common), "groups differ in the labels of test"
    return common


def _sample(images: Images, number: int) -> Images:
    """At most so many of the images, stratified; the same ones every time."""
    if len(images.labels) <= number:
        return images
    return take_images(images, stratified_split(images.labels, number, min_left=0)[1])


def _with_sample_of_train(splits: Mapping[str, Images]) -> dict[str, Images]:
    if "train" not in splits:
        return dict(splits)
    return {**splits, "train": _sample(splits["train"], MAX_TRAIN_IMAGES)}


def _measure(
    models: Mapping[str, SavedModel],
    groups: Sequence[Group],
    on_corrupted: Sequence[str],
    processes: Processes,
    tell: Callable[[str], None],
    spend: Callable[[Mapping[str, float]], None],
    timed: bool,
) -> tuple[dict[str, dict[str, Score]], list[Row], dict[str, list[Latency]]]:
    """Score the models, and time the first one of each configuration.

    Returns:
        Scores by model, then by split; what is recorded of those that are scored under corruptions; and latencies by
        configuration, none where nothing is `timed`.
    """
    done: list[str] = []

    def on_result(key: str) -> None:
        done.append(key)
        if key.startswith("model "):
            tell(f"evaluation: {sum(one.startswith('model ') for one in done)}/{len(models)} models scored")
        else:
            tell(f"evaluation: {key.removeprefix('corruption ')} done, of the corruptions of test images")

    scores: dict[str, dict[str, Score]] = {}
    corrupted: list[Row] = []
    latencies: dict[str, list[Latency]] = {}
    for group in groups:
        of_group = {name: models[name] for name in group.names}
        chosen = [name for name in on_corrupted if name in of_group]
        to_corrupt = _sample(group.splits["test"], MAX_CORRUPTED)
        more, corrupted_more, seconds = score_models(processes, of_group, group.splits, chosen, to_corrupt, on_result)
        spend(seconds)
        scores |= more
        corrupted += corrupted_more
        if timed:
            tell("evaluation: timing on an otherwise idle node")
            by_config = {models[name].card["config_name"]: models[name] for name in group.names[::-1]}
            began = time.monotonic()
            latencies |= time_alone(processes, by_config, group.splits["test"])
            spend({"timing": processes.workers.num_groups * (time.monotonic() - began)})
    return scores, corrupted, latencies


def _write_predictions(folder: RunFolder, groups: Sequence[Group], scores: Mapping[str, Mapping[str, Score]]) -> None:
    for split in SPLITS:
        labels = [group.splits[split].labels for group in groups if split in group.splits]
        if not labels:
            continue
        predictions = {name: of_model[split].probabilities for name, of_model in scores.items() if split in of_model}
        write_predictions(folder.predictions(split), labels[0], predictions)


def _temperatures(
    folder: RunFolder,
    models: Mapping[str, SavedModel],
    groups: Sequence[Group],
    scores: Mapping[str, Mapping[str, Score]],
) -> dict[str, float]:
    """The temperature of each model, by its card, or else chosen on validation and noted there; 1 without any."""
    temperatures = {name: temperature_of(saved.card) for name, saved in models.items()}
    for group in groups:
        for name in group.names if "val" in group.splits else ():
            if "temperature" in models[name].card:
                continue
            found = fit_temperature(scores[name]["val"].probabilities, group.splits["val"].labels)
            if found is not None:
                temperatures[name] = found
                write_card(folder.model(name), models[name].config, models[name].card | {"temperature": found})
    return temperatures


def _write_quality(
    folder: RunFolder,
    models: Mapping[str, SavedModel],
    groups: Sequence[Group],
    scores: Mapping[str, Mapping[str, Score]],
    temperatures: Mapping[str, float],
) -> None:
    labels = {(name, split): images.labels for group in groups for name in group.names for split, images in
              group.splits.items()}  # fmt: skip
    splits: list[Row] = []
    classes: list[Row] = []
    for name, of_model in scores.items():
        for split, score in of_model.items():
            which = {"model": name, "config": models[name].card["config_name"], "split": split}
            temperature = temperatures[name]
            mended = calibration_error(scaled(score.probabilities, temperature), labels[name, split])
            splits.append(which | score.quality | {"scaled_calibration_error": mended, "temperature": temperature})
            classes += [which | of_class for of_class in score.classes]
    write_csv(folder.quality_csv, QUALITY_COLUMNS, splits)
    write_csv(folder.classes_csv, CLASSES_COLUMNS, classes)


def _write_pictures(folder: RunFolder, groups: Sequence[Group], best: str, shown: Sequence[Score]) -> None:
    """Keep the images that a report shows: of the test split as the best model takes it, and of all of train."""
    test = next(group.splits["test"] for group in groups if best in group.names)
    index = np.unique(np.concatenate([find_examples(score.probabilities, test.labels).indices for score in shown]))
    write_examples(folder.examples_npz, index, thumbnails(test.images[index]))
    train = next((group.splits["train"] for group in groups if "train" in group.splits), None)
    if train is not None:
        index = sample_indices(train.labels)
        write_samples(folder.samples_npz, train.labels[index], thumbnails(train.images[index]))
