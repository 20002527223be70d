"""What torchvision adds to the gather: operations, colour jitter and mixing, alone and in a training."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.resnets import random_weights, resnet_config, small_data
from helpers.tiny import (
    CPU,
    TINY,
    device_data,
    imbalanced_data,
    random_images,
    tiny_config,
    weights_equal,
    without_times,
)
from torch import Tensor

from cifar_ray.config import AugmentConfig, Precision, TrialConfig, trial_config
from cifar_ray.data.splits import load_data
from cifar_ray.errors import InputError
from cifar_ray.training.augment import NUM_GROUPS, Augmentation, draw, gather
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Ranks, Training, run_experiment, training_accuracy, training_loss

CHOICES = {
    "trivialaugment": AugmentConfig(policy="trivialaugment"),
    "randaugment": AugmentConfig(policy="randaugment"),
    "jitter": AugmentConfig(color_jitter=0.4),
    "mixup": AugmentConfig(mix="mixup"),
    "cutmix": AugmentConfig(mix="cutmix", mix_alpha=0.2),
    "everything": AugmentConfig(1, "alternating", 2, "randaugment", 0.2, "mixup", 0.4),
}
EVERY_CHOICE = pytest.mark.parametrize("config", CHOICES.values(), ids=list(CHOICES))
MIXES = pytest.mark.parametrize("mix", ["mixup", "cutmix"])


def grey(channels: int) -> Tensor:
    return torch.full((channels,), 100, dtype=torch.uint8)


def augmented(config: AugmentConfig, images: Tensor, **given: int) -> Tensor:
    """All of the images, in their order and not mirrored."""
    flip = torch.zeros(len(images), dtype=torch.bool)
    return Augmentation(config, grey(images.shape[1]), **given).images(images, torch.arange(len(images)), flip)


def copies(count: int, channels: int = 3) -> Tensor:
    """An image over and over: what differs afterwards was drawn differently."""
    return random_images(1, channels).expand(count, -1, -1, -1).contiguous()


def num_different(images: Tensor) -> int:
    return len(images.flatten(1).unique(dim=0))


# ---- images ----


@EVERY_CHOICE
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 33])
def test_augmented_images_are_uint8_and_channels_last_and_the_given_ones_stay(
    config: AugmentConfig, channels: int, size: int
) -> None:
    torch.manual_seed(0)
    images = random_images(19, channels, size)
    before = images.clone()
    batch = augmented(config, images)
    mixed, shares = Augmentation(config, grey(channels)).mix(batch, torch.arange(19) % 4, 4)
    for found in (batch, mixed):
        assert found.dtype == torch.uint8 and found.shape == images.shape
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    assert size == 1 or not torch.equal(mixed, images)
    assert len(shares) == 19


@pytest.mark.parametrize("name", ["trivialaugment", "randaugment", "jitter"])
def test_each_image_of_a_small_batch_and_each_group_of_a_large_one_has_draws_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    # An operation may change nothing, and two draws of one may be alike.
    enough = 1.0 if name == "jitter" else 0.5
    assert num_different(augmented(CHOICES[name], copies(NUM_GROUPS))) >= enough * NUM_GROUPS
    batch = augmented(CHOICES[name], copies(20 * NUM_GROUPS))
    assert enough * NUM_GROUPS <= num_different(batch) <= NUM_GROUPS
    assert all(num_different(group) == 1 for group in batch.chunk(NUM_GROUPS))
    assert num_different(augmented(CHOICES[name], copies(40), num_groups=40)) >= enough * 40


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_scales_brightness_within_its_bounds(channels: int) -> None:
    torch.manual_seed(0)
    plain = torch.full((400, channels, 4, 4), 100, dtype=torch.uint8)  # has neither contrast nor saturation
    found = augmented(AugmentConfig(color_jitter=0.3), plain, num_groups=400)
    assert 69 <= int(found.min()) <= 73 and 127 <= int(found.max()) <= 130
    assert all(num_different(image.flatten()[:, None]) == 1 for image in found)


def test_colour_jitter_changes_contrast_and_where_there_are_colours_saturation() -> None:
    torch.manual_seed(0)
    grey_pixels = torch.tensor([80, 120], dtype=torch.uint8)[None, None, :, None]
    found = augmented(AugmentConfig(color_jitter=0.2), grey_pixels.repeat(100, 1, 1, 2), num_groups=100).float()
    assert float((found[:, 0, 1, 0] / found[:, 0, 0, 0]).std()) > 0.06  # brightness alone would keep the ratio
    orange_pixel = torch.tensor([120, 100, 80], dtype=torch.uint8)[None, :, None, None]
    images = torch.cat([grey_pixels.repeat(100, 3, 1, 1), orange_pixel.repeat(100, 1, 1, 1)], 2)  # (100, 3, 3, 1)
    found = augmented(AugmentConfig(color_jitter=0.2), images, num_groups=100).float()
    between_greys, between_colours = found[:, 0, 1, 0] - found[:, 0, 0, 0], found[:, 0, 2, 0] - found[:, 2, 2, 0]
    assert float((between_colours / between_greys).std()) > 0.06  # brightness and contrast would keep the ratio


def test_what_a_rotation_or_shift_leaves_empty_takes_the_mean_colour() -> None:
    torch.manual_seed(0)
    white = torch.full((100, 3, 8, 8), 255, dtype=torch.uint8)
    found = augmented(CHOICES["trivialaugment"], white, num_groups=100)
    emptied = (found == 100).all(1).flatten(1).any(1)
    assert 10 <= int(emptied.sum()) <= 60  # five operations of fourteen


def test_the_default_draws_nothing_more_than_crop_flip_and_cutout() -> None:
    config = AugmentConfig(crop_padding=1, flip="random", cutout=2)
    images, index, flip = random_images(20), torch.arange(20), torch.arange(20) % 2 == 0
    augmentation = Augmentation(config, grey(3))
    torch.manual_seed(0)
    batch = augmentation.images(images, index, flip)
    labels = torch.arange(20)
    assert augmentation.mix(batch, labels, 20) == (batch, labels)  # the very same
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(batch, gather(images, index, draw(config, flip, 8), 2, grey(3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_without_torchvisions_augmentation_does_not_import_it() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.tiny import device_data, tiny_config
from cifar_ray.config import AugmentConfig
from cifar_ray.training.loop import Experiment, run_experiment
for values in ({{"cutout": 2, "flip": "random", "crop_padding": 1}}, {{"mix": "mixup"}}):
    config = tiny_config(augment=AugmentConfig(**values))
    run_experiment(Experiment(config, seed=0, max_epochs=1), device_data())
    print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# ---- mixing ----


def mixed(mix: str, images: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels, mixed where each image has a class of its own, and the share that each keeps of itself."""
    labels = torch.arange(len(images))
    config = AugmentConfig(mix=mix, mix_alpha=alpha)  # type: ignore[arg-type]
    found, shares = Augmentation(config, grey(images.shape[1])).mix(images, labels, len(images))
    return found, shares, shares.diagonal()


@MIXES
def test_labels_are_shares_of_two_classes_that_sum_to_one(mix: str) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        _, shares, own = mixed(mix, random_images(6))
        assert shares.shape == (6, 6) and shares.dtype == torch.float32
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        before = shares[torch.arange(6), torch.arange(6) - 1]
        torch.testing.assert_close(own + before, torch.ones(6))
        assert own.unique().numel() == 1  # one draw a batch, as in the papers' code


def test_labels_of_one_class_stay_that_class() -> None:
    labels = torch.full((6,), 2)
    _, shares = Augmentation(AugmentConfig(mix="mixup"), grey(3)).mix(random_images(6), labels, 4)
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(6, 4))


def test_mixup_mixes_pixels_in_the_proportion_of_the_labels() -> None:
    torch.manual_seed(0)
    images = random_images(6)
    for _ in range(20):
        found, _, own = mixed("mixup", images)
        share = own[:, None, None, None]
        expected = share * images + (1 - share) * images.roll(1, 0)
        assert float((found - expected).abs().max()) <= 0.501  # rounded


def test_cutmix_takes_a_rectangle_whose_area_is_the_share_of_the_other_label() -> None:
    torch.manual_seed(0)
    black_and_white = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    black_and_white[1] = 255
    areas = set()
    for _ in range(50):
        found, _, own = mixed("cutmix", black_and_white)
        of_other = found[0, 0] == 255
        assert torch.equal(found[1, 0] == 0, of_other)
        rows, columns = of_other.any(1), of_other.any(0)
        assert torch.equal(of_other, rows[:, None] & columns[None, :])
        for line in (rows, columns):  # without gaps
            assert int(line.int().diff().abs().sum()) <= 2
        assert float(own[0]) == pytest.approx(1 - float(of_other.float().mean()), abs=1e-6)
        areas.add(int(of_other.sum()))
    assert len(areas) > 10


def test_a_small_alpha_mixes_little_and_a_large_one_half_and_half() -> None:
    torch.manual_seed(0)
    images = random_images(2)

    def smaller(alpha: float) -> Tensor:
        own = torch.stack([mixed("mixup", images, alpha)[2][0] for _ in range(400)])
        return torch.minimum(own, 1 - own)

    assert float(smaller(0.01).mean()) < 0.03
    assert float(smaller(1.0).mean()) == pytest.approx(0.25, abs=0.03)  # uniform
    assert float(smaller(1000.0).min()) > 0.45


# ---- loss and accuracy ----


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_loss_of_a_mixed_image_is_the_mix_of_its_losses(label_smoothing: float, class_weights: Any) -> None:
    torch.manual_seed(0)
    config = tiny_config(label_smoothing=label_smoothing, class_weights=class_weights)
    logits, weights = torch.randn(5, 3), torch.tensor([0.5, 1.0, 4.0])
    first, second = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([1, 2, 2, 2, 0])
    shares = 0.3 * torch.eye(3)[first] + 0.7 * torch.eye(3)[second]
    expected = 0.3 * training_loss(logits, first, config, weights) + 0.7 * training_loss(
        logits, second, config, weights
    )
    torch.testing.assert_close(training_loss(logits, shares, config, weights), expected)
    of_one = torch.eye(3)[first]
    torch.testing.assert_close(
        training_loss(logits, of_one, config, weights), training_loss(logits, first, config, weights)
    )


def test_a_mixed_image_counts_by_its_share_of_the_class_it_is_taken_for() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    shares = torch.tensor([0.7, 0.3, 0.0]).expand(4, 3)
    assert float(training_accuracy(logits, shares)) == pytest.approx((0.7 + 0.3 + 0.3 + 0.0) / 4)
    labels = torch.tensor([0, 1, 0, 0])
    assert float(training_accuracy(logits, labels)) == float(training_accuracy(logits, torch.eye(3)[labels]))


# ---- trainings ----


def whole(config: AugmentConfig, seed: int = 1, **given: Any) -> Any:
    balanced = tiny_config(
        model=replace(TINY, dropout=0.1), augment=config, class_weights="balanced", label_smoothing=0.1
    )
    return run_experiment(Experiment(balanced, seed=seed, max_epochs=3), imbalanced_data(), **given)


@EVERY_CHOICE
def test_a_seed_repeats_a_training_also_when_it_is_taken_up_again(config: AugmentConfig) -> None:
    packed: dict[int, bytes] = {}
    first = whole(config, checkpoint=lambda row, pack: packed.update({row["epoch"]: pack()}))
    torch.rand(7)  # what was drawn before in this process makes no difference
    for again in (whole(config), whole(config, resume=packed[1])):
        assert weights_equal(first.model, again.model)
        assert without_times(again.history) == without_times(first.history)
    assert not weights_equal(first.model, whole(config, seed=2).model)
    assert not weights_equal(first.model, whole(AugmentConfig()).model)


@EVERY_CHOICE
def test_every_choice_trains_on_digits(config: AugmentConfig) -> None:
    data = DeviceData.from_arrays(load_data("digits").training_arrays(), 10, CPU)
    precision: Precision = "bf16" if config == CHOICES["everything"] else "fp32"
    tiny = tiny_config(augment=config, batch_size=20, precision=precision)
    first, second = run_experiment(Experiment(tiny, seed=0, max_epochs=2), data).history
    assert second["train_loss"] < first["train_loss"]
    assert 0 < second["train_accuracy"] < 1


@MIXES
def test_mixing_needs_two_images_of_a_batch(mix: Any) -> None:
    config = tiny_config(augment=AugmentConfig(mix=mix), batch_size=2)
    assert run_experiment(Experiment(config, seed=0, max_epochs=1), device_data(num_train=4)).history
    message = f"augment/mix '{mix}' mixes the images that a worker has of a batch, and it has one; use a larger batch"
    with pytest.raises(InputError, match=message):
        run_experiment(Experiment(config, seed=0, max_epochs=1), device_data(), ranks=Ranks(0, 2))
    with pytest.raises(InputError, match=message):
        run_experiment(Experiment(config, seed=0, max_epochs=1), device_data(num_train=1))
    with pytest.raises(InputError, match=f"augment/mix '{mix}' mixes the images of a batch, and batch_size is 1"):
        trial_config({"augment": {"mix": mix}, "batch_size": 1}, "here")


# ---- heads on kept features ----


@MIXES
@pytest.mark.parametrize("feature_views", [1, 4])
def test_a_head_on_kept_features_takes_no_mixing(mix: str, feature_views: int) -> None:
    model = {"backbone": "resnet18", "finetune": "head", "feature_views": feature_views}
    with pytest.raises(InputError, match=f"augment/mix '{mix}' needs images, and with finetune 'head' features"):
        trial_config({"family": "resnet", "model": model, "augment": {"mix": mix}}, "here")


def test_views_of_kept_features_are_drawn_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config: TrialConfig = resnet_config(CHOICES["jitter"], finetune="head", feature_views=2)
    data = small_data(num_train=4 * NUM_GROUPS)
    data = replace(data, train_images=data.train_images[:1].expand_as(data.train_images).contiguous())
    training = Training(Experiment(config, seed=0, max_epochs=1), data, random_weights())
    assert training.features is not None
    plain, changed = training.features.train
    assert num_different(plain) == 1
    assert num_different(changed) > NUM_GROUPS
