"""A ResNet with pretrained weights: what of it is fine-tuned, its head, image size, optimizer and augmentation.

`task.backbones` are those that have the weights `task.weights`, or the one that `--set model/backbone=NAME` fixes: any
of torchvision's that is known. What a space is stands in `search_spaces/cnn.py`, which also draws what all families
have in common.
"""

from typing import Any

import optuna

from cifar_ray.config import MOSTLY_DENSE, Task, family_of
from search_spaces.cnn import draw_augment, draw_optimizer, draw_recipe, flips, imbalanced

OPTIMIZERS = {
    "sgd": ((5e-3, 0.3), (1e-5, 3e-3)),
    "adamw": ((2e-4, 2e-2), (1e-3, 0.2)),
    "muon": ((1e-3, 0.05), (1e-3, 0.2)),
}
"""Ranges of the head's learning rate and of the weight decay where the backbone is trained too."""

HEAD_OPTIMIZERS = {"sgd": ((0.01, 1.0), (1e-6, 1e-2)), "adamw": ((3e-4, 3e-2), (1e-4, 0.5))}
"""The same where the head alone is trained."""

SMALL = (
    "alexnet", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_1_6gf", "regnet_x_400mf", "regnet_x_800mf", "regnet_y_1_6gf", "regnet_y_400mf",
    "regnet_y_800mf", "resnet18", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
)  # fmt: skip
"""Backbones that do no more arithmetic for an image than a ResNet-18: a CPU may train all of them."""

FINETUNE = ["head", "last_stage", "last_two_stages", "all", "gradual"]

HEADS: dict[str, list[int]] = {"linear": [], "256": [256], "512": [512], "512-128": [512, 128]}
"""Widths of hidden dense layers, by a name that the study can keep."""


def space(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw one configuration."""
    small = task.device == "cpu"
    sizes = [32, 64, 96] if small else [32, 64, 96, 128, 160, 224]
    backbone = trial.suggest_categorical("model/backbone", list(task.backbones))
    family = family_of(backbone)
    image_size = trial.suggest_categorical("image_size", sizes)
    head = trial.suggest_categorical("model/head", list(HEADS))
    model: dict[str, Any] = {
        "backbone": backbone,
        "weights": task.weights,
        "head_hidden": HEADS[head],
        "head_dropout": trial.suggest_float("model/head_dropout", 0.0, 0.5, step=0.1),
    }
    if task.weights == "none":
        model["finetune"] = "all"
    elif small and backbone not in SMALL:
        model["finetune"] = "head"  # more of a larger one takes a CPU hours
    else:
        model["finetune"] = trial.suggest_categorical("model/finetune", FINETUNE)

    if model["finetune"] == "head":
        # Trials whose views are the same share the features of them: they do not differ in augmentation.
        model["feature_views"] = trial.suggest_categorical("model/feature_views", [1, 4])
        augment = {"crop_padding": task.image_size // 8, "flip": flips(task)[-1]} if model["feature_views"] > 1 else {}
        optimizer = draw_optimizer(trial, "head_optimizer", HEAD_OPTIMIZERS)
    else:
        augment = draw_augment(trial, task)
        fitting = {name: ranges for name, ranges in OPTIMIZERS.items() if name != "muon" or family not in MOSTLY_DENSE}
        optimizer = draw_optimizer(trial, "optimizer", fitting)
        if task.weights != "none":
            model["backbone_lr"] = trial.suggest_float("model/backbone_lr", 0.03, 1.0, log=True)
            model["layer_decay"] = trial.suggest_categorical("model/layer_decay", [0.5, 0.7, 1.0])
            model["freeze_norm_statistics"] = trial.suggest_categorical("model/freeze_norm_statistics", [False, True])
        # It takes sixteen times the work of the other one.
        if family == "resnet" and model["finetune"] in ("all", "gradual") and image_size <= (32 if small else 64):
            model["stem"] = trial.suggest_categorical("model/stem", ["imagenet", "cifar"])
    return {
        "family": family,
        "model": model,
        "image_size": image_size,
        "optimizer": optimizer,
        "augment": augment,
        **draw_recipe(trial, task),
    }


def default(task: Task) -> dict[str, Any]:
    """Parameter values of trial 0: the first backbone, all of it fine-tuned; on a CPU only the head of a larger one."""
    small = task.device == "cpu"
    params: dict[str, Any] = {
        "model/backbone": task.backbones[0],
        "image_size": 64 if small else 128,
        "model/head": "linear",
        "model/head_dropout": 0.0,
        "lr_schedule/name": "one_cycle",
        "batch_size": 64 if small else 256,
        "label_smoothing": 0.1,
        **({"class_weights": "none"} if imbalanced(task) else {}),
    }
    if task.weights != "none" and small and task.backbones[0] not in SMALL:
        return params | {
            "model/feature_views": 4,
            "head_optimizer/name": "adamw",
            "head_optimizer/adamw_lr": 3e-3,
            "head_optimizer/adamw_weight_decay": 0.01,
        }
    params |= {
        "augment/crop_padding": task.image_size // 8,
        "augment/flip": flips(task)[-1],
        "augment/cutout": 0,
        "optimizer/name": "adamw",
        "optimizer/adamw_lr": 2e-3,
        "optimizer/adamw_weight_decay": 0.05,
    }
    if task.weights == "none":
        return params
    return params | {
        "model/finetune": "all",
        "model/backbone_lr": 0.3,
        "model/layer_decay": 0.7,
        "model/freeze_norm_statistics": False,
    }
