"""Model configurations that have a name."""

import dataclasses
from typing import Any, Literal

from cifar_ray.config import (
    AugmentConfig,
    BackboneConfig,
    CNNConfig,
    Flip,
    LRScheduleConfig,
    ModuleConfig,
    OptimizerConfig,
    Task,
    TrialConfig,
    family_of,
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

WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"finetune": "head"},
    "last-stages": {"finetune": "last_two_stages", "backbone_lr": 0.3},
    "finetune": {"finetune": "all", "backbone_lr": 0.3},
    "scratch": {"weights": "none"},
}
"""Ways to use any backbone: `resnet18-frozen`, `mobilenet_v3_small-finetune` ..."""

RESNETS: dict[str, dict[str, Any]] = {
    **{f"resnet18-{way}": {"backbone": "resnet18", **values} for way, values in WAYS.items()},
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
    check_preset(name)
    if name not in THREE_CONVOLUTIONS:
        return _pretrained(name, task)
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


def check_preset(name: str) -> None:
    """Raise InputError where there is no preset of that name, as far as that can be told without torchvision."""
    backbone, _, way = name.partition("-")
    if name not in PRESETS and not (way in WAYS and family_of(backbone)):
        raise InputError(
            f"--preset: no preset {name!r}; take one of {', '.join(PRESETS)}, or a backbone of torchvision and its use "
            f"({', '.join(WAYS)}), such as mobilenet_v3_small-frozen"
        )


def _flip(task: Task) -> Flip:
    return "random" if "random" in task.flips else "none"


def _pretrained(name: str, task: Task) -> TrialConfig:
    backbone, _, way = name.partition("-")
    model = BackboneConfig(**(RESNETS.get(name) or {"backbone": backbone, **WAYS[way]}))
    family = family_of(model.backbone)
    assert family is not None
    head_only = model.finetune == "head"
    augmented = not head_only or model.feature_views > 1
    image_size = 224 if name.endswith("224") else 64 if task.device == "cpu" else 128
    return TrialConfig(
        family=family,
        model=model,
        image_size=image_size,
        optimizer=OptimizerConfig(name="adamw", lr=3e-3 if head_only else 2e-3, weight_decay=0.05),
        lr_schedule=LRScheduleConfig(name="one_cycle"),
        augment=AugmentConfig(crop_padding=task.image_size // 8, flip=_flip(task)) if augmented else AugmentConfig(),
        batch_size=64,
        label_smoothing=0.1,
    )
