"""Pieces of recipes that make few epochs enough: whitening, dirac filters, alternating flips, Lookahead, flip TTA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import TINY, arrays, device_data, random_images, schedule, tiny_config, weights_equal, without_times
from torch import Tensor, nn
from torch.nn import functional

from cifar_ray.config import AugmentConfig, CNNConfig, OptimizerConfig, TrialConfig, trial_config
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.models.cnn import CNN, ConvBlock, PatchWhitening
from cifar_ray.models.saved import load_model, pack_weights, save_model
from cifar_ray.training import augment
from cifar_ray.training.augment import Draws
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Outcome, run_experiment
from cifar_ray.training.optim import Lookahead, LRSchedule, make_optimizer

CARD = {"class_names": ["a", "b"], "resize": {"channels": 1, "image_size": 8, "rule": "none"}}
WHITENED = tiny_config(model=replace(TINY, whitening=True))


def train(config: TrialConfig, max_epochs: int = 2, **given: Any) -> Outcome:
    return run_experiment(Experiment(config, seed=0, max_epochs=max_epochs), device_data(), **given)


def whitening_of(model: Classifier) -> PatchWhitening:
    assert isinstance(model.network, CNN) and model.network.whitening is not None
    return model.network.whitening


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_no_correlations_and_unit_variance(channels: int) -> None:
    data = DeviceData.from_arrays(arrays(num_train=200, channels=channels), 2, torch.device("cpu"))
    model = build_model(WHITENED, num_classes=2, channels=channels, image_size=8)
    model.initialize(data.mean, data.std, data.train_images)
    layer = whitening_of(model)
    x = model.inputs(data.train_images)
    half = 4 * channels
    with torch.no_grad():
        out = (layer(x) - layer.conv.bias.view(1, -1, 1, 1)).transpose(0, 1).flatten(1)  # (8 C, pixels)
    assert out.shape[0] == 2 * half
    # Uncentred, as the filters are made; EPS makes the variances a little smaller than 1.
    torch.testing.assert_close(out[:half] @ out[:half].T / out.shape[1], torch.eye(half), atol=5e-3, rtol=0)
    torch.testing.assert_close(out[half:], -out[:half])


def test_whitening_looks_at_images_from_all_over_the_training_images() -> None:
    model = build_model(WHITENED, num_classes=2, channels=1, image_size=8)
    first, last = torch.full((3000, 1, 8, 8), 100, dtype=torch.uint8), random_images(3000, channels=1)
    zero, one = torch.zeros(1), torch.ones(1)
    found = []
    for order in (torch.cat([first, last]), torch.stack([first, last], 1).flatten(0, 1)):
        model.initialize(zero, one, order)
        filters = whitening_of(model).conv.weight.flatten(1)  # (8, 4)
        found.append(filters.T @ filters)  # twice the inverse covariance, whatever the order and sign of directions
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.05 * float(found[0].abs().max()))


def test_whitening_filters_stay_as_they_are_and_their_bias_trains() -> None:
    model = train(WHITENED, 3).model
    fresh = build_model(WHITENED, num_classes=2, channels=1, image_size=8)
    data = device_data()
    fresh.initialize(data.mean, data.std, data.train_images)
    assert torch.equal(whitening_of(model).conv.weight, whitening_of(fresh).conv.weight)
    torch.manual_seed(0)
    untrained = build_model(WHITENED, num_classes=2, channels=1, image_size=8)
    assert not torch.equal(whitening_of(model).conv.bias, whitening_of(untrained).conv.bias)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("head_pool", ["avg", "flatten"])
def test_whitening_takes_images_of_two_pixels_and_more(size: int, head_pool: Any) -> None:
    config = tiny_config(model=replace(TINY, whitening=True, head_pool=head_pool))
    model = build_model(config, num_classes=2, channels=3, image_size=size)
    assert model(random_images(4, size=size)).shape == (4, 2)
    with pytest.raises(InputError, match="model/whitening"):
        build_model(config, num_classes=2, channels=3, image_size=1)


def test_whitening_of_images_without_any_contrast_gives_finite_filters() -> None:
    blank = {**arrays(), "train_images": np.full((64, 1, 8, 8), 77, np.uint8)}
    model = build_model(WHITENED, num_classes=2, channels=1, image_size=8)
    data = DeviceData.from_arrays(blank, 2, torch.device("cpu"))
    model.initialize(data.mean, data.std, data.train_images)
    assert whitening_of(model).conv.weight.isfinite().all()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("before", "width"), [(3, 8), (8, 8), (12, 8)])
def test_dirac_filters_pass_their_input_on(kernel_size: Any, before: int, width: int) -> None:
    config = CNNConfig(widths=[before, width], blocks=[1, 1], kernel_sizes=[kernel_size] * 2, norm="none", init="dirac")
    network = CNN(config, 2, 3, 8)
    block = network.blocks[1]
    assert isinstance(block, ConvBlock)
    [conv] = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    x = torch.randn(2, before, 8, 8)
    passed = functional.conv2d(x, conv.weight, padding=kernel_size // 2)
    both = min(before, width)
    torch.testing.assert_close(passed[:, :both], x[:, :both])
    if width > before:
        assert (passed[:, before:] != 0).any(), "the others are drawn"


def test_dirac_draws_the_same_weights_for_the_rest_of_the_network() -> None:
    torch.manual_seed(0)
    drawn = CNN(replace(TINY, widths=[8, 16]), 2, 3, 8).state_dict()
    torch.manual_seed(0)
    passing = CNN(replace(TINY, widths=[8, 16], init="dirac"), 2, 3, 8).state_dict()
    differ = {name for name in drawn if not torch.equal(drawn[name], passing[name])}
    assert differ == {"blocks.0.layers.0.weight", "blocks.1.layers.0.weight"}
    assert torch.equal(drawn["blocks.1.layers.0.weight"][8:], passing["blocks.1.layers.0.weight"][8:])


def test_alternating_flips_show_every_image_both_ways_in_two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []

    def noting(images: Tensor, index: Tensor, draws: Draws, cutout: int, fill: Tensor) -> Tensor:
        flips = torch.full((len(images),), -1)
        flips[index] = draws.flip.long()
        shown.append(flips)
        return images[index]

    monkeypatch.setattr(augment, "gather", noting)
    train(tiny_config(augment=AugmentConfig(flip="alternating"), batch_size=64), 3)  # one step an epoch
    first, second, third = shown
    assert set(first.tolist()) == {0, 1}
    assert torch.equal(second, 1 - first)
    assert torch.equal(third, first)


def test_lookahead_is_the_optimizer_that_goes_half_way_back_every_five_steps() -> None:
    config = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.0, lookahead=True)
    model, plain = nn.Linear(4, 1), nn.Linear(4, 1)
    plain.load_state_dict(model.state_dict())
    optimizer = make_optimizer(config, model)
    assert isinstance(optimizer, Lookahead)
    inner = make_optimizer(replace(config, lookahead=False), plain)
    slow = [p.detach().clone() for p in plain.parameters()]
    data = torch.randn(17, 8, 4)
    for step, x in enumerate(data, start=1):
        for one, its in ((model, optimizer), (plain, inner)):
            its.zero_grad()
            (one(x) ** 2).mean().backward()
            its.step()
        if step % 5 == 0:
            with torch.no_grad():
                for weight, old in zip(plain.parameters(), slow, strict=True):
                    old += 0.5 * (weight - old)
                    weight.copy_(old)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_lookahead_follows_the_learning_rate_schedule(name: Any) -> None:
    model = build_model(tiny_config(), num_classes=2, channels=1, image_size=8)
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=1.0, lookahead=True), model)
    steps = LRSchedule(schedule("step"), optimizer, 4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        optimizer.step()
        steps.step()
    assert steps.lr == pytest.approx(0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1)
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)), "a rate of zero moves"


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_training_with_every_piece_goes_on_to_the_bit(name: Any) -> None:
    config = tiny_config(
        model=replace(TINY, whitening=True, init="dirac"),
        optimizer=OptimizerConfig(name=name, lr=0.01, lookahead=True),
        augment=AugmentConfig(flip="alternating"),
        tta="flip",
        batch_size=24,  # two steps an epoch: Lookahead's fifth comes in the third
    )
    packed: dict[int, bytes] = {}
    whole = train(config, 5, checkpoint=lambda row, pack: packed.update({row["epoch"]: pack()}))
    gone_on = train(config, 5, resume=packed[2])
    assert weights_equal(whole.model, gone_on.model)
    assert without_times(gone_on.history) == without_times(whole.history)


def test_flip_tta_is_the_mean_over_an_image_and_its_mirror_image_in_eval_mode_alone() -> None:
    plain = train(tiny_config()).model
    flipping = build_model(tiny_config(tta="flip"), num_classes=2, channels=1, image_size=8)
    flipping.load_state_dict(plain.state_dict())
    batch = random_images(6, channels=1)
    with torch.no_grad():
        flipping.eval()
        logits = flipping(batch)
        torch.testing.assert_close(logits, (plain(batch) + plain(batch.flip(-1))) / 2)
        torch.testing.assert_close(logits, flipping(batch.flip(-1)))
        assert not torch.allclose(logits, plain(batch))
        plain.train()
        flipping.train()
        torch.testing.assert_close(flipping(batch), plain(batch))


def test_validation_uses_the_test_time_augmentation_and_a_saved_model_keeps_all_pieces(tmp_path: Path) -> None:
    config = tiny_config(model=replace(TINY, whitening=True, init="dirac"), tta="flip")
    outcome = train(config)
    save_model(tmp_path / "model", pack_weights(outcome.model), config, CARD)
    loaded = load_model(tmp_path / "model")
    data = device_data()
    with torch.no_grad():
        logits = loaded(data.val_images)
        assert torch.equal(logits, outcome.model(data.val_images))
    accuracy = float((logits.argmax(1) == data.val_labels).float().mean())
    assert outcome.best["val_accuracy"] == pytest.approx(accuracy)
    assert loaded.tta == "flip"


def test_a_head_on_kept_features_takes_no_test_time_augmentation() -> None:
    model = {"backbone": "resnet18", "finetune": "head"}
    with pytest.raises(InputError, match="tta 'flip' needs images"):
        trial_config({"family": "resnet", "model": model, "tta": "flip"}, "here")
