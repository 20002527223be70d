"""A network of the user's own is trained by the same loop, with all that a configuration may ask for."""

from dataclasses import replace

import pytest
import torch
from helpers.modules import EXAMPLES, VIEW_NETWORK
from helpers.tiny import device_data, random_images, schedule, tiny_config, weights_equal, without_times
from torch import nn

from cifar_ray.config import AugmentConfig, ModuleConfig, OptimizerConfig, Task, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.module import read_module
from cifar_ray.models.saved import SavedModel, pack_weights
from cifar_ray.presets import module_recipe
from cifar_ray.training.loop import Experiment, run_experiment
from cifar_ray.training.optim import make_optimizer

OWN = tiny_config(family="module", model=VIEW_NETWORK, lr_schedule=schedule("cosine"))
AUGMENTED = AugmentConfig(crop_padding=1, cutout=2, mix="mixup")
CONFIGS = {
    "plain": OWN,
    "muon": replace(OWN, optimizer=OptimizerConfig(name="muon", lr=0.02, lookahead=True), augment=AUGMENTED),
    "adamw": replace(OWN, optimizer=OptimizerConfig(name="adamw", lr=0.01), image_size=16),
    "flips": replace(OWN, augment=AugmentConfig(flip="alternating", policy="trivialaugment"), tta="flip"),
    "bf16": replace(OWN, precision="bf16", class_weights="balanced", label_smoothing=0.1),
}
CARD = {"class_names": ["left", "right"], "resize": {"channels": 1, "image_size": 8}}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_and_comes_back_from_what_is_saved_and_goes_on_from_a_checkpoint(name: str) -> None:
    config, data = CONFIGS[name], device_data()
    packed: list[bytes] = []
    experiment = Experiment(config, seed=1, max_epochs=6)
    outcome = run_experiment(experiment, data, checkpoint=lambda row, pack: packed.append(pack()))
    assert outcome.best["val_accuracy"] > 0.9 or name == "flips"  # which make one class of the other here
    saved = SavedModel("own", pack_weights(outcome.model), config, CARD).build()
    assert torch.equal(saved(data.val_images), outcome.model(data.val_images))
    gone_on = run_experiment(experiment, data, resume=packed[2])
    assert weights_equal(gone_on.model, outcome.model)
    assert without_times(gone_on.history) == without_times(outcome.history)


@pytest.mark.parametrize("channels", [1, 3])
def test_its_images_and_weights_come_in_the_plain_order_that_view_needs(channels: int) -> None:
    outcome = run_experiment(Experiment(OWN, seed=1, max_epochs=1), device_data(channels=channels))
    assert outcome.model.network.get_parameter("conv.weight").is_contiguous()
    images = random_images(4, channels).contiguous(memory_format=torch.channels_last)
    assert outcome.model.inputs(images).stride() == (channels * 64, 64, 8, 1)
    assert outcome.model(images).shape == (4, 2)


def test_muon_wants_filters_and_something_beside_them() -> None:
    muon = OptimizerConfig(name="muon")
    with pytest.raises(InputError, match="this network has no filters; use adamw or sgd"):
        make_optimizer(muon, nn.Linear(3, 2))
    with pytest.raises(InputError, match="this network has no others; use adamw or sgd"):
        make_optimizer(muon, nn.Conv2d(3, 2, 3, bias=False))


NO_NORM = """
from torch import nn

def Plain(num_classes, channels, image_size):
    layers = []
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (image_size // 8) ** 2, num_classes))
"""


@pytest.mark.parametrize(
    "network", [read_module(f"{EXAMPLES / 'my_cnn.py'}:Net"), ModuleConfig("plain.py", "Plain", NO_NORM)]
)
def test_the_default_recipe_trains_networks_with_a_norm_and_without(network: ModuleConfig) -> None:
    config = module_recipe(network, Task(2, 1, 8, 64, "cpu", flips=("none",)))
    assert isinstance(config, TrialConfig) and config.model == network
    outcome = run_experiment(Experiment(replace(config, batch_size=8), seed=0, max_epochs=6), device_data())
    assert outcome.best["val_accuracy"] > 0.9
