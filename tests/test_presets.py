"""Named configurations: they fit whatever images there are, and they learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cifar_ray.config import BackboneConfig, Task, TrialConfig, trial_config
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.presets import PRESETS, WAYS, preset
from cifar_ray.search.space import load_space
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, run_experiment

CIFAR10 = Task(10, 3, 32, 45_000, "cpu")
DIGITS = Task(10, 1, 8, 200, "cpu", flips=("none",))
TASKS = [CIFAR10, DIGITS, Task(2, 1, 9, 20, "cuda"), Task(100, 3, 64, 1000, "cuda"), Task(3, 3, 160, 50, "cpu")]
RESNETS = [
    "resnet18-frozen",
    "resnet18-last-stages",
    "resnet18-finetune",
    "resnet18-scratch",
    "resnet50-frozen",
    "resnet50-frozen-mlp",
    "resnet50-aug-224",
    "resnet50-full",
]
WITHOUT_AUGMENTATION = ["resnet18-frozen", "resnet50-frozen", "resnet50-frozen-mlp"]
TUTORIAL = ["simple-cnn", "mish-cnn", "mish-bn-cnn", "evonorm-cnn"]


def test_these_are_the_presets() -> None:
    assert list(PRESETS) == [*TUTORIAL, "small-cnn", "fast-cnn", *RESNETS]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.image_size}px-{task.channels}c")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_for_any_images(name: str, task: Task) -> None:
    config = preset(name, task)
    assert trial_config(config.to_dict(), "here") == config
    assert preset(name, task) == config
    with torch.device("meta"):  # without memory or arithmetic: this shows that the shapes fit
        model = build_model(config, num_classes=task.num_classes, channels=task.channels, image_size=task.image_size)
        images = torch.zeros(2, task.channels, task.image_size, task.image_size, dtype=torch.uint8)
        assert model(images).shape == (2, task.num_classes)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_mirrors_images_only_where_that_makes_sense(name: str) -> None:
    expected = "none" if name in WITHOUT_AUGMENTATION else "alternating" if name == "fast-cnn" else "random"
    assert preset(name, CIFAR10).augment.flip == expected
    assert preset(name, replace(CIFAR10, flips=("none",))).augment.flip == "none"


@pytest.mark.parametrize(("name", "device"), [("small-cnn", "cpu"), ("fast-cnn", "cuda")])
def test_the_default_recipes_are_those_of_the_space_whatever_the_device(name: str, device: str) -> None:
    space = load_space("cnn")
    for task in TASKS:
        expected = space.default_config(replace(task, device=device))  # type: ignore[arg-type]
        for kind in ("cpu", "cuda"):
            assert preset(name, replace(task, device=kind)) == expected  # type: ignore[arg-type]
    assert preset("small-cnn", CIFAR10) != preset("fast-cnn", CIFAR10)


def test_the_fast_recipe_puts_the_pieces_together() -> None:
    fast, small = preset("fast-cnn", CIFAR10), preset("small-cnn", CIFAR10)
    assert (fast.model.whitening, fast.model.init, fast.augment.flip, fast.tta) == (
        True,
        "dirac",
        "alternating",
        "flip",
    )
    assert (fast.lr_schedule.name, fast.optimizer.lookahead) == ("one_cycle", False)  # which made it worse
    assert (small.model.whitening, small.model.init, small.augment.flip, small.tta) == (True, "dirac", "random", "none")
    tiny = preset("fast-cnn", DIGITS)
    assert (tiny.model.whitening, tiny.model.init, tiny.augment.flip, tiny.tta) == (False, "kaiming", "none", "none")


def test_the_tutorial_network_and_its_variants_differ_in_norm_and_activation_alone() -> None:
    def rest(config: TrialConfig) -> TrialConfig:
        return replace(config, model=replace(config.model, norm="none", activation="relu"))

    configs = {name: preset(name, CIFAR10) for name in TUTORIAL}
    assert {str(rest(config)) for config in configs.values()} == {str(configs["simple-cnn"])}
    assert {name: (config.model.norm, config.model.activation) for name, config in configs.items()} == {
        "simple-cnn": ("none", "relu"),
        "mish-cnn": ("none", "mish"),
        "mish-bn-cnn": ("batch", "mish"),
        "evonorm-cnn": ("evonorm_s0", "relu"),  # of the dense layer: an EvoNorm is an activation
    }
    model = build_model(configs["simple-cnn"], num_classes=10, channels=3, image_size=32)
    names = [type(module).__name__ for module in model.modules()]
    assert [names.count(kind) for kind in ("Conv2d", "MaxPool2d", "ReLU", "Linear")] == [3, 3, 4, 2]
    assert count_params(model) == (27 + 1) * 32 + (288 + 1) * 64 + (576 + 1) * 128 + (2048 + 1) * 128 + (128 + 1) * 10


def test_the_resnets_are_what_their_names_say() -> None:
    models = {name: preset(name, CIFAR10).model for name in RESNETS}
    assert all(isinstance(model, BackboneConfig) for model in models.values())
    assert all(name.startswith(model.backbone) for name, model in models.items())
    heads = [name for name, model in models.items() if model.finetune == "head"]
    assert heads == ["resnet18-frozen", "resnet50-frozen", "resnet50-frozen-mlp", "resnet50-aug-224"]
    assert models["resnet50-frozen-mlp"].weights == "IMAGENET1K_V2"
    assert len(models["resnet50-frozen-mlp"].head_hidden) > 1
    assert preset("resnet50-aug-224", CIFAR10).image_size == 224
    assert models["resnet50-aug-224"].feature_views > 1
    assert models["resnet18-scratch"].weights == "none"


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "resnet50"])
def test_any_backbone_has_the_presets_of_resnet18(backbone: str) -> None:
    for way in WAYS:
        config, of_resnet18 = preset(f"{backbone}-{way}", CIFAR10), preset(f"resnet18-{way}", CIFAR10)
        if f"{backbone}-{way}" not in PRESETS:  # others of ResNet-50 were here first
            model = replace(of_resnet18.model, backbone=backbone)
            assert config == replace(of_resnet18, model=model, family=config.family)
        with torch.device("meta"):
            build_model(config, num_classes=10, channels=3, image_size=32)


@pytest.mark.parametrize("name", [*TUTORIAL, "small-cnn"])  # fast-cnn takes all these images in one step
def test_a_preset_learns(name: str, digit_arrays: dict[str, np.ndarray]) -> None:
    data = DeviceData.from_arrays(digit_arrays, 10, torch.device("cpu"))
    outcome = run_experiment(Experiment(preset(name, DIGITS), seed=0, max_epochs=12), data)
    assert outcome.best["val_accuracy"] > 0.8


@pytest.mark.parametrize(
    "name", ["", "simple", "Simple-CNN", "best\nof", "mobilenet_v3_small", "googlenet-frozen", "resnet18-full"]
)
def test_an_unknown_preset_is_told_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        preset(name, CIFAR10)
    message = str(caught.value)
    assert message.startswith("--preset: ") and repr(name) in message
    assert "\n" not in message
    assert all(known in message for known in (*PRESETS, *WAYS, "mobilenet_v3_small-frozen"))
