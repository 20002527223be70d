"""Scoring and timing in real processes of Ray's."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from sklearn.metrics import log_loss, roc_auc_score

from cifar_ray.config import Precision, TrialConfig
from cifar_ray.data.decode import Images, take_images
from cifar_ray.data.splits import load_data
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.processes import Processes
from cifar_ray.evaluation import latency, scorers
from cifar_ray.evaluation.latency import NUM_ROUNDS, NUM_WARMUP, Timer
from cifar_ray.evaluation.scorers import node_for_timing, score_model, score_models, time_alone
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.models.saved import SavedModel, pack_weights
from cifar_ray.training.loop import eval_model

WORKERS = Workers(2, 1, {"CPU": 1, "GPU": 0})
CARD = {"class_names": list("0123456789"), "resize": {"channels": 1, "image_size": 8, "rule": "native"}}


@pytest.fixture(scope="module")
def test_split() -> Any:
    return load_data("digits").test


@pytest.fixture(scope="module")
def models() -> dict[str, SavedModel]:
    """Three untrained models."""
    made = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model = build_model(TrialConfig(), num_classes=10, channels=1, image_size=8)
        model.normalize.mean.fill_(80.0)
        model.normalize.std.fill_(80.0)
        made[f"m{seed}"] = SavedModel(f"m{seed}", pack_weights(model), TrialConfig(), CARD)
    return made


def test_scores_are_scikit_learns_of_the_models_probabilities(
    hardware: Any, models: dict[str, SavedModel], test_split: Any
) -> None:
    seen: list[str] = []
    splits = {"test": test_split, "val": take_images(test_split, np.arange(100))}
    with Processes(WORKERS) as processes:
        scores, corrupted, seconds = score_models(processes, models, splits, [], test_split, seen.append)
    assert corrupted == [] and seconds["scoring"] > 0 and seconds["corruptions"] == 0
    assert list(scores) == list(models)
    assert sorted(seen) == [f"model {name}" for name in models]
    for name, of_splits in scores.items():
        assert list(of_splits) == ["test", "val"]
        score = of_splits["test"]
        with torch.inference_mode():
            logits = models[name].build(torch.device("cpu"))(torch.tensor(test_split.images))
        expected = logits.softmax(1).numpy()
        np.testing.assert_allclose(score.probabilities, expected, atol=1e-6)
        quality = score.quality
        assert quality["accuracy"] == pytest.approx((expected.argmax(1) == test_split.labels).mean())
        assert quality["log_loss"] == pytest.approx(log_loss(test_split.labels, expected), rel=1e-4)
        assert quality["auc_macro_ovr"] == pytest.approx(
            roc_auc_score(test_split.labels, score.probabilities, multi_class="ovr", average="macro"), abs=1e-6
        )
        assert [row["class"] for row in score.classes] == list(range(10))
        assert of_splits["val"].quality["n"] == 100
        np.testing.assert_allclose(of_splits["val"].probabilities, score.probabilities[:100], atol=1e-6)


def test_each_model_is_timed_alone_on_the_whole_node(
    hardware: Any, models: dict[str, SavedModel], test_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {name: models[name] for name in ("m1", "m0")}
    free: list[float] = []

    @contextlib.contextmanager
    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        with held(*args, **options) as found:
            time.sleep(1)  # by then Ray tells that the other process has ended
            free.append(ray.available_resources().get("CPU", 0.0))
            yield found

    held = scorers._held
    monkeypatch.setattr(scorers, "_held", watched)
    with Processes(WORKERS) as processes:
        ids = processes.call_all(os.getpid)
        timed = time_alone(processes, both, test_split)
        assert processes.workers.num_workers == 2
        left = ray.get(processes.call(0, os.getpid))
        assert left in ids  # it has imported all already
    assert free == [0.0], "while it times nothing else is given a CPU"
    assert list(timed) == ["m1", "m0"]
    for name, of_model in timed.items():
        assert [one.batch_size for one in of_model] == [1, 256]
        assert all(0 < one.n <= n for one, n in zip(of_model, (200, 20), strict=True))  # fewer where they are slow
        for one in of_model:
            assert one.threads == hardware.num_cpus
            assert 0 < one.round_ms_low <= one.latency_ms_p50 <= min(one.round_ms_high, one.latency_ms_p95)
            assert one.images_per_s == pytest.approx(one.batch_size / one.latency_ms_p50 * 1e3)
            assert (one.again_ms_p50 is not None) == (name == "m1")


def test_timing_waits_until_no_other_run_is_on_the_node(
    hardware: Any, models: dict[str, SavedModel], test_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "REST_S", 0.1)
    other = ray.remote(num_cpus=1)(lambda: time.sleep(5)).remote()
    with Processes(Workers(1, 1, {"CPU": 1, "GPU": 0})) as processes:
        (timed,) = time_alone(processes, {"m0": models["m0"]}, test_split).values()
    ray.get(other, timeout=0)  # it has ended
    assert [one.threads for one in timed] == [hardware.num_cpus] * 2


@pytest.mark.parametrize(
    ("gpus_per_trial", "drivers_node", "chosen"),
    [(0, "small", "small"), (0, "head", "large"), (1, "small", "gpu"), (1, "gpu", "gpu"), (0, "gpu", "gpu")],
)
def test_models_are_timed_on_the_drivers_node_where_a_trial_fits_on_it(
    hardware: Any, monkeypatch: pytest.MonkeyPatch, gpus_per_trial: int, drivers_node: str, chosen: str
) -> None:
    nodes = {"head": {}, "small": {"CPU": 2.0}, "large": {"CPU": 16.0}, "gpu": {"CPU": 8.0, "GPU": 1.0}}
    entries = [{"NodeID": name, "Alive": True, "Resources": resources} for name, resources in nodes.items()]
    entries.append({"NodeID": "dead", "Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}})
    monkeypatch.setattr(ray, "nodes", lambda: entries)
    monkeypatch.setattr(type(ray.get_runtime_context()), "get_node_id", lambda self: drivers_node)
    assert node_for_timing({"CPU": 1, "GPU": gpus_per_trial})["NodeID"] == chosen


def test_the_timing_of_a_slow_model_is_cut_short_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(np.zeros((4, 1, 8, 8), np.uint8), torch.device("cpu"))
    calls: list[int] = []

    class Network:
        tta = "flip"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return images

    network: Any = Network()
    each = 20 // NUM_ROUNDS
    assert len(timer._time_round(network, 2, 256, first=True)) == each
    assert calls == [2] * (NUM_WARMUP + each)
    del calls[:]
    assert len(timer._time_round(network, 2, 256, first=False)) == each
    assert calls == [2] * (1 + each)
    del calls[:]
    monkeypatch.setattr(latency, "MAX_TIMED_S", 0.0)
    monkeypatch.setattr(latency, "MAX_WARMUP_S", 1e-9)
    assert len(timer._time_round(network, 2, 256, first=True)) == 1
    assert calls == [2, 2]


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(np.zeros((4, 1, 8, 8), np.uint8), torch.device("cpu"))
    monkeypatch.setattr(latency, "BATCHES_TIMED", {1: 10})
    monkeypatch.setattr(latency, "NUM_WARMUP", 1)
    calls: list[str] = []

    def saved(name: str) -> Any:
        def build(device: torch.device) -> Any:
            network = build_model(TrialConfig(), num_classes=10, channels=1, image_size=8).eval()
            network.register_forward_hook(lambda *args: calls.append(name))
            return network

        return SimpleNamespace(build=build)

    timed = timer.time({"a": saved("a"), "b": saved("b")})
    assert calls == (["a"] * 3 + ["b"] * 3 + ["a"] * 3) * NUM_ROUNDS  # the first one is timed as if it were two
    assert timed["a"][0].again_ms_p50 and timed["b"][0].again_ms_p50 is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_are_scored_and_timed_in_the_precision_of_their_training_and_in_fp32(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr("cifar_ray.models.saved.has_bf16", lambda device: True)
    monkeypatch.setattr(latency, "BATCHES_TIMED", {1: 1, 20: 1})
    config = TrialConfig(precision=precision)
    weights = pack_weights(build_model(config, num_classes=10, channels=1, image_size=8))
    saved = SavedModel("m", weights, config, CARD)
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    splits = {"test": Images(images, np.arange(20) % 10), "val": Images(images, np.arange(20) % 10)}
    inputs = torch.tensor(images).contiguous(memory_format=torch.channels_last)
    both: tuple[Precision, Precision] = ("fp32", "bf16")
    logits = {one: eval_model(replace(saved, config=replace(config, precision=one)).build(), inputs) for one in both}
    assert not torch.equal(logits["fp32"], logits["bf16"])

    scores = score_model(saved, splits, torch.device("cpu"))
    assert [scores[name].precision for name in ("test", "val")] == [precision] * 2
    np.testing.assert_array_equal(scores["test"].probabilities, logits[precision].softmax(1).numpy())
    in_fp32 = (logits["fp32"].argmax(1).numpy() == np.arange(20) % 10).mean()
    assert scores["test"].accuracy_fp32 == (None if precision == "fp32" else pytest.approx(in_fp32))
    assert scores["val"].accuracy_fp32 is None

    computed: list[str] = []
    build = SavedModel.build

    def watched(self: SavedModel, device: torch.device) -> Classifier:
        network = build(self, device)
        network.register_forward_hook(lambda network, *args: computed.append(network.precision))
        return network

    monkeypatch.setattr(SavedModel, "build", watched)
    timed = Timer(images, torch.device("cpu")).time({"m": saved})["m"]
    assert [one.precision for one in timed] == [precision] * 2 + ["fp32"] * 2 * (precision != "fp32")
    assert [one.batch_size for one in timed] == [1, 20] * (len(timed) // 2)
    assert [one.again_ms_p50 is not None for one in timed] == [True, True, False, False][: len(timed)]
    assert set(computed) == {precision, "fp32"}


def test_a_model_that_was_trained_in_bf16_computes_in_fp32_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig(precision="bf16")
    saved = SavedModel("m", pack_weights(build_model(config, num_classes=10, channels=1, image_size=8)), config, CARD)
    for there, computed in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("cifar_ray.models.saved.has_bf16", lambda device, there=there: there)
        assert saved.build().precision == computed
