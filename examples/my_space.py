"""A search space of your own, for `tune --space examples/my_space.py --module examples/my_cnn.py:Net`.

It draws parameters of the network beside the training recipe of the built-in space `module`.
"""

from typing import Any

import optuna

from cifar_ray.config import Task
from search_spaces import module


def space(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw one configuration."""
    params = {
        "width": trial.suggest_categorical("module/width", [8, 16, 32]),
        "depth": trial.suggest_int("module/depth", 1, 3),
        "dropout": trial.suggest_float("module/dropout", 0.0, 0.4, step=0.1),
    }
    return {**module.space(trial, task), "model": {"params": params}}


def default(task: Task) -> dict[str, Any]:
    """Parameter values of trial 0."""
    return {**module.default(task), "module/width": 16, "module/depth": 2, "module/dropout": 0.0}
