"""How long a run takes, against sums by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cifar_ray.config import InputError
from cifar_ray.estimate import (
    EVALUATION_START_S,
    FINALS_START_S,
    MARGIN,
    MOST_TIMING_S,
    NUM_TIMED_IMAGES,
    Speed,
    Workload,
)
from cifar_ray.progress import duration
from cifar_ray.settings import TuneSettings
from cifar_ray.tune_run import Clock, check_time_budget, estimate, shares

WORK = Workload(num_train=1000, num_val=200, num_test=500, max_epochs=10, seeds=3, slots=2)
FAST, SLOW = Speed(train=1000.0, val=2000.0, test=2000.0), Speed(train=100.0, val=1000.0, test=1000.0)
HEAD = Speed(train=10_000.0, val=20_000.0, test=100.0, feature_views=3)


def test_an_epoch_trains_and_validates() -> None:
    assert WORK.epoch_s(FAST) == pytest.approx(1.1)
    assert WORK.epoch_s(SLOW) == pytest.approx(10.2)


def test_final_training_is_shared_by_the_slots_but_the_longest_one_may_come_last() -> None:
    assert WORK.finals_s([]) == 0.0
    # Ten epochs each, and the train accuracy: 1000 images, at the speed of validation.
    fast, slow = 11 + 0.5, 102 + 1
    assert WORK.finals_s([FAST]) == pytest.approx(FINALS_START_S + 3 * fast / 2 + fast / 2)
    assert WORK.finals_s([FAST, SLOW]) == pytest.approx(FINALS_START_S + 3 * (fast + slow) / 2 + slow / 2)


def test_the_train_accuracy_of_a_head_takes_no_pass_of_the_backbone() -> None:
    without = replace(HEAD, feature_views=0)
    assert WORK.finals_s([without]) == WORK.finals_s([replace(without, test=1.0)])


def test_the_evaluation_scores_every_seed_and_times_every_configuration() -> None:
    expected = EVALUATION_START_S + 3 * 500 / 1000 / 2 + NUM_TIMED_IMAGES / 1000
    assert WORK.evaluation_s([SLOW]) == pytest.approx(expected)
    assert WORK.after_search_s([SLOW]) == pytest.approx(MARGIN * (WORK.finals_s([SLOW]) + expected))


def test_a_search_with_more_trials_takes_longer() -> None:
    assert WORK.search_s(20, FAST) - WORK.search_s(10, FAST) == pytest.approx(10 * 0.5 * 10 * 1.1 / 2)


def test_a_head_waits_for_its_features_once() -> None:
    assert WORK.features_s(FAST) == 0.0
    assert WORK.features_s(HEAD) == pytest.approx((3 * 1000 + 200) / 100)
    assert WORK.search_s(20, HEAD) - WORK.search_s(10, HEAD) == pytest.approx(10 * 0.5 * 10 * 0.11 / 2)
    without = replace(HEAD, feature_views=0)
    for after in (WORK.finals_s, lambda speeds: WORK.search_s(5, speeds[0])):
        assert after([HEAD]) - after([without]) == pytest.approx(32)
    assert WORK.evaluation_s([HEAD]) == WORK.evaluation_s([without]) > WORK.evaluation_s([FAST]) + 3 * 500 / 100 / 2


def test_the_timing_of_a_slow_model_is_cut_short() -> None:
    slow = replace(SLOW, test=10.0)
    assert WORK.evaluation_s([slow]) == pytest.approx(EVALUATION_START_S + 3 * 500 / 10 / 2 + MOST_TIMING_S)


def test_a_run_of_several_spaces_takes_the_time_of_each_of_them() -> None:
    assert shares(11, 3) == [4, 4, 3]
    settings = TuneSettings(trials=20, finalists=2)
    finals = [SLOW, SLOW, FAST, SLOW]  # finalists as slow as the slowest, and both defaults
    whole = WORK.search_s(10, FAST) + WORK.search_s(10, SLOW) + WORK.finals_s(finals) + WORK.evaluation_s(finals)
    text = estimate(settings, WORK, [FAST, SLOW])
    assert text.startswith(f"estimate    {duration(whole)} in all")
    assert "recipes (1000 and 100 images/s" in text


def test_a_run_of_hours_is_met_with_a_smaller_command() -> None:
    work = Workload(num_train=200, num_val=597, num_test=1000, max_epochs=30, seeds=3, slots=2)
    text = estimate(TuneSettings(data="digits"), work, [Speed(train=1.0, val=4.0, test=4.0)]).splitlines()
    assert " h " in text[0]
    assert "--train-size 797 --trials 30 --max-epochs 8 would take" in text[2]
    assert len(estimate(TuneSettings(data="digits"), work, [Speed(train=1e4, val=4e4, test=4e4)]).splitlines()) == 2


def record(number: int, epochs: int, train_s: float, eval_s: float, features: Any = None) -> dict[str, Any]:
    best = {"val_metric": number / 10, "val_loss": 1.0}
    seconds = {"train": train_s, "eval": eval_s}
    name = "default" if number == 0 else f"trial-{number:04d}"
    known = {"number": number, "name": name, "space": "cnn", "config": {"lr": number}, "state": "complete"}
    return {**known, "best": best, "epochs": epochs, "seconds": seconds, "features": features}


def run_that_took(total: float) -> Any:
    return SimpleNamespace(phases=SimpleNamespace(total=total))


def test_a_search_leaves_time_for_the_finals_of_the_configurations_that_it_has_found() -> None:
    settings = TuneSettings(time_budget=1000.0, finalists=2)
    clock = Clock(settings, run_that_took(100.0), WORK, [FAST])
    epoch = max(WORK.epoch_s(FAST), WORK.epoch_s(SLOW))
    nothing_known = 1000 - 100 - WORK.after_search_s([FAST] * 3) - WORK.epoch_s(FAST)
    assert clock.left_s([]) == pytest.approx(nothing_known)
    # The default and two others, one of which is as slow as SLOW: 10 s and 0.2 s an epoch.
    records = [record(0, 10, 10.0, 1.0), record(1, 10, 10.0, 1.0), record(2, 5, 50.0, 1.0)]
    assert clock.left_s(records) == pytest.approx(1000 - 100 - WORK.after_search_s([SLOW, FAST, FAST]) - epoch)
    assert not clock.out_of_time([], 1)(records)
    late = Clock(settings, run_that_took(1000.0 - WORK.after_search_s([SLOW, FAST, FAST])), WORK, [FAST])
    assert late.out_of_time([], 1)(records)


def test_what_follows_a_head_takes_the_time_of_its_whole_model_but_has_its_features() -> None:
    clock = Clock(TuneSettings(time_budget=1000.0, finalists=1), run_that_took(0.0), WORK, [FAST])
    records = [record(0, 10, 1.0, 0.1, features={"views": 3, "images_per_s": 100.0, "seconds": 30.0})]
    speed = replace(HEAD, feature_views=0)
    expected = 1000 - WORK.after_search_s([speed, FAST]) - max(WORK.epoch_s(speed), WORK.epoch_s(FAST))
    assert clock.left_s(records) == pytest.approx(expected)


def test_each_of_several_spaces_has_an_equal_share_of_the_time() -> None:
    run = run_that_took(0.0)
    clock = Clock(TuneSettings(time_budget=1000.0), run, WORK, [FAST])
    left = clock.left_s([])
    out_of_time = clock.out_of_time([], 2)
    run.phases.total = 0.49 * left
    assert not out_of_time([])
    run.phases.total = 0.51 * left
    assert out_of_time([])
    assert not clock.out_of_time([], 1)([])  # the last one has what is left


def test_without_a_budget_the_time_is_never_up() -> None:
    clock = Clock(TuneSettings(), run_that_took(1e9), WORK, [FAST])
    assert not clock.out_of_time([], 2)([])


def test_a_budget_that_what_follows_the_search_needs_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"--time-budget: 1 min 00 s is too short: .* take about 16 min .*; give more"):
        check_time_budget(TuneSettings(time_budget=60.0), run_that_took(10.0), WORK, [SLOW])
    check_time_budget(TuneSettings(time_budget=36000.0), run_that_took(10.0), WORK, [SLOW])
