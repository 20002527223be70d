"""Backbones of every family: torchvision's networks, cut into stages, of which just that trains which is to train."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.resnets import ALL_BACKBONES, SIZE, SMALLEST, backbone_config, random_network, random_weights, small_data
from torch import nn
from torchvision.models import get_model_builder, get_model_weights

from cifar_ray.config import (
    FAMILIES,
    MOSTLY_DENSE,
    BackboneConfig,
    OptimizerConfig,
    TrialConfig,
    family_of,
    trial_config,
)
from cifar_ray.errors import InputError
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import Classifier, build_model, count_params
from cifar_ray.models.families import POSITIONS, backbones, make_backbone
from cifar_ray.models.pretrained import normalisation
from cifar_ray.training.loop import Experiment, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy

pytestmark = pytest.mark.usefixtures("own_cache")

LARGE = ("alexnet", "vgg11_bn")
"""Those with the most parameters, which take the longest."""
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in SMALLEST.values()]

STAGES = {
    "convnext_tiny": ["features.0 features.1", "features.2 features.3", "features.4 features.5",
                      "features.6 features.7 classifier"],
    "densenet121": ["features.conv0 features.norm0", "features.denseblock1",
                    "features.transition1 features.denseblock2", "features.transition2 features.denseblock3",
                    "features.transition3 features.denseblock4 features.norm5"],
    "efficientnet_b0": ["features.0 features.1", "features.2", "features.3", "features.4 features.5",
                        "features.6 features.7 features.8"],
    "mobilenet_v3_small": ["features.0", "features.1", "features.2 features.3",
                           "features.4 features.5 features.6 features.7 features.8",
                           "features.9 features.10 features.11 features.12 classifier"],
    "regnet_y_400mf": ["stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3",
                       "trunk_output.block4"],
    "resnet18": ["conv1 bn1", "layer1", "layer2", "layer3", "layer4"],
    "shufflenet_v2_x0_5": ["conv1", "stage2", "stage3", "stage4 conv5"],
    "swin_t": ["features.0 features.1", "features.2 features.3", "features.4 features.5",
               "features.6 features.7 norm"],
    "vgg11_bn": ["features.0 features.1", "features.4 features.5", "features.8 features.9 features.11 features.12",
                 "features.15 features.16 features.18 features.19", "features.22 features.23 features.25 features.26",
                 "classifier"],
}  # fmt: skip
"""What has parameters in each stage, from the stem to the last."""


def sides(backbone: str) -> int:
    return 64 if backbone == "alexnet" else SIZE


def small_config(backbone: str, **changes: Any) -> TrialConfig:
    return replace(backbone_config(backbone, **changes), image_size=sides(backbone))


def build(config: TrialConfig, pretrained: dict[str, np.ndarray] | None = None) -> Classifier:
    model = build_model(config, num_classes=2, channels=3, image_size=8)
    model.initialize(torch.full((3,), 100.0), torch.full((3,), 50.0), torch.empty(0), pretrained)
    return model


def network(model: Classifier) -> BackboneNet:
    assert isinstance(model.network, BackboneNet)
    return model.network


# ---- what is known ----


def test_all_of_torchvision_is_known_by_its_module_but_what_is_built_otherwise() -> None:
    # By classifiers beside the last one, a fixed size of images, state dicts with a version, a classifier of filters.
    unknown = []
    for name in torchvision.models.list_models(module=torchvision.models):
        module = get_model_builder(name).__module__.rpartition(".")[2]
        if module in FAMILIES:
            assert family_of(name) == module
        else:
            unknown.append(name)
            assert family_of(name) is None
    assert unknown == [
        *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
        *("squeezenet1_0", "squeezenet1_1"),
    ]
    assert {family_of(name) for name in backbones()} == set(FAMILIES) == set(SMALLEST)


@pytest.mark.parametrize("backbone", ALL_BACKBONES)
def test_every_parameter_is_in_one_stage_and_none_takes_memory(backbone: str) -> None:
    made = make_backbone(backbone)
    names = [name for stage in made.stages for name in stage]
    assert len(names) == len(set(names))
    for name, parameter in made.network.named_parameters():
        assert sum(f"{name}.".startswith(f"{one}.") for one in names) == 1, name
        assert parameter.is_meta or parameter.numel() < 10_000, name
    num_params = get_model_weights(backbone).DEFAULT.meta["num_params"]
    if backbone != "vit_h_14":  # whose default weights are for larger images
        assert count_params(made.network) + 1000 * (made.width + 1) == num_params
    filters = sum(parameter.numel() for parameter in made.network.parameters() if parameter.ndim == 4)
    assert (filters < count_params(made.network) / 2) == (family_of(backbone) in MOSTLY_DENSE)


@pytest.mark.parametrize("backbone", STAGES)
def test_a_stage_begins_where_the_resolution_falls(backbone: str) -> None:
    made = make_backbone(backbone)
    trained = {name.rpartition(".")[0] for name, _ in made.network.named_parameters()}
    found = [
        " ".join(one for one in stage if any(f"{name}.".startswith(f"{one}.") for name in trained))
        for stage in made.stages
    ]
    assert found == STAGES[backbone]


def test_a_vision_transformer_is_cut_after_each_quarter_of_its_blocks() -> None:
    for backbone, number in (("vit_b_16", 12), ("vit_l_32", 24), ("vit_h_14", 32)):
        stages = make_backbone(backbone).stages
        blocks = [[name for name in stage if "encoder_layer_" in name] for stage in stages]
        assert [len(stage) for stage in blocks] == [0, *[number // 4] * 4]
        assert {"conv_proj", "class_token", POSITIONS} <= set(stages[0])
        assert "encoder.ln" in stages[-1]


# ---- networks ----


@pytest.mark.parametrize("backbone", EVERY)
def test_the_features_are_what_torchvisions_classifier_is_given(backbone: str) -> None:
    reference = random_network(backbone).eval()
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    known, classifier = make_backbone(backbone, SIZE).network.state_dict(), make_backbone(backbone).classifier
    nn.init.normal_(reference.get_submodule(classifier).weight)  # that of a vision transformer begins as zeros
    model = build(small_config(backbone), {name: state[name] for name in known}).eval()
    images = torch.rand(3, 3, sides(backbone), sides(backbone))
    with torch.no_grad():
        expected = reference(images)
        found = reference.get_submodule(classifier)(network(model).features(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert expected.std() > 0


@pytest.mark.parametrize("backbone", EVERY)
@pytest.mark.parametrize("finetune", ["head", "last_two_stages"])
def test_just_that_trains_which_is_to_train(backbone: str, finetune: str) -> None:
    weights, data = random_weights(backbone), small_data()
    config = small_config(backbone, finetune=finetune, backbone_lr=1.0, lr=1e-3)
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=1), data, pretrained=weights)
    stages = network(outcome.model).stages
    trained = [name for stage in stages[-2:] for name in stage] if finetune != "head" else []
    found = network(outcome.model).backbone.state_dict()
    changed = {key for key, before in weights.items() if not np.array_equal(found[key].numpy(), before)}
    assert changed <= {key for key in weights if any(key.startswith(f"{one}.") for one in trained)}
    parameters = {key for key, _ in network(outcome.model).backbone.named_parameters()}
    for stage in stages[-2:] if trained else []:
        assert any(key in changed & parameters for key in weights if any(key.startswith(f"{one}.") for one in stage))
    loss, accuracy = loss_and_accuracy(eval_model(outcome.model, data.val_images), data.val_labels)
    assert accuracy == outcome.best["val_accuracy"]  # of a head that was trained on kept features, too
    assert loss == pytest.approx(outcome.best["val_loss"], abs=1e-2)


@pytest.mark.parametrize("backbone", EVERY)
def test_from_scratch_all_of_it_trains(backbone: str) -> None:
    config = small_config(backbone, weights="none", lr=1e-3)
    drawn = build_model(config, num_classes=2, channels=3, image_size=8)
    model = network(drawn).train()
    model(torch.rand(4, 3, sides(backbone), sides(backbone))).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    [(rate, parameters)] = model.lr_groups()
    assert rate == 1.0 and {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    with torch.device("meta"):  # as the search counts parameters
        assert count_params(build_model(config, num_classes=2, channels=3, image_size=8)) == count_params(drawn)


def test_each_stage_learns_at_a_rate_of_its_own() -> None:
    model = network(build(small_config("mobilenet_v3_small", backbone_lr=0.2, layer_decay=0.5)))
    assert [rate for rate, _ in model.lr_groups()] == [1.0, *(0.2 * 0.5**depth for depth in range(5))]
    hidden = model.backbone.get_parameter("classifier.0.weight")
    assert any(hidden is parameter for parameter in model.lr_groups()[1][1])  # it learns with the last stage


def test_gradual_unfreezing_takes_a_stage_after_each_tenth_of_the_horizon_however_many_there_are() -> None:
    model = network(build(small_config("convnext_tiny", finetune="gradual")))
    numbers = []
    for epoch in range(1, 11):
        model.unfreeze(epoch, 10)
        numbers.append(sum(part[0].requires_grad for part in model.parts()))
    assert numbers == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]


def test_what_is_frozen_drops_nothing_and_the_head_alone_drops_in_front_of_itself() -> None:
    model = network(build(small_config("efficientnet_b0", finetune="last_stage"))).train()
    last = {f"{name}." for name in model.stages[-1]}
    drops = 0
    for name, module in model.backbone.named_modules():
        assert not isinstance(module, nn.Dropout)
        if isinstance(module, nn.BatchNorm2d | torchvision.ops.StochasticDepth):
            assert module.training == any(name.startswith(one) for one in last), name
            drops += isinstance(module, torchvision.ops.StochasticDepth)
    assert drops > 10
    for module in network(build(small_config("efficientnet_b0", freeze_norm_statistics=True))).train().modules():
        if isinstance(module, nn.BatchNorm2d | torchvision.ops.StochasticDepth):
            assert module.training == isinstance(module, torchvision.ops.StochasticDepth)


@pytest.mark.parametrize("side", [32, 64])
def test_positions_are_those_of_other_images_interpolated(side: int) -> None:
    weights = random_weights("vit_b_16")  # 2 x 2 patches
    ramp = np.arange(2, dtype=np.float32)
    weights[POSITIONS] = np.zeros((1, 5, 768), np.float16)
    weights[POSITIONS][0, 0] = 7  # of the class token, which has no place
    weights[POSITIONS][0, 1:] = np.tile(ramp, 2)[:, None]
    model = network(build(replace(small_config("vit_b_16"), image_size=side), weights))
    found = model.backbone.get_parameter(POSITIONS)[0, :, 0].detach()
    assert found[0] == 7
    rows = found[1:].reshape(side // 16, side // 16)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    assert rows[0, 0] == 0 and rows[0, -1] == pytest.approx(1) and (rows[0].diff() > 0).all()


def test_the_normalisation_is_that_of_the_weights() -> None:
    for weights in ("DEFAULT", "IMAGENET1K_V1", "mine.pth"):
        assert normalisation(BackboneConfig("efficientnet_v2_l", weights)) == ([0.5] * 3, [0.5] * 3)
        assert normalisation(BackboneConfig("efficientnet_b0", weights))[0] == [0.485, 0.456, 0.406]
    model = build(small_config("mobilenet_v3_small"), random_weights("mobilenet_v3_small"))
    assert model.normalize.std.flatten().tolist() == pytest.approx([255 * std for std in (0.229, 0.224, 0.225)])


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            backbone_config("mobilenet_v3_medium"),
            "model/backbone: torchvision has no 'mobilenet_v3_medium'; take one of mobilenet_v3_large, ",
        ),
        (replace(backbone_config("mobilenet_v3_small"), image_size=16), "needs images of at least 32 pixels, not 16"),
        (replace(backbone_config("alexnet"), image_size=32), "alexnet needs images of at least 63 pixels, not 32"),
        (replace(backbone_config("vit_b_16"), image_size=40), "patches of 16 pixels, and 40 is no multiple of that"),
    ],
)
def test_a_network_that_cannot_be_is_told(config: TrialConfig, says: str) -> None:
    with pytest.raises(InputError) as error:
        build_model(config, num_classes=2, channels=3, image_size=8)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"model": {"backbone": "googlenet"}},
            "backbone 'googlenet' is not known; take one of torchvision's alexnet..., ",
        ),
        ({"model": {"backbone": "efficientnet_b0"}}, "efficientnet_b0 is of family efficientnet, not mobilenetv3"),
        ({"model": {"backbone": "mobilenet_v3_small", "stem": "cifar"}}, "no stem 'cifar', which is for ResNets"),
        ({"model": {"backbone": "mobilenet_v3_small", "weights": "none", "finetune": "head"}}, "random weights"),
        (
            {"family": "vision_transformer", "model": {"backbone": "vit_b_16"}, "optimizer": {"name": "muon"}},
            "optimizer muon trains filters, and most of vit_b_16 are dense layers",
        ),
        ({"family": "googlenet"}, "must be one of cnn, alexnet, convnext, "),
    ],
)
def test_choices_that_contradict_each_other_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        trial_config({"family": "mobilenetv3", **values}, "here")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_muon_trains_the_filters_of_other_backbones() -> None:
    config = replace(small_config("mobilenet_v3_small"), optimizer=OptimizerConfig("muon", 1e-3))
    outcome = run_experiment(
        Experiment(config, seed=0, max_epochs=1), small_data(), pretrained=random_weights("mobilenet_v3_small")
    )
    assert np.isfinite(outcome.best["val_loss"])
