"""The training loop. One function serves a plain process, a Tune trial and a Ray Train worker.

No value is read back from the device inside an epoch: sums stay there until the epoch ends.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifar_ray import augment
from cifar_ray.config import InputError, TrialConfig
from cifar_ray.metrics import loss_and_accuracy, ranking_metric
from cifar_ray.models import Classifier, build_model
from cifar_ray.optim import LRSchedule, make_optimizer

EVAL_BATCH_SIZE = 500

Row = dict[str, Any]
"""One epoch: the columns of history.csv, and `eval_s`, `best_val_metric` and `finished`."""


class NonFiniteLossError(RuntimeError):
    """The training or validation loss is not a finite number any more."""


@dataclass(frozen=True)
class DeviceData:
    """Training and validation images on one device; images (N, C, H, W) uint8, labels (N,) int64."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    num_classes: int
    mean: Tensor
    """(C,) mean of the training pixels, 0..255."""
    std: Tensor
    """(C,) standard deviation of the training pixels, never 0."""
    balanced_weights: Tensor
    """(num_classes,) weight of each class under which all have the same share of the training images."""

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], num_classes: int, device: torch.device) -> "DeviceData":
        """Put the arrays `train_images`, `train_labels`, `val_images`, `val_labels` on `device`.

        On a CPU nothing is copied: arrays in Ray's object store stay shared between processes.
        """
        with warnings.catch_warnings():
            # The object store's arrays are read-only, and nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        pixels = tensors["train_images"]
        # A thousand images at a time: as floats, all of them would be four times the data.
        sums = [_channel_sums(part) for part in pixels.split(1000)]
        total = torch.stack(sums).sum(0) / (pixels.numel() // pixels.shape[1])  # (2, C)
        std = (total[1] - total[0] ** 2).clamp(min=0).sqrt()
        counts = torch.bincount(tensors["train_labels"], minlength=num_classes)
        return cls(
            **tensors,
            num_classes=num_classes,
            mean=total[0].float(),
            std=std.clamp(min=1.0).float(),
            balanced_weights=len(pixels) / (num_classes * counts.clamp(min=1)),  # scikit-learn's "balanced"
        )


def _channel_sums(images: Tensor) -> Tensor:
    """Sum and sum of squares of each channel: (2, C) float64."""
    pixels = images.double()
    return torch.stack([pixels.sum((0, 2, 3)), (pixels**2).sum((0, 2, 3))])


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train one model together (DDP)."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """The `torch.distributed` process group; None with one process."""


@dataclass
class Outcome:
    """A finished training: the model with its best weights in eval mode, and what each epoch measured."""

    model: Classifier
    history: list[Row] = field(default_factory=list)
    best: Row = field(default_factory=dict)


def train_epoch(
    model: nn.Module,
    data: DeviceData,
    optimizer: torch.optim.Optimizer,
    lr_schedule: LRSchedule,
    config: TrialConfig,
    order: Tensor,
    ranks: Ranks = Ranks(),
) -> Tensor:
    """Train on the images in `order` (N,), leaving out the last partial batch.

    Returns:
        (3,) float tensor on the device: mean loss, accuracy (under augmentation), largest gradient norm.
    """
    model.train()
    device = data.train_images.device
    fill = data.mean.round().to(torch.uint8)
    sums = torch.zeros(2, device=device)
    grad_norm_max = torch.zeros((), device=device)
    batch_size = min(config.batch_size, len(order)) // ranks.world_size * ranks.world_size
    num_steps = len(order) // batch_size
    for step in range(num_steps):
        index = order[step * batch_size : (step + 1) * batch_size][ranks.rank :: ranks.world_size]
        draws = augment.draw(config.augment, len(index), data.train_images.shape[-1], device)
        images = augment.gather(data.train_images, index, draws, config.augment.cutout, fill)
        labels = data.train_labels[index]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(images)
        loss = training_loss(logits.float(), labels, config, data.balanced_weights)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        lr_schedule.step()
        grad_norm_max = torch.maximum(grad_norm_max, grad_norm)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).float().mean()])
    if ranks.world_size > 1:
        dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=ranks.group)
    return torch.cat([sums / (num_steps * ranks.world_size), grad_norm_max[None]])


def training_loss(logits: Tensor, labels: Tensor, config: TrialConfig, balanced_weights: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) against labels (B,), smoothed and weighted as `config` says: a scalar."""
    if config.class_weights == "none":
        return functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    losses = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")
    # A plain mean: divided by the weights of the batch, as PyTorch would, it would depend on how ranks share a batch.
    return (losses * balanced_weights[labels]).mean()


@torch.inference_mode()
def eval_model(model: nn.Module, images: Tensor, ranks: Ranks = Ranks()) -> Tensor:
    """Logits (N, num_classes) of uint8 images (N, C, H, W), as float32; with several ranks each does its share."""
    model.eval()
    device = images.device
    share = images[ranks.rank :: ranks.world_size]
    parts = []
    for batch in share.split(EVAL_BATCH_SIZE):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(model(batch.contiguous(memory_format=torch.channels_last)).float())
    logits = torch.cat(parts)
    if ranks.world_size == 1:
        return logits
    # Shares differ by one image at most: pad to the longest, gather, and put every row back in its place.
    longest = math.ceil(len(images) / ranks.world_size)
    padded = functional.pad(logits, (0, 0, 0, longest - len(logits)))
    gathered = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, padded, group=ranks.group)
    return torch.stack(gathered, 1).flatten(0, 1)[: len(images)]  # row i came from rank i % world_size


def run_experiment(
    config: TrialConfig,
    data: DeviceData,
    *,
    seed: int,
    max_epochs: int,
    metric: str = "accuracy",
    patience: int | None = None,
    report: Callable[[Row], None] = lambda row: None,
    ranks: Ranks = Ranks(),
) -> Outcome:
    """Train one configuration and return the model with the weights of its best validation epoch.

    Args:
        config: what to train.
        data: images on the device to train on.
        seed: of weights, order and augmentation; the same on every rank.
        max_epochs: the horizon of the learning-rate schedule.
        metric: what `val_metric` is: `accuracy`, `auc` or `f1`, see :func:`metrics.ranking_metric`.
        patience: epochs without a better validation metric that end a constant, step or plateau schedule.
        report: called after each epoch on every rank.
        ranks: this process's place among those that train this model.

    Raises:
        NonFiniteLossError: the loss became infinite or NaN.
        InputError: the batch size cannot be divided over the ranks, or the validation images have no such metric.
    """
    if config.batch_size % ranks.world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be divided over {ranks.world_size} workers")
    device = data.train_images.device
    num_train, channels, _, image_size = data.train_images.shape
    torch.manual_seed(seed)
    order_generator = torch.Generator().manual_seed(seed)
    model = build_model(config, num_classes=data.num_classes, channels=channels, image_size=image_size).to(device)
    model.normalize.mean.copy_(data.mean.view(1, -1, 1, 1))
    model.normalize.std.copy_(data.std.view(1, -1, 1, 1))
    model = model.to(memory_format=torch.channels_last)
    torch.manual_seed(seed + ranks.rank)  # every rank augments its own images
    trained = DistributedDataParallel(model, process_group=ranks.group) if ranks.world_size > 1 else model
    optimizer = make_optimizer(config.optimizer, model)
    steps_per_epoch = max(1, num_train // config.batch_size)
    lr_schedule = LRSchedule(config.lr_schedule, optimizer, max_epochs * steps_per_epoch)
    can_stop = patience is not None and config.lr_schedule.name in ("constant", "step", "plateau")
    outcome = Outcome(model)
    best_weights: dict[str, Tensor] = {}
    for epoch in range(1, max_epochs + 1):
        start = time.perf_counter()
        lr = lr_schedule.lr
        order = torch.randperm(num_train, generator=order_generator).to(device)
        train_stats = train_epoch(trained, data, optimizer, lr_schedule, config, order, ranks).tolist()
        if ranks.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, group=ranks.group, group_src=0)
        trained_at = time.perf_counter()
        val_logits = eval_model(model, data.val_images, ranks)  # of all images, on every rank
        val_loss, val_accuracy = loss_and_accuracy(val_logits, data.val_labels)
        lr_schedule.end_epoch(val_loss)
        if not (math.isfinite(train_stats[0]) and math.isfinite(val_loss)):
            raise NonFiniteLossError(f"non-finite loss in epoch {epoch}")
        val_metric = ranking_metric(metric, val_logits, data.val_labels)
        if val_metric is None:
            raise InputError(f"--metric {metric}: undefined, a class has no validation images; take accuracy or f1")
        row: Row = {
            "epoch": epoch,
            "train_loss": train_stats[0],
            "train_accuracy": train_stats[1],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "val_metric": val_metric,
            "lr": lr,
            "grad_norm_max": train_stats[2],
            "train_s": trained_at - start,
            "eval_s": time.perf_counter() - trained_at,
        }
        if not outcome.best or (row["val_metric"], -val_loss) > (outcome.best["val_metric"], -outcome.best["val_loss"]):
            outcome.best = row
            best_weights = copy.deepcopy(model.state_dict())
        stale = epoch - outcome.best["epoch"]
        row["best_val_metric"] = outcome.best["val_metric"]
        row["finished"] = epoch == max_epochs or (can_stop and patience is not None and stale >= patience)
        outcome.history.append(row)
        report(row)
        if row["finished"]:
            break
    model.load_state_dict(best_weights)
    model.eval()
    return outcome
