"""ResNets: torchvision's networks with torchvision's weights, of which just that trains which is to train."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.resnets import SIZE, random_weights, resnet_config, small_data
from torch import Tensor, nn

from cifar_ray.config import BackboneConfig, LRScheduleConfig, OptimizerConfig, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.training.loop import Experiment, run_experiment
from cifar_ray.training.optim import LRSchedule, make_optimizer

STAGES = ["layer4", "layer3", "layer2", "layer1"]
OPTIMIZERS = ("sgd", "adamw", "muon")
NO_IMAGES = torch.empty(0)
TRAINED = {"head": 0, "last_stage": 1, "last_two_stages": 2, "all": 5}


def build(config: TrialConfig, channels: int = 3, image_size: int = 8, pretrained: Any = None) -> Classifier:
    model = build_model(config, num_classes=2, channels=channels, image_size=image_size)
    model.initialize(torch.full((channels,), 100.0), torch.full((channels,), 50.0), NO_IMAGES, pretrained)
    return model


def network(model: Classifier) -> BackboneNet:
    assert isinstance(model.network, BackboneNet)
    return model.network


def part_of(key: str) -> int:
    """Which part of the backbone a key belongs to, counted from the head: its stages are 0 to 3, its stem is 4."""
    stage = key.split(".")[0]
    return STAGES.index(stage) if stage in STAGES else 4


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_features_are_torchvisions(backbone: str, dtype: Any) -> None:
    from torchvision.models import get_model

    weights = random_weights(backbone)
    stored = {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in weights.items()}
    model = build(resnet_config(backbone=backbone), image_size=SIZE, pretrained=stored).eval()
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    reference = get_model(backbone, weights=None)
    reference.fc = nn.Identity()  # type: ignore[assignment]
    reference.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in stored.items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        expected = reference.eval()(normalised)
        torch.testing.assert_close(network(model).features(model.inputs(images)), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 1e-3


def test_without_weights_the_normalisation_is_that_of_the_images() -> None:
    model = build(resnet_config(weights="none"))
    assert model.normalize.mean.flatten().tolist() == [100.0] * 3
    assert model.normalize.std.flatten().tolist() == [50.0] * 3


def test_a_grey_image_is_the_colour_image_of_equal_channels() -> None:
    weights = random_weights()
    grey, colour = (build(resnet_config(), channels, pretrained=weights).eval() for channels in (1, 3))
    grey.network.load_state_dict(colour.network.state_dict())
    images = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    assert grey.normalize.mean.item() == pytest.approx(255 * (0.485 + 0.456 + 0.406) / 3)
    colour.normalize.mean.fill_(grey.normalize.mean.item())
    colour.normalize.std.fill_(grey.normalize.std.item())
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [4, 32, 96])
def test_images_of_any_size_are_resized_to_that_of_the_network(size: int) -> None:
    model = build(resnet_config())
    flat = torch.full((1, 3, size, size), 200, dtype=torch.uint8)
    assert model.inputs(flat).shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(model.inputs(flat), torch.full((1, 3, SIZE, SIZE), 2.0))


def test_an_image_is_made_smaller_by_means_of_its_pixels_and_not_by_leaving_some_out() -> None:
    stripes = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    stripes[..., ::3] = 255
    inside = build(resnet_config()).inputs(stripes)[..., 2:-2]
    torch.testing.assert_close(inside, torch.full_like(inside, (85 - 100) / 50), rtol=0, atol=0.2)


def test_the_cifar_stem_has_the_centre_of_the_filters_and_reduces_nothing() -> None:
    weights = random_weights()
    model = network(build(resnet_config(stem="cifar"), image_size=16, pretrained=weights))
    assert np.array_equal(
        model.backbone.get_parameter("conv1.weight").detach(), weights["conv1.weight"][:, :, 2:5, 2:5]
    )
    sizes = []
    model.backbone.get_submodule("layer1").register_forward_hook(lambda module, args, out: sizes.append(out.shape[-1]))
    model.eval()(torch.zeros(1, 3, 16, 16))
    network(build(resnet_config(), pretrained=weights)).eval()(torch.zeros(1, 3, 32, 32))
    assert sizes == [16]


@pytest.mark.parametrize("widths", [[], [6], [6, 4]])
def test_the_head_has_the_layers_that_it_is_given(widths: list[int]) -> None:
    head = network(build(resnet_config(head_hidden=widths, head_dropout=0.3))).head
    layers = [module for module in head if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in layers] == [*widths, 2]
    assert [module.p for module in head if isinstance(module, nn.Dropout)] == [0.3] * (len(widths) + 1)


def test_the_head_of_any_torchvision_resnet_fits() -> None:
    with torch.device("meta"):
        for backbone in ("resnet34", "resnext50_32x4d", "wide_resnet50_2"):
            config = resnet_config(backbone=backbone)
            model = build_model(config, num_classes=2, channels=3, image_size=SIZE)
            assert model(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)).shape == (2, 2)


@pytest.mark.parametrize("freeze_norm_statistics", [False, True])
@pytest.mark.parametrize("finetune", [*TRAINED, "gradual"])
def test_just_that_trains_which_is_to_train(finetune: str, freeze_norm_statistics: bool) -> None:
    weights = random_weights()
    config = resnet_config(finetune=finetune, freeze_norm_statistics=freeze_norm_statistics, backbone_lr=1.0)
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=1), small_data(), pretrained=weights)
    number = TRAINED.get(finetune, 0)  # gradual trains the head alone in its first epoch
    found = network(outcome.model).backbone.state_dict()
    for key, before in weights.items():
        statistic = "running" in key
        trains = part_of(key) < number and not (statistic and freeze_norm_statistics)
        if "num_batches" not in key:
            assert (not np.array_equal(found[key].numpy(), before)) == trains, key


@pytest.mark.parametrize(
    ("finetune", "name"),
    [("head", "sgd"), ("head", "adamw"), *((part, name) for part in ("last_stage", "gradual") for name in OPTIMIZERS)],
)
def test_what_is_frozen_has_no_gradient_and_no_optimizer_state(finetune: str, name: Any) -> None:
    config = resnet_config(finetune=finetune)
    model = build(config, pretrained=random_weights()).train()
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.01), model)
    model(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    inner = [optimizer.muon, optimizer.adamw] if name == "muon" else [optimizer]
    with_state = sum(tensor.numel() for one in inner for tensor in one.state)
    trained = [p for p in model.parameters() if p.grad is not None]
    assert with_state == sum(p.numel() for p in trained)
    number = TRAINED.get(finetune, 0)
    wanted = [*network(model).head.parameters(), *(p for part in network(model).parts()[:number] for p in part)]
    assert {id(p) for p in trained} == {id(p) for p in wanted}


@pytest.mark.parametrize("finetune", TRAINED)
def test_frozen_batch_norm_stays_in_eval_mode(finetune: str) -> None:
    model = network(build(resnet_config(finetune=finetune))).train()
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (part_of(name) < TRAINED[finetune]), name
    assert model.head.training
    assert not any(module.training for module in model.eval().modules())


def test_gradual_unfreezing_goes_from_the_last_stage_to_the_stem_in_half_of_the_horizon() -> None:
    model = network(build(resnet_config(finetune="gradual")))
    numbers, changes = [], []
    for epoch in range(1, 11):
        changes.append(model.unfreeze(epoch, 10))
        trains = [all(p.requires_grad for p in part) for part in model.parts()]
        assert trains == sorted(trains, reverse=True)
        numbers.append(sum(trains))
    assert numbers == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert changes == [False, True, True, True, True, True, False, False, False, False]


def test_each_stage_learns_at_a_rate_of_its_own_and_the_schedule_moves_them_together() -> None:
    model = build(resnet_config(backbone_lr=0.2, layer_decay=0.5))
    rates = {id(p): 0.1 for p in network(model).head.parameters()}
    for depth, part in enumerate(network(model).parts()):
        rates |= {id(p): 0.1 * 0.2 * 0.5**depth for p in part}
    for name in OPTIMIZERS:
        optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.1), model)  # type: ignore[arg-type]
        groups = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert groups == pytest.approx(rates)
        lr_schedule = LRSchedule(LRScheduleConfig(name="step"), optimizer, 4)
        assert lr_schedule.lr == pytest.approx(0.1)  # what is recorded is the head's
        for _ in range(3):
            optimizer.step()
            lr_schedule.step()
        groups = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert groups == pytest.approx({key: rate / 100 for key, rate in rates.items()})


def test_without_weights_all_learn_at_one_rate() -> None:
    optimizer = make_optimizer(OptimizerConfig(lr=0.1), build(resnet_config(weights="none", backbone_lr=0.2)))
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_random_weights_come_from_the_random_state_and_pretrained_ones_do_not() -> None:
    def first_filters(config: TrialConfig, seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = build(config, pretrained=None if config.model.weights == "none" else random_weights())
        return network(model).backbone.get_parameter("conv1.weight")

    scratch = resnet_config(weights="none")
    assert torch.equal(first_filters(scratch, 0), first_filters(scratch, 0))
    assert not torch.equal(first_filters(scratch, 0), first_filters(scratch, 1))
    assert torch.equal(first_filters(resnet_config(), 0), first_filters(resnet_config(), 1))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            resnet_config(backbone="resnet19"),
            "model/backbone: torchvision has no 'resnet19'; take one of resnet101",
        ),
        (
            replace(resnet_config(), image_size=16),
            "resnet18 with stem 'imagenet' needs images of at least 32 pixels, not 16",
        ),
        (replace(resnet_config(), image_size=None), "needs images of at least 32 pixels, not 8"),
    ],
)
def test_a_network_that_cannot_be_is_told(config: TrialConfig, says: str) -> None:
    with pytest.raises(InputError) as error:
        build_model(config, num_classes=2, channels=3, image_size=8)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"weights": "none", "finetune": "head"}, "freezes a backbone of random weights"),
        ({"weights": "none", "finetune": "gradual"}, "freezes a backbone of random weights"),
        ({"weights": "none", "freeze_norm_statistics": True}, "needs weights"),
        ({"stem": "cifar", "finetune": "last_stage"}, "would freeze the stem 'cifar'"),
        ({"feature_views": 2}, "feature_views goes with finetune 'head'"),
        ({"layer_decay": 1.5}, "less than or equal to 1"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(model: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BackboneConfig(**{"backbone": "resnet18", **model})


def test_muon_for_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer muon trains filters"):
        replace(resnet_config(finetune="head"), optimizer=OptimizerConfig(name="muon"))
