"""The training loop. One function serves a plain process, a Tune trial and a Ray Train worker.

No value is read back from the device inside an epoch: sums stay there until the epoch ends.
"""

import copy
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifar_ray.config import TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier, build_model, forward
from cifar_ray.models.resnet import ResNet
from cifar_ray.results.records import Row
from cifar_ray.training import augment
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.features import Features, head_features
from cifar_ray.training.metrics import loss_and_accuracy, ranking_metric
from cifar_ray.training.optim import LRSchedule, make_optimizer, patience_begins
from cifar_ray.training.seeds import derived_seed

EVAL_BATCH_SIZE = 500


class NonFiniteLossError(RuntimeError):
    """The training or validation loss is not a finite number any more."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train one model together (DDP): torch's default process group."""

    rank: int = 0
    world_size: int = 1


@dataclass
class Outcome:
    """A finished training: the model with its best weights in eval mode, and what each epoch measured."""

    model: Classifier
    history: list[Row]
    best: Row
    part: nn.Module
    """What of the model trained: all of it, or a head alone."""
    train_inputs: Tensor
    """The training images without augmentation, as `part` takes them: (N, C, H, W), or features (N, D) for a head."""


def train_epoch(
    model: nn.Module,
    data: DeviceData,
    optimizer: torch.optim.Optimizer,
    lr_schedule: LRSchedule,
    config: TrialConfig,
    order: Tensor,
    ranks: Ranks = Ranks(),
    features: Tensor | None = None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Train on the images in `order` (N,), leaving out the last partial batch.

    Args:
        model: what trains; with `features` a head alone.
        data: images and labels.
        optimizer: steps once a batch, as `lr_schedule` does.
        lr_schedule: of the optimizer.
        config: augmentation, batch size and loss.
        order: (N,) positions of training images.
        ranks: each of them takes its share of every batch.
        features: (M, D) what a frozen backbone made of the M training images; they stand for the images.
        mirrored: (M,) booleans, which training images are mirrored; none of them by default.

    Returns:
        (3,) float tensor on the device: mean loss, accuracy (under augmentation), largest gradient norm.
    """
    model.train()
    device, fill = data.train_images.device, data.fill
    mirrored = torch.zeros_like(data.train_labels, dtype=torch.bool) if mirrored is None else mirrored
    sums = torch.zeros(2, device=device)
    grad_norm_max = torch.zeros((), device=device)
    batch_size = min(config.batch_size, len(order)) // ranks.world_size * ranks.world_size
    num_steps = len(order) // batch_size
    for step in range(num_steps):
        index = order[step * batch_size : (step + 1) * batch_size][ranks.rank :: ranks.world_size]
        if features is None:
            draws = augment.draw(config.augment, mirrored[index], data.train_images.shape[-1])
            inputs = augment.gather(data.train_images, index, draws, config.augment.cutout, fill)
        else:
            inputs = features[index].float()
        labels = data.train_labels[index]
        logits = forward(model, inputs)
        loss = training_loss(logits, labels, config, data.balanced_weights)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        lr_schedule.step()
        grad_norm_max = torch.maximum(grad_norm_max, grad_norm)
        sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).float().mean()])
    if ranks.world_size > 1:
        dist.all_reduce(sums, op=dist.ReduceOp.SUM)
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
    """Logits (N, num_classes) of uint8 images (N, C, H, W), as float32; with several ranks each does its share.

    A head takes features (N, D) instead of images.
    """
    model.eval()
    share = images[ranks.rank :: ranks.world_size]
    parts = []
    for batch in share.split(model.eval_batch_size if isinstance(model, Classifier) else EVAL_BATCH_SIZE):
        inputs = batch.float() if batch.ndim == 2 else batch.contiguous(memory_format=torch.channels_last)
        parts.append(forward(model, inputs))
    logits = torch.cat(parts)
    if ranks.world_size == 1:
        return logits
    # Shares differ by one image at most: pad to the longest, gather, and put every row back in its place.
    longest = math.ceil(len(images) / ranks.world_size)
    padded = functional.pad(logits, (0, 0, 0, longest - len(logits)))
    gathered = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, padded)
    return torch.stack(gathered, 1).flatten(0, 1)[: len(images)]  # row i came from rank i % world_size


class Training:
    """A training between two of its epochs. Arguments are those of :func:`run_experiment`."""

    def __init__(
        self,
        config: TrialConfig,
        data: DeviceData,
        seed: int,
        max_epochs: int,
        metric: str,
        pretrained: Mapping[str, np.ndarray] | None,
        ranks: Ranks,
    ) -> None:
        began = time.perf_counter()
        self.config, self.data, self.ranks = config, data, ranks
        self.seed, self.max_epochs, self.metric = seed, max_epochs, metric
        device = data.train_images.device
        num_train, channels, _, image_size = data.train_images.shape
        torch.manual_seed(seed)
        model = build_model(config, num_classes=data.num_classes, channels=channels, image_size=image_size).to(device)
        model.initialize(data.mean, data.std, data.train_images, pretrained)
        if config.sync_batch_norm and ranks.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(memory_format=torch.channels_last)
        self.features: Features | None = None
        features_s = 0.0
        self.part: nn.Module = self.model
        """What of the model trains."""
        if isinstance(model.network, ResNet) and config.trains_head_only:
            features_began = time.perf_counter()
            self.features = head_features(model, config, data.train_images, data.val_images, data.images_key, data.fill)
            self.part = model.network.head
            features_s = time.perf_counter() - features_began
        self.optimizer = make_optimizer(config.optimizer, model)
        steps_per_epoch = max(1, num_train // config.batch_size)
        self.lr_schedule = LRSchedule(config.lr_schedule, self.optimizer, max_epochs * steps_per_epoch)
        self.parallel = self._over_ranks()
        self.history: list[Row] = []
        self.best: Row = {}
        self.best_weights: dict[str, Tensor] = {}
        self.checkpoint_s = 0.0
        self._first: Row = {"setup_s": time.perf_counter() - began - features_s}
        """What only the next row tells."""
        if self.features:
            views, images_per_s = len(self.features.train), self.features.images_per_s
            self._first["features"] = {"views": views, "images_per_s": images_per_s, "seconds": features_s}

    @property
    def train_inputs(self) -> Tensor:
        """See :class:`Outcome`; of the features, the first view is that of the images as they are."""
        return self.data.train_images if self.features is None else self.features.train[0]

    def _over_ranks(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.part
        return DistributedDataParallel(self.part)

    def epoch(self) -> Row:
        """Train the next epoch and validate. Raises as :func:`run_experiment` does."""
        epoch = len(self.history) + 1
        data, ranks = self.data, self.ranks
        start = time.perf_counter()
        lr = self.lr_schedule.lr
        if self.part is self.model and self.model.unfreeze(epoch, self.max_epochs):
            self.parallel = self._over_ranks()  # which hands round the gradients of what trained when it was made
        # The order is that of all ranks; every rank augments its own images. Seeded by epoch, so that a training can
        # be taken up between any two.
        num_train = len(data.train_labels)
        order = torch.randperm(num_train, generator=torch.Generator().manual_seed(derived_seed(self.seed, epoch)))
        torch.manual_seed(derived_seed(self.seed, epoch, ranks.rank))
        mirrored = augment.mirrored(self.config.augment, num_train, self.seed, epoch).to(data.train_labels.device)
        view = self.features.train[(epoch - 1) % len(self.features.train)] if self.features else None
        order = order.to(data.train_labels.device)
        sums = train_epoch(
            self.parallel, data, self.optimizer, self.lr_schedule, self.config, order, ranks, view, mirrored
        )
        train_loss, train_accuracy, grad_norm_max = sums.tolist()
        if ranks.world_size > 1:
            for buffer in self.part.buffers():
                dist.broadcast(buffer, src=0)
        trained_at = time.perf_counter()
        val_inputs = data.val_images if self.features is None else self.features.val
        val_logits = eval_model(self.part, val_inputs, ranks)  # of all images, on every rank
        val_loss, val_accuracy = loss_and_accuracy(val_logits, data.val_labels)
        self.lr_schedule.end_epoch(val_loss)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise NonFiniteLossError(f"non-finite loss in epoch {epoch}")
        val_metric = ranking_metric(self.metric, val_logits, data.val_labels)
        if val_metric is None:
            raise InputError(f"--metric {self.metric}: undefined, a class has no validation images; use another metric")
        row: Row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "val_metric": val_metric,
            "lr": lr,
            "grad_norm_max": grad_norm_max,
            "train_s": trained_at - start,
            "setup_s": 0.0,
            "checkpoint_s": self.checkpoint_s,
            **self._first,
        }
        self._first = {}
        self.history.append(row)
        if not self.best or (val_metric, -val_loss) > (self.best["val_metric"], -self.best["val_loss"]):
            self.best = row
            self.best_weights = copy.deepcopy(self.part.state_dict())
        row["eval_s"] = time.perf_counter() - trained_at
        return row

    def pack(self) -> bytes:
        """Return all that :meth:`unpack` needs to go on from here."""
        packed = io.BytesIO()
        state = {
            "weights": self.part.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "history": self.history,
            "best_epoch": self.best["epoch"],
            "best_weights": self.best_weights,
        }
        torch.save(state, packed)
        return packed.getvalue()

    def unpack(self, packed: bytes) -> None:
        """Go on from where :meth:`pack` was called."""
        state = torch.load(io.BytesIO(packed), map_location=self.data.train_images.device, weights_only=True)
        self.part.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.history, self.best_weights = state["history"], state["best_weights"]
        self.best = self.history[state["best_epoch"] - 1]


def run_experiment(
    config: TrialConfig,
    data: DeviceData,
    *,
    seed: int,
    max_epochs: int,
    metric: str = "accuracy",
    patience: int | None = None,
    pretrained: Mapping[str, np.ndarray] | None = None,
    report: Callable[[Row], None] = lambda row: None,
    checkpoint: Callable[[Row, Callable[[], bytes]], None] = lambda row, pack: None,
    resume: bytes | None = None,
    ranks: Ranks = Ranks(),
) -> Outcome:
    """Train one configuration and return the model with the weights of its best validation epoch.

    Args:
        config: what to train.
        data: images on the device to train on.
        seed: of weights, order and augmentation; the same on every rank.
        max_epochs: the horizon of the learning-rate schedule.
        metric: what `val_metric` is: `accuracy`, `auc` or `f1`, see :func:`metrics.ranking_metric`.
        patience: epochs without a better validation metric that end a training whose schedule is `constant` or
            `plateau`, or `step` once its last drop is behind it; the epochs before that do not count.
        pretrained: backbone weights of a ResNet that has some, by torchvision's keys.
        report: called after each epoch on every rank; what it raises ends the training.
        checkpoint: called after `report`, but for the last epoch, with a function that packs what `resume` takes.
        resume: packed by the same training, which goes on from there as if it had never ended.
        ranks: this process's place among those that train this model.

    Raises:
        NonFiniteLossError: the loss became infinite or NaN.
        InputError: the batch size cannot be divided over the ranks, the network cannot take the images, or the
            validation images have no such metric.
    """
    if config.batch_size % ranks.world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be divided over {ranks.world_size} workers")
    if config.sync_batch_norm and data.train_images.device.type == "cpu":
        raise InputError("sync_batch_norm: batch norm is only synchronised on GPUs; leave it out")
    training = Training(config, data, seed, max_epochs, metric, pretrained, ranks)
    if resume is not None:
        training.unpack(resume)
    begins = patience_begins(config.lr_schedule, max_epochs)
    while len(training.history) < max_epochs:
        row = training.epoch()
        row["best_val_metric"] = training.best["val_metric"]
        row["finished"] = row["epoch"] == max_epochs
        if patience is not None and begins is not None:
            row["finished"] |= row["epoch"] - max(training.best["epoch"], begins) >= patience
        report(row)
        if row["finished"]:
            break
        began = time.perf_counter()
        checkpoint(row, training.pack)
        training.checkpoint_s = time.perf_counter() - began
    training.part.load_state_dict(training.best_weights)
    training.model.eval()
    return Outcome(training.model, training.history, training.best, training.part, training.train_inputs)
