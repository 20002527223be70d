"""What corruptions do to images, whatever their size and channels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cifar_ray.evaluation.robustness import HOW, corrupt
from cifar_ray.results.records import CORRUPTIONS, SEVERITIES


def pictures(channels: int, side: int, count: int = 8) -> Tensor:
    """A bright square, off the centre, on a gray ramp; it grows with the side."""
    images = torch.linspace(20, 120, side).expand(count, channels, side, side).clone()
    images[..., side // 4 : side // 2, side // 8 : side // 2] = 200
    return images.to(torch.uint8)


def change(images: Tensor, corruption: str, severity: int) -> float:
    return (corrupt(images, corruption, severity).float() - images.float()).abs().mean().item()


def test_every_corruption_that_is_recorded_is_made_in_every_severity() -> None:
    assert list(HOW) == list(CORRUPTIONS)
    assert all(len(how.amounts) == len(SEVERITIES) for how in HOW.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (1, 160), (3, 160)])
def test_images_keep_their_form_and_each_severity_is_worse(name: str, channels: int, side: int) -> None:
    images = pictures(channels, side)
    before = images.clone()
    changes = [change(images, name, severity) for severity in SEVERITIES]
    corrupted = corrupt(images, name, 3)
    assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8
    assert torch.equal(images, before)
    assert changes[0] < changes[1] < changes[2] and changes[2] > 1
    torch.rand(1)  # moves the random state of the process
    assert torch.equal(corrupted, corrupt(images, name, 3))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_tiny_images_can_be_corrupted(name: str) -> None:
    for channels in (1, 3):
        for side in (1, 2, 3, 5):
            assert corrupt(pictures(channels, side), name, 3).shape == (8, channels, side, side)


@pytest.mark.parametrize("count", [1, 2, 101])
def test_so_can_any_number_of_images(count: int) -> None:
    for name in CORRUPTIONS:
        assert corrupt(pictures(1, 8, count), name, 1).shape == (count, 1, 8, 8)


@pytest.mark.parametrize("name", ["blur", "shift", "rotation"])
def test_what_has_a_size_goes_by_the_side(name: str) -> None:
    small, large = (corrupt(pictures(1, side), name, 2).float() for side in (32, 128))
    again = torch.nn.functional.interpolate(large, size=(32, 32), mode="area")
    assert (again - small).abs().mean() < 0.4 * change(pictures(1, 32), name, 2)


def test_the_random_state_of_the_process_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    corrupt(pictures(1, 8), "noise", 1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_differs_between_images_and_has_the_deviation_that_it_says() -> None:
    gray = torch.full((250, 1, 32, 32), 128, dtype=torch.uint8)
    noise = corrupt(gray, "noise", 2).float() - 128
    assert noise.std().item() == pytest.approx(0.1 * 255, rel=0.02)
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[100])


def test_shifts_and_rotations_go_in_all_directions() -> None:
    dot = torch.zeros(8, 1, 33, 33)
    dot[:, :, 16, 16] = 255
    shifted = corrupt(dot.to(torch.uint8), "shift", 3)[:, 0].float()
    rows, columns = np.meshgrid(np.arange(33), np.arange(33), indexing="ij")
    weight = shifted.sum((1, 2))
    down = ((shifted * torch.from_numpy(rows)).sum((1, 2)) / weight - 16).tolist()
    right = ((shifted * torch.from_numpy(columns)).sum((1, 2)) / weight - 16).tolist()
    moved = 0.18 * 33
    assert right == pytest.approx([moved, -moved, 0, 0] * 2, abs=0.1)
    assert down == pytest.approx([0, 0, moved, -moved] * 2, abs=0.1)
    turned = corrupt(pictures(1, 32), "rotation", 3)
    assert not torch.equal(turned[0], turned[1]) and torch.equal(turned[0], turned[2])
