"""Synthetic records of an ablation: what `cifar_ray.ablate` leaves, from a seeded simulation instead of trainings.

Intervals are those of independent t tests with Sidak's correction: near enough to look at a report, and no analysis.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from helpers.records import CLASS_NAMES, correct_predictions, run_record
from scipy import stats

from cifar_ray.config import CNNConfig, LRScheduleConfig, OptimizerConfig, TrialConfig
from cifar_ray.files import write_json
from cifar_ray.results.records import (
    EFFECTS_COLUMNS,
    HISTORY_COLUMNS,
    RESULTS_COLUMNS,
    RUNS_COLUMNS,
    SWEEP_COLUMNS,
    Row,
    RunFolder,
    write_csv,
    write_predictions,
)

EPOCHS, SEEDS, BASE_SEEDS = 15, 5, 10

# Of each level: path and value, planted effect on accuracy, factors on time, parameters, swings and gradients, and
# epochs by which it comes later.
LEVELS: dict[str, dict[str, tuple[dict[str, Any], float, float, float, float, float, float]]] = {
    "norm": {
        "none": ({"model/norm": "none"}, -0.045, 0.78, 0.99, 2.1, 3.0, 3.5),
        "group": ({"model/norm": "group"}, -0.004, 1.31, 1.0, 1.1, 1.1, 0.6),
        "evonorm_s0": ({"model/norm": "evonorm_s0"}, 0.003, 1.62, 1.01, 1.0, 1.2, 0.2),
    },
    "dropout": {
        "0.1": ({"model/dropout": 0.1}, 0.011, 1.05, 1.0, 0.9, 0.9, 0.8),
        "0.3": ({"model/dropout": 0.3}, -0.009, 1.05, 1.0, 0.8, 0.8, 3.0),
    },
    "lr-schedule": {
        "constant": ({"lr_schedule/name": "constant"}, -0.018, 1.0, 1.0, 2.6, 1.4, -2.0),
        "cosine": ({"lr_schedule/name": "cosine"}, 0.001, 1.0, 1.0, 1.0, 1.0, -0.5),
        "step": ({"lr_schedule/name": "step"}, -0.003, 1.0, 1.0, 1.1, 1.2, -1.0),
    },
    "augment": {"flip, crop": ({"augment/flip": "random", "augment/crop_padding": 4}, 0.019, 1.08, 1.0, 0.8, 1.0, 1.4)},
    "optimizer": {
        "adamw": ({"optimizer/name": "adamw"}, -0.006, 1.12, 1.0, 1.2, 0.7, 0.3),
        "muon": ({"optimizer/name": "muon"}, 0.006, 1.35, 1.0, 0.9, 0.9, -1.5),
    },
    "activation": {
        "mish": ({"model/activation": "mish"}, 0.002, 1.22, 1.0, 1.0, 1.0, 0.0),
        "gelu": ({"model/activation": "gelu"}, 0.001, 1.15, 1.0, 1.0, 1.0, 0.0),
    },
    "kernel-size": {
        "5": ({"model/kernel_sizes": [5, 5, 5]}, 0.002, 1.9, 2.7, 1.0, 1.3, -0.3),
        "1": ({"model/kernel_sizes": [1, 1, 1]}, -0.12, 0.6, 0.12, 0.7, 0.6, 8.0),
    },
    "residual": {"true": ({"model/residual": True}, 0.0, 0.82, 1.0, 1.0, 1.0, 0.0)},
}  # fmt: skip
OWN_RATES = {("norm", "none"): (0.083, 0.03), ("optimizer", "adamw"): (0.083, 0.004)}
"""Levels with a better learning rate than the base's: that rate, and what it adds to the accuracy."""
PATIENCES = {"2": (6, -0.014), "4": (11, -0.002)}
"""Epochs kept, and what it loses."""
CROSS = {"none x 0.1": -0.02, "group x 0.1": 0.0, "none x 0.3": -0.03, "group x 0.3": 0.001}
"""Interactions of norm and dropout."""


def base_config() -> TrialConfig:
    return TrialConfig(
        model=CNNConfig(widths=[32, 64]  , blocks=[1, 1], kernel_sizes=[3, 3]),
        optimizer=OptimizerConfig(lr=0.25),
        lr_schedule=LRScheduleConfig(name="one_cycle"),
    )  # fmt: skip


def _changed(config: Row, changes: Row) -> Row:
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *folders, key = path.split("/")
        holder = config
        for folder in folders:
            holder = holder[folder]
        holder[key] = value
    return config


def make_design(*, cross: bool = True, resplit: bool = False, metric: str = "accuracy") -> Row:
    """The design of LEVELS, OWN_RATES, PATIENCES and CROSS."""
    base = base_config().to_dict()
    base["model"] |= {"kernel_sizes": [3, 3]}
    shared = {"rate": "base", "lr": 0.25, "control": "base", "anneals": True, "patience": None}
    arms: list[Row] = [{"name": "base", "factor": None, "level": None, **shared, "control": None, "config": base}]
    factors: list[Row] = []
    base_levels = {"norm": "batch", "dropout": "0", "lr-schedule": "one_cycle", "augment": "none", "optimizer": "sgd"}
    base_levels |= {"activation": "relu", "kernel-size": "3", "residual": "false"}
    for factor, levels in LEVELS.items():
        paths = list(dict.fromkeys(path for changes, *_ in levels.values() for path in changes))
        factors.append(
            {"name": factor, "paths": paths, "base_level": base_levels.get(factor, "the usual"), "levels": list(levels)}
        )
        for level, (changes, *_) in levels.items():
            arm = {"name": f"{factor.replace('/', '.')}={level}", "factor": factor, "level": level, **shared}
            arm |= {"anneals": level not in ("constant", "step"), "config": _changed(base, changes)}
            arms.append(arm)
            if (factor, level) in OWN_RATES:
                lr = OWN_RATES[factor, level][0]
                own = {"name": f"{factor}={level}, own rate", "rate": "own", "lr": lr}
                arms.append(arm | own | {"config": _changed(arm["config"], {"optimizer/lr": lr})})
    constant = next(arm for arm in arms if arm["name"] == "lr-schedule=constant")
    factors.append({"name": "early-stopping", "paths": [], "base_level": "none", "levels": list(PATIENCES)})
    for level in PATIENCES:
        arms.append(constant | {"name": f"early-stopping={level}", "factor": "early-stopping", "level": level}
                    | {"control": constant["name"], "patience": int(level)})  # fmt: skip
    for level in CROSS if cross else ():
        norm, dropout = level.split(" x ")
        arms.append({"name": f"norm={norm} x dropout={dropout}", "factor": "norm x dropout", "level": level, **shared}
                    | {"cells": {"norm": norm, "dropout": dropout}}
                    | {"config": _changed(base, {"model/norm": norm, "model/dropout": float(dropout)})})  # fmt: skip
    left_out = [
        {"factor": "norm-placement", "level": level, "reason": "the base has its pooling before the norm"}
        for level in ("after_activation", "before_conv")
    ]
    return {
        "metric": metric, "max_epochs": EPOCHS, "seeds": SEEDS, "base_seeds": BASE_SEEDS, "resplit": resplit,
        "base": base, "base_name": "small-cnn", "factors": factors, "left_out": left_out, "arms": arms,
        "cross": ["norm", "dropout"] if cross else None,
        "sweep": {"factors": ["norm", "optimizer"], "multiples": [0.333, 1, 3], "seeds": 2},
    }  # fmt: skip


def make_sweep(design: Row) -> list[Row]:
    """Rows of sweep.csv: the base's rate is the best for all levels but those of OWN_RATES."""
    rows = []
    for arm in design["arms"]:
        if arm["factor"] not in (None, "norm", "optimizer") or arm["rate"] == "own":
            continue
        own = OWN_RATES.get((arm["factor"], arm["level"]), (0.25, 0.0))[0]
        rows += [{"arm": arm["name"], "lr": lr, "seed": seed, "val_metric": 0.9, "chosen": int(lr == own)}
                 for lr in (0.083, 0.25, 0.75) for seed in range(2)]  # fmt: skip
    return rows


def planted(arm: Row) -> tuple[float, float, float, float, float, float]:
    """What an arm adds to the accuracy, its factors on time, parameters, swings, gradients, and its epochs later."""
    if arm.get("cells"):
        parts = [LEVELS[factor][level] for factor, level in arm["cells"].items()]
        added = sum(part[1] for part in parts) + CROSS[arm["level"]]
        times = [math.prod(part[i] for part in parts) for i in (2, 3, 4, 5)]
        return (added, times[0], times[1], times[2], times[3], sum(part[6] for part in parts))
    if arm["factor"] is None:
        return (0.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    if arm["factor"] == "early-stopping":
        arm = {"factor": "lr-schedule", "level": "constant", "rate": "base"}
    _, *numbers = LEVELS[arm["factor"]][arm["level"]]
    if arm["rate"] == "own":
        numbers = [numbers[0] + OWN_RATES[arm["factor"], arm["level"]][1], *numbers[1:3], 1.2, 1.3, 1.0]
    return tuple(numbers)  # type: ignore[return-value]


def make_runs(rng: np.random.Generator, design: Row, diverged: dict[str, int]) -> list[Row]:
    """Rows of runs.csv; `diverged` says how many seeds of an arm did."""
    rows = []
    noise: dict[tuple[str, int], float] = {}
    for arm in design["arms"]:
        added, time, size, swings, gradients, later = planted(arm)
        for seed in range(BASE_SEEDS if arm["factor"] is None else SEEDS):
            row = {name: arm[name] for name in ("factor", "level", "rate", "control", "lr")}
            row |= {"arm": arm["name"], "seed": seed, "training_seed": 1000 + seed, "epochs": EPOCHS, "diverged": 0}
            row |= {"lr_schedule": arm["config"]["lr_schedule"]["name"], "num_params": round(93_322 * size)}
            if seed < diverged.get(arm["name"], 0):
                epochs = int(rng.integers(1, 4))
                rows.append(row | {"diverged": 1, "failure": f"non-finite loss in epoch {epochs}", "epochs": epochs})
                continue
            drawn = noise.setdefault((arm["name"], seed), float(rng.normal(0, 0.0035)))
            accuracy, best = 0.905 + added + drawn, EPOCHS - int(rng.integers(0, 3))
            if arm["patience"] is not None:
                kept, lost = PATIENCES[arm["level"]]
                accuracy = 0.905 + added + noise[arm["control"], seed] + min(lost + rng.normal(0, 0.001), 0.0)
                row["epochs"] = best = kept + int(rng.integers(-1, 2))
            val, to_target = accuracy + 0.004 + rng.normal(0, 0.003), 8.0 + later + rng.normal(0, 0.8)
            row |= {"val_metric": val, "val_accuracy": val, "test_metric": accuracy, "test_accuracy": accuracy}
            row |= {"test_loss": 2.6 * (1 - accuracy), "best_epoch": best}
            row["train_accuracy"] = min(0.985 - 2 * max(added, 0.0) + min(added, 0.0), 1.0) + rng.normal(0, 0.002)
            row |= {"gap": row["train_accuracy"] - val, "epoch_s": 0.63 * time * (1 + rng.normal(0, 0.02))}
            row["loss_area"] = 0.48 + 0.02 * later - added + rng.normal(0, 0.01)
            if val > 0.98 * 0.909:
                reached = int(np.clip(round(to_target), 1, EPOCHS))
                row |= {"epochs_to_target": reached, "seconds_to_target": reached * row["epoch_s"]}
            row["grad_norm_max"] = 2.5 * gradients * math.exp(rng.normal(0, 0.15))
            row["oscillation"] = 0.02 * swings * math.exp(rng.normal(0, 0.2))
            rows.append(row)
    return rows


OUTCOMES = ("test_metric", "val_metric", "test_loss", "gap", "epochs_to_target", "loss_area", "grad_norm_max",
            "oscillation", "epoch_s")  # fmt: skip


def make_effects(design: Row, runs: list[Row]) -> list[Row]:
    """Rows of effects.csv."""
    rows = []
    arms = [arm for arm in design["arms"] if arm["control"]]
    for outcome in OUTCOMES:
        scale = "log" if outcome in ("grad_norm_max", "oscillation", "epoch_s") else "difference"
        for arm in arms:
            values, control = (_values(runs, name, outcome, scale) for name in (arm["name"], arm["control"]))
            of_arm = [row for row in runs if row["arm"] == arm["name"]]
            row = {name: arm[name] for name in ("factor", "level", "rate", "control")} | {"arm": arm["name"]}
            row |= {"outcome": outcome, "scale": scale, "n": len(of_arm), "n_control": len(control)}
            if outcome == "epochs_to_target":
                reached = sum(one.get("epochs_to_target") is not None for one in of_arm)
                row |= {"reached": f"{reached} of {len(of_arm)}", "reached_control": f"{BASE_SEEDS} of {BASE_SEEDS}"}
            num_diverged = sum(one["diverged"] for one in of_arm)
            if num_diverged:
                rows.append(row | {"reason": f"{num_diverged} of {len(of_arm)} seeds diverged"})
                continue
            row |= {"mean": fmean(values), "mean_control": fmean(control), "method": "moderated"}
            difference = fmean(values) - fmean(control)
            if arm["patience"] is not None:
                paired = np.array(values) - np.array(control)
                error, df, row["method"] = float(paired.std(ddof=1)) / math.sqrt(len(paired)), len(paired) - 1, "paired"
                k = len(PATIENCES)
            else:
                pooled = (np.var(values) * len(values) + np.var(control) * len(control)) / (
                    len(values) + len(control) - 2
                )
                error = math.sqrt(0.5 * float(pooled) * (1 / len(values) + 1 / len(control)) + 1e-7)
                df, k = 30, len(arms)
            rows.append(row | _intervals(difference, error, df, k))
    for arm in [one for one in arms if one.get("cells")]:
        cell, *singles = (
            _values(runs, name, "test_metric", "difference")
            for name in (arm["name"], *(f"{factor}={level}" for factor, level in arm["cells"].items()), "base")
        )
        row = {name: arm[name] for name in ("factor", "level", "rate", "control")} | {"arm": arm["name"]}
        row |= {"outcome": "interaction: test_metric", "scale": "difference", "method": "moderated"}
        if not all(cell) or not all(singles):
            continue
        difference = fmean(cell) - fmean(singles[0]) - fmean(singles[1]) + fmean(singles[2])
        rows.append(row | _intervals(difference, 0.0031, 30, len(CROSS)))
    return rows


def _values(runs: list[Row], arm: str, outcome: str, scale: str) -> list[float]:
    rows = [row for row in runs if row["arm"] == arm and not row["diverged"]]
    values = [row.get(outcome, EPOCHS if outcome == "epochs_to_target" else None) for row in rows]
    return [math.log(value) if scale == "log" else value for value in values]


def _intervals(difference: float, error: float, df: int, num_comparisons: int) -> Row:
    wide = float(stats.t.ppf(1 - (1 - 0.95 ** (1 / num_comparisons)) / 2, df)) * error
    alone = float(stats.t.ppf(0.975, df)) * error
    row: Row = {"difference": difference, "low": difference - wide, "high": difference + wide}
    row |= {"low_alone": difference - alone, "high_alone": difference + alone}
    detectable = wide + float(stats.t.ppf(0.8, df)) * error
    row["detectable"] = detectable
    if abs(difference) < wide:
        row["seeds_needed"] = min(math.ceil(SEEDS * (detectable / max(abs(difference), 1e-9)) ** 2), 1000)
    return row


def _history(rng: np.random.Generator, row: Row) -> list[Row]:
    """Rows of history.csv that rise to the row's accuracy."""
    speed = 2.6 / math.sqrt(max(row.get("epochs_to_target") or 14, 1) / 8)
    rows = []
    for epoch in range(1, EPOCHS + 1):
        value = row["val_accuracy"] * (1 - 0.75 * math.exp(-speed * epoch / 5)) + rng.normal(
            0, 0.3 * row["oscillation"]
        )
        rows.append({"epoch": epoch, "train_loss": 2.3 * math.exp(-epoch / 4), "train_accuracy": value, "lr": 0.1}
                    | {"val_loss": 2.6 * (1 - value), "val_accuracy": value, "val_metric": value}
                    | {"grad_norm_max": row["grad_norm_max"], "train_s": row["epoch_s"]})  # fmt: skip
    return rows


def make_ablation(
    root: Path, *, diverged: dict[str, int] | None = None, cross: bool = True, resplit: bool = False
) -> RunFolder:
    """Write the run folder of an ablation; `diverged` says how many seeds of an arm did."""
    rng = np.random.default_rng(0)
    folder = RunFolder(root)
    run = run_record(500, CLASS_NAMES, "accuracy")
    run |= {"kind": "ablate", "command": "python -m cifar_ray.ablate --data digits", "settings": {}}
    write_json(folder.run_json, run)
    design = make_design(cross=cross, resplit=resplit)
    runs = make_runs(rng, design, {"kernel-size=5": 2} if diverged is None else diverged)
    write_json(folder.design_json, design)
    write_csv(folder.runs_csv, RUNS_COLUMNS, runs)
    write_csv(folder.sweep_csv, SWEEP_COLUMNS, make_sweep(design))
    write_csv(folder.effects_csv, EFFECTS_COLUMNS, make_effects(design, runs))
    labels = np.arange(500) % 10
    trained = [row for row in runs if not row["arm"].startswith("early-stopping")]
    whole = [row for row in trained if not row["diverged"]]
    probabilities = correct_predictions(rng, labels, [row["test_accuracy"] for row in whole], 10)
    predictions, rows = {}, []
    for row in trained:
        model = f"{row['arm']}-seed{row['seed']}"
        cells = {"model": model, "config": row["arm"], "seed": row["seed"], "family": "cnn"}
        if row["diverged"]:
            rows.append(cells | {"failure": row["failure"]})
            continue
        predictions[model] = probabilities[len(predictions)]
        names = ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss", "num_params", "val_metric", "epochs")
        rows.append(cells | {name: row[name] for name in names} | {"best_epoch": row["best_epoch"], "val_loss": 0.3})
        write_csv(folder.model(model) / "history.csv", HISTORY_COLUMNS, _history(rng, row))
    write_csv(folder.results_csv, RESULTS_COLUMNS, rows)
    write_predictions(folder.predictions_npz, labels, predictions)
    return folder
