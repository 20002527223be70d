"""The sampler that learns what each choice adds."""

import math
import zlib
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from scipy.special import expit, logit

from cifar_ray.config import Task
from cifar_ray.search.additive import NOISE_SD, PRIOR_SD, AdditiveModel, AdditiveSampler
from cifar_ray.search.searcher import count_config_params
from cifar_ray.search.space import Space, load_space

TASK = Task(num_classes=10, channels=1, image_size=8, num_train=200, device="cpu", flips=("none",))
CNN = load_space("cnn")
RANGES: dict[str, Any] = {
    "a": CategoricalDistribution(("x", "y", "z")),
    "b": FloatDistribution(0.0, 1.0),
    "c": FloatDistribution(1e-3, 1e-1, log=True),
}


def test_features_are_differences_from_the_reference() -> None:
    model = AdditiveModel({"a": "x", "b": 0.5, "c": 0.01})
    assert model.features({"a": "x", "b": 0.5, "c": 0.01}, RANGES) == {}
    some = model.features({"a": "y", "b": 1.0, "c": 0.01}, RANGES)
    assert sorted(some.values()) == [1.0, 1.0, 1.0, 1.0]  # any difference, y, b and its square
    other = model.features({"a": "z", "b": 0.5, "c": 0.001}, RANGES)
    assert sorted(other.values()) == pytest.approx([-1.0, 1.0, 1.0, 1.0])
    assert set(some) & set(other) == {0}


def test_a_parameter_that_the_reference_does_not_have_has_a_weight_for_each_choice() -> None:
    model = AdditiveModel({"b": 0.5})
    first, second = (model.features({"a": value, "b": 0.5}, RANGES) for value in ("x", "y"))
    assert set(first) & set(second) == {0} and len(first) == len(second) == 2


def test_weights_are_those_of_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    model = AdditiveModel({"a": "x", "b": 0.5, "c": 0.01})
    rows, outcomes, weights = [], [], rng.uniform(0.3, 1.0, 60)
    for weight in weights:
        params = {"a": rng.choice(["x", "y", "z"]), "b": rng.uniform(), "c": 10 ** rng.uniform(-3, -1)}
        rows.append(model.features(params, RANGES))
        outcomes.append(0.2 * (params["a"] == "y") - 0.1 * (params["b"] - 0.5) + rng.normal(0, 0.06))
        model.add(params, RANGES, outcomes[-1], weight)
    x = np.zeros((60, 7))
    for i, row in enumerate(rows):
        x[i, list(row)] = list(row.values())
    y, w = np.array(outcomes), np.diag(weights)
    precision = x.T @ w @ x / NOISE_SD**2 + np.eye(7) / PRIOR_SD**2
    mean = np.linalg.solve(precision, x.T @ w @ y) / NOISE_SD**2
    assert model.draw_weights(None) == pytest.approx(mean)
    drawn = np.array([model.draw_weights(rng) for _ in range(4000)])
    assert drawn.mean(0) == pytest.approx(mean, abs=0.01)
    assert np.cov(drawn.T) == pytest.approx(np.linalg.inv(precision), abs=0.002)


def search(sampler: optuna.samplers.BaseSampler, num_trials: int, metric: Any, epochs: int = 3) -> optuna.Study:
    """Trials of the space `cnn` whose metrics a function of their parameters gives."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(CNN.default_params(TASK))
    for _ in range(num_trials):
        trial = study.ask()
        CNN.config(trial, TASK)
        final = metric(trial.params)
        for epoch in range(1, epochs + 1):
            trial.report(final - 0.1 * (epochs - epoch), epoch)
        study.tell(trial, final)
    return study


def planted(params: dict[str, Any]) -> float:
    rng = np.random.default_rng(zlib.crc32(str(sorted(params.items())).encode()))
    better = 1.0 * (params["model/activation"] == "mish" if "model/activation" in params else 0)
    better += 0.7 * (params["batch_size"] == 32) - 2.0 * params["model/head_dropout"]
    return float(expit(better + rng.normal(0, 0.15)))


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_was_planted(seed: int) -> None:
    study = search(AdditiveSampler(CNN, TASK, seed), 40, planted)
    best = study.best_trial.params
    assert best["model/activation"] == "mish" and best["batch_size"] == 32 and best["model/head_dropout"] <= 0.1
    late = [trial.params for trial in study.trials[20:]]
    assert sum(params.get("model/activation") == "mish" for params in late) >= 12


def test_trials_that_were_stopped_early_count_against_trial_0_at_the_same_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    monkeypatch.setattr(AdditiveModel, "add", lambda self, params, distributions, outcome, weight: told.append(outcome))
    study = search(AdditiveSampler(CNN, TASK, 0), 1, lambda params: 0.8)
    for metrics in ([0.5], [0.5, 0.75]):  # after one epoch trial 0 had 0.6, after two 0.7
        trial = study.ask()
        CNN.config(trial, TASK)
        for epoch, metric in enumerate(metrics, start=1):
            trial.report(metric, epoch)
        study.tell(trial, state=TrialState.PRUNED)
    CNN.config(study.ask(), TASK)
    assert told == pytest.approx([0.0, logit(0.5) - logit(0.6), logit(0.75) - logit(0.7)], abs=2e-3)


def test_it_finds_its_way_below_a_limit_that_trial_0_is_above() -> None:
    within = {}
    for name, sampler in (("additive", AdditiveSampler(CNN, TASK, 0)), ("random", optuna.samplers.RandomSampler(0))):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(CNN.default_params(TASK))
        within[name] = 0
        for _ in range(40):
            trial = study.ask()
            num_params = count_config_params(CNN.config(trial, TASK), TASK)
            trial.set_constraint("max_params", math.log(num_params / 3000))
            if num_params <= 3000:
                within[name] += 1
                trial.report(0.5, 1)
                study.tell(trial, 0.5)
            else:
                study.tell(trial, state=TrialState.PRUNED)
    assert within["additive"] >= 20 > 3 * within["random"]


def test_perfect_and_hopeless_trials_and_one_that_failed_do_no_harm() -> None:
    study = search(AdditiveSampler(CNN, TASK, 0), 3, lambda params: 1.0)
    for metric in (0.0, 1.0):
        trial = study.ask()
        trial.report(metric, 1)
        study.tell(trial, state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    CNN.config(study.ask(), TASK)


def test_it_draws_while_trial_0_runs_and_for_a_space_without_a_default() -> None:
    study = optuna.create_study(sampler=AdditiveSampler(CNN, TASK, 0))
    study.enqueue_trial(CNN.default_params(TASK))
    CNN.config(study.ask(), TASK)
    CNN.config(study.ask(), TASK)

    def draw(trial: Any, task: Task) -> dict[str, Any]:
        return {"family": "cnn", "model": {"dropout": trial.suggest_float("model/dropout", 0.0, 0.5)}}

    own = Space("own", draw)
    study = optuna.create_study(sampler=AdditiveSampler(own, TASK, 0))
    for _ in range(3):
        trial = study.ask()
        own.config(trial, TASK)
        trial.report(0.5, 1)
        study.tell(trial, 1.0)


def test_the_same_seed_draws_the_same_trials() -> None:
    first, second = (
        search(AdditiveSampler(CNN, TASK, 7), 8, lambda params: params["batch_size"] / 1000) for _ in range(2)
    )
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]
