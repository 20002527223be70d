"""A convolutional network trained from scratch: architecture, optimizer, schedule and augmentation.

`space` is called once a trial and may branch on what it has drawn. `task` is fixed for a run (`num_classes`,
`channels`, `image_size`, `num_train`, `device`, `flips`, `imbalance`), so ranges may depend on it. Parameter names are
paths.
"""

from typing import Any

import optuna

from cifar_ray.config import Task

OPTIMIZERS = {
    "sgd": ((0.02, 0.6), (1e-5, 3e-3)),
    "adamw": ((5e-4, 2e-2), (1e-3, 0.2)),
    "muon": ((3e-3, 0.1), (1e-3, 0.2)),
}
"""Ranges of the learning rate and of the weight decay, which mean something else to each of them."""

TINY = 16
"""Side in pixels up to which images are tiny: whitening and identities made training worse there."""


def space(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw one configuration."""
    # Larger images are resized: networks that are trained from scratch here have no use for their detail.
    sizes = [32, 48] if task.device == "cpu" else [32, 48, 64]
    resized = trial.suggest_categorical("image_size", sizes) if large(task) else None
    image_size = resized or task.image_size
    # A CPU trains small networks only, and tiny images need no more: the widest of these takes some ten times the work
    # of the default.
    tiny = image_size <= TINY
    if task.device == "cpu" and tiny:
        widths, widest, widenings, kernel_sizes, most_blocks = [8, 16, 24, 32], 64, [1.5, 2.0], [3], 2
    elif task.device == "cpu":
        widths, widest, widenings, kernel_sizes, most_blocks = [16, 24, 32, 48], 128, [1.5, 2.0], [3, 5], 3
    else:
        widths, widest, widenings, kernel_sizes, most_blocks = [32, 48, 64, 96, 128], 512, [1.5, 2.0, 4.0], [3, 5], 3

    # Every stage halves the resolution: more of them than the image has halvings would only add depth.
    halvings = max(1, image_size.bit_length() - 1)
    stages = trial.suggest_int("model/stages", min(2, halvings), min(4, halvings))
    blocks = trial.suggest_int("model/blocks", 1, most_blocks)
    width = trial.suggest_categorical("model/width", widths)
    widen = trial.suggest_categorical("model/widen", widenings)
    norm = trial.suggest_categorical("model/norm", ["batch", "group", "evonorm_s0", "evonorm_b0", "none"])
    model: dict[str, Any] = {
        "widths": [min(widest, int(width * widen**stage) // 8 * 8) for stage in range(stages)],
        "blocks": [blocks] * stages,
        "kernel_sizes": [
            trial.suggest_categorical(f"model/stage{stage + 1}/kernel_size", kernel_sizes) for stage in range(stages)
        ],
        "whitening": not tiny and trial.suggest_categorical("model/whitening", [False, True]),
        # Identities help networks without residual blocks, and those with them are as good either way.
        "init": "kaiming" if tiny else "dirac",
        "norm": norm,
        "residual": trial.suggest_categorical("model/residual", [False, True]),
        "dropout": trial.suggest_float("model/dropout", 0.0, 0.2, step=0.05),
        "head_pool": trial.suggest_categorical("model/head_pool", ["avg", "max"]),
        "head_hidden": trial.suggest_categorical("model/head_hidden", [0, 128]),
        "head_dropout": trial.suggest_float("model/head_dropout", 0.0, 0.4, step=0.1),
    }
    if norm not in ("evonorm_s0", "evonorm_b0"):  # these are activations too
        model["activation"] = trial.suggest_categorical("model/activation", ["relu", "mish", "silu", "gelu"])
    if norm in ("batch", "group"):
        placements = ["before_activation", "after_activation", "before_conv"]
        model["norm_placement"] = trial.suggest_categorical("model/norm_placement", placements)
        if model["norm_placement"] != "before_conv":
            model["pool_placement"] = trial.suggest_categorical("model/pool_placement", ["before_norm", "after_norm"])

    return {
        "family": "cnn",
        "model": model,
        "image_size": resized,
        "optimizer": draw_optimizer(trial, "optimizer", OPTIMIZERS),
        "augment": draw_augment(trial, task),
        **draw_recipe(trial, task),
        "tta": trial.suggest_categorical("tta", ["none", "flip"]) if draws_tta(task) else "none",
    }


def draw_optimizer(
    trial: optuna.Trial, name: str, ranges: dict[str, tuple[tuple[float, float], tuple[float, float]]]
) -> dict[str, Any]:
    """Draw an optimizer with its learning rate and weight decay, from ranges as :data:`OPTIMIZERS`."""
    optimizer = trial.suggest_categorical(f"{name}/name", list(ranges))
    lr, weight_decay = ranges[optimizer]
    return {
        "name": optimizer,
        "lr": trial.suggest_float(f"{name}/{optimizer}_lr", *lr, log=True),
        "weight_decay": trial.suggest_float(f"{name}/{optimizer}_weight_decay", *weight_decay, log=True),
    }


def draw_augment(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw the augmentation, in pixels of the images as they come."""
    cutout_step = max(1, task.image_size // 16)
    cutout_steps = task.image_size // 4 // cutout_step
    return {
        "crop_padding": trial.suggest_int("augment/crop_padding", 0, task.image_size // 8),
        "flip": trial.suggest_categorical("augment/flip", flips(task)),
        "cutout": trial.suggest_int("augment/cutout", 0, cutout_steps * cutout_step, step=cutout_step),
    }


def flips(task: Task) -> list[str]:
    """Ways to mirror images, the best one last: on a GPU, where recipes are short, flips alternate."""
    other = "alternating" if task.device == "cpu" else "random"
    return [flip for flip in task.flips if flip != other]


def draw_recipe(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Draw the learning-rate schedule, the batch size and the loss."""
    schedules = ["constant", "step", "cosine", "one_cycle", "plateau"]
    batch_sizes = [32, 64, 128] if task.device == "cpu" else [256, 512, 1024]
    weights = trial.suggest_categorical("class_weights", ["none", "balanced"]) if imbalanced(task) else "none"
    return {
        "lr_schedule": {"name": trial.suggest_categorical("lr_schedule/name", schedules)},
        "batch_size": trial.suggest_categorical("batch_size", batch_sizes),
        "label_smoothing": trial.suggest_categorical("label_smoothing", [0.0, 0.1, 0.2]),
        "class_weights": weights,
    }


def draws_tta(task: Task) -> bool:
    """Whether test-time augmentation is a choice: on a CPU, what it costs in latency weighs more than what it gains."""
    return task.device == "cuda" and len(task.flips) > 1


def imbalanced(task: Task) -> bool:
    """Whether the classes differ enough in size that weighing them is worth a try."""
    return task.imbalance > 1.5


def large(task: Task) -> bool:
    """Whether the images are larger than those that networks are trained on from scratch."""
    return task.image_size > 64


def default(task: Task) -> dict[str, Any]:
    """Parameter values of trial 0: `small-cnn` on a CPU, `fast-cnn` on a GPU."""
    small = task.device == "cpu"
    image_size = 32 if large(task) else task.image_size
    tiny = image_size <= TINY
    width = 64 if not small else 24 if tiny else 32
    stages = min(3, max(1, image_size.bit_length() - 1))
    return {
        **({"image_size": image_size} if large(task) else {}),
        "model/stages": stages,
        "model/blocks": 2,
        "model/width": width,
        "model/widen": 1.5 if small else 2.0,
        **({} if tiny else {"model/whitening": True}),
        **{f"model/stage{stage + 1}/kernel_size": 3 for stage in range(stages)},
        "model/activation": "silu" if small else "gelu",
        "model/norm": "batch",
        "model/norm_placement": "before_activation",
        "model/pool_placement": "before_norm",
        "model/residual": True,
        "model/dropout": 0.0,
        "model/head_pool": "avg" if small else "max",
        "model/head_hidden": 0,
        "model/head_dropout": 0.0,
        "optimizer/name": "sgd",
        "optimizer/sgd_lr": 0.25 if small else 0.4,
        "optimizer/sgd_weight_decay": 5e-4,
        "lr_schedule/name": "one_cycle",
        "augment/crop_padding": task.image_size // 16,
        "augment/flip": flips(task)[-1],
        "augment/cutout": 0,
        "batch_size": 64 if small else 512,
        "label_smoothing": 0.1 if small else 0.2,
        **({"class_weights": "none"} if imbalanced(task) else {}),
        **({"tta": "flip"} if draws_tta(task) else {}),
    }
