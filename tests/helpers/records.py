"""Synthetic run folders for tests: the records of a small search, as the real commands write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import BackboneConfig, CNNConfig, OptimizerConfig, TrialConfig
from cifar_ray.files import read_json, write_json
from cifar_ray.results.examples import find_examples
from cifar_ray.results.records import (
    CLASSES_COLUMNS,
    CLEAN,
    CORRUPTIONS,
    HISTORY_COLUMNS,
    LATENCY_COLUMNS,
    QUALITY_COLUMNS,
    RESULTS_COLUMNS,
    ROBUSTNESS_COLUMNS,
    SEVERITIES,
    RunFolder,
    read_csv,
    read_predictions,
    write_csv,
    write_examples,
    write_predictions,
    write_samples,
    write_trials,
)
from cifar_ray.results.statistics import image_scores

CLASS_NAMES = ["<b>&amp;", "$1 and $2", "a|b*c_d`e", "</td><script>alert(1)</script>", "4", "5", "6", "7", "8", "nine"]
"""Ten class names, the first four of which a careless report would not survive."""


def correct_predictions(
    rng: np.random.Generator, labels: np.ndarray, accuracies: list[float], num_classes: int, agreement: float = 0.7
) -> list[np.ndarray]:
    """Class probabilities (N, C) of a model for each accuracy; hard images are partly the same for all of them."""
    hardness = rng.uniform(size=len(labels))  # (N,)
    models = []
    for accuracy in accuracies:
        own = np.where(rng.uniform(size=len(labels)) < agreement, hardness, rng.uniform(size=len(labels)))
        guess = np.where(own < accuracy, labels, (labels + rng.integers(1, num_classes, len(labels))) % num_classes)
        probabilities = np.full((len(labels), num_classes), 0.1 / (num_classes - 1), np.float32)
        probabilities[np.arange(len(labels)), guess] = 0.9
        models.append(probabilities)
    return models


def history(rng: np.random.Generator, accuracy: float, epochs: int) -> list[dict[str, Any]]:
    """Rows of a history.csv whose validation accuracy rises to about `accuracy`."""
    rows = []
    for epoch in range(1, epochs + 1):
        value = accuracy * (1 - 0.85 * np.exp(-4.0 * epoch / epochs)) + rng.normal(0, 0.003)
        row = {
            "epoch": epoch,
            "train_loss": 2.3 * np.exp(-epoch / 4),
            "train_accuracy": value,
            "val_loss": 2.2 * (1 - value),
        }
        rows.append(row | {"val_accuracy": value, "val_metric": value, "lr": 0.1, "grad_norm_max": 1.5, "train_s": 0.8})
    return rows


def config_name(number: int, spaces: tuple[str, ...] = ("cnn",)) -> str:
    """The name of a trial, as a search gives it: trials of several spaces take turns with their numbers."""
    if number == 0:
        return "default"
    return f"default-{spaces[number]}" if number < len(spaces) else f"trial-{number:04d}"


def config_of(number: int, space: str, is_default: bool) -> TrialConfig:
    """A configuration of the family that the space, or the preset, is named after."""
    optimizer = OptimizerConfig(lr=0.1 if is_default else 0.043)
    if "resnet" in space:
        head_only = number % 4 == 3  # the default recipe and one in two others train all
        finetune, views = ("head", 4 if number % 8 == 3 else 1) if head_only else ("all", 1)
        model = BackboneConfig(
            "resnet18", finetune=finetune, feature_views=views, layer_decay=0.7 if is_default else 0.5
        )
        return TrialConfig(family="resnet", model=model, optimizer=optimizer, image_size=64)
    cnn = CNNConfig() if is_default else CNNConfig(widths=[48, 96, 160], activation="silu", residual=True)
    return TrialConfig(model=cnn, optimizer=optimizer)


def num_params(number: int, config: TrialConfig) -> int:
    """Parameters that a configuration might have."""
    return 11_181_642 if config.family == "resnet" else 94_000 + 7919 * number


def trial_record(
    rng: np.random.Generator, number: int, state: str, accuracy: float, spaces: tuple[str, ...] = ("cnn",)
) -> dict[str, Any]:
    """One record of trials.jsonl."""
    space, name = spaces[number % len(spaces)], config_name(number, spaces)
    config = config_of(number, space, name.startswith("default"))
    reason = {
        "failed": "non-finite training loss at epoch 1",
        "infeasible": "1.20M parameters, more than --max-params 1M",
    }
    scores = {"epoch": 8, "val_accuracy": accuracy, "val_loss": 2.2 * (1 - accuracy), "val_metric": accuracy}
    best = scores if state in ("complete", "pruned") else None
    model = config.model
    features = None
    if isinstance(model, BackboneConfig) and model.finetune == "head" and best:
        features = {"views": model.feature_views, "images_per_s": 280.1, "seconds": 12.5}
    return {
        "number": number,
        "name": name,
        "space": space,
        "params": {"model/stages": 3, "optimizer/lr": config.optimizer.lr},
        "config": config.to_dict(),
        "state": state,
        "reason": reason.get(state),
        "epochs": {"complete": 30, "pruned": 3}.get(state, 1),
        "num_params": num_params(number, config),
        "features": features,
        "best": best,
        "last": best,
        "seconds": {
            "startup": 0.4,
            "wait": 0.2,
            "data": 0.1,
            "setup": 0.1,
            "train": 4.0 + rng.uniform(),
            "eval": 0.6,
            "checkpoint": 0.0,
            "scheduler": 0.1,
        },
        "ended_s": 3.1 * number + rng.uniform(),
    }


def run_record(num_test: int, class_names: list[str], metric: str = "accuracy") -> dict[str, Any]:
    """run.json of a finished search."""
    return {
        "kind": "tune",
        "command": "python -m cifar_ray.tune --space cnn --data digits --trials 24 --name 'a b'",
        "settings": {"space": "cnn", "data": "digits", "trials": 24},
        "versions": {"cifar_ray": "0.1.0", "python": "3.11.7", "torch": "2.11.0", "ray": "2.60.0", "optuna": "5.0.0"},
        "device": {"kind": "cpu", "name": "AMD EPYC 7R13", "num_cpus": 2, "num_gpus": 0, "slots": 2},
        "data": {
            "source": "digits",
            "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "class_names": class_names,
            "channels": 1,
            "image_size": 8,
            "num_train": 1149,
            "num_val": 288,
            "num_test": num_test,
        },
        "seed": 0,
        "metric": metric,
        "start": "2026-07-28T10:00:00+00:00",
        "end": "2026-07-28T10:02:31+00:00",
        "phases_s": {"startup": 6.2, "search": 78.4, "finals": 55.0, "evaluation": 11.3},
        "slots_s": {
            "finals": {"train": 80.0, "eval": 12.0},
            "evaluation": {"scoring": 9.0, "corruptions": 6.0, "timing": 5.0},
        },
    }


def make_run(
    root: Path,
    *,
    seeds: int = 3,
    finals: bool = True,
    accuracies: dict[str, float] | None = None,
    class_names: list[str] | None = None,
    num_test: int = 360,
    num_trials: int = 24,
    absent_class: bool = False,
    metric: str = "accuracy",
    spaces: tuple[str, ...] = ("cnn",),
    seed_noise: float = 0.004,
    failed: tuple[str, ...] = (),
) -> RunFolder:
    """Write a run folder; `accuracies` of the finalists, `finals=False` for a search that was interrupted.

    `num_trials=0` is a training of named models: `accuracies` then has names of presets. `failed` are final models
    such as `default-seed1` whose training failed.
    """
    rng = np.random.default_rng(0)
    names = class_names or CLASS_NAMES
    accuracies = accuracies or {"trial-0012": 0.972, "default": 0.955, "trial-0007": 0.968, "trial-0019": 0.966}
    folder = RunFolder(root)
    run = run_record(num_test, names, metric)
    if num_trials == 0:
        run |= {
            "kind": "train",
            "command": "python -m cifar_ray.train --config default.json",
            "settings": {},
            "phases_s": {"finals": 55.0},
        }
    if not finals:
        run |= {"end": None, "phases_s": {"startup": 6.2}}
    write_json(folder.run_json, run)

    states = ["complete", "pruned", "pruned", "complete", "pruned", "infeasible", "pruned", "complete", "failed"]
    trials = []
    for number in range(num_trials):
        state = "complete" if number in (0, 7, 12, 19) else states[number % len(states)]
        reached = rng.uniform(0.3, 0.9) if state == "pruned" else rng.uniform(0.93, 0.965)
        state = "complete" if number < len(spaces) else state
        accuracy = accuracies.get(config_name(number, spaces), reached)
        trials.append(trial_record(rng, number, state, accuracy, spaces))
    if trials:
        write_trials(folder.trials_jsonl, trials)
    if not finals:
        return folder

    labels = np.sort(np.arange(num_test) % (len(names) - absent_class))  # the last class may lack test images
    models = [(config, seed) for config in accuracies for seed in range(seeds)]
    wanted = [accuracies[config] + rng.normal(0, seed_noise) for config, _ in models]
    probabilities = correct_predictions(rng, labels, wanted, len(names))
    rows, predictions = [], {}
    for (config, seed), accuracy, values in zip(models, wanted, probabilities, strict=True):
        model = f"{config}-seed{seed}"
        if model in failed:
            failure = {"failure": f"non-finite loss in epoch {1 + seed % 2}"}
            rows.append({"model": model, "config": config, "seed": seed} | failure)
            continue
        predictions[model] = values
        write_csv(folder.model(model) / "history.csv", HISTORY_COLUMNS, history(rng, accuracy, 30))
        numbers = {config_name(number, spaces): number for number in range(num_trials)}
        trial = numbers.get(config, 0)
        space = spaces[trial % len(spaces)] if numbers else config
        trial_config = config_of(trial, space, config.startswith("default"))
        write_json(folder.model(model) / "config.json", {"config": trial_config.to_dict()})
        resnet = trial_config.family == "resnet"
        row = {
            "model": model,
            "family": trial_config.family,
            "trial": trial if numbers else None,
            "seed": seed,
            "train_accuracy": 0.999,
            "val_accuracy": accuracy,
        }
        row |= {"test_accuracy": float((values.argmax(axis=1) == labels).mean()), "test_loss": 0.12}
        for name, column in (("auc", "test_auc_macro_ovr"), ("f1", "test_f1_macro")):
            of_images = image_scores(name, values, labels)
            row[column] = None if of_images is None else float(of_images.mean())
        row["num_params"] = num_params(trial, trial_config)
        row |= {
            "size_mb": 44.8 if resnet else 0.38 + 0.03 * trial,
            "config": config,
            "val_metric": accuracy,
            "val_loss": 2.2 * (1 - accuracy),
        }
        row |= {
            "epochs": 30,
            "best_epoch": 27,
            "train_s": (61.0 if resnet else 4.9) + seed,
            "training_seed": 1000 + seed,
            "device": "AMD EPYC 7R13",
            "threads": 2,
        }
        if seed == 0:
            row |= {
                "latency_ms_p50": (1.5 if resnet else 0.21) + 0.02 * trial,
                "latency_ms_p95": (2.1 if resnet else 0.34) + 0.02 * trial,
                "images_per_s": (900 if resnet else 48_000) / (1 + trial),
            }
        rows.append(row | {"torch": "2.11.0"})
    write_csv(folder.results_csv, RESULTS_COLUMNS, rows)
    write_predictions(folder.predictions_npz, labels, predictions)
    latency = [
        {"config": config, "device": "AMD EPYC 7R13", "threads": 2, "batch_size": batch_size, "n": 200}
        | {
            "latency_ms_p50": 0.21 * batch_size**0.8,
            "latency_ms_p95": 0.34 * batch_size**0.8,
            "images_per_s": 4800 * batch_size**0.2,
        }
        for config in accuracies
        for batch_size in (1, 64)
    ]
    write_csv(folder.latency_csv, LATENCY_COLUMNS, latency)
    return folder


def write_quality(folder: RunFolder, train_accuracy: float = 0.99) -> None:
    """Write quality.csv and classes.csv, as an evaluation does, to a run that `make_run` wrote."""
    data, predictions = read_json(folder.run_json)["data"], read_predictions(folder.predictions_npz)
    labels = predictions["labels"]
    rows, classes = [], []
    for row in read_csv(folder.results_csv):
        if row["failure"]:
            continue
        test = {"accuracy": row["test_accuracy"], "auc_macro_ovr": row["test_auc_macro_ovr"]}
        test |= {"f1_macro": row["test_f1_macro"], "log_loss": 0.12, "top5_accuracy": 0.995}
        val = dict.fromkeys(test, row["val_accuracy"]) | {"log_loss": 0.10}
        train = dict.fromkeys(test, train_accuracy) | {"log_loss": 0.03}
        who = {"model": row["model"], "config": row["config"]}
        rows += [{**who, "split": split, "n": data[f"num_{split}"], **scores}
                 for split, scores in (("train", train), ("val", val), ("test", test))]  # fmt: skip
        predicted = predictions[row["model"]].argmax(axis=1)
        for index in range(len(data["class_names"])):
            right = int(((labels == index) & (predicted == index)).sum())
            n, said = int((labels == index).sum()), int((predicted == index).sum())
            scores = {"auc_ovr": 0.9 + index / 100 if n else None, "precision": right / said if said else None}
            scores |= {"recall": right / n if n else None, "f1": 2 * right / (n + said) if n + said else None}
            classes.append({**who, "split": "test", "class": index, "n": n, **scores})
    write_csv(folder.quality_csv, QUALITY_COLUMNS, rows)
    write_csv(folder.classes_csv, CLASSES_COLUMNS, classes)


def write_pictures(folder: RunFolder, side: int = 8, channels: int = 1) -> None:
    """Write examples.npz and samples.npz: images of noise, those of the examples as bright as their index says."""
    rng = np.random.default_rng(0)
    predictions = read_predictions(folder.predictions_npz)
    labels = predictions.pop("labels")
    index = np.unique(np.concatenate([find_examples(values, labels).indices for values in predictions.values()]))
    images = rng.integers(0, 128, (len(index), channels, side, side)).astype(np.uint8)
    images[:, :, 0, 0] = (index % 256)[:, None]
    write_examples(folder.examples_npz, index, images)
    classes = np.repeat(np.unique(labels)[:20], 5)
    write_samples(folder.samples_npz, classes, rng.integers(0, 256, (len(classes), channels, side, side), np.uint8))


def write_robustness(folder: RunFolder, drop: float = 0.05) -> None:
    """Write robustness.csv: each corruption costs a CNN `drop` times its severity, and a ResNet half of that."""
    rows = []
    for row in read_csv(folder.results_csv):
        if row["seed"] != 0 or row["failure"]:
            continue
        step = drop if row["family"] == "cnn" else drop / 2
        kinds = [(CLEAN, 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
        rows += [{"model": row["model"], "config": row["config"], "family": row["family"], "corruption": name,
                  "severity": severity, "n": 300, "accuracy": row["test_accuracy"] - step * severity}
                 for name, severity in kinds]  # fmt: skip
    write_csv(folder.robustness_csv, ROBUSTNESS_COLUMNS, rows)
