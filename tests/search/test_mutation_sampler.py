"""The sampler that changes the best trial so far."""

import math
import zlib
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.special import expit

from cifar_ray.config import Task
from cifar_ray.errors import InputError
from cifar_ray.search.mutation import NUM_UNIFORM, MutationSampler
from cifar_ray.search.searcher import count_config_params
from cifar_ray.search.space import Space, load_space

TASK = Task(num_classes=10, channels=1, image_size=8, num_train=200, device="cpu", flips=("none",))
CNN = load_space("cnn")


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
    study = search(MutationSampler(CNN, TASK, seed), 100, planted)
    best = study.best_trial.params
    assert best["model/activation"] == "mish" and best["batch_size"] == 32 and best["model/head_dropout"] <= 0.1


def test_it_finds_its_way_below_a_limit_that_trial_0_is_above() -> None:
    within = {}
    for name, sampler in (("mutation", MutationSampler(CNN, TASK, 0)), ("random", optuna.samplers.RandomSampler(0))):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(CNN.default_params(TASK))
        within[name] = 0
        for _ in range(60):
            trial = study.ask()
            num_params = count_config_params(CNN.config(trial, TASK), TASK)
            trial.set_constraint("max_params", math.log(num_params / 3000))
            if num_params <= 3000:
                within[name] += 1
                trial.report(0.5, 1)
                study.tell(trial, 0.5)
            else:
                study.tell(trial, state=TrialState.PRUNED)
    assert within["mutation"] >= 12 > 2 * within["random"]


def test_it_changes_the_best_trial_and_tries_nothing_twice() -> None:
    study = search(MutationSampler(CNN, TASK, 1), 60, planted)
    trials = study.trials
    num_changed = []
    for index, trial in enumerate(trials[1:], start=1):
        best = max(trials[:index], key=lambda one: one.value or 0.0)
        shared = trial.params.keys() & best.params.keys()
        num_changed.append(sum(trial.params[name] != best.params[name] for name in shared))
    assert 20 <= num_changed.count(1) <= 45 and max(num_changed) >= 3
    assert all(trial.params not in [one.params for one in trials[:index]] for index, trial in enumerate(trials))


def test_a_trial_that_was_stopped_or_failed_is_not_changed() -> None:
    study = search(MutationSampler(CNN, TASK, 0), 1, lambda params: 0.5)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        CNN.config(trial, TASK)
        trial.report(1.0, 1)
        study.tell(trial, state=state)
    sampler = MutationSampler(CNN, TASK, 0)
    assert sampler._to_change(study.trials) == study.trials[0]


def test_it_changes_the_default_recipe_while_that_runs() -> None:
    study = optuna.create_study(sampler=MutationSampler(CNN, TASK, 0))
    study.enqueue_trial(CNN.default_params(TASK))
    for _ in range(3):
        CNN.config(study.ask(), TASK)
    first, *others = (trial.params for trial in study.trials)
    assert all(0 < sum(first[name] != params.get(name) for name in first) < 8 for params in others)


def test_a_space_without_a_default_recipe_is_looked_over_first() -> None:
    def draw(trial: Any, task: Task) -> dict[str, Any]:
        rate = trial.suggest_float("model/dropout", 0.0, 0.5)
        sizes = [trial.suggest_int(f"size{i}", 1, 1000) for i in range(6)]
        return {"family": "cnn", "model": {"dropout": rate + 0 * sum(sizes)}}

    own = Space("own", draw)
    study = optuna.create_study(direction="maximize", sampler=MutationSampler(own, TASK, 0))
    for _ in range(2 * NUM_UNIFORM):
        trial = study.ask()
        own.config(trial, TASK)
        study.tell(trial, trial.params["model/dropout"])
    best = study.trials[:NUM_UNIFORM]
    likeness = [max(len(trial.params.items() & one.params.items()) for one in study.trials[: trial.number]) for trial in
                study.trials[1:]]  # fmt: skip
    assert max(likeness[: NUM_UNIFORM - 1]) <= 1 and min(likeness[NUM_UNIFORM - 1 :]) >= 1
    assert sum(like >= 5 for like in likeness) >= 6 and study.best_value >= max(one.value or 0.0 for one in best)


def test_a_space_that_allows_nothing_is_told() -> None:
    def draw(trial: Any, task: Task) -> dict[str, Any]:
        trial.suggest_int("model/width", 1, 9)
        raise InputError("no")

    own = Space("own", draw)
    study = optuna.create_study(sampler=MutationSampler(own, TASK, 0))
    with pytest.raises(InputError, match="own: none of 1000 draws gave a configuration"):
        own.config(study.ask(), TASK)


def test_the_same_seed_draws_the_same_trials() -> None:
    first, second = (
        search(MutationSampler(CNN, TASK, 7), 8, lambda params: params["batch_size"] / 1000) for _ in range(2)
    )
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]
