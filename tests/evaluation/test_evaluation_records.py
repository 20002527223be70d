"""What an evaluation leaves in a run folder: two groups of small models, on real actors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import TINY

from cifar_ray.config import TrialConfig
from cifar_ray.data.decode import Images
from cifar_ray.data.stratified import stratified_split
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.processes import Processes
from cifar_ray.evaluation import evaluate as module
from cifar_ray.evaluation.calibration import calibration_error, fit_temperature, scaled
from cifar_ray.evaluation.evaluate import Group, evaluate
from cifar_ray.evaluation.quality import class_quality, split_quality
from cifar_ray.evaluation.robustness import corrupt
from cifar_ray.models.classifier import build_model
from cifar_ray.models.saved import load_model, pack_weights, save_model
from cifar_ray.results.config_json import IN_RESULTS, read_card
from cifar_ray.results.examples import find_examples
from cifar_ray.results.ranking import summarise
from cifar_ray.results.records import (
    CLEAN,
    CORRUPTIONS,
    EVALUATION_SECONDS,
    SEVERITIES,
    RunFolder,
    read_csv,
    read_examples,
    read_predictions,
    read_samples,
)

pytestmark = pytest.mark.xdist_group("ray")

WORKERS = Workers(2, 1, {"CPU": 1, "GPU": 0})
NAMES = ("small-seed0", "small-seed1", "default-seed0")
FAILED = {"model": "small-seed2", "config": "small", "seed": 2, "failure": "non-finite loss in epoch 1"}


def save(folder: RunFolder, name: str, size: int, val_metric: float) -> None:
    """An untrained model for gray images of that size, in three classes."""
    config, seed = name.split("-seed")
    torch.manual_seed(len(name) + int(seed))
    model = build_model(TrialConfig(model=TINY), num_classes=3, channels=1, image_size=size)
    model.normalize.mean.fill_(80.0)
    model.normalize.std.fill_(80.0)
    card: Any = dict.fromkeys(IN_RESULTS, 1.0)
    card |= {"config_name": config, "seed": int(seed), "val_metric": val_metric, "torch": "2.11"}
    card |= {"class_names": list("abc"), "resize": {"channels": 1, "image_size": size, "rule": "native"}}
    save_model(folder.model(name), pack_weights(model), TrialConfig(model=TINY), card)


def split(count: int, size: int) -> Images:
    """Images that differ between classes, the same at each size but for the number of pixels."""
    images = np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return Images(images.repeat(size // 8, 2).repeat(size // 8, 3), np.arange(count) % 3)


@dataclass
class Evaluated:
    folder: RunFolder
    groups: list[Group]
    rows: list[dict[str, Any]]
    told: list[str]
    spent: list[Mapping[str, float]]


@pytest.fixture(scope="module")
def evaluated(hardware: Any, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Two models of 8 pixels with all splits, and one of 16 pixels of which the test split alone is known."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for name, size, val_metric in zip(NAMES, (8, 8, 16), (0.3, 0.5, 0.2), strict=True):
        save(folder, name, size, val_metric)
    groups = [
        Group(NAMES[:2], {"test": split(60, 8), "val": split(30, 8), "train": split(90, 8)}),
        Group(NAMES[2:], {"test": split(60, 16)}),
    ]
    told: list[str] = []
    spent: list[Mapping[str, float]] = []
    with pytest.MonkeyPatch.context() as patch, Processes(WORKERS) as processes:
        patch.setattr(module, "MAX_TRAIN_IMAGES", 45)
        patch.setattr(module, "MAX_CORRUPTED", 30)
        rows = evaluate(folder, groups, [FAILED], processes, told.append, spent.append)
    return Evaluated(folder, groups, rows, told, spent)


def load_card(folder: RunFolder, model: str) -> dict[str, Any]:
    return read_card(folder.model(model))[1]


def test_the_temperature_is_chosen_on_validation_and_stands_in_the_card(evaluated: Evaluated) -> None:
    folder = evaluated.folder
    kept = read_predictions(folder.predictions("val"))
    for name in NAMES[:2]:
        expected = fit_temperature(kept[name], kept["labels"])
        assert load_card(folder, name)["temperature"] == pytest.approx(expected)
    assert "temperature" not in load_card(folder, NAMES[2])  # no validation images are known of it


def test_every_model_is_scored_on_the_splits_of_its_group(evaluated: Evaluated) -> None:
    for name, models in (("test", NAMES), ("val", NAMES[:2])):
        kept = read_predictions(evaluated.folder.predictions(name))
        assert set(kept) == {"labels", *models}
        for group in evaluated.groups:
            for model in set(group.names) & set(kept):
                images = torch.tensor(group.splits[name].images)
                with torch.inference_mode():
                    expected = load_model(evaluated.folder.model(model))(images).softmax(1)
                np.testing.assert_allclose(kept[model], expected, atol=1e-6)
                np.testing.assert_array_equal(kept["labels"], group.splits[name].labels)
    assert {kind for seconds in evaluated.spent for kind, s in seconds.items() if s > 0} == {*EVALUATION_SECONDS}
    counts = [int(text.split()[1].split("/")[0]) for text in evaluated.told if text.endswith("/3 models scored")]
    assert counts == sorted(counts) and {1, 2, 3} <= set(counts)


def test_of_many_training_images_a_stratified_sample_is_scored(evaluated: Evaluated) -> None:
    kept = read_predictions(evaluated.folder.predictions("train"))
    assert np.bincount(kept["labels"]).tolist() == [15, 15, 15]
    assert {name: len(values) for name, values in kept.items()} == {"labels": 45, NAMES[0]: 45, NAMES[1]: 45}


def test_the_quality_of_every_model_and_split_is_that_of_the_kept_predictions(evaluated: Evaluated) -> None:
    folder = evaluated.folder
    quality, classes = read_csv(folder.quality_csv), read_csv(folder.classes_csv)
    scored = [(name, split) for name in NAMES[:2] for split in ("test", "val", "train")] + [(NAMES[2], "test")]
    assert [(row["model"], row["split"]) for row in quality] == scored
    assert [(row["model"], row["split"]) for row in classes[::3]] == scored
    for row in quality:
        kept = read_predictions(folder.predictions(row["split"]))
        of_classes = class_quality(kept[row["model"]], kept["labels"])
        which = {"model": row["model"], "config": row["model"].split("-")[0], "split": row["split"]}
        temperature = load_card(folder, row["model"]).get("temperature", 1)
        mended = calibration_error(scaled(kept[row["model"]], temperature), kept["labels"])
        told = {"scaled_calibration_error": pytest.approx(mended, abs=1e-12), "temperature": pytest.approx(temperature)}
        assert row == which | split_quality(kept[row["model"]], kept["labels"], of_classes) | told
        assert [each for each in classes if which.items() <= each.items()] == [which | each for each in of_classes]
    results = {row["model"]: row for row in read_csv(folder.results_csv)}
    for row in quality:
        if row["split"] == "test":
            of_model = results[row["model"]]
            assert of_model["test_accuracy"] == row["accuracy"] and of_model["test_loss"] == row["log_loss"]
            assert of_model["test_f1_macro"] == row["f1_macro"]
            assert of_model["test_auc_macro_ovr"] == row["auc_macro_ovr"]


def test_the_images_that_a_report_shows_are_kept(evaluated: Evaluated) -> None:
    folder, test = evaluated.folder, evaluated.groups[1].splits["test"]  # of `small` a seed failed
    kept, images = read_predictions(folder.predictions_npz), read_examples(folder.examples_npz)
    assert list(images) == find_examples(kept[NAMES[2]], kept["labels"]).indices.tolist()
    for index, image in images.items():
        np.testing.assert_array_equal(image, test.images[index])
    samples, train = read_samples(folder.samples_npz), evaluated.groups[0].splits["train"]
    assert list(samples) == [0, 1, 2]
    for label, of_class in samples.items():
        assert of_class.shape == (5, 1, 8, 8)
        assert all((train.images[train.labels == label] == image).all((1, 2, 3)).any() for image in of_class)


def test_the_best_of_the_family_and_the_default_are_scored_on_corrupted_images(evaluated: Evaluated) -> None:
    rows = read_csv(evaluated.folder.robustness_csv)
    kinds = [(CLEAN, 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    assert [(row["model"], row["corruption"], row["severity"]) for row in rows] == [(NAMES[2], *kind) for kind in kinds]
    assert {(row["config"], row["family"], row["n"]) for row in rows} == {("default", "cnn", 30)}
    model = load_model(evaluated.folder.model(NAMES[2]))
    images, labels = torch.tensor(split(60, 16).images), torch.tensor(split(60, 16).labels)
    chosen = torch.tensor(stratified_split(labels.numpy(), 30, min_left=0)[1])
    for row in rows[:4]:
        seen = images[chosen] if row["corruption"] == CLEAN else corrupt(images[chosen], "noise", row["severity"])
        with torch.inference_mode():
            right = (model(seen).argmax(1) == labels[chosen]).float().mean()
        assert row["accuracy"] == pytest.approx(float(right))


def test_results_hold_every_model_and_best_is_the_best_validation_seed_of_a_whole_configuration(
    evaluated: Evaluated,
) -> None:
    rows = read_csv(evaluated.folder.results_csv)
    assert [row["model"] for row in rows] == [*NAMES, "small-seed2"]
    assert [row["model"] for row in evaluated.rows] == list(NAMES)
    assert rows[-1]["failure"] == FAILED["failure"]
    assert {row["config"] for row in read_csv(evaluated.folder.latency_csv)} == {"small", "default"}
    assert load_model(evaluated.folder.best).image_size == 16  # of `small` a seed failed


def test_of_each_family_and_each_default_the_best_seed_is_scored_on_corrupted_images() -> None:
    cnns, resnets = [("default", 0.5), ("a", 0.6), ("b", 0.55)], [("default-resnet", 0.4), ("c", 0.3)]
    rows: list[dict[str, Any]] = [
        {"model": f"{config}-seed{seed}", "config": config, "family": family, "seed": seed, "val_metric": value + seed}
        for family, kinds in (("cnn", cnns), ("resnet", resnets))
        for config, value in kinds
        for seed in (0, 1)
    ]
    assert module._on_corrupted(summarise(rows)) == ["a-seed1", "default-seed1", "default-resnet-seed1"]
    for row in rows[:2]:
        row["failure"] = "out of memory"
    assert module._on_corrupted(summarise(rows)) == ["a-seed1", "default-resnet-seed1"]


def test_without_models_the_failures_are_all_that_is_recorded(tmp_path: Any) -> None:
    folder = RunFolder(tmp_path)
    assert evaluate(folder, [], [FAILED], Processes(WORKERS), lambda text: None, lambda seconds: None) == []
    assert [row["model"] for row in read_csv(folder.results_csv)] == ["small-seed2"]
    assert not folder.predictions_npz.exists()


def test_groups_share_the_test_split_and_leave_out_what_else_is_not_that_of_the_first() -> None:
    test, val, train = split(6, 8), split(3, 8), split(9, 8)
    groups = [
        Group(["a"], {"test": test, "val": val}),
        Group(["b"], {"test": test, "val": split(6, 8), "train": train}),
        Group(["c"], {"test": test, "val": val, "train": split(12, 8)}),
    ]
    assert [list(group.splits) for group in module._in_common(groups)] == [
        ["test", "val"],
        ["test", "train"],
        ["test", "val"],
    ]
    with pytest.raises(AssertionError, match="labels of test"):
        module._in_common([*groups, Group(["d"], {"test": Images(test.images, np.zeros(6))})])
