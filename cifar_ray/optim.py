"""Optimizers and learning-rate schedules."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cifar_ray.config import LRScheduleConfig, OptimizerConfig


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer; only weights of two and more dimensions decay (not norms, not biases)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "muon":
        return MuonAdamW(config, parameters)
    groups = _groups(parameters, config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for convolution filters, AdamW for everything else, as one optimizer.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the update of a matrix, and
    filters (D, C, K, K) are D rows to it. Scaled as by Liu et al. 2025 (arXiv:2502.16982), its updates are as large as
    AdamW's, so that one learning rate and one weight decay serve both.

    The state is that of the two optimizers inside: `state_dict` does not hold it.
    """

    def __init__(self, config: OptimizerConfig, parameters: list[nn.Parameter]) -> None:
        self.filters = [p for p in parameters if p.ndim == 4]
        others = _groups([p for p in parameters if p.ndim != 4], config.weight_decay)
        # These groups are what the outside sees and sets learning rates in; those of the two optimizers follow them.
        filters = {"params": self.filters, "weight_decay": config.weight_decay}
        super().__init__([filters, *others], {"lr": config.lr})
        # Muon changes the filters through matrices in the same memory. There each filter is one piece, its values in
        # one of two orders, and the order of a matrix's columns makes no difference to Muon.
        self.channels_last = [not p.is_contiguous() for p in self.filters]
        self.matrices = [_as_matrix(p.detach(), last) for p, last in zip(self.filters, self.channels_last, strict=True)]
        self.muon = torch.optim.Muon(
            [{"params": self.matrices, "weight_decay": config.weight_decay}],
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW([dict(group) for group in others], betas=(config.momentum, 0.999), fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        inner = self.muon.param_groups + self.adamw.param_groups
        for group, seen in zip(inner, self.param_groups, strict=True):
            group["lr"] = seen["lr"]
        for matrix, weight, last in zip(self.matrices, self.filters, self.channels_last, strict=True):
            assert matrix.data_ptr() == weight.data_ptr(), "the model was moved after its optimizer was made"
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad, last)
        self.muon.step()
        self.adamw.step()


def _as_matrix(filters: Tensor, channels_last: bool) -> Tensor:
    """Filters (D, C, K, K) as (D, C * K * K), in the column order of that memory format."""
    return (filters.permute(0, 2, 3, 1) if channels_last else filters).reshape(len(filters), -1)


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
