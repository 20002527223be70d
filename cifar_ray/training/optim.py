"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cifar_ray.config import LRScheduleConfig, OptimizerConfig
from cifar_ray.errors import InputError
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import Classifier


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer; only weights of two and more dimensions decay (not norms, not biases).

    The first of its groups has the learning rate of the configuration, others that of their part of the model.

    Raises:
        InputError: the network has nothing for Muon to train, or nothing else.
    """
    network = model.network if isinstance(model, Classifier) else model
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    lr_groups = network.lr_groups() if isinstance(network, BackboneNet) else [(1.0, trained)]
    groups = _groups(lr_groups, config)
    optimizer: torch.optim.Optimizer
    if config.name == "muon":
        optimizer = MuonAdamW(config, lr_groups)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    else:
        nesterov = config.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    return Lookahead(optimizer) if config.lookahead else optimizer


LRGroup = tuple[float, list[nn.Parameter]]
"""Parameters, and their learning rate as a multiple of the configuration's."""


def _groups(lr_groups: Sequence[LRGroup], config: OptimizerConfig) -> list[dict[str, Any]]:
    groups = []
    for factor, parameters in lr_groups:
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2) == decays]
            weight_decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": factor * config.lr, "weight_decay": weight_decay})
    return [group for group in groups if group["params"]]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for convolution filters, AdamW for everything else, as one optimizer.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the update of a matrix, and
    filters (D, C, K, K) are D rows to it. Scaled as by Liu et al. 2025 (arXiv:2502.16982), its updates are as large as
    AdamW's, so that one learning rate and one weight decay serve both.

    Its state is that of the two optimizers inside.
    """

    def __init__(self, config: OptimizerConfig, lr_groups: Sequence[LRGroup]) -> None:
        filters = _groups([(factor, [p for p in params if p.ndim == 4]) for factor, params in lr_groups], config)
        others = _groups([(factor, [p for p in params if p.ndim != 4]) for factor, params in lr_groups], config)
        if not (filters and others):
            raise InputError(
                "optimizer/name muon: it trains filters, the weights of four dimensions, beside others, and this "
                f"network has no {'others' if filters else 'filters'}; use adamw or sgd"
            )
        # These groups are what the outside sees and sets learning rates in; those of the two optimizers follow them.
        super().__init__([*others, *filters], {"lr": config.lr})
        self.filters = [p for group in filters for p in group["params"]]
        # Muon changes the filters through matrices in the same memory. There each filter is one piece, its values in
        # one of two orders, and the order of a matrix's columns makes no difference to Muon.
        self.channels_last = [not p.is_contiguous() for p in self.filters]
        self.matrices = [_as_matrix(p.detach(), last) for p, last in zip(self.filters, self.channels_last, strict=True)]
        left = iter(self.matrices)
        matrices = [{**group, "params": [next(left) for _ in group["params"]]} for group in filters]
        self.muon = torch.optim.Muon(matrices, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW([dict(group) for group in others], betas=(config.momentum, 0.999), fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        inner = self.adamw.param_groups + self.muon.param_groups
        for group, seen in zip(inner, self.param_groups, strict=True):
            group["lr"] = seen["lr"]
        for matrix, weight, last in zip(self.matrices, self.filters, self.channels_last, strict=True):
            assert matrix.data_ptr() == weight.data_ptr(), "the model was moved after its optimizer was made"
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad, last)
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        rates = [group["lr"] for group in self.param_groups]
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(), "lr": rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        for group, lr in zip(self.param_groups, state_dict["lr"], strict=True):
            group["lr"] = lr


def _as_matrix(filters: Tensor, channels_last: bool) -> Tensor:
    """Filters (D, C, K, K) as (D, C * K * K), in the column order of that memory format."""
    return (filters.permute(0, 2, 3, 1) if channels_last else filters).reshape(len(filters), -1)


class Lookahead(torch.optim.Optimizer):
    """Every `NUM_STEPS` steps of an optimizer, slow weights go part of the way to its weights, which then take theirs.

    Zhang et al. 2019, arXiv:1907.08610, with the number of steps and the share of the way that it proposes.
    """

    NUM_STEPS = 5
    SHARE = 0.5

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        # The groups are those of the optimizer inside, which sees the learning rates that are set in them.
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.num_steps = 0
        self.fast = [p for group in inner.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.fast]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.num_steps += 1
        if self.num_steps % self.NUM_STEPS == 0:
            for slow, fast in zip(self.slow, self.fast, strict=True):
                fast.copy_(slow.lerp_(fast, self.SHARE))

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow, "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups  # others than before
        self.num_steps = state_dict["num_steps"]
        for slow, saved in zip(self.slow, state_dict["slow"], strict=True):
            slow.copy_(saved)


STEP_DROPS = (0.5, 0.75)
"""Fractions of the horizon at which `step` divides the learning rate by 10."""


def patience_begins(config: LRScheduleConfig, max_epochs: int) -> int | None:
    """Epochs of a schedule that early stopping does not count; None where it must not end a training.

    An annealing would be cut short. So would `step` before its last drop: after each drop a model that had come to a
    standstill improves again.
    """
    if config.anneals:
        return None
    return math.ceil(STEP_DROPS[-1] * max_epochs) if config.name == "step" else 0


def lr_factor(config: LRScheduleConfig, progress: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        config: the schedule; `plateau` is constant here, since it depends on the validation loss.
        progress: optimizer steps done, as a fraction of the horizon (0 at the first step, below 1 at the last).
    """
    if config.name == "step":
        return 1.0 if progress < STEP_DROPS[0] else 0.1 if progress < STEP_DROPS[1] else 0.01
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

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` goes on from."""
        return {
            "by_step": self.by_step.state_dict(),
            "plateau": self.plateau and self.plateau.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.by_step.load_state_dict(state_dict["by_step"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state_dict["plateau"])
