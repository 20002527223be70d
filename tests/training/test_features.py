"""Features of a frozen backbone are computed once, and a head trained on them is the head of the whole model."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.resnets import random_weights, resnet_config, small_data
from torch import Tensor

from cifar_ray.config import AugmentConfig, TrialConfig
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import build_model
from cifar_ray.training import features
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.features import Features, head_features
from cifar_ray.training.loop import Experiment, Training, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy

pytestmark = pytest.mark.usefixtures("own_cache")

AUGMENT = AugmentConfig(crop_padding=2, flip="random", cutout=2)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the backbone was given, a number for each pass."""
    numbers: list[int] = []
    compute = features._compute

    def counted(*args: Any) -> Any:
        array = compute(*args)
        numbers.append(len(array))
        return array

    monkeypatch.setattr(features, "_compute", counted)
    return numbers


def head_config(views: int = 1, **changes: Any) -> TrialConfig:
    return resnet_config(finetune="head", feature_views=views, **changes)


def get_features(config: TrialConfig, data: DeviceData, seed: int = 0) -> Features:
    model = build_model(config, num_classes=2, channels=3, image_size=8)
    model.initialize(data.mean, data.std, data.train_images, random_weights(seed=seed))
    return head_features(model, config, data.train_images, data.val_images, data.images_key, data.fill)


def test_a_second_head_computes_nothing(computed: list[int]) -> None:
    data = small_data()
    first = get_features(head_config(views=2, augment=AUGMENT), data)
    assert computed == [16, 16, 7]
    second = get_features(head_config(views=2, augment=AUGMENT, head_hidden=[4], lr=0.5), data)
    assert computed == [16, 16, 7]
    assert all(torch.equal(a, b) for a, b in zip(first.train, second.train, strict=True))
    assert torch.equal(first.val, second.val)
    assert first.images_per_s == second.images_per_s > 0


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (lambda: get_features(head_config(), small_data(num_train=18)), [18, 7]),
        (lambda: get_features(head_config(), small_data(), seed=1), [16, 7]),
        (lambda: get_features(head_config(views=2, augment=AUGMENT), small_data()), [16]),
        (lambda: get_features(head_config(backbone="resnet18", weights="DEFAULT"), small_data()), []),
    ],
    ids=["images", "weights", "another view", "another name of the weights"],
)
def test_what_differs_is_computed_and_nothing_else(
    change: Callable[[], object], more: list[int], computed: list[int]
) -> None:
    get_features(head_config(), small_data())
    del computed[:]
    change()
    assert computed == more


def test_each_view_and_augmentation_has_features_of_its_own(computed: list[int]) -> None:
    data = small_data()
    first = get_features(head_config(views=3, augment=AUGMENT), data)
    other = get_features(head_config(views=2, augment=AugmentConfig(crop_padding=1)), data)
    assert computed == [16, 16, 16, 7, 16]
    assert torch.equal(first.train[0], other.train[0])
    views = [*first.train, other.train[1]]
    assert all(not torch.equal(views[i], views[j]) for i in range(4) for j in range(i))


def test_a_view_holds_the_features_of_the_augmented_images() -> None:
    data = small_data()
    found = get_features(head_config(views=2, augment=AugmentConfig(flip="random")), data)
    mirrored = DeviceData.from_arrays(
        {
            "train_images": data.train_images.flip(3).numpy(),
            "train_labels": data.train_labels.numpy(),
            "val_images": data.val_images.numpy(),
            "val_labels": data.val_labels.numpy(),
        },
        2,
        torch.device("cpu"),
    )
    plain, flipped = found.train[0], get_features(head_config(), mirrored).train[0]

    def close(one: Tensor, other: Tensor) -> Tensor:
        return ((one - other).abs() < 2e-2).all(1)

    is_plain, is_flipped = close(found.train[1], plain), close(found.train[1], flipped)
    assert (is_plain ^ is_flipped).all()
    assert is_plain.any()
    assert is_flipped.any()


def test_the_head_is_that_of_the_whole_model() -> None:
    data = small_data()
    outcome = run_experiment(Experiment(head_config(), seed=0, max_epochs=3), data, pretrained=random_weights())
    loss, accuracy = loss_and_accuracy(eval_model(outcome.model, data.val_images), data.val_labels)
    assert loss == pytest.approx(outcome.best["val_loss"], abs=1e-3)  # features have 11 significant bits
    assert accuracy == outcome.best["val_accuracy"]
    network = outcome.model.network
    assert isinstance(network, BackboneNet)
    weights = random_weights()
    assert all((network.backbone.state_dict()[key].numpy() == weights[key]).all() for key in weights)


def test_a_head_learns_what_it_would_learn_under_the_backbone() -> None:
    # The same epoch, once on features and once on images: without augmentation that is the same.
    data, config = small_data(), head_config()
    pretrained = random_weights()
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=1), data, pretrained=pretrained)
    training = Training(Experiment(config, seed=0, max_epochs=1), data, pretrained)
    training.features, training.parallel = None, training.model
    training.part = training.model
    training.model.unfreeze = lambda epoch, max_epochs: False  # type: ignore[method-assign]
    row = training.epoch()
    assert row["train_loss"] == pytest.approx(outcome.history[0]["train_loss"], abs=1e-3)
    for key, tensor in training.model.state_dict().items():
        torch.testing.assert_close(outcome.model.state_dict()[key], tensor, rtol=0, atol=1e-3, msg=key)


def test_epochs_take_turns_with_the_views_and_the_first_one_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(self: Training, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in batches(self, order, epoch):
            seen.append(inputs)
            yield inputs, labels

    batches = Training._batches
    monkeypatch.setattr(Training, "_batches", watched)
    data = small_data()
    config = replace(head_config(views=3, augment=AUGMENT), batch_size=len(data.train_labels))  # a step an epoch
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=7), data, pretrained=random_weights())
    views = get_features(config, data).train
    sums = [view.float().sum().item() for view in views]
    assert [inputs.sum().item() for inputs in seen] == pytest.approx([sums[epoch % 3] for epoch in range(7)])
    assert len({round(total, 3) for total in sums}) == 3
    assert outcome.history[0]["features"]["views"] == 3
    assert outcome.history[0]["features"]["images_per_s"] > 0
    assert not any("features" in row for row in outcome.history[1:])


COMPETE = """
import sys, time
sys.path[:0] = {folders!r}
import torch
from helpers.resnets import small_data
from cifar_ray.training import features
from test_features import get_features, head_config
compute = features._compute
def slow(*args):
    print("computing", flush=True)
    time.sleep(1)
    return compute(*args)
features._compute = slow
get_features(head_config(), small_data())
"""


def test_of_processes_that_come_together_one_computes_and_the_others_wait(own_cache: Path) -> None:
    code = COMPETE.format(folders=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert printed.count("computing") == 2  # training and validation
    assert sorted(path.suffix for path in own_cache.iterdir()) == sorted([".json", ".lock", ".npy"] * 2)


def test_augmentation_of_a_single_view_is_refused() -> None:
    with pytest.raises(ValueError, match="feature_views of 2 or more"):
        head_config(augment=AUGMENT)
