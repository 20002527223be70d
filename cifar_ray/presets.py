"""Model configurations that have a name."""

import dataclasses
from typing import Any, Literal

from cifar_ray.config import AugmentConfig, CNNConfig, InputError, LRScheduleConfig, OptimizerConfig, Task, TrialConfig
from cifar_ray.space import load_space

THREE_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "simple-cnn": {"norm": "none", "activation": "relu"},
    "mish-cnn": {"norm": "none", "activation": "mish"},
    "mish-bn-cnn": {"norm": "batch", "activation": "mish"},
    "evonorm-cnn": {"norm": "evonorm_s0"},
}
"""The network of many a tutorial, and variants that differ from it in what stands between its convolutions."""

DEFAULT_RECIPES: dict[str, Literal["cpu", "cuda"]] = {"small-cnn": "cpu", "fast-cnn": "cuda"}
"""Trial 0 of the space `cnn`, by the kind of device that it is made for; either trains on both."""

PRESETS = (*THREE_CONVOLUTIONS, *DEFAULT_RECIPES)


def preset(name: str, task: Task) -> TrialConfig:
    """The configuration that is called `name`, for the images of `task`.

    Raises:
        InputError: there is none of that name.
    """
    if name in DEFAULT_RECIPES:
        return load_space("cnn").default_config(dataclasses.replace(task, device=DEFAULT_RECIPES[name]))
    if name not in THREE_CONVOLUTIONS:
        raise InputError(f"--preset: no preset {name!r}; take one of {', '.join(PRESETS)}")
    return TrialConfig(
        model=CNNConfig(
            widths=[32, 64, 128],
            blocks=[1, 1, 1],
            kernel_sizes=[3, 3, 3],
            head_pool="flatten",
            head_hidden=128,
            **THREE_CONVOLUTIONS[name],
        ),
        optimizer=OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.01),
        lr_schedule=LRScheduleConfig(name="one_cycle"),
        augment=AugmentConfig(crop_padding=task.image_size // 16, flip=task.flips[-1]),
        batch_size=64,
    )
