"""The training recipe of a network of your own, which `--module FILE.py:NAME` names: optimizer, schedule, augmentation.

To search parameters of the network too, copy this file and draw them into `params`: see `examples/my_space.py`. What a
space is stands in `search_spaces/cnn.py`, which also draws what all families have in common.
"""

from typing import Any

import optuna

from cifar_ray.config import Task
from search_spaces.cnn import draw_augment, draw_optimizer, draw_recipe, draws_tta, flips, imbalanced

OPTIMIZERS = {
    "sgd": ((5e-3, 0.5), (1e-5, 3e-3)),
    "adamw": ((3e-4, 2e-2), (1e-3, 0.2)),
    "muon": ((3e-3, 0.1), (1e-3, 0.2)),
}
"""Ranges of the learning rate and of the weight decay; the lower rates are for networks without a norm."""


def space(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw one configuration."""
    return {
        "family": "module",
        "model": {"params": {}},
        "optimizer": draw_optimizer(trial, "optimizer", OPTIMIZERS),
        "augment": draw_augment(trial, task),
        **draw_recipe(trial, task),
        "tta": trial.suggest_categorical("tta", ["none", "flip"]) if draws_tta(task) else "none",
    }


def default(task: Task) -> dict[str, Any]:
    """Parameter values of trial 0: the recipe of the space `cnn`, but AdamW, which trains without a norm as well."""
    small = task.device == "cpu"
    return {
        "optimizer/name": "adamw",
        "optimizer/adamw_lr": 2e-3,
        "optimizer/adamw_weight_decay": 0.01,
        "lr_schedule/name": "one_cycle",
        "augment/crop_padding": task.image_size // 16,
        "augment/flip": flips(task)[-1],
        "augment/cutout": 0,
        "batch_size": 64 if small else 512,
        "label_smoothing": 0.1 if small else 0.2,
        **({"class_weights": "none"} if imbalanced(task) else {}),
        **({"tta": "none"} if draws_tta(task) else {}),
    }
