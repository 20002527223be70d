"""Configurations like one that is known."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_ray.config import Task
from cifar_ray.search.mutation import Candidate, draw, draw_value, mutate
from cifar_ray.search.space import Space, load_space

TASK = Task(num_classes=10, channels=1, image_size=8, num_train=200, device="cpu", flips=("none",))
CNN = load_space("cnn")


def default() -> Candidate:
    return draw(CNN, TASK, np.random.default_rng(0), CNN.default_params(TASK), ())


def test_a_configuration_that_nothing_is_changed_of_is_the_same() -> None:
    assert default().params == CNN.default_params(TASK)
    assert default().config == CNN.default_config(TASK)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_anew_changes_and_all_else_stays_but_for_what_comes_with_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anew = {"optimizer/name", "model/width", "augment/crop_padding"}
    changed = draw(CNN, TASK, rng, default().params, anew)
    for name, value in changed.params.items():
        if name in anew:
            assert value != default().params[name]
        elif name in default().params:
            assert value == default().params[name]
        else:
            assert name.startswith(f"optimizer/{changed.params['optimizer/name']}_")
    assert not any(name.startswith("optimizer/sgd_") for name in changed.params)


def test_an_optuna_study_takes_what_was_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = draw(CNN, TASK, rng, {}, ())
        optuna.trial.create_trial(params=one.params, distributions=one.distributions, value=0.0)
        study = optuna.create_study()
        study.enqueue_trial(one.params)
        assert CNN.config(study.ask(), TASK) == one.config


def test_what_can_have_no_other_value_is_not_chosen() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = mutate(CNN, TASK, rng, default(), num_changes=1)
        differing = {name for name, value in default().params.items() if changed.params.get(name, value) != value}
        gone = default().params.keys() - changed.params.keys()
        assert differing or gone, "flips of digits are always `none`: to draw them anew is no change"


def test_a_value_outside_of_its_new_range_is_drawn_anew() -> None:
    def space(trial: Any, task: Task) -> dict[str, Any]:
        wide = trial.suggest_categorical("wide", [False, True])
        padding = trial.suggest_int("padding", 0, 9 if wide else 2)
        return {"family": "cnn", "model": {}, "augment": {"crop_padding": padding}}

    of_space = Space("own", space)
    for seed in range(20):
        changed = draw(of_space, TASK, np.random.default_rng(seed), {"wide": True, "padding": 7}, {"wide"})
        assert changed.params["wide"] is False and 0 <= changed.params["padding"] <= 2


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (CategoricalDistribution((False, "a", 3)), {False, "a", 3}),
        (IntDistribution(1, 3), {1, 2, 3}),
        (IntDistribution(0, 6, step=3), {0, 3, 6}),
        (FloatDistribution(0.0, 0.2, step=0.1), {0.0, 0.1, 0.2}),
        (IntDistribution(1, 2, log=True), {1, 2}),
    ],
)
def test_every_value_of_a_range_is_drawn_and_no_other(distribution: Any, expected: set[Any]) -> None:
    rng = np.random.default_rng(0)
    drawn = {draw_value(distribution, rng) for _ in range(200)}
    assert drawn == expected and {type(one) for one in drawn} == {type(one) for one in expected}


def test_a_logarithmic_range_is_drawn_from_in_its_logarithm() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_value(FloatDistribution(1e-4, 1.0, log=True), rng) for _ in range(2000)]
    assert all(1e-4 <= value <= 1.0 for value in drawn)
    assert math.log10(np.median(drawn)) == pytest.approx(-2, abs=0.2)
