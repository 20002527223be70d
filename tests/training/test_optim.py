"""What decays, and the learning rate over a run, against numbers worked out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cifar_ray.config import CNNConfig, LRScheduleConfig, OptimizerConfig, TrialConfig
from cifar_ray.models.classifier import build_model
from cifar_ray.training.optim import LRSchedule, lr_factor, make_optimizer

SCHEDULES = ["constant", "step", "cosine", "one_cycle", "plateau"]


def schedule(name: str, warmup: float = 0.25) -> LRScheduleConfig:
    return LRScheduleConfig(name=name, warmup=warmup)  # type: ignore[arg-type]


def optimizer_with_lr(lr: float, name: str = "sgd") -> torch.optim.Optimizer:
    return make_optimizer(OptimizerConfig(name=name, lr=lr), nn.Conv2d(2, 2, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "evonorm_s0", "evonorm_b0"])
def test_only_weights_of_two_and_more_dimensions_decay(name: str, norm: str) -> None:
    torch.manual_seed(0)
    config = TrialConfig(model=CNNConfig(norm=norm, norm_placement="after_activation"))  # type: ignore[arg-type]
    model = build_model(config, num_classes=3, channels=3, image_size=8)
    nn.init.normal_(model.network.classifier.bias)
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.2), model)  # type: ignore[arg-type]
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that a step does nothing but decay
    optimizer.step()
    assert {parameter.ndim for parameter in model.parameters()} == {1, 2, 4}
    # SGD with Nesterov momentum adds the decay to the gradient, which counts 1 + momentum times in the first step.
    kept = 1 - 0.1 * 0.2 * (1.9 if name == "sgd" else 1.0)
    for key, parameter in model.named_parameters():
        expected = before[key] * kept if parameter.ndim >= 2 else before[key]
        torch.testing.assert_close(parameter.detach(), expected, msg=key)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_trainable_weight_is_optimised_once_and_frozen_ones_are_not(name: str) -> None:
    model = small_model(torch.channels_last)
    frozen = [model.network.classifier.weight, first_filters(model)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(name=name), model)  # type: ignore[arg-type]
    optimised = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    backward(model)
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key


def test_the_optimizers_take_their_settings() -> None:
    model = nn.Linear(2, 2)
    sgd = make_optimizer(OptimizerConfig(name="sgd", lr=0.3, momentum=0.7), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["lr"], group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.3, 0.7, True)}
    adamw = make_optimizer(OptimizerConfig(name="adamw", lr=0.3, momentum=0.7), model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {(group["lr"], group["betas"]) for group in adamw.param_groups} == {(0.3, (0.7, 0.999))}
    # PyTorch refuses Nesterov momentum of zero.
    assert make_optimizer(OptimizerConfig(name="sgd", momentum=0.0), model).param_groups[0]["nesterov"] is False


def small_model(memory_format: torch.memory_format) -> nn.Module:
    """A model with filters of 3x3 on one channel, of 5x5 and of 1x1, more rows than columns and fewer."""
    torch.manual_seed(0)
    config = TrialConfig(model=CNNConfig(widths=[16, 8, 12], blocks=[1, 1, 1], kernel_sizes=[3, 5, 1], head_hidden=6))
    model = build_model(config, num_classes=3, channels=1, image_size=8)
    return model.to(memory_format=memory_format)  # type: ignore[call-overload]


def first_filters(model: nn.Module) -> nn.Parameter:
    return next(parameter for parameter in model.parameters() if parameter.ndim == 4)


def backward(model: nn.Module, seed: int = 0) -> None:
    """Give every trainable parameter the gradient of some loss on some images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (16, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (16,), generator=generator)
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Muon's approximation of the nearest orthogonal matrix: five Newton-Schulz steps, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_muon_orthogonalises_what_filters_learn(memory_format: torch.memory_format, momentum: float) -> None:
    model = small_model(memory_format)
    lr, weight_decay = 0.02, 0.3
    settings = OptimizerConfig(name="muon", lr=lr, weight_decay=weight_decay, momentum=momentum)
    optimizer = make_optimizer(settings, model)
    filters = {key: parameter for key, parameter in model.named_parameters() if parameter.ndim == 4}
    assert {tuple(parameter.shape) for parameter in filters.values()} == {(16, 1, 3, 3), (8, 16, 5, 5), (12, 8, 1, 1)}
    running = {key: np.zeros(tuple(parameter.shape)) for key, parameter in filters.items()}
    for step in range(3):
        backward(model, seed=step)
        before = {key: parameter.detach().double().numpy() for key, parameter in filters.items()}
        optimizer.step()
        for key, parameter in filters.items():
            assert parameter.grad is not None
            gradient = parameter.grad.double().numpy()
            running[key] = momentum * running[key] + (1 - momentum) * gradient
            wanted = momentum * running[key] + (1 - momentum) * gradient  # Nesterov's look ahead
            rows = len(wanted)
            update = orthogonalised(wanted.reshape(rows, -1)).reshape(wanted.shape)
            # 0.2 is about the size of AdamW's updates (root mean square).
            update *= 0.2 * np.sqrt(max(rows, update.size // rows))
            moved = before[key] * (1 - lr * weight_decay) - parameter.detach().double().numpy()
            # PyTorch's steps are in bfloat16, whose rounding they carry on: a few percent, whatever the layout.
            assert np.linalg.norm(moved / lr - update) < 0.05 * np.linalg.norm(update), (key, step)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
def test_beside_muon_everything_else_is_adamws(memory_format: torch.memory_format) -> None:
    model = small_model(memory_format)
    reference = copy.deepcopy(model)
    optimizer = make_optimizer(OptimizerConfig(name="muon", lr=0.02, weight_decay=0.3), model)
    adamw = make_optimizer(OptimizerConfig(name="adamw", lr=0.02, weight_decay=0.3), reference)
    for step in range(3):
        backward(model, seed=step)
        for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.grad = parameter.grad
        optimizer.step()
        adamw.step()
    for (key, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(parameter, other) == (parameter.ndim != 4), key


def test_muon_steps_in_the_models_own_memory_and_clears_its_gradients() -> None:
    model = small_model(torch.channels_last)
    optimizer = make_optimizer(OptimizerConfig(name="muon"), model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    backward(model)
    optimizer.step()
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert any(not parameter.is_contiguous() for parameter in model.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_model_that_moved_since_its_muon_was_made_is_noticed() -> None:
    # Its steps would go into memory that nobody reads any more.
    model = small_model(torch.contiguous_format)
    optimizer = make_optimizer(OptimizerConfig(name="muon"), model)
    backward(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(AssertionError, match="moved"):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "warmup", "progress", "factor"),
    [
        ("constant", 0.25, 0.0, 1.0),
        ("constant", 0.25, 0.999, 1.0),
        ("plateau", 0.25, 0.0, 1.0),
        ("plateau", 0.25, 0.999, 1.0),
        ("step", 0.25, 0.0, 1.0),
        ("step", 0.25, 0.49, 1.0),
        ("step", 0.25, 0.5, 0.1),
        ("step", 0.25, 0.74, 0.1),
        ("step", 0.25, 0.75, 0.01),
        ("step", 0.25, 0.999, 0.01),
        ("one_cycle", 0.25, 0.0, 0.05),
        ("one_cycle", 0.25, 0.125, 0.525),
        ("one_cycle", 0.25, 0.25, 1.0),
        ("one_cycle", 0.25, 0.625, 0.5),
        ("one_cycle", 0.25, 1.0, 0.0),
        ("one_cycle", 0.0, 0.0, 1.0),
        ("one_cycle", 0.0, 0.5, 0.5),
        ("cosine", 0.25, 0.0, 0.05),
        ("cosine", 0.25, 0.125, 0.525),
        ("cosine", 0.25, 0.25, 1.0),
        ("cosine", 0.25, 0.4375, 0.8535533905932737),  # (1 + cos 45 degrees) / 2
        ("cosine", 0.25, 0.625, 0.5),
        ("cosine", 0.25, 0.8125, 0.1464466094067263),  # (1 - cos 45 degrees) / 2
        ("cosine", 0.25, 1.0, 0.0),
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.0, 0.5, 0.5),
        ("cosine", 0.9, 0.95, 0.5),
    ],
)
def test_the_rate_is_what_was_worked_out_by_hand(name: str, warmup: float, progress: float, factor: float) -> None:
    assert lr_factor(schedule(name, warmup), progress) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("optimizer_name", ["sgd", "muon"])
def test_a_run_follows_the_schedule_and_its_last_step_still_learns(
    optimizer_name: str, name: str, warmup: float, total_steps: int
) -> None:
    optimizer = optimizer_with_lr(0.4, optimizer_name)
    lr_schedule = LRSchedule(schedule(name, warmup), optimizer, total_steps)
    used = []
    for _ in range(total_steps):
        assert {group["lr"] for group in optimizer.param_groups} == {lr_schedule.lr}
        used.append(lr_schedule.lr)
        optimizer.step()
        lr_schedule.step()
    expected = [0.4 * lr_factor(schedule(name, warmup), step / total_steps) for step in range(total_steps)]
    assert used == pytest.approx(expected)
    assert min(used) > 0 and max(used) <= 0.4 * (1 + 1e-9)
    end = {"constant": 0.4, "plateau": 0.4, "step": 0.004}.get(name, 0.0)
    assert lr_schedule.lr == pytest.approx(end, abs=1e-9)
    lr_schedule.step()  # a step too many neither fails nor makes the rate negative
    assert lr_schedule.lr == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1, 1]),
        ([1.0, 1.0, 1.0], [1, 1, 1 / 3]),  # the second epoch without a fall
        ([1.0, 1.1, 0.9, 1.0, 0.8, 0.9], [1, 1, 1, 1, 1, 1]),  # never two in a row
        ([1.0, 1.1, 0.9, 1.0, 0.95], [1, 1, 1, 1, 1 / 3]),  # below the last one, but not below the lowest
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1, 1, 1 / 3, 1 / 3, 1 / 9, 1 / 9]),  # counts anew after each fall
    ],
)
def test_plateau_falls_to_a_third_after_two_epochs_without_a_fall_and_only_then(
    losses: list[float], rates: list[float]
) -> None:
    lr_schedule = LRSchedule(schedule("plateau"), optimizer_with_lr(0.3), 1000)
    seen = []
    for loss in losses:
        lr_schedule.end_epoch(loss)
        seen.append(lr_schedule.lr / 0.3)
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize("name", ["one_cycle", "plateau"])
def test_both_parts_of_muon_learn_at_the_rate_of_the_schedule(name: str) -> None:
    model = small_model(torch.channels_last)
    optimizer = make_optimizer(OptimizerConfig(name="muon", lr=0.1, weight_decay=0.5), model)
    lr_schedule = LRSchedule(schedule(name), optimizer, 4)
    for epoch in range(4):
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # so that a step does nothing but decay
        optimizer.step()
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                expected = before[key] * (1 - 0.5 * lr_schedule.lr)
                torch.testing.assert_close(parameter.detach(), expected, msg=f"{key} in epoch {epoch}")
        lr_schedule.step()
        lr_schedule.end_epoch(1.0)
    assert lr_schedule.lr < 0.1


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle"])
def test_no_other_schedule_looks_at_the_validation_loss(name: str) -> None:
    lr_schedule = LRSchedule(schedule(name), optimizer_with_lr(0.3), 10)
    before = lr_schedule.lr
    for _ in range(10):
        lr_schedule.end_epoch(1.0)
    assert lr_schedule.lr == before
