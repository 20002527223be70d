"""Final training on real Ray: by processes that train alone, and by Ray Train's groups of two under DDP."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from helpers.network import listening
from helpers.resnets import random_weights, resnet_config, small_data

from cifar_ray.config import AugmentConfig, trial_config
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.jobs import Desk, Epochs, Job, Message, Seat, Trained
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.rank import Orders, SlotClock
from cifar_ray.distributed.rank import train as train_one
from cifar_ray.distributed.workers import FinalModel, train_models
from cifar_ray.models.backbone import BackboneNet
from cifar_ray.models.saved import SavedModel
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Ranks, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy

MAX_EPOCHS = 2
CARD = {"class_names": list("0123456789"), "resize": {"channels": 1, "image_size": 8, "rule": "native"}}


def final_model(seed_index: int, lr: float = 0.1, norm: str = "group") -> FinalModel:
    config = {
        "model": {"widths": [8, 16], "blocks": [1, 1], "kernel_sizes": [3, 3], "norm": norm},
        "optimizer": {"lr": lr},
        "batch_size": 32,
    }
    return FinalModel("default", 0, seed_index, 100 + seed_index, trial_config(config, "test"))


def train(models: list[FinalModel], arrays: dict[str, np.ndarray], workers: Workers) -> tuple[dict[str, Trained], int]:
    """Train on Ray; return what came by model name, and how many epochs were reported.

    While they train, nobody from outside can reach the workers.
    """
    trained: dict[str, Trained] = {}
    epochs = 0

    def on_message(model: FinalModel, message: Message) -> None:
        nonlocal epochs
        if isinstance(message, Trained):
            trained[model.name] = message
        epochs += len(message.rows) if isinstance(message, Epochs) else 0
        assert {ip for ip, _ in listening()} <= {"127.0.0.1", "::1"}

    with tempfile.TemporaryDirectory() as storage, Processes(workers) as processes:
        settings = TrialSettings([ray.put(arrays)], 10, MAX_EPOCHS, MAX_EPOCHS, "accuracy", 1)
        train_models(models, settings, processes, Path(storage), on_message)
    return trained, epochs


@pytest.fixture(scope="module")
def one_each(hardware: Any, digit_arrays: dict[str, np.ndarray]) -> tuple[dict[str, Trained], int]:
    """Three models and one that diverges, walked by two groups of one worker."""
    models = [final_model(0), final_model(1, lr=1e30), final_model(2), final_model(3)]
    return train(models, digit_arrays, Workers(2, 1, {"CPU": 1, "GPU": 0}))


@pytest.fixture(scope="module")
def one_process(digit_arrays: dict[str, np.ndarray]) -> Any:
    """The same models trained in this process."""
    torch.set_num_threads(1)
    data = DeviceData.from_arrays(digit_arrays, 10, torch.device("cpu"))
    return lambda model: run_experiment(Experiment(model.config, seed=model.training_seed, max_epochs=MAX_EPOCHS), data)


def test_every_model_of_the_list_comes_back_and_a_failed_one_says_why(one_each: Any) -> None:
    trained, epochs = one_each
    assert sorted(trained) == [f"default-seed{index}" for index in range(4)]
    assert [name for name, model in trained.items() if model.failure] == ["default-seed1"]
    assert "non-finite" in str(trained["default-seed1"].failure)
    assert epochs == 3 * MAX_EPOCHS


def test_a_worker_trains_what_a_plain_process_trains_bit_for_bit(one_each: Any, one_process: Any) -> None:
    for index in (0, 2, 3):
        final = one_each[0][f"default-seed{index}"]
        model = SavedModel("one", final.weights, final_model(index).config, CARD).build()
        expected = one_process(final_model(index)).model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_train_accuracy_is_that_of_the_saved_weights(one_each: Any, digit_arrays: dict[str, np.ndarray]) -> None:
    final = one_each[0]["default-seed0"]
    logits = eval_model(
        SavedModel("one", final.weights, final_model(0).config, CARD).build(),
        torch.tensor(digit_arrays["train_images"]),
    )
    assert final.train_accuracy == loss_and_accuracy(logits, torch.tensor(digit_arrays["train_labels"]))[1]


def test_a_head_trains_and_is_measured_without_another_pass_of_its_backbone(
    hardware: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = []
    features = BackboneNet.features

    def counted(network: BackboneNet, x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        return features(network, x)

    monkeypatch.setattr(BackboneNet, "features", counted)
    config, data = resnet_config(AugmentConfig(flip="random"), finetune="head", feature_views=2), small_data()
    shared = TrialSettings([], 2, 2, None, "accuracy", 1, {"resnet18 IMAGENET1K_V1": ray.put(random_weights())})
    desk: Any = ray.remote(Desk).options(num_cpus=0).remote(judged=False)
    orders = Orders(shared, desk, judged=False, checkpoint_every_s=60.0, began_s=0.0)
    seat = Seat(0, ray.get(desk.begin.remote([0])))
    trained = []
    for key in "ab":
        ray.get(desk.submit.remote(Job(key, config, seed=0)))
        trained.append(train_one(Job(key, config, seed=0), data, orders, seat, Ranks(), SlotClock(0.0)))
        # Two views of the training images and the validation images, once for both.
        assert sum(images) == 2 * len(data.train_images) + len(data.val_images)
    ray.kill(desk)
    assert trained[0] is not None and trained[1] is not None
    assert trained[0].weights == trained[1].weights
    card = {"class_names": ["a", "b"], "resize": {"channels": 3, "image_size": 8, "rule": "native"}}
    model = SavedModel("one", trained[0].weights, config, card).build()
    logits = eval_model(model, data.train_images)
    assert trained[0].train_accuracy == loss_and_accuracy(logits, data.train_labels)[1]


def test_two_workers_under_ddp_train_one_model_as_one_process_does(
    hardware: Any, one_process: Any, digit_arrays: dict[str, np.ndarray]
) -> None:
    # Group norm: batch norm sees half the batch on each worker, which is another (valid) model.
    trained, epochs = train([final_model(0)], digit_arrays, Workers(2, 2, {"CPU": 1, "GPU": 0}))
    final = trained["default-seed0"]
    expected = one_process(final_model(0))
    assert epochs == MAX_EPOCHS  # one rank of the group reports
    weights = SavedModel("one", final.weights, final_model(0).config, CARD).build().state_dict()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)
    assert final.history is not None
    for row, other in zip(final.history, expected.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert row["val_loss"] == pytest.approx(other["val_loss"], abs=1e-5)
        assert row["val_accuracy"] == other["val_accuracy"]


def broken() -> FinalModel:
    """One that a worker meets an error with that nobody foresaw."""
    model = final_model(0)
    object.__setattr__(model.config, "batch_size", "32")
    return model


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_breaks_or_takes_its_workers_along_twice_is_failed_and_the_next_one_is_not(
    hardware: Any, digit_arrays: dict[str, np.ndarray], num_ranks: int
) -> None:
    workers = Workers(num_ranks, num_ranks, {"CPU": 1, "GPU": 0})
    trained, epochs = train([broken(), final_model(1)], digit_arrays, workers)
    assert str(trained["default-seed0"].failure).startswith("TypeError: ")
    assert trained["default-seed1"].failure is None and epochs == MAX_EPOCHS
