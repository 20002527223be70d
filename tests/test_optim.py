"""What decays, and the learning rate over a run, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from cifar_ray.config import CNNConfig, LRScheduleConfig, OptimizerConfig, TrialConfig
from cifar_ray.models import build_model
from cifar_ray.optim import LRSchedule, lr_factor, make_optimizer

SCHEDULES = ["constant", "step", "cosine", "one_cycle", "plateau"]


def schedule(name: str, warmup: float = 0.25) -> LRScheduleConfig:
    return LRScheduleConfig(name=name, warmup=warmup)  # type: ignore[arg-type]


def optimizer_with_lr(lr: float) -> torch.optim.Optimizer:
    return make_optimizer(OptimizerConfig(lr=lr), nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
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


def test_every_trainable_weight_is_optimised_once_and_frozen_ones_are_not() -> None:
    model = build_model(TrialConfig(), num_classes=3, channels=3, image_size=8)
    frozen = model.network.classifier.weight
    frozen.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(), model)
    optimised = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in model.parameters() if p is not frozen)


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
def test_a_run_follows_the_schedule_and_its_last_step_still_learns(name: str, warmup: float, total_steps: int) -> None:
    optimizer = optimizer_with_lr(0.4)
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


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle"])
def test_no_other_schedule_looks_at_the_validation_loss(name: str) -> None:
    lr_schedule = LRSchedule(schedule(name), optimizer_with_lr(0.3), 10)
    before = lr_schedule.lr
    for _ in range(10):
        lr_schedule.end_epoch(1.0)
    assert lr_schedule.lr == before
