"""The batched gather against a slow reference that pads, slices, mirrors and blanks one image at a time."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cifar_ray.config import AugmentConfig
from cifar_ray.training.augment import Draws, draw, gather, mirrored

NOT_MIRRORED = torch.zeros(20_000, dtype=torch.bool)


def reference(image: np.ndarray, padding: int, draws: Draws, row: int, cutout: int, fill: np.ndarray) -> np.ndarray:
    """Augment one image (C, H, W)."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    top, left = padding + int(draws.shift_y[row]), padding + int(draws.shift_x[row])
    crop = padded[:, top : top + height, left : left + width].copy()
    if draws.flip[row]:
        crop = crop[:, :, ::-1].copy()
    if cutout:
        top, left = int(draws.cutout_y[row]) - cutout // 2, int(draws.cutout_x[row]) - cutout // 2
        crop[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = fill[:, None, None]
    return crop


def noise(count: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def assert_equals_the_reference(images: Tensor, config: AugmentConfig, batch_size: int) -> None:
    index = torch.randint(0, len(images), (batch_size,))
    fill = torch.arange(1, images.shape[1] + 1, dtype=torch.uint8) * 7
    draws = draw(config, mirrored(config, batch_size, seed=0, epoch=1), images.shape[-1])
    before = images.clone()
    batch = gather(images, index, draws, config.cutout, fill)
    expected = [
        reference(images[i].numpy(), config.crop_padding, draws, row, config.cutout, fill.numpy())
        for row, i in enumerate(index.tolist())
    ]
    assert torch.equal(batch, torch.from_numpy(np.stack(expected)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "padding", "cutout"),
    [
        (8, 0, 0),
        (8, 1, 0),
        (8, 0, 3),
        (8, 7, 4),
        (32, 4, 8),
        (28, 2, 5),
        (9, 3, 1),
        (9, 3, 2),
        (5, 4, 5),
        (5, 2, 9),  # the square can cover the whole image
        (2, 1, 1),
        (1, 0, 1),
    ],
)
@pytest.mark.parametrize("flip", ["none", "random"])
def test_the_gather_equals_the_slow_reference(
    channels: int, size: int, padding: int, cutout: int, flip: Literal["none", "random"]
) -> None:
    torch.manual_seed(size * 1000 + padding)
    config = AugmentConfig(crop_padding=padding, flip=flip, cutout=cutout)
    images = noise(20, channels, size, size)
    for _ in range(5):
        assert_equals_the_reference(images, config, 30)


@pytest.mark.parametrize(("size", "padding"), [(8, 8), (8, 9), (4, 11), (3, 20), (2, 5), (1, 1), (1, 3)])
def test_a_padding_wider_than_the_image_reflects_again_and_again(size: int, padding: int) -> None:
    # A configuration may ask for it; an index outside the image would stop the device.
    torch.manual_seed(padding)
    images = noise(10, 3, size, size)
    for _ in range(5):
        assert_equals_the_reference(images, AugmentConfig(crop_padding=padding, flip="random"), 30)


def test_rows_and_columns_are_not_confused() -> None:
    torch.manual_seed(0)
    images = noise(10, 3, 6, 9)
    config = AugmentConfig(crop_padding=2, flip="random", cutout=3)
    # Centres are drawn for square images: these lie in the first six columns.
    index = torch.arange(10)
    draws = draw(config, torch.arange(10) % 3 == 0, 6)
    batch = gather(images, index, draws, 3, torch.zeros(3, dtype=torch.uint8))
    expected = [reference(images[i].numpy(), 2, draws, i, 3, np.zeros(3, np.uint8)) for i in range(10)]
    assert torch.equal(batch, torch.from_numpy(np.stack(expected)))


def test_without_augmentation_images_come_back_as_they_are() -> None:
    images = noise(20, 3, 8, 8)
    index = torch.tensor([3, 3, 0, 19])
    batch = gather(images, index, draw(AugmentConfig(), NOT_MIRRORED[:4], 8), 0, torch.zeros(3, dtype=torch.uint8))
    assert torch.equal(batch, images[index])


@pytest.mark.parametrize("cutout", [0, 3])
def test_a_batch_is_uint8_and_channels_last(cutout: int) -> None:
    images = noise(20, 3, 8, 8)
    config = AugmentConfig(crop_padding=1, flip="random", cutout=cutout)
    batch = gather(
        images, torch.arange(5), draw(config, NOT_MIRRORED[:5], 8), cutout, torch.zeros(3, dtype=torch.uint8)
    )
    assert batch.dtype == torch.uint8
    assert batch.shape == (5, 3, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_without_flip_no_image_is_mirrored() -> None:
    assert not mirrored(AugmentConfig(flip="none"), 1000, seed=0, epoch=1).any()


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_half_of_the_images_are_mirrored(flip: Literal["random", "alternating"], epoch: int) -> None:
    on = mirrored(AugmentConfig(flip=flip), 20_000, seed=0, epoch=epoch)
    assert on.dtype == torch.bool
    assert float(on.float().mean()) == pytest.approx(0.5, abs=0.02)  # 5.6 standard deviations


def test_random_flips_are_drawn_anew_in_each_epoch() -> None:
    config = AugmentConfig(flip="random")
    epochs = [mirrored(config, 10_000, seed=0, epoch=epoch).float() for epoch in (1, 2, 3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((epochs[one] == epochs[other]).float().mean()) == pytest.approx(0.5, abs=0.025)
    assert torch.equal(epochs[0], mirrored(config, 10_000, seed=0, epoch=1))


def test_alternating_flips_show_each_image_one_way_in_every_other_epoch() -> None:
    config = AugmentConfig(flip="alternating")
    first, second, third = (mirrored(config, 10_000, seed=0, epoch=epoch) for epoch in (1, 2, 3))
    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    other = mirrored(config, 10_000, seed=1, epoch=1)
    assert float((first == other).float().mean()) == pytest.approx(0.5, abs=0.025)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_shifts_are_uniform_with_both_ends_and_independent_of_each_other(padding: int) -> None:
    torch.manual_seed(0)
    count = 20_000
    draws = draw(AugmentConfig(crop_padding=padding), NOT_MIRRORED[:count], 8)
    values = 2 * padding + 1
    for shift in (draws.shift_y, draws.shift_x):
        assert (int(shift.min()), int(shift.max())) == (-padding, padding)
        shares = torch.bincount(shift + padding, minlength=values) / count
        assert shares.tolist() == pytest.approx([1 / values] * values, abs=0.02)
    pairs = torch.bincount((draws.shift_y + padding) * values + draws.shift_x + padding, minlength=values**2) / count
    assert pairs.tolist() == pytest.approx([1 / values**2] * values**2, abs=0.02)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_centres_of_the_square_are_uniform_over_the_image(size: int) -> None:
    torch.manual_seed(0)
    count = 20_000
    draws = draw(AugmentConfig(cutout=2), NOT_MIRRORED[:count], size)
    for centre in (draws.cutout_y, draws.cutout_x):
        assert (int(centre.min()), int(centre.max())) == (0, size - 1)
        assert (torch.bincount(centre) / count).tolist() == pytest.approx([1 / size] * size, abs=0.02)
    if size > 1:
        assert not torch.equal(draws.cutout_y, draws.cutout_x)


def test_draws_follow_the_random_seed() -> None:
    config = AugmentConfig(crop_padding=2, flip="random", cutout=3)

    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        draws = draw(config, NOT_MIRRORED[:50], 8)
        fields = (draws.shift_y, draws.shift_x, draws.cutout_y, draws.cutout_x)
        return [values.tolist() for values in fields]

    first, other = drawn(1), drawn(2)
    assert first == drawn(1)
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("centre", "rows"), [((0, 4), (0, 2)), ((7, 4), (5, 8)), ((4, 4), (2, 6))], ids=["top", "bottom", "inside"]
)
def test_the_square_is_cut_off_at_the_border(centre: tuple[int, int], rows: tuple[int, int]) -> None:
    images = torch.full((1, 3, 8, 8), 9, dtype=torch.uint8)
    zero = torch.zeros(1, dtype=torch.int64)
    draws = Draws(zero, zero, torch.zeros(1, dtype=torch.bool), zero + centre[0], zero + centre[1])
    batch = gather(images, zero, draws, 4, torch.tensor([1, 2, 3], dtype=torch.uint8))
    for channel, colour in enumerate([1, 2, 3]):
        expected = torch.full((8, 8), 9, dtype=torch.uint8)
        expected[rows[0] : rows[1], 2:6] = colour
        assert torch.equal(batch[0, channel], expected)
