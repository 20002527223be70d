"""Model configurations that have a name."""

import dataclasses
from typing import Any, Literal

from cifar_ray.config import (
    AugmentConfig,
    CNNConfig,
    Flip,
    LRScheduleConfig,
    ModuleConfig,
    OptimizerConfig,
    ResNetConfig,
    Task,
    TrialConfig,
)
from cifar_ray.errors import InputError

THREE_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "simple-cnn": {"norm": "none", "activation": "relu"},
    "mish-cnn": {"norm": "none", "activation": "mish"},
    "mish-bn-cnn": {"norm": "batch", "activation": "mish"},
    "evonorm-cnn": {"norm": "evonorm_s0"},
}
"""The network of many a tutorial, and variants that differ from it in what stands between its convolutions."""

DEFAULT_RECIPES: dict[str, Literal["cpu", "cuda"]] = {"small-cnn": "cpu", "fast-cnn": "cuda"}
"""Trial 0 of the space `cnn`, by the kind of device that it is made for; either trains on both."""

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18-frozen": {"backbone": "resnet18", "finetune": "head"},
    "resnet18-last-stages": {"backbone": "resnet18", "finetune": "last_two_stages", "backbone_lr": 0.3},
    "resnet18-finetune": {"backbone": "resnet18", "finetune": "all", "backbone_lr": 0.3},
    "resnet18-scratch": {"backbone": "resnet18", "weights": "none"},
    "resnet50-frozen": {"backbone": "resnet50", "weights": "IMAGENET1K_V1", "finetune": "head", "head_hidden": [256]},
    "resnet50-frozen-mlp": {
        "backbone": "resnet50",
        "weights": "IMAGENET1K_V2",
        "finetune": "head",
        "head_hidden": [512, 128],
        "head_dropout": 0.3,
    },
    "resnet50-aug-224": {
        "backbone": "resnet50",
        "weights": "IMAGENET1K_V1",
        "finetune": "head",
        "head_hidden": [256],
        "feature_views": 4,
    },
    "resnet50-full": {"backbone": "resnet50", "weights": "IMAGENET1K_V1", "finetune": "all", "backbone_lr": 0.3},
}
"""Ways to use a ResNet, as tutorials compare them."""

PRESETS = (*THREE_CONVOLUTIONS, *DEFAULT_RECIPES, *RESNETS)


def preset(name: str, task: Task) -> TrialConfig:
    """The configuration that is called `name`, for the images of `task`.

    Raises:
        InputError: there is none of that name.
    """
    if name in DEFAULT_RECIPES:
        from cifar_ray.search.space import (
            load_space,  # Optuna takes a second to import, and names alone need none of it
        )

        return load_space("cnn").default_config(dataclasses.replace(task, device=DEFAULT_RECIPES[name]))
    if name in RESNETS:
        return _resnet(name, task)
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
        image_size=32 if task.image_size > 64 else None,
        augment=AugmentConfig(crop_padding=task.image_size // 16, flip=_flip(task)),
        batch_size=64,
    )


def module_recipe(network: ModuleConfig, task: Task) -> TrialConfig:
    """A network of the user's own with the default recipe of the space `module`."""
    from cifar_ray.search.space import load_space  # as above

    return dataclasses.replace(load_space("module"), module=network).default_config(task)


def _flip(task: Task) -> Flip:
    return "random" if "random" in task.flips else "none"


def _resnet(name: str, task: Task) -> TrialConfig:
    model = ResNetConfig(**RESNETS[name])
    head_only = model.finetune == "head"
    augmented = not head_only or model.feature_views > 1
    image_size = 224 if name.endswith("224") else 64 if task.device == "cpu" else 128
    return TrialConfig(
        family="resnet",
        model=model,
        image_size=image_size,
        optimizer=OptimizerConfig(name="adamw", lr=3e-3 if head_only else 2e-3, weight_decay=0.05),
        lr_schedule=LRScheduleConfig(name="one_cycle"),
        augment=AugmentConfig(crop_padding=task.image_size // 8, flip=_flip(task)) if augmented else AugmentConfig(),
        batch_size=64,
        label_smoothing=0.1,
    )
