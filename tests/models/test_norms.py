"""Normalisation layers against formulas written out element by element."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cifar_ray.models.norms import MOMENTUM, EvoNormB0, EvoNormS0, make_norm

EPS = 1e-5
EVONORMS = ["evonorm_s0", "evonorm_b0"]
SHAPES = [(2, 4, 3, 5), (3, 12, 2, 2), (2, 16, 1, 1), (1, 3, 4, 4), (4, 1, 2, 3), (1, 1, 1, 1)]


def evonorm(name: str, channels: int) -> EvoNormS0 | EvoNormB0:
    """A layer in which no two parameters are alike."""
    norm = make_norm(name, channels)
    assert isinstance(norm, EvoNormS0 | EvoNormB0)
    rng = np.random.default_rng(0)
    for parameter in norm.parameters():
        parameter.data = torch.tensor(rng.uniform(0.5, 1.5, channels), dtype=torch.float32)
    return norm


def inputs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Images whose channels differ in mean and deviation."""
    rng = np.random.default_rng(seed)
    scale = 1 + np.arange(shape[1])[:, None, None]
    return rng.normal(size=shape) * scale + rng.normal(size=(shape[1], 1, 1))


def by_hand(norm: EvoNormS0 | EvoNormB0, x: np.ndarray, running_var: np.ndarray | None = None) -> np.ndarray:
    """The paper's formula in float64, one element after the other."""
    weight, bias, v = (p.detach().double().numpy() for p in (norm.weight, norm.bias, norm.v))
    y = np.empty_like(x, dtype=np.float64)
    channels_per_group = x.shape[1] // norm.num_groups if isinstance(norm, EvoNormS0) else 1
    for b, c, h, w in np.ndindex(x.shape):
        value = x[b, c, h, w]
        if isinstance(norm, EvoNormS0):
            first = c // channels_per_group * channels_per_group
            deviation = np.sqrt(x[b, first : first + channels_per_group].var() + EPS)
            value = value / (1 + np.exp(-v[c] * value)) / deviation
        else:
            batch_var = x[:, c].var() if running_var is None else running_var[c]
            value = value / max(np.sqrt(batch_var + EPS), v[c] * value + np.sqrt(x[b, c].var() + EPS))
        y[b, c, h, w] = value * weight[c] + bias[c]
    return y


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (12, 4), (16, 8), (24, 8), (32, 8), (20, 4), (7, 1)])
def test_groups_are_eight_or_the_most_that_divide(channels: int, groups: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (groups, channels)
    evonorm_s0 = make_norm("evonorm_s0", channels)
    assert isinstance(evonorm_s0, EvoNormS0)
    assert evonorm_s0.num_groups == groups


@pytest.mark.parametrize("channels", [2, 4, 6, 8, 16])
def test_group_norm_never_normalises_a_single_value(channels: int) -> None:
    # Of one pixel and one channel a group it would make zero, whatever it was, and PyTorch refuses a single image.
    norm = make_norm("group", channels)
    x = torch.randn(1, channels, 1, 1)
    assert bool((norm(x).abs() > 0).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", EVONORMS)
def test_an_evonorm_is_the_formula_of_its_paper(name: str, training: bool, shape: tuple[int, ...]) -> None:
    norm = evonorm(name, shape[1]).train(training)
    running_var = None
    if isinstance(norm, EvoNormB0) and not training:
        running_var = np.random.default_rng(1).uniform(0.5, 20, shape[1])
        norm.running_var.copy_(torch.from_numpy(running_var))
    x = inputs(shape)
    y = norm(torch.tensor(x, dtype=torch.float32))
    # One image of one pixel has no deviation: what is divided by sqrt(EPS) is known less well.
    np.testing.assert_allclose(y.detach().numpy(), by_hand(norm, x, running_var), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVONORMS)
def test_the_gradients_of_an_evonorm_are_finite_differences_of_the_formula(name: str) -> None:
    norm = evonorm(name, 4)
    x = inputs((2, 4, 2, 3))
    direction = np.random.default_rng(1).normal(size=x.shape)
    given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    (norm(given) * torch.tensor(direction, dtype=torch.float32)).sum().backward()
    exact = copy.deepcopy(norm).double()
    gradients = {"x": given.grad, **{key: parameter.grad for key, parameter in norm.named_parameters()}}
    arguments = {"x": x, **{key: parameter.data.numpy() for key, parameter in exact.named_parameters()}}
    for key, values in arguments.items():
        gradient = gradients[key]
        assert gradient is not None
        for place in np.ndindex(values.shape):
            before, sums = values[place], []
            for step in (1e-6, -1e-6):
                values[place] = before + step  # the parameters share this memory
                sums.append((by_hand(exact, x) * direction).sum())
            values[place] = before
            assert float(gradient[place]) == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-3, abs=1e-4), (key, place)


def test_the_running_variance_is_that_of_batch_norm() -> None:
    norm, reference = EvoNormB0(4).train(), nn.BatchNorm2d(4).train()
    for seed in range(3):
        x = torch.tensor(inputs((3, 4, 2, 2), seed), dtype=torch.float32)
        norm(x)
        reference(x)
        torch.testing.assert_close(norm.running_var, reference.running_var)
    assert reference.momentum == MOMENTUM
    kept = norm.running_var.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_var, kept)
    assert "running_var" in norm.state_dict()


def test_only_b0_tells_training_from_evaluation() -> None:
    x = torch.tensor(inputs((2, 4, 3, 3)), dtype=torch.float32)
    for name, differs in (("evonorm_s0", False), ("evonorm_b0", True)):
        norm = evonorm(name, 4)
        assert torch.equal(norm.train()(x), norm.eval()(x)) != differs


@pytest.mark.parametrize("name", EVONORMS)
def test_an_evonorm_stands_a_mean_far_from_zero(name: str) -> None:
    # The mean of the squares less the square of the mean would lose the variance to rounding.
    norm = evonorm(name, 4)
    x = (inputs((2, 4, 4, 4)) + 3000).astype(np.float32)
    y = norm(torch.from_numpy(x))
    np.testing.assert_allclose(y.detach().numpy(), by_hand(norm, x.astype(np.float64)), rtol=2e-3)


@pytest.mark.parametrize("name", EVONORMS)
def test_in_bfloat16_the_statistics_are_those_of_float32(name: str) -> None:
    norm = evonorm(name, 4)
    x = torch.tensor(inputs((2, 4, 4, 4)) + 50, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    expected = by_hand(norm, x.double().numpy())
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=2**-8)  # half a step of bfloat16, rounded up
    assert all(tensor.dtype == torch.float32 for tensor in norm.state_dict().values())


@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0, 1e4, -1e4])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", EVONORMS)
def test_an_evonorm_of_equal_pixels_is_finite_and_so_are_its_gradients(name: str, size: int, fill: float) -> None:
    norm = make_norm(name, 8)
    x = torch.full((2, 8, size, size), fill, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert x.grad is not None
    assert bool(y.isfinite().all() and x.grad.isfinite().all())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in norm.parameters())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", EVONORMS)
def test_an_evonorm_keeps_the_memory_format(name: str, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    norm = evonorm(name, 16)
    x = torch.tensor(inputs((2, 16, 4, 4)), dtype=torch.float32)
    y = norm(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, norm(x))
