"""The training loop on tiny problems, in one process."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.resnets import random_weights, resnet_config, small_data
from helpers.tiny import (
    CPU,
    SMOOTH,
    TINY,
    arrays,
    device_data,
    imbalanced_data,
    misleading_data,
    recorded_batches,
    schedule,
    tiny_config,
    weights_equal,
    without_times,
)
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_ray.config import AugmentConfig, OptimizerConfig, Precision, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import build_model
from cifar_ray.results.records import Row
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import (
    EVAL_BATCH_SIZE,
    Experiment,
    NonFiniteLossError,
    Outcome,
    Ranks,
    Training,
    eval_model,
    run_experiment,
    training_loss,
)
from cifar_ray.training.metrics import loss_and_accuracy
from cifar_ray.training.optim import LRSchedule, lr_factor, make_optimizer

IN_BOTH = pytest.mark.parametrize("precision", ["fp32", "bf16"])

# ---- data ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_train", [7, 1000, 2345])
def test_mean_and_deviation_are_those_of_the_training_pixels(channels: int, num_train: int) -> None:
    rng = np.random.default_rng(0)
    # Skewed, and darker towards the end: a mean over parts of unequal size would be off.
    images = rng.integers(0, 256, (num_train, channels, 3, 3)) // (1 + np.arange(channels)[:, None, None])
    images[num_train // 2 :] //= 2
    given = {
        **arrays(channels=channels),
        "train_images": images.astype(np.uint8),
        "train_labels": np.zeros(num_train, int),
    }
    data = DeviceData.from_arrays(given, 2, CPU)
    np.testing.assert_allclose(data.mean.numpy(), images.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.std.numpy(), images.std((0, 2, 3)), rtol=1e-6)
    assert data.mean.shape == data.std.shape == (channels,)
    assert data.mean.dtype == data.std.dtype == torch.float32


def test_a_channel_without_contrast_does_not_divide_by_zero() -> None:
    given = arrays(channels=3)
    given["train_images"][:, 1] = 200
    data = DeviceData.from_arrays(given, 2, CPU)
    assert float(data.std[1]) == 1.0
    outcome = run_experiment(Experiment(tiny_config(), seed=0, max_epochs=1), data)
    assert math.isfinite(outcome.history[0]["val_loss"])


def test_on_a_cpu_the_data_share_the_memory_of_the_arrays() -> None:
    given = arrays()
    data = DeviceData.from_arrays(given, 2, CPU)
    for name, array in given.items():
        assert getattr(data, name).data_ptr() == array.ctypes.data, name


def test_read_only_arrays_are_trained_on_without_a_warning() -> None:
    given = arrays()
    for array in given.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in given.items()}
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # PyTorch would tell the first time in a process only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = DeviceData.from_arrays(given, 2, CPU)
    finally:
        torch.set_warn_always(always)
    augmented = tiny_config(augment=AugmentConfig(crop_padding=1, flip="random", cutout=2))
    run_experiment(Experiment(augmented, seed=0, max_epochs=1), data)
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0, 1], [2, 0, 0, 1, 1, 1, 1]])
def test_balanced_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    num_classes = max(labels) + 1
    given = {**arrays(num_train=len(labels)), "train_labels": np.array(labels)}
    data = DeviceData.from_arrays(given, num_classes, CPU)
    expected = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
    np.testing.assert_allclose(data.balanced_weights.numpy(), expected, rtol=1e-6)
    assert data.balanced_weights.dtype == torch.float32


def test_a_class_without_training_images_has_a_finite_weight() -> None:
    assert bool(DeviceData.from_arrays(arrays(), 3, CPU).balanced_weights.isfinite().all())


# ---- one epoch ----


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_balanced_loss_is_that_of_rare_images_seen_more_often(label_smoothing: float) -> None:
    config = tiny_config(label_smoothing=label_smoothing, class_weights="balanced")
    plain = replace(config, class_weights="none")
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1])
    weights = torch.tensor([4 / (2 * 3), 4 / (2 * 1)])
    often = torch.tensor([0, 1, 2, 3, 3, 3])
    balanced = training_loss(logits, labels, config, weights)
    torch.testing.assert_close(balanced, training_loss(logits[often], labels[often], plain, weights))
    assert not torch.isclose(balanced, training_loss(logits, labels, plain, weights))
    # The mean over batches is the mean over all: how images are dealt out to batches and ranks makes no difference.
    halves = [training_loss(logits[half], labels[half], config, weights) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), balanced)


@pytest.mark.parametrize(("class_weights", "share"), [("none", 10 / 74), ("balanced", 1 / 2)])
def test_a_model_that_knows_nothing_learns_how_much_each_class_counts(class_weights: str, share: float) -> None:
    data = imbalanced_data()
    assert torch.bincount(data.train_labels).tolist() == [64, 10]
    data = replace(
        data,
        train_images=torch.zeros_like(data.train_images),
        val_images=torch.zeros_like(data.val_images),
        val_labels=(torch.arange(len(data.val_labels)) % round(1 / share) == 0).long(),  # so that the last epochs win
    )
    config = tiny_config(model=SMOOTH, optimizer=OptimizerConfig(lr=0.1), batch_size=74, class_weights=class_weights)
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=30), data)
    logits = eval_model(outcome.model, data.val_images)
    assert float(logits.softmax(1)[:, 1].mean()) == pytest.approx(share, abs=0.05)
    # The training loss is that of the images as they count; the validation loss is that of the images as they are.
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert outcome.history[-1]["train_loss"] == pytest.approx(entropy, abs=0.05)
    assert outcome.best["val_loss"] == float(functional.cross_entropy(logits, data.val_labels))


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [(10, 4, [4, 4]), (8, 4, [4, 4]), (10, 10, [10]), (10, 64, [10]), (5, 1, [1] * 5), (1, 4, [1])],
)
def test_an_epoch_takes_whole_batches_in_order_and_each_image_once_at_most(
    count: int, batch_size: int, expected: list[int]
) -> None:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    batches = recorded_batches(count, batch_size, order)
    assert [len(batch) for batch in batches] == expected
    assert [i for batch in batches for i in batch] == order[: sum(expected)].tolist()


def test_every_epoch_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []

    train_batches = Training.train_batches

    def recorded(training: Training, order: Tensor, epoch: int) -> Tensor:
        orders.append(order.tolist())
        return train_batches(training, order, epoch)

    monkeypatch.setattr(Training, "train_batches", recorded)
    run_experiment(Experiment(tiny_config(), seed=0, max_epochs=3), device_data())
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(64)) for order in orders)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_an_epochs_statistics_and_weights_are_those_of_a_plain_loop(name: str) -> None:
    torch.manual_seed(0)
    data = device_data()
    config = tiny_config(
        model=SMOOTH,
        optimizer=OptimizerConfig(name=name, lr=0.02),  # type: ignore[arg-type]
        lr_schedule=schedule("cosine"),
        label_smoothing=0.1,
    )
    training = Training(Experiment(config, seed=0, max_epochs=2), data)
    plain = copy.deepcopy(training.model)
    order = torch.randperm(64)[:56]  # three batches of 16, and a rest of 8

    stats = training.train_batches(order, epoch=1)

    optimizer = make_optimizer(config.optimizer, plain)
    lr_schedule = LRSchedule(config.lr_schedule, optimizer, 2 * 4)
    losses, accuracies, norms = [], [], []
    for index in order[:48].split(16):
        logits = plain(data.train_images[index])
        loss = functional.cross_entropy(logits, data.train_labels[index], label_smoothing=0.1)
        plain.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in plain.parameters()]
        norms.append(
            math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients if gradient is not None))
        )
        optimizer.step()
        lr_schedule.step()
        losses.append(loss.item())
        accuracies.append(float((logits.argmax(1) == data.train_labels[index]).double().mean()))
    assert norms.index(max(norms)) != 2, "the largest norm has to differ from the last one to show anything"
    assert len(set(norms)) == 3
    expected = [sum(losses) / 3, sum(accuracies) / 3, max(norms)]
    assert stats.tolist() == pytest.approx(expected, rel=1e-4)
    for parameter, other in zip(training.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-4)  # each step moves by some 0.02


READS = {
    *(
        "_local_scalar_dense",
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__array__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
    ),
    *("nonzero", "is_nonzero", "masked_select", "equal", "allclose", "unique", "unique2", "unique_consecutive"),
    *("_unique", "_unique2", "unique_dim"),
}
"""Operations that wait for a device: they read a value, or make a tensor whose size depends on values."""


class ReadsBelow(TorchDispatchMode):
    """Notes such operations wherever they are, also in PyTorch's own C++."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        # Indexing by a mask counts its ones first.
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for argument in args
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if name in READS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class ReadsAbove(TorchFunctionMode):
    """Notes such calls in Python: on a CPU some read the memory without any operation below."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def reads_of(call: Callable[[], object]) -> list[str]:
    found: list[str] = []
    with ReadsBelow(found) as below, ReadsAbove(found):
        call()
    assert below.count > 0
    return found


READ: dict[str, Callable[[Tensor], object]] = {
    "float": lambda values: float(values.sum()),
    "item": lambda values: values.sum().item(),
    "if": lambda values: 1 if values.sum() > 1 else 0,
    "tolist": lambda values: values.mul(2).tolist(),
    "numpy": lambda values: values.mul(2).numpy(),
    "mask": lambda values: values[values > 1],
    "nonzero": lambda values: values.nonzero(),
    "equal": lambda values: torch.equal(values.mul(1), values),
    "unique": lambda values: values.mul(1).unique(),
    "index": lambda values: [5, 6, 7][values.argmax()],
}


@pytest.mark.parametrize("read", READ.values(), ids=list(READ))
def test_the_watch_for_reads_sees_them(read: Callable[[Tensor], object]) -> None:
    assert reads_of(lambda: read(torch.arange(3.0)))


@pytest.mark.parametrize(
    ("name", "lr_schedule"), [("sgd", "constant"), ("sgd", "plateau"), ("adamw", "one_cycle"), ("muon", "cosine")]
)
@pytest.mark.parametrize(
    ("norm", "class_weights"),
    [("batch", "none"), ("group", "balanced"), ("evonorm_s0", "none"), ("evonorm_b0", "balanced")],
)
def test_no_value_is_read_back_from_the_device_inside_an_epoch(
    name: str, lr_schedule: str, norm: str, class_weights: str
) -> None:
    config = tiny_config(
        model=replace(TINY, norm=norm, dropout=0.1, head_dropout=0.1),
        optimizer=OptimizerConfig(name=name),  # type: ignore[arg-type]
        lr_schedule=schedule(lr_schedule),
        augment=AugmentConfig(crop_padding=1, flip="random", cutout=2),
        label_smoothing=0.1,
        class_weights=class_weights,
    )
    training = Training(Experiment(config, seed=0, max_epochs=3), device_data())
    order = torch.arange(64)
    assert not reads_of(lambda: training.train_batches(order, epoch=1))


# ---- evaluation ----


@pytest.mark.parametrize("count", [1, EVAL_BATCH_SIZE - 1, EVAL_BATCH_SIZE, 2 * EVAL_BATCH_SIZE + 7])
@IN_BOTH
def test_evaluation_in_batches_equals_the_model_on_all_images_at_once(count: int, precision: Precision) -> None:
    torch.manual_seed(0)
    config = tiny_config(precision=precision, model=replace(TINY, dropout=0.5, head_dropout=0.5))
    model = build_model(config, num_classes=5, channels=3, image_size=4)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    logits = eval_model(model, images)
    assert logits.shape == (count, 5)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.eval()(images), rtol=1e-4, atol=1e-4)


@IN_BOTH
def test_evaluation_turns_dropout_off_and_leaves_running_statistics_alone(precision: Precision) -> None:
    model = build_model(tiny_config(precision=precision), num_classes=2, channels=1, image_size=8).train()
    before = copy.deepcopy(model)
    data = device_data()
    assert torch.equal(eval_model(model, data.val_images), eval_model(model, data.val_images))
    assert weights_equal(model, before)


# ---- whole runs ----


@pytest.mark.parametrize("lr_schedule", ["constant", "step", "cosine", "one_cycle", "plateau"])
@IN_BOTH
def test_a_learnable_problem_is_learnt(lr_schedule: str, precision: Precision) -> None:
    config = tiny_config(precision=precision, lr_schedule=schedule(lr_schedule))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=8), device_data())
    assert outcome.best["val_accuracy"] >= 0.9
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def run_augmented(precision: Precision, seed: int, name: str, norm: str, class_weights: str) -> Outcome:
    config = tiny_config(
        precision=precision,
        model=replace(TINY, norm=norm, dropout=0.1, head_pool="flatten", head_hidden=4, head_dropout=0.1),
        optimizer=OptimizerConfig(name=name, lr=0.02),  # type: ignore[arg-type]
        augment=AugmentConfig(crop_padding=1, cutout=2),
        class_weights=class_weights,
    )
    return run_experiment(Experiment(config, seed=seed, max_epochs=2, metric="f1"), imbalanced_data())


@pytest.mark.parametrize(
    "what", [("sgd", "batch", "none"), ("adamw", "evonorm_s0", "balanced"), ("muon", "evonorm_b0", "balanced")]
)
@IN_BOTH
def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not(
    what: tuple[str, str, str], precision: Precision
) -> None:
    first = run_augmented(precision, 1, *what)
    torch.rand(7)  # what was drawn before in this process makes no difference
    second, other = run_augmented(precision, 1, *what), run_augmented(precision, 2, *what)
    assert weights_equal(first.model, second.model)
    assert without_times(first.history) == without_times(second.history)
    assert not weights_equal(first.model, other.model)
    assert without_times(first.history) != without_times(other.history)


@IN_BOTH
def test_every_epoch_is_reported_as_the_row_of_the_history(precision: Precision) -> None:
    rows: list[Row] = []
    config = tiny_config(precision=precision, lr_schedule=schedule("cosine"))
    outcome = run_experiment(
        Experiment(config, seed=0, max_epochs=4), device_data(), report=lambda row: rows.append(dict(row))
    )
    assert rows == outcome.history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["finished"] for row in rows] == [False, False, False, True]
    best = [max(row["val_metric"] for row in rows[: index + 1]) for index in range(4)]
    assert [row["best_val_metric"] for row in rows] == best
    # The rate at the start of each epoch: the schedule's horizon is the whole run.
    expected = [0.05 * lr_factor(config.lr_schedule, epoch / 4) for epoch in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx(expected)
    for row in rows:
        assert row["val_metric"] == row["val_accuracy"]
        assert min(row["train_s"], row["eval_s"], row["grad_norm_max"]) > 0


@pytest.mark.parametrize("norm", ["batch", "group", "evonorm_b0"])
@IN_BOTH
def test_the_returned_model_has_the_weights_of_the_best_epoch(norm: str, precision: Precision) -> None:
    data = misleading_data()
    config = tiny_config(precision=precision, model=replace(TINY, norm=norm), lr_schedule=schedule("constant"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=4), data)
    last = outcome.history[-1]
    assert outcome.best["epoch"] < last["epoch"], "the last epoch must not be the best to show anything"
    assert outcome.best["val_loss"] != last["val_loss"]
    assert not outcome.model.training
    scores = loss_and_accuracy(eval_model(outcome.model, data.val_images), data.val_labels)
    assert scores == (outcome.best["val_loss"], outcome.best["val_accuracy"])
    key = [(row["val_metric"], -row["val_loss"]) for row in outcome.history]
    assert outcome.best is outcome.history[key.index(max(key))]


@pytest.mark.parametrize("metric", ["accuracy", "auc", "f1"])
@IN_BOTH
def test_the_metric_is_that_of_scikit_learn_and_the_accuracy_stays(metric: str, precision: Precision) -> None:
    data = device_data(num_val=40)
    config = tiny_config(
        precision=precision, model=SMOOTH, optimizer=OptimizerConfig(lr=0.02), lr_schedule=schedule("constant")
    )
    rows: list[Row] = []
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=3, metric=metric), data, report=rows.append)
    logits, labels = eval_model(outcome.model, data.val_images), data.val_labels.numpy()
    expected = {
        "accuracy": float((logits.argmax(1).numpy() == labels).mean()),
        "auc": roc_auc_score(labels, logits.softmax(1)[:, 1].numpy()),
        "f1": f1_score(labels, logits.argmax(1).numpy(), average="macro"),
    }
    assert len({round(value, 4) for value in expected.values()}) == 3, "they have to differ to show anything"
    assert outcome.best["val_metric"] == pytest.approx(expected[metric], abs=1e-6)
    assert outcome.best["val_accuracy"] == pytest.approx(expected["accuracy"])
    assert rows[-1]["best_val_metric"] == max(row["val_metric"] for row in rows) == outcome.best["val_metric"]


def test_best_weights_and_patience_follow_the_metric_and_not_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.2, 0.8, 0.5, 0.8, 0.3, 0.1, 0.1]
    kept = []

    def given(metric: str, logits: Tensor, labels: Tensor) -> float:
        kept.append(logits)
        return values[len(kept) - 1]

    monkeypatch.setattr("cifar_ray.training.loop.ranking_metric", given)
    data = misleading_data()  # by accuracy, the first epoch would be the best
    config = tiny_config(lr_schedule=schedule("constant"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=7, metric="auc", patience=3), data)
    accuracies = [row["val_accuracy"] for row in outcome.history]
    assert max(accuracies) == accuracies[0] > accuracies[1]
    assert [row["val_metric"] for row in outcome.history] == values[: len(outcome.history)]
    # Of two epochs alike in the metric the one of lower loss is the best.
    best = min((2, 4), key=lambda epoch: outcome.history[epoch - 1]["val_loss"])
    assert outcome.best["epoch"] == best
    assert len(outcome.history) == best + 3
    assert [row["best_val_metric"] for row in outcome.history] == [0.2] + [0.8] * (best + 2)
    assert torch.equal(eval_model(outcome.model, data.val_images), kept[best - 1])


def test_a_metric_that_validation_does_not_have_is_told() -> None:
    data = device_data()
    data = replace(data, val_labels=torch.zeros_like(data.val_labels))
    with pytest.raises(InputError, match="auc"):
        run_experiment(Experiment(tiny_config(), seed=0, max_epochs=1, metric="auc"), data)
    assert run_experiment(Experiment(tiny_config(), seed=0, max_epochs=1, metric="f1"), data).history


def test_the_model_carries_the_normalisation_of_the_training_images() -> None:
    data = device_data(channels=3)
    model = run_experiment(Experiment(tiny_config(), seed=0, max_epochs=1), data).model
    assert torch.equal(model.normalize.mean.flatten(), data.mean)
    assert torch.equal(model.normalize.std.flatten(), data.std)


@pytest.mark.parametrize(
    ("lr_schedule", "patience", "epochs"),
    [
        ("constant", 2, 3),
        ("plateau", 2, 3),
        ("constant", 1, 2),
        ("cosine", 2, 6),
        ("one_cycle", 2, 6),
        ("constant", None, 6),
        ("constant", 5, 6),
        ("constant", 50, 6),
    ],
)
def test_patience_ends_a_schedule_that_does_not_anneal_and_no_other(
    lr_schedule: str, patience: int | None, epochs: int
) -> None:
    # With a rate of nothing every epoch equals the first, which stays the best.
    config = tiny_config(model=SMOOTH, optimizer=OptimizerConfig(lr=1e-30), lr_schedule=schedule(lr_schedule))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=6, patience=patience), device_data())
    assert outcome.best["epoch"] == 1
    assert len(outcome.history) == epochs
    assert [row["finished"] for row in outcome.history] == [False] * (epochs - 1) + [True]


@pytest.mark.parametrize(("max_epochs", "patience", "epochs"), [(20, 2, 17), (20, 5, 20), (10, 1, 9), (9, 1, 8)])
def test_patience_counts_no_epoch_of_a_step_schedule_before_its_last_drop(
    max_epochs: int, patience: int, epochs: int
) -> None:
    config = tiny_config(model=SMOOTH, optimizer=OptimizerConfig(lr=1e-30), lr_schedule=schedule("step"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=max_epochs, patience=patience), device_data())
    assert outcome.best["epoch"] == 1
    assert len(outcome.history) == epochs
    assert [row["lr"] < 0.011e-30 for row in outcome.history[-patience:]] == [True] * patience


@IN_BOTH
def test_patience_counts_from_the_best_epoch(precision: Precision) -> None:
    config = tiny_config(precision=precision, optimizer=OptimizerConfig(lr=0.01), lr_schedule=schedule("constant"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=40, patience=2), device_data())
    assert outcome.best["epoch"] > 2, "epochs before the best have to be more than the patience to show anything"
    assert len(outcome.history) == min(outcome.best["epoch"] + 2, 40)


@IN_BOTH
def test_a_training_keeps_what_each_patience_would_have_left_also_when_it_is_taken_up_again(
    precision: Precision,
) -> None:
    config = tiny_config(precision=precision, optimizer=OptimizerConfig(lr=0.05), lr_schedule=schedule("constant"))
    packed: dict[int, bytes] = {}
    experiment = Experiment(config, seed=0, max_epochs=40, kept_patiences=(2, 100))

    def keep(row: Row, pack: Callable[[], bytes]) -> None:
        packed[row["epoch"]] = pack()

    whole = run_experiment(experiment, device_data(), checkpoint=keep)
    ended = run_experiment(Experiment(config, seed=0, max_epochs=40, patience=2), device_data())
    assert len(whole.history) == 40 > len(ended.history)
    assert whole.stopped[2].epoch == len(ended.history)
    assert whole.stopped[2].best["epoch"] == ended.best["epoch"] < whole.best["epoch"]
    for name, weights in ended.part.state_dict().items():
        assert torch.equal(whole.stopped[2].weights[name], weights), name
    # One that never ends it leaves what the training itself does.
    assert whole.stopped[100].epoch == 40 and whole.stopped[100].best == whole.best
    for after in (1, len(ended.history) + 1):
        again = run_experiment(experiment, device_data(), resume=packed[after])
        assert again.stopped[2].epoch == len(ended.history)
        assert all(torch.equal(again.stopped[2].weights[name], one) for name, one in ended.part.state_dict().items())


def test_no_patience_would_have_ended_an_annealing() -> None:
    config = tiny_config(model=SMOOTH, optimizer=OptimizerConfig(lr=1e-30), lr_schedule=schedule("cosine"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=6, kept_patiences=(1,)), device_data())
    assert outcome.stopped[1].epoch == 6


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loss_that_is_no_number_ends_the_run(norm: str) -> None:
    rows: list[Row] = []
    config = tiny_config(
        model=replace(TINY, norm=norm), optimizer=OptimizerConfig(lr=1e30), lr_schedule=schedule("constant")
    )
    with pytest.raises(NonFiniteLossError, match="epoch"):
        run_experiment(Experiment(config, seed=0, max_epochs=3), device_data(), report=rows.append)
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]) for row in rows)


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    config = tiny_config(batch_size=1000, lr_schedule=schedule("one_cycle"))
    outcome = run_experiment(Experiment(config, seed=0, max_epochs=3), device_data(num_train=10))
    assert len(outcome.history) == 3
    assert all(row["lr"] > 0 for row in outcome.history)


def test_a_padding_wider_than_the_image_trains() -> None:
    config = tiny_config(augment=AugmentConfig(crop_padding=40, flip="random", cutout=3))
    assert len(run_experiment(Experiment(config, seed=0, max_epochs=1), device_data()).history) == 1


def test_a_batch_that_cannot_be_divided_over_the_ranks_is_told() -> None:
    with pytest.raises(InputError, match="batch_size 16 cannot be divided over 3"):
        run_experiment(Experiment(tiny_config(), seed=0, max_epochs=1), device_data(), ranks=Ranks(0, 3))


# ---- going on ----


def interrupted(config: TrialConfig, max_epochs: int, after: int) -> tuple[Outcome, Outcome]:
    """A training, and the same one taken up again after an epoch, by a process that knows nothing of the first."""
    packed: dict[int, bytes] = {}
    experiment = Experiment(config, seed=5, max_epochs=max_epochs)
    whole = run_experiment(
        experiment, device_data(), checkpoint=lambda row, pack: packed.update({row["epoch"]: pack()})
    )
    assert list(packed) == list(range(1, len(whole.history)))
    torch.manual_seed(1234)
    return whole, run_experiment(experiment, device_data(), resume=packed[after])


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("lr_schedule", ["constant", "step", "cosine", "one_cycle", "plateau"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@IN_BOTH
def test_a_training_that_goes_on_is_the_same_to_the_bit(
    name: Any, lr_schedule: str, after: int, precision: Precision
) -> None:
    config = tiny_config(
        precision=precision,
        model=replace(TINY, dropout=0.2),
        optimizer=OptimizerConfig(name=name, lr=0.01),
        lr_schedule=schedule(lr_schedule),
        augment=AugmentConfig(crop_padding=1, flip="random"),
    )
    whole, gone_on = interrupted(config, 5, after)
    assert weights_equal(whole.model, gone_on.model)
    assert without_times(gone_on.history) == without_times(whole.history)
    assert gone_on.best == gone_on.history[whole.best["epoch"] - 1]


@IN_BOTH
def test_a_training_that_goes_on_remembers_its_best_weights_and_patience(precision: Precision) -> None:
    config = tiny_config(precision=precision, lr_schedule=schedule("constant"), optimizer=OptimizerConfig(lr=0.2))
    packed: dict[int, bytes] = {}
    data = misleading_data()
    whole = run_experiment(
        Experiment(config, seed=0, max_epochs=9, patience=4),
        data,
        checkpoint=lambda row, pack: packed.update({row["epoch"]: pack()}),
    )
    last = whole.history[-1]["epoch"]
    assert whole.best["epoch"] < last - 1
    gone_on = run_experiment(Experiment(config, seed=0, max_epochs=9, patience=4), data, resume=packed[last - 1])
    assert gone_on.history[-1]["epoch"] == last
    assert weights_equal(whole.model, gone_on.model)


@pytest.mark.parametrize("finetune", ["head", "gradual"])
@IN_BOTH
def test_a_fine_tuning_that_goes_on_is_the_same(
    finetune: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    augment = AugmentConfig(flip="random")
    config = replace(
        resnet_config(augment, finetune=finetune, feature_views=2 if finetune == "head" else 1), precision=precision
    )
    packed: dict[int, bytes] = {}
    experiment = Experiment(config, seed=0, max_epochs=3)
    whole = run_experiment(
        experiment,
        small_data(),
        pretrained=random_weights(),
        checkpoint=lambda row, pack: packed.update({row["epoch"]: pack()}),
    )
    gone_on = run_experiment(experiment, small_data(), pretrained=random_weights(), resume=packed[2])
    assert weights_equal(whole.model, gone_on.model)


def test_a_report_that_raises_ends_the_training() -> None:
    def report(row: Row) -> None:
        if row["epoch"] == 2:
            raise KeyError("enough")

    epochs: list[int] = []
    with pytest.raises(KeyError, match="enough"):
        run_experiment(
            Experiment(tiny_config(), seed=0, max_epochs=5),
            device_data(),
            report=report,
            checkpoint=lambda row, pack: epochs.append(row["epoch"]),
        )
    assert epochs == [1]


def test_synchronised_batch_norm_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="only synchronised on GPUs"):
        run_experiment(Experiment(replace(tiny_config(), sync_batch_norm=True), seed=0, max_epochs=1), device_data())
