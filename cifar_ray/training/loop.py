"""The training loop. One function serves a plain process, a worker that trains alone and a rank of Ray Train's.

No value is read back from the device inside an epoch: sums stay there until the epoch ends.
"""

import copy
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifar_ray.config import TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.results.records import Row
from cifar_ray.training.augment import Augmentation, mirrored
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


@dataclass(frozen=True)
class Experiment:
    """One training of one configuration, but for the images and for where it runs."""

    config: TrialConfig
    seed: int
    """Of weights, order and augmentation; the same on every rank."""
    max_epochs: int
    """The horizon of the learning-rate schedule."""
    metric: str = "accuracy"
    """What `val_metric` is: `accuracy`, `auc` or `f1`, see :func:`metrics.ranking_metric`."""
    patience: int | None = None
    """Epochs without a better validation metric that end a training whose schedule is `constant` or `plateau`, or
    `step` once its last drop is behind it; the epochs before that do not count. None is none."""
    kept_patiences: tuple[int, ...] = ()
    """Patiences that do not end the training, which keeps the weights that each of them would have left."""


@dataclass(frozen=True)
class Stopped:
    """What a training that trains on would have left, had its patience ended it."""

    epoch: int
    """The last one that it would have trained."""
    best: Row
    """Of the epochs up to that."""
    weights: dict[str, Tensor]
    """The best ones."""


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
    stopped: dict[int, Stopped]
    """What each of the experiment's `kept_patiences` would have left."""


def training_loss(logits: Tensor, labels: Tensor, config: TrialConfig, balanced_weights: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) against labels, smoothed and weighted as `config` says: a scalar.

    Labels are classes (B,), or of mixed images the shares of the classes (B, C), where the loss is the mean of the
    classes' losses by share.
    """
    if config.class_weights == "none":
        return functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if labels.ndim == 1:
        weights = balanced_weights[labels]
    else:
        weighted = labels * balanced_weights
        weights = weighted.sum(1)
        labels = weighted / weights[:, None]
    losses = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")
    # A plain mean: divided by the weights of the batch, as PyTorch would, it would depend on how ranks share a batch.
    return (losses * weights).mean()


def training_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the images that are classified right: a scalar on the device.

    Labels are as those of :func:`training_loss`. A mixed image counts by its share of the class that it is taken for,
    as in the code of Zhang et al. 2018 (arXiv:1710.09412): 100 % is out of reach, by as much as is mixed.
    """
    predicted = logits.argmax(1)
    if labels.ndim == 1:
        return (predicted == labels).float().mean()
    return labels.gather(1, predicted[:, None]).mean()


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
        parts.append(model(inputs))
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
    """A training between two of its epochs.

    Args:
        experiment: what to train.
        data: images on the device to train on.
        pretrained: weights of a backbone that has some, by torchvision's keys.
        ranks: this process's place among those that train this model.
        make_features: called as :func:`head_features` where a head alone trains.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: DeviceData,
        pretrained: Mapping[str, np.ndarray] | None = None,
        ranks: Ranks = Ranks(),
        make_features: Callable[..., Features] = head_features,
    ) -> None:
        began = time.perf_counter()
        self.experiment, self.data, self.ranks = experiment, data, ranks
        config = experiment.config
        device = data.train_images.device
        num_train, channels, _, image_size = data.train_images.shape
        torch.manual_seed(experiment.seed)
        model = build_model(config, num_classes=data.num_classes, channels=channels, image_size=image_size).to(device)
        model.initialize(data.mean, data.std, data.train_images, pretrained)
        if config.sync_batch_norm and ranks.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(memory_format=model.memory_format)
        self.augmentation = Augmentation(config.augment, data.fill)
        self.features: Features | None = None
        features_s = 0.0
        self.part: nn.Module = self.model
        """What of the model trains."""
        if isinstance(model.network, BackboneNet) and config.trains_head_only:
            features_began = time.perf_counter()
            self.features = make_features(model, config, data.train_images, data.val_images, data.images_key, data.fill)
            self.part = model.network.head
            features_s = time.perf_counter() - features_began
        self.optimizer = make_optimizer(config.optimizer, model)
        steps_per_epoch = max(1, num_train // config.batch_size)
        self.lr_schedule = LRSchedule(config.lr_schedule, self.optimizer, experiment.max_epochs * steps_per_epoch)
        self.parallel = self._over_ranks()
        self.history: list[Row] = []
        self.best: Row = {}
        self.best_weights: dict[str, Tensor] = {}
        self.stopped: dict[int, Stopped] = {}
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

    @property
    def val_inputs(self) -> Tensor:
        """The validation images as `part` takes them: (M, C, H, W), or features (M, D) for a head."""
        return self.data.val_images if self.features is None else self.features.val

    def _over_ranks(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.part
        # Of a network of the user's own, some weights may have no part in a step.
        return DistributedDataParallel(self.part, find_unused_parameters=not self.model.built_in)

    def train_batches(self, order: Tensor, epoch: int) -> Tensor:
        """Train on the images in `order` (N,), as `epoch` (from 1) augments them, without the last partial batch.

        Returns:
            (3,) float tensor on the device: mean loss, accuracy (under augmentation, see :func:`training_accuracy`),
            largest gradient norm.
        """
        config, model = self.experiment.config, self.parallel
        model.train()
        sums = torch.zeros(2, device=order.device)
        grad_norm_max = torch.zeros((), device=order.device)
        num_steps = 0
        for inputs, labels in self._batches(order, epoch):
            logits = model(inputs)
            loss = training_loss(logits, labels, config, self.data.balanced_weights)
            self.optimizer.zero_grad()
            loss.backward()
            grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            self.optimizer.step()
            self.lr_schedule.step()
            grad_norm_max = torch.maximum(grad_norm_max, grad_norm)
            sums += torch.stack([loss.detach(), training_accuracy(logits.detach(), labels)])
            num_steps += 1
        if self.ranks.world_size > 1:
            dist.all_reduce(sums, op=dist.ReduceOp.SUM)
        return torch.cat([sums / (num_steps * self.ranks.world_size), grad_norm_max[None]])

    def _batches(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of every whole batch: augmented images, or features for a head, and their labels."""
        config, data, ranks, seed = self.experiment.config, self.data, self.ranks, self.experiment.seed
        view = self.features.train[(epoch - 1) % len(self.features.train)] if self.features else None
        flip = mirrored(config.augment, len(data.train_labels), seed, epoch).to(order.device)
        batch_size = min(config.batch_size, len(order)) // ranks.world_size * ranks.world_size
        for start in range(0, len(order) // batch_size * batch_size, batch_size):
            index = order[start : start + batch_size][ranks.rank :: ranks.world_size]
            if view is None:
                inputs = self.augmentation.images(data.train_images, index, flip[index])
                yield self.augmentation.mix(inputs, data.train_labels[index], data.num_classes)
            else:
                yield view[index].float(), data.train_labels[index]

    def epoch(self) -> Row:
        """Train the next epoch and validate; return what was measured. Raises as :func:`run_experiment` does."""
        epoch = len(self.history) + 1
        data, ranks, seed = self.data, self.ranks, self.experiment.seed
        start = time.perf_counter()
        lr = self.lr_schedule.lr
        if self.part is self.model and self.model.unfreeze(epoch, self.experiment.max_epochs):
            self.parallel = self._over_ranks()  # which hands round the gradients of what trained when it was made
        # The order is that of all ranks; every rank augments its own images. Seeded by epoch, so that a training can
        # be taken up between any two.
        shuffle = torch.Generator().manual_seed(derived_seed(seed, epoch))
        order = torch.randperm(len(data.train_labels), generator=shuffle).to(data.train_labels.device)
        torch.manual_seed(derived_seed(seed, epoch, ranks.rank))
        train_loss, train_accuracy, grad_norm_max = self.train_batches(order, epoch).tolist()
        if ranks.world_size > 1:
            for buffer in self.part.buffers():
                dist.broadcast(buffer, src=0)
        trained_at = time.perf_counter()
        val_logits = eval_model(self.part, self.val_inputs, ranks)  # of all images, on every rank
        val_loss, val_accuracy = loss_and_accuracy(val_logits, data.val_labels)
        self.lr_schedule.end_epoch(val_loss)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise NonFiniteLossError(f"non-finite loss in epoch {epoch}")
        metric = self.experiment.metric
        val_metric = ranking_metric(metric, val_logits, data.val_labels)
        if val_metric is None:
            raise InputError(f"--metric {metric}: undefined, a class has no validation images; use another metric")
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

    def out_of_patience(self, patience: int) -> bool:
        """Whether that many epochs have not been better than the best one; not while the schedule has more to give."""
        begins = patience_begins(self.experiment.config.lr_schedule, self.experiment.max_epochs)
        return begins is not None and len(self.history) - max(self.best["epoch"], begins) >= patience

    def keep_stopped(self, last: bool) -> None:
        """After an epoch, keep what the patiences that it ends would have left; after the `last`, what they all do."""
        for patience in self.experiment.kept_patiences:
            if patience not in self.stopped and (last or self.out_of_patience(patience)):
                # These weights are replaced as a whole by better ones, and never changed.
                self.stopped[patience] = Stopped(len(self.history), self.best, self.best_weights)

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
            "stopped": {
                patience: (one.epoch, one.best["epoch"], one.weights) for patience, one in self.stopped.items()
            },
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
        self.stopped = {  # of which an older version wrote nothing
            patience: Stopped(epoch, self.history[best_epoch - 1], weights)
            for patience, (epoch, best_epoch, weights) in state.get(
                "stopped", {}
            ).items()  # an older version wrote none
        }


def run_experiment(
    experiment: Experiment,
    data: DeviceData,
    *,
    pretrained: Mapping[str, np.ndarray] | None = None,
    report: Callable[[Row], None] = lambda row: None,
    checkpoint: Callable[[Row, Callable[[], bytes]], None] = lambda row, pack: None,
    resume: bytes | None = None,
    ranks: Ranks = Ranks(),
) -> Outcome:
    """Train one configuration and return the model with the weights of its best validation epoch.

    Args:
        experiment: what to train.
        data: images on the device to train on.
        pretrained: weights of a backbone that has some, by torchvision's keys.
        report: called after each epoch on every rank; what it raises ends the training.
        checkpoint: called after `report`, but for the last epoch, with a function that packs what `resume` takes.
        resume: packed by the same training, which goes on from there as if it had never ended.
        ranks: this process's place among those that train this model.

    Raises:
        NonFiniteLossError: the loss became infinite or NaN.
        InputError: the batch size cannot be divided over the ranks or leaves none with two images to mix, the network
            cannot take the images, or the validation images have no such metric.
    """
    config, max_epochs, patience = experiment.config, experiment.max_epochs, experiment.patience
    if config.batch_size % ranks.world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be divided over {ranks.world_size} workers")
    if config.augment.mix != "none" and min(config.batch_size, len(data.train_labels)) < 2 * ranks.world_size:
        raise InputError(
            f"augment/mix {config.augment.mix!r} mixes the images that a worker has of a batch, and it has one; "
            "use a larger batch_size or fewer workers"
        )
    if config.sync_batch_norm and data.train_images.device.type == "cpu":
        raise InputError("sync_batch_norm: batch norm is only synchronised on GPUs; leave it out")
    training = Training(experiment, data, pretrained, ranks)
    if resume is not None:
        training.unpack(resume)
    while len(training.history) < max_epochs:
        row = training.epoch()
        row["best_val_metric"] = training.best["val_metric"]
        row["finished"] = row["epoch"] == max_epochs
        row["finished"] |= patience is not None and training.out_of_patience(patience)
        training.keep_stopped(last=row["finished"])
        report(row)
        if row["finished"]:
            break
        began = time.perf_counter()
        checkpoint(row, training.pack)
        training.checkpoint_s = time.perf_counter() - began
    training.part.load_state_dict(training.best_weights)
    training.model.eval()
    return Outcome(
        training.model, training.history, training.best, training.part, training.train_inputs, training.stopped
    )
