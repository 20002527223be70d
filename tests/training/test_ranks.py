"""The training loop in two processes (DDP): what they find together is what one process finds."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.modules import VIEW_NETWORK
from helpers.resnets import random_weights, resnet_config, small_data
from helpers.tiny import SMOOTH, TINY, imbalanced_data, recorded_batches, schedule, tiny_config, without_times
from torch import Tensor, nn

from cifar_ray.config import AugmentConfig, OptimizerConfig, TrialConfig
from cifar_ray.models.classifier import build_model
from cifar_ray.training.loop import Experiment, NonFiniteLossError, Ranks, eval_model, run_experiment
from cifar_ray.training.metrics import loss_and_accuracy, ranking_metric

pytestmark = pytest.mark.xdist_group("ranks")

PARALLEL = tiny_config(
    model=SMOOTH, lr_schedule=schedule("cosine"), optimizer=OptimizerConfig(lr=0.02), label_smoothing=0.1
)
AUGMENTED = tiny_config(
    model=replace(TINY, dropout=0.2), augment=AugmentConfig(crop_padding=1, flip="random", cutout=2)
)
WEIGHTED = replace(PARALLEL, class_weights="balanced")
EVERYTHING = replace(
    AUGMENTED,
    model=replace(TINY, norm="evonorm_b0", head_hidden=4),
    optimizer=OptimizerConfig(name="muon", lr=0.02),
    class_weights="balanced",
)
MIXED = replace(WEIGHTED, augment=AugmentConfig(policy="trivialaugment", color_jitter=0.2, mix="cutmix"))
OWN = replace(PARALLEL, family="module", model=VIEW_NETWORK)  # of which a part is not used
CONFIGS = {
    "plain": PARALLEL, "weighted": WEIGHTED, "augmented": AUGMENTED, "everything": EVERYTHING, "mixed": MIXED,
    "own": OWN,
}  # fmt: skip
RESNETS = {
    "frozen norm": resnet_config(freeze_norm_statistics=True, lr=0.01, backbone_lr=1.0),
    "gradual": resnet_config(freeze_norm_statistics=True, lr=0.01, backbone_lr=1.0, finetune="gradual"),
    "head": resnet_config(finetune="head"),
}
METRICS = {"augmented": "f1", "everything": "auc"}
COUNTS = (1, 2, 7, 1013)
DIVERGING = tiny_config(model=replace(TINY, norm="none"), optimizer=OptimizerConfig(lr=1e30))


def numbered_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)


def fresh_model(config: TrialConfig = PARALLEL) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, num_classes=2, channels=1, image_size=8)


def train_as_rank(rank: int, folder: str) -> None:
    """What one of the two processes does; the test process reads the file that it leaves."""
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = folder
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    data = imbalanced_data()
    found: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        metric = METRICS.get(name, "accuracy")
        outcome = run_experiment(Experiment(config, seed=3, max_epochs=3, metric=metric), data, ranks=ranks)
        found[name] = {"weights": outcome.model.state_dict(), "history": outcome.history, "best": outcome.best}
    for name, config in RESNETS.items():
        outcome = run_experiment(
            Experiment(config, seed=3, max_epochs=3), small_data(), pretrained=random_weights(), ranks=ranks
        )
        found[name] = {"weights": outcome.model.state_dict(), "history": outcome.history, "best": outcome.best}
    found["random state"] = torch.initial_seed()
    found["batches"] = recorded_batches(21, 8, torch.arange(21), ranks)
    for count in COUNTS:
        found[f"logits {count}"] = eval_model(fresh_model(), numbered_images(count), ranks)
    try:
        run_experiment(Experiment(DIVERGING, seed=3, max_epochs=3), data, ranks=ranks)
    except NonFiniteLossError as error:
        found["error"] = str(error)
    torch.save(found, os.path.join(folder, f"rank{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def found_by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found together; started once, since they take longer to start than to train."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_as_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "weighted", "own"])
def test_two_ranks_train_the_same_model_as_one_process(found_by_rank: list[dict[str, Any]], name: str) -> None:
    alone = run_experiment(Experiment(CONFIGS[name], seed=3, max_epochs=3), imbalanced_data())
    weights = alone.model.state_dict()
    start = fresh_model(CONFIGS[name]).state_dict()
    last = "network.out.weight" if name == "own" else "network.classifier.weight"
    assert not torch.allclose(weights[last], start[last], atol=1e-2)
    for found in found_by_rank:
        together = found[name]
        for key, tensor in weights.items():
            torch.testing.assert_close(together["weights"][key], tensor, rtol=0, atol=1e-5, msg=key)
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


@pytest.mark.parametrize("name", RESNETS)
def test_two_ranks_fine_tune_the_same_resnet_as_one_process(
    found_by_rank: list[dict[str, Any]], name: str, own_cache: None
) -> None:
    pretrained = random_weights()
    alone = run_experiment(Experiment(RESNETS[name], seed=3, max_epochs=3), small_data(), pretrained=pretrained)
    weights = alone.model.state_dict()
    changed = [key for key, array in pretrained.items() if (weights[f"network.backbone.{key}"].numpy() != array).any()]
    assert bool(changed) == (name != "head")
    for found in found_by_rank:
        for key, tensor in weights.items():
            torch.testing.assert_close(found[name]["weights"][key], tensor, rtol=0, atol=1e-4, msg=key)
        for row, expected in zip(found[name]["history"], alone.history, strict=True):
            for key in ("train_loss", "val_loss", "lr", "grad_norm_max"):
                assert row[key] == pytest.approx(expected[key], rel=1e-3), key


@pytest.mark.parametrize("name", [*CONFIGS, *RESNETS])
def test_both_ranks_end_with_the_same_model_and_history(found_by_rank: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name] for found in found_by_rank)
    different = [key for key in first["weights"] if not torch.equal(first["weights"][key], second["weights"][key])]
    assert not different
    own = ("grad_norm_max", "features")  # equal up to the order of a sum, and to the time that it took
    for row, other in zip(without_times(first["history"]), without_times(second["history"]), strict=True):
        assert {k: v for k, v in row.items() if k not in own} == {k: v for k, v in other.items() if k not in own}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_two_ranks_scores_what_its_best_row_says(found_by_rank: list[dict[str, Any]], name: str) -> None:
    # Batch norm gathers its statistics on every rank for itself, and only the first rank's model is saved.
    found = found_by_rank[0][name]
    data = imbalanced_data()
    model = build_model(CONFIGS[name], num_classes=2, channels=1, image_size=8)
    model.load_state_dict(found["weights"])
    logits = eval_model(model, data.val_images)
    loss, accuracy = loss_and_accuracy(logits, data.val_labels)
    metric = ranking_metric(METRICS.get(name, "accuracy"), logits, data.val_labels)
    assert metric == pytest.approx(found["best"]["val_metric"], abs=1e-6)
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
