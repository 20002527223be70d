"""The training loop on tiny problems, in one process and in two."""

import copy
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_ray.config import (
    AugmentConfig,
    CNNConfig,
    InputError,
    LRScheduleConfig,
    OptimizerConfig,
    TrialConfig,
)
from cifar_ray.loop import (
    EVAL_BATCH_SIZE,
    DeviceData,
    NonFiniteLossError,
    Outcome,
    Ranks,
    Row,
    eval_model,
    run_experiment,
    train_epoch,
)
from cifar_ray.metrics import loss_and_accuracy
from cifar_ray.models import build_model
from cifar_ray.optim import LRSchedule, lr_factor, make_optimizer

CPU = torch.device("cpu")
TINY = CNNConfig(widths=[8, 8], blocks=[1, 1], kernel_sizes=[3, 3])
SMOOTH = CNNConfig(widths=[8, 8], blocks=[1, 1], kernel_sizes=[3, 3], norm="group", activation="gelu")


pytestmark = pytest.mark.usefixtures("one_thread")


def arrays(num_train: int = 64, num_val: int = 33, size: int = 8, channels: int = 1) -> dict[str, np.ndarray]:
    """Images that are brighter at the left (class 0) or at the right (class 1), under noise."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        images = rng.integers(0, 150, (count, channels, size, size))
        for side in (0, 1):
            columns = slice(0, size // 2) if side == 0 else slice(size // 2, size)
            images[labels == side, :, :, columns] += 90
        return images.astype(np.uint8), labels.astype(np.int64)

    train_images, train_labels = split(num_train)
    val_images, val_labels = split(num_val)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "val_images": val_images,
        "val_labels": val_labels,
    }


def device_data(**sizes: int) -> DeviceData:
    return DeviceData.from_arrays(arrays(**sizes), 2, CPU)


def misleading_data() -> DeviceData:
    """Data whose validation labels are swapped: the more a model learns, the worse it does there."""
    data = device_data()
    return replace(data, val_labels=1 - data.val_labels)


def tiny_config(**changes: Any) -> TrialConfig:
    return replace(TrialConfig(model=TINY, batch_size=16, optimizer=OptimizerConfig(lr=0.05)), **changes)


def schedule(name: str) -> LRScheduleConfig:
    return LRScheduleConfig(name=name)  # type: ignore[arg-type]


def without_times(history: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in ("train_s", "eval_s")} for row in history]


def weights_equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    outcome = run_experiment(tiny_config(), data, seed=0, max_epochs=1)
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
    augmented = tiny_config(augment=AugmentConfig(crop_padding=1, flip=True, cutout=2))
    run_experiment(augmented, data, seed=0, max_epochs=1)
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


# ---- one epoch ----


class Recorder(nn.Module):
    """Learns nothing, but keeps the first pixel of every image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images[:, 0, 0, 0].tolist())
        return self.weight.expand(len(images), 2)


def numbered_data(count: int) -> DeviceData:
    """Data in which every pixel of image i is i."""
    data = device_data()
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    return replace(data, train_images=images, train_labels=torch.arange(count) % 2)


def recorded_batches(count: int, batch_size: int, order: Tensor, ranks: Ranks = Ranks()) -> list[list[int]]:
    model = Recorder()
    config = tiny_config(batch_size=batch_size)
    optimizer = make_optimizer(config.optimizer, model)
    steps = LRSchedule(schedule("constant"), optimizer, 10)
    train_epoch(model, numbered_data(count), optimizer, steps, config, order, ranks)
    return model.seen


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

    def recorded(*args: Any) -> Tensor:
        orders.append(args[5].tolist())
        return train_epoch(*args)

    monkeypatch.setattr("cifar_ray.loop.train_epoch", recorded)
    run_experiment(tiny_config(), device_data(), seed=0, max_epochs=3)
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(64)) for order in orders)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_epochs_statistics_and_weights_are_those_of_a_plain_loop(name: str) -> None:
    torch.manual_seed(0)
    data = device_data()
    config = tiny_config(
        model=SMOOTH,
        optimizer=OptimizerConfig(name=name, lr=0.02),  # type: ignore[arg-type]
        lr_schedule=schedule("cosine"),
        label_smoothing=0.1,
    )
    model = build_model(config, num_classes=2, channels=1, image_size=8)
    model.normalize.std.fill_(100.0)
    plain = copy.deepcopy(model)
    order = torch.randperm(64)[:56]  # three batches of 16, and a rest of 8

    optimizer = make_optimizer(config.optimizer, model)
    stats = train_epoch(model, data, optimizer, LRSchedule(config.lr_schedule, optimizer, 6), config, order)

    optimizer = make_optimizer(config.optimizer, plain)
    lr_schedule = LRSchedule(config.lr_schedule, optimizer, 6)
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
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("lr_schedule", ["constant", "cosine", "one_cycle", "plateau"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_no_value_is_read_back_from_the_device_inside_an_epoch(name: str, lr_schedule: str, norm: str) -> None:
    data = device_data()
    config = tiny_config(
        model=replace(TINY, norm=norm, dropout=0.1, head_dropout=0.1),
        optimizer=OptimizerConfig(name=name),  # type: ignore[arg-type]
        lr_schedule=schedule(lr_schedule),
        augment=AugmentConfig(crop_padding=1, flip=True, cutout=2),
        label_smoothing=0.1,
    )
    model = build_model(config, num_classes=2, channels=1, image_size=8)
    optimizer = make_optimizer(config.optimizer, model)
    steps = LRSchedule(config.lr_schedule, optimizer, 10)
    order = torch.arange(64)
    assert not reads_of(lambda: train_epoch(model, data, optimizer, steps, config, order))


# ---- evaluation ----


@pytest.mark.parametrize("count", [1, EVAL_BATCH_SIZE - 1, EVAL_BATCH_SIZE, 2 * EVAL_BATCH_SIZE + 7])
def test_evaluation_in_batches_equals_the_model_on_all_images_at_once(count: int) -> None:
    torch.manual_seed(0)
    config = tiny_config(model=replace(TINY, dropout=0.5, head_dropout=0.5))
    model = build_model(config, num_classes=5, channels=3, image_size=4)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    logits = eval_model(model, images)
    assert logits.shape == (count, 5)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.eval()(images), rtol=1e-4, atol=1e-4)


def test_evaluation_turns_dropout_off_and_leaves_running_statistics_alone() -> None:
    model = build_model(tiny_config(), num_classes=2, channels=1, image_size=8).train()
    before = copy.deepcopy(model)
    data = device_data()
    assert torch.equal(eval_model(model, data.val_images), eval_model(model, data.val_images))
    assert weights_equal(model, before)


# ---- whole runs ----


@pytest.mark.parametrize("lr_schedule", ["constant", "step", "cosine", "one_cycle", "plateau"])
def test_a_learnable_problem_is_learnt(lr_schedule: str) -> None:
    config = tiny_config(lr_schedule=schedule(lr_schedule))
    outcome = run_experiment(config, device_data(), seed=0, max_epochs=8)
    assert outcome.best["val_accuracy"] >= 0.9
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def run_augmented(seed: int) -> Outcome:
    config = tiny_config(
        model=replace(TINY, dropout=0.1, head_dropout=0.1), augment=AugmentConfig(crop_padding=1, cutout=2)
    )
    return run_experiment(config, device_data(), seed=seed, max_epochs=2)


def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not() -> None:
    first = run_augmented(1)
    torch.rand(7)  # what was drawn before in this process makes no difference
    second, other = run_augmented(1), run_augmented(2)
    assert weights_equal(first.model, second.model)
    assert without_times(first.history) == without_times(second.history)
    assert not weights_equal(first.model, other.model)
    assert without_times(first.history) != without_times(other.history)


def test_every_epoch_is_reported_as_the_row_of_the_history() -> None:
    rows: list[Row] = []
    config = tiny_config(lr_schedule=schedule("cosine"))
    outcome = run_experiment(config, device_data(), seed=0, max_epochs=4, report=lambda row: rows.append(dict(row)))
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


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_returned_model_has_the_weights_of_the_best_epoch(norm: str) -> None:
    data = misleading_data()
    config = tiny_config(model=replace(TINY, norm=norm), lr_schedule=schedule("constant"))
    outcome = run_experiment(config, data, seed=0, max_epochs=4)
    last = outcome.history[-1]
    assert outcome.best["epoch"] < last["epoch"], "the last epoch must not be the best to show anything"
    assert outcome.best["val_loss"] != last["val_loss"]
    assert not outcome.model.training
    scores = loss_and_accuracy(eval_model(outcome.model, data.val_images), data.val_labels)
    assert scores == (outcome.best["val_loss"], outcome.best["val_accuracy"])
    key = [(row["val_metric"], -row["val_loss"]) for row in outcome.history]
    assert outcome.best is outcome.history[key.index(max(key))]


def test_the_model_carries_the_normalisation_of_the_training_images() -> None:
    data = device_data(channels=3)
    model = run_experiment(tiny_config(), data, seed=0, max_epochs=1).model
    assert torch.equal(model.normalize.mean.flatten(), data.mean)
    assert torch.equal(model.normalize.std.flatten(), data.std)


@pytest.mark.parametrize(
    ("lr_schedule", "patience", "epochs"),
    [
        ("constant", 2, 3),
        ("step", 2, 3),
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
    outcome = run_experiment(config, device_data(), seed=0, max_epochs=6, patience=patience)
    assert outcome.best["epoch"] == 1
    assert len(outcome.history) == epochs
    assert [row["finished"] for row in outcome.history] == [False] * (epochs - 1) + [True]


def test_patience_counts_from_the_best_epoch() -> None:
    config = tiny_config(optimizer=OptimizerConfig(lr=0.01), lr_schedule=schedule("constant"))
    outcome = run_experiment(config, device_data(), seed=0, max_epochs=40, patience=2)
    assert outcome.best["epoch"] > 2, "epochs before the best have to be more than the patience to show anything"
    assert len(outcome.history) == min(outcome.best["epoch"] + 2, 40)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loss_that_is_no_number_ends_the_run(norm: str) -> None:
    rows: list[Row] = []
    config = tiny_config(
        model=replace(TINY, norm=norm), optimizer=OptimizerConfig(lr=1e30), lr_schedule=schedule("constant")
    )
    with pytest.raises(NonFiniteLossError, match="epoch"):
        run_experiment(config, device_data(), seed=0, max_epochs=3, report=rows.append)
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]) for row in rows)


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    config = tiny_config(batch_size=1000, lr_schedule=schedule("one_cycle"))
    outcome = run_experiment(config, device_data(num_train=10), seed=0, max_epochs=3)
    assert len(outcome.history) == 3
    assert all(row["lr"] > 0 for row in outcome.history)


def test_a_padding_wider_than_the_image_trains() -> None:
    config = tiny_config(augment=AugmentConfig(crop_padding=40, flip=True, cutout=3))
    assert len(run_experiment(config, device_data(), seed=0, max_epochs=1).history) == 1


def test_a_batch_that_cannot_be_divided_over_the_ranks_is_told() -> None:
    with pytest.raises(InputError, match="batch_size 16 cannot be divided over 3"):
        run_experiment(tiny_config(), device_data(), seed=0, max_epochs=1, ranks=Ranks(0, 3))


# ---- two processes ----

PARALLEL = tiny_config(
    model=SMOOTH, lr_schedule=schedule("cosine"), optimizer=OptimizerConfig(lr=0.02), label_smoothing=0.1
)
AUGMENTED = tiny_config(model=replace(TINY, dropout=0.2), augment=AugmentConfig(crop_padding=1, flip=True, cutout=2))
COUNTS = (1, 2, 7, 1013)
DIVERGING = tiny_config(model=replace(TINY, norm="none"), optimizer=OptimizerConfig(lr=1e30))


def numbered_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)


def fresh_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(PARALLEL, num_classes=2, channels=1, image_size=8)


def train_as_rank(rank: int, folder: str) -> None:
    """What one of the two processes does; the test process reads the file that it leaves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    data = device_data()
    found: dict[str, Any] = {}
    for name, config in (("plain", PARALLEL), ("augmented", AUGMENTED)):
        outcome = run_experiment(config, data, seed=3, max_epochs=3, ranks=ranks)
        found[name] = {"weights": outcome.model.state_dict(), "history": outcome.history, "best": outcome.best}
    found["random state"] = torch.initial_seed()
    found["batches"] = recorded_batches(21, 8, torch.arange(21), ranks)
    for count in COUNTS:
        found[f"logits {count}"] = eval_model(fresh_model(), numbered_images(count), ranks)
    try:
        run_experiment(DIVERGING, data, seed=3, max_epochs=3, ranks=ranks)
    except NonFiniteLossError as error:
        found["error"] = str(error)
    torch.save(found, os.path.join(folder, f"rank{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found_by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found together; started once, since they take longer to start than to train."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_as_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_train_the_same_model_as_one_process(found_by_rank: list[dict[str, Any]]) -> None:
    alone = run_experiment(PARALLEL, device_data(), seed=3, max_epochs=3)
    weights = alone.model.state_dict()
    start = fresh_model().state_dict()
    assert not torch.allclose(weights["network.classifier.weight"], start["network.classifier.weight"], atol=1e-2)
    for found in found_by_rank:
        together = found["plain"]
        for name, tensor in weights.items():
            torch.testing.assert_close(together["weights"][name], tensor, rtol=0, atol=1e-5, msg=name)
        for row, expected in zip(together["history"], alone.history, strict=True):
            for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "grad_norm_max"):
                assert row[key] == pytest.approx(expected[key], abs=1e-4), key


def test_each_rank_takes_its_share_of_a_batch_and_augments_it_in_its_own_way(
    found_by_rank: list[dict[str, Any]],
) -> None:
    first, second = (found["batches"] for found in found_by_rank)
    assert [len(batch) for batch in first + second] == [4] * 4
    together = [sorted(one + other) for one, other in zip(first, second, strict=True)]
    assert together == [list(range(8)), list(range(8, 16))]
    assert found_by_rank[0]["random state"] != found_by_rank[1]["random state"]


@pytest.mark.parametrize("name", ["plain", "augmented"])
def test_both_ranks_end_with_the_same_model_and_history(found_by_rank: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name] for found in found_by_rank)
    different = [key for key in first["weights"] if not torch.equal(first["weights"][key], second["weights"][key])]
    assert not different
    own = ("grad_norm_max",)  # equal up to the order of a sum
    for row, other in zip(without_times(first["history"]), without_times(second["history"]), strict=True):
        assert {k: v for k, v in row.items() if k not in own} == {k: v for k, v in other.items() if k not in own}


@pytest.mark.parametrize("name", ["plain", "augmented"])
def test_a_model_of_two_ranks_scores_what_its_best_row_says(found_by_rank: list[dict[str, Any]], name: str) -> None:
    # Batch norm gathers its statistics on every rank for itself, and only the first rank's model is saved.
    config = {"plain": PARALLEL, "augmented": AUGMENTED}[name]
    found = found_by_rank[0][name]
    data = device_data()
    model = build_model(config, num_classes=2, channels=1, image_size=8)
    model.load_state_dict(found["weights"])
    loss, accuracy = loss_and_accuracy(eval_model(model, data.val_images), data.val_labels)
    assert loss == pytest.approx(found["best"]["val_loss"], abs=1e-5)
    assert accuracy == pytest.approx(found["best"]["val_accuracy"], abs=1e-6)


@pytest.mark.parametrize("count", COUNTS)
def test_two_ranks_score_every_image_in_its_place(found_by_rank: list[dict[str, Any]], count: int) -> None:
    alone = eval_model(fresh_model(), numbered_images(count))
    assert len({tuple(row) for row in alone.tolist()}) == count
    for found in found_by_rank:
        torch.testing.assert_close(found[f"logits {count}"], alone, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_on_both_ranks(found_by_rank: list[dict[str, Any]]) -> None:
    assert found_by_rank[0]["error"] == found_by_rank[1]["error"]
