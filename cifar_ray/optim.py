"""Optimizers and learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cifar_ray.config import LRScheduleConfig, OptimizerConfig


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer; only weights of two and more dimensions decay (not norms, not biases)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def lr_factor(config: LRScheduleConfig, progress: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        config: the schedule; `plateau` is constant here, since it depends on the validation loss.
        progress: optimizer steps done, as a fraction of the horizon (0 at the first step, below 1 at the last).
    """
    if config.name == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    if config.name in ("cosine", "one_cycle"):
        if progress < config.warmup:
            return 0.05 + 0.95 * progress / config.warmup
        left = (1.0 - progress) / (1.0 - config.warmup)
        if config.name == "one_cycle":
            return left
        return math.sin(left * math.pi / 2) ** 2
    return 1.0


class LRSchedule:
    """The learning rate over a run of `total_steps` optimizer steps: call `step()` after each, `end_epoch()` too."""

    def __init__(self, config: LRScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.optimizer = optimizer
        self.by_step = LambdaLR(optimizer, lambda step: lr_factor(config, min(step / total_steps, 1.0)))
        self.plateau = ReduceLROnPlateau(optimizer, factor=1 / 3, patience=1) if config.name == "plateau" else None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        if self.plateau is None:
            self.by_step.step()

    def end_epoch(self, val_loss: float) -> None:
        if self.plateau is not None:
            self.plateau.step(val_loss)
