"""How long a run takes, against sums by hand."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
from optuna.trial import TrialState

from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import Task
from cifar_ray.distributed.rank import REPORT_EVERY_S
from cifar_ray.distributed.speed import Speed
from cifar_ray.distributed.workers import Pool
from cifar_ray.driver.estimate import (
    EVALUATION_START_S,
    FINALS_START_S,
    MARGIN,
    Clock,
    Workload,
    check_time_budget,
    estimate,
    shares,
)
from cifar_ray.errors import InputError
from cifar_ray.evaluation.latency import MAX_TIMING_S, NUM_TIMED_IMAGES
from cifar_ray.results.ranking import finalists
from cifar_ray.search.asha import rungs
from cifar_ray.search.progress import Progress, TimeLimit
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.space import Space
from cifar_ray.search.study import SpaceStudy
from cifar_ray.search.trial import ROWS
from cifar_ray.search.tuner import Stopper
from cifar_ray.text import duration

WORK = Workload(num_train=1000, num_val=200, num_test=500, max_epochs=10, seeds=3, slots=2, num_on_corrupted=1)
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


SCORED = 1000 + 200 + 500
"""Images of all splits that every seed is scored on."""

CORRUPTED = 500 * 25
"""Test images as they are, and under eight corruptions in three severities."""


def test_the_evaluation_scores_every_seed_and_times_every_configuration() -> None:
    # The slowest is timed twice.
    expected = EVALUATION_START_S + (3 * SCORED + CORRUPTED) / 1000 / 2 + 2 * NUM_TIMED_IMAGES / 1000
    assert WORK.evaluation_s([SLOW]) == pytest.approx(expected)
    assert WORK.after_search_s([SLOW]) == pytest.approx(MARGIN * (WORK.finals_s([SLOW]) + expected))
    fast = 3 * SCORED / 2000 / 2 + NUM_TIMED_IMAGES / 2000
    assert WORK.evaluation_s([FAST, SLOW]) == pytest.approx(expected + fast)  # the slowest under corruptions
    assert replace(WORK, num_on_corrupted=2).evaluation_s([FAST, SLOW]) == pytest.approx(
        expected + fast + CORRUPTED / 2000 / 2
    )


def test_of_many_images_some_are_scored() -> None:
    more = replace(WORK, num_train=5000, num_test=2000)
    much_more = replace(more, num_train=9000)
    assert more.evaluation_s([SLOW]) == much_more.evaluation_s([SLOW])
    more_s = (3 * (4000 + 1500) + 500 * 25) / 1000 / 2  # of test 1,000 are corrupted
    assert more.evaluation_s([SLOW]) - WORK.evaluation_s([SLOW]) == pytest.approx(more_s)


def test_a_search_with_more_trials_takes_longer() -> None:
    assert WORK.search_s(20, FAST) - WORK.search_s(10, FAST) == pytest.approx(10 * 0.5 * 10 * 1.1 / 2)


def test_a_head_waits_for_its_features_once() -> None:
    assert WORK.features_s(FAST) == 0.0
    assert WORK.features_s(HEAD) == pytest.approx((3 * 1000 + 200) / 100)
    assert WORK.search_s(20, HEAD) - WORK.search_s(10, HEAD) == pytest.approx(10 * 0.5 * 10 * 0.11 / 2)
    without = replace(HEAD, feature_views=0)
    for after in (WORK.finals_s, lambda speeds: WORK.search_s(5, speeds[0])):
        assert after([HEAD]) - after([without]) == pytest.approx(32)
    assert WORK.evaluation_s([HEAD]) == WORK.evaluation_s([without]) > WORK.evaluation_s([FAST]) + 3 * SCORED / 100 / 2


def test_the_timing_of_a_slow_model_is_cut_short() -> None:
    slow = replace(SLOW, test=10.0)
    assert WORK.evaluation_s([slow]) == pytest.approx(
        EVALUATION_START_S + (3 * SCORED + CORRUPTED) / 10 / 2 + 2 * MAX_TIMING_S
    )


def test_a_run_of_several_spaces_takes_the_time_of_each_of_them() -> None:
    assert shares(11, 3) == [4, 4, 3]
    settings = TuneSettings(trials=20, finalists=2)
    finals = [SLOW, SLOW, FAST, SLOW]  # finalists as slow as the slowest, and both defaults
    whole = WORK.search_s(10, FAST) + WORK.search_s(10, SLOW) + WORK.finals_s(finals) + WORK.evaluation_s(finals)
    text = estimate(settings, WORK, [FAST, SLOW])
    assert text.startswith(f"estimate    {duration(whole)} in all")
    assert "recipes (1000 and 100 images/s" in text


def test_a_run_of_hours_is_met_with_a_smaller_command() -> None:
    work = Workload(num_train=200, num_val=597, num_test=1000, max_epochs=30, seeds=3, slots=2, num_on_corrupted=1)
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


@dataclass
class SimulatedPhases:
    """The clock of a run that is in its search, after so many seconds of start-up."""

    startup: float
    current: float = 0.0

    @property
    def total(self) -> float:
        return self.startup + self.current


def run_that_took(startup: float, settings: TuneSettings) -> Any:
    return SimpleNamespace(phases=SimulatedPhases(startup), settings=settings)


def test_a_search_leaves_time_for_the_finals_of_the_configurations_that_it_has_found() -> None:
    settings = TuneSettings(time_budget=1000.0, finalists=2)
    clock = Clock(run_that_took(100.0, settings), WORK, [FAST])
    assert clock.epoch_s == WORK.epoch_s(FAST)
    assert clock.search_end([], 1)([]) == pytest.approx(1000 - 100 - WORK.after_search_s([FAST] * 3))
    # The default and two others, one of which is as slow as SLOW: 10 s and 0.2 s an epoch.
    records = [record(0, 10, 10.0, 1.0), record(1, 10, 10.0, 1.0), record(2, 5, 50.0, 1.0)]
    assert clock.search_end([], 1)(records) == pytest.approx(1000 - 100 - WORK.after_search_s([SLOW, FAST, FAST]))
    clock.run.phases.current = 50.0
    assert clock.search_end([], 1)(records) == pytest.approx(1000 - 100 - WORK.after_search_s([SLOW, FAST, FAST]))


def test_what_follows_a_head_takes_the_time_of_its_whole_model_but_has_its_features() -> None:
    clock = Clock(run_that_took(0.0, TuneSettings(time_budget=1000.0, finalists=1)), WORK, [FAST])
    records = [record(0, 10, 1.0, 0.1, features={"views": 3, "images_per_s": 100.0, "seconds": 30.0})]
    expected = WORK.after_search_s([replace(HEAD, feature_views=0), FAST])
    assert clock.search_end([], 1)(records) == pytest.approx(1000 - expected)


def test_each_of_several_spaces_has_an_equal_share_of_the_time() -> None:
    run = run_that_took(0.0, TuneSettings(time_budget=1000.0))
    clock = Clock(run, WORK, [FAST])
    whole = clock.search_end([], 1)([])
    assert clock.search_end([], 2)([]) == pytest.approx(whole / 2)
    run.phases.current = whole / 4  # the first one needed less: the others share the rest
    assert clock.search_end([], 2)([]) == pytest.approx(whole / 4 + 3 / 4 * whole / 2)
    assert clock.search_end([], 1)([]) == pytest.approx(whole)  # the last one has what is left


def test_without_a_budget_the_time_is_never_up() -> None:
    clock = Clock(run_that_took(1e9, TuneSettings()), WORK, [FAST])
    assert clock.search_end([], 2)([]) == math.inf


class SimulatedSearch:
    """A search under a time budget as Tune runs it, in simulated seconds.

    Args:
        budget: in seconds.
        seed: of how fast and how good the trials are.
        spread: of the logarithm of their speeds; the default recipe is as fast as `FAST`.
    """

    def __init__(self, budget: float, seed: int, spread: float) -> None:
        self.rng = random.Random(seed)
        self.spread = spread
        self.settings = TuneSettings(time_budget=budget, finalists=2)
        run = run_that_took(10.0, self.settings)
        self.phases = run.phases
        self.clock = Clock(run, WORK, [FAST])
        check_time_budget(run, WORK, [FAST])
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
        time_limit = TimeLimit(self.clock.search_end([], 1), self.clock.epoch_s, now_s=lambda: self.phases.current)
        self.progress = Progress([], 1000, time_limit)
        space = Space("given", lambda trial, task: {"batch_size": trial.suggest_int("batch_size", 8, 512)})
        task = Task(10, 1, 8, WORK.num_train, "cpu")
        pool = Pool(None, WORK.slots)
        self.searcher = StudySearcher(SpaceStudy(space, study), task, seed, self.progress, pool, Mock())
        self.stopper = Stopper(self.progress)
        self.up_at: float | None = None
        """When the time was up, and something was there to train."""
        self.begun_at: list[float] = []
        self.slowest_epoch_s = 0.0

    def trial(self, number: int) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        """What a trial reports, with the seconds that each report took."""
        yield 0.01, []
        factor = 1.0 if number == 0 else math.exp(self.rng.gauss(0.0, self.spread))
        fails_after = self.rng.randrange(WORK.max_epochs) if self.rng.random() < 0.1 else None
        train_s, eval_s = factor * WORK.num_train / FAST.train, factor * WORK.num_val / FAST.val
        self.slowest_epoch_s = max(self.slowest_epoch_s, train_s + eval_s)
        rows: list[dict[str, Any]] = []
        best = unsent = 0.0
        for epoch in range(1, WORK.max_epochs + 1):
            seconds = {"train": epoch * train_s, "eval": epoch * eval_s}
            if epoch - 1 == fails_after:
                yield unsent + train_s, [*rows, {"failure": "non-finite loss", "seconds": seconds}]
                return
            value = self.rng.random()
            best, unsent = max(best, value), unsent + train_s + eval_s
            known = {"epoch": epoch, "val_metric": value, "best_val_metric": best, "val_loss": 1.0, "seconds": seconds}
            rows.append({**known, "val_accuracy": value, "finished": epoch == WORK.max_epochs})
            if epoch in (WORK.max_epochs, *rungs(WORK.max_epochs)) or unsent >= REPORT_EVERY_S:
                yield unsent, rows
                rows, unsent = [], 0.0

    def run(self) -> None:
        drawn: list[tuple[str, Any]] = []
        running: dict[str, tuple[Any, float, list[dict[str, Any]]]] = {}
        free_at = [5.0, 5.5]  # when the processes are up
        searching, ids = True, itertools.count()
        while searching or drawn or running:
            while searching and len(drawn) < WORK.slots and (config := self.searcher.suggest(name := str(next(ids)))):
                if searching := config != StudySearcher.FINISHED:
                    drawn.append((name, config))
            while drawn and free_at and min(free_at) <= self.phases.current:
                free_at.remove(min(free_at))
                name, config = drawn.pop(0)
                reports = self.trial(config["number"])
                seconds, rows = next(reports)
                running[name] = reports, self.phases.current + seconds, rows
            events = [at for _, at, _ in running.values()] + [at for at in free_at if drawn]
            self.phases.current = max(self.phases.current, min(events))
            if self.up_at is None and self.progress.out_of_time and self.progress.finished:
                self.up_at = self.phases.current
            for name, (reports, at, rows) in list(running.items()):
                if at > self.phases.current:
                    continue
                asha = rows and rows[-1].get("epoch") in rungs(WORK.max_epochs) and self.rng.random() < 0.6
                following = None if self.stopper(name, {ROWS: rows}) or asha else next(reports, None)
                if following:
                    self.begun_at += [] if rows else [at]
                    self.searcher.on_trial_result(name, {ROWS: rows})
                    running[name] = reports, at + following[0], following[1]
                else:
                    self.searcher.on_trial_complete(name, {ROWS: rows})
                    del running[name]
                    free_at.append(at)

    @property
    def finals(self) -> list[Speed]:
        return [self.clock._speed(record) for record in finalists(self.progress.records, self.settings.finalists)]


BUDGETS = [160.0 + number / 4 for number in range(200)]


@pytest.fixture
def models_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_ray.search.searcher.count_config_params", lambda config, task: 1000)


@pytest.mark.usefixtures("models_are_not_built")
def test_a_search_under_any_budget_ends_in_time_and_leaves_models_to_train() -> None:
    for seed, budget in enumerate(BUDGETS):
        search = SimulatedSearch(budget, seed, spread=1.0)
        search.run()
        assert search.progress.finished and not search.stopper.stop_all(), seed
        assert search.finals, seed
        # What is under way goes on until it reports; nothing else is begun.
        assert search.up_at is not None and max(search.begun_at) <= search.up_at, seed
        late_s = search.phases.current - search.up_at
        assert late_s <= max(search.slowest_epoch_s + REPORT_EVERY_S, 2 * search.slowest_epoch_s) + 0.5, seed
        waiting = [trial for trial in search.searcher.study.trials if trial.state is TrialState.WAITING]
        assert all(not trial.intermediate_values for trial in waiting), seed
        assert len(search.searcher.study.trials) == len(search.progress.records) + len(waiting), seed


@pytest.mark.usefixtures("models_are_not_built")
def test_a_run_whose_models_are_as_fast_as_its_default_keeps_within_any_budget() -> None:
    for seed, budget in enumerate(BUDGETS[::4]):
        search = SimulatedSearch(budget, seed, spread=0.0)
        search.run()
        whole_s = search.phases.total + WORK.finals_s(search.finals) + WORK.evaluation_s(search.finals)
        assert whole_s <= budget, seed


def searcher_with(end_s: float, epoch_s: float, now: list[float]) -> tuple[StudySearcher, Stopper]:
    """A searcher that has to end at `end_s`, and has drawn the trials `a` and `b`; and what stops them."""
    study = optuna.create_study(direction="maximize")
    progress = Progress([], 10, TimeLimit(lambda records: end_s, epoch_s, now_s=lambda: now[0]))
    space = Space("given", lambda trial, task: {"batch_size": trial.suggest_int("batch_size", 8, 512)})
    task = Task(10, 1, 8, 1000, "cpu")
    searcher = StudySearcher(SpaceStudy(space, study), task, 0, progress, Pool(None, 2), Mock())
    for name in "ab":
        assert isinstance(searcher.suggest(name), dict)
    return searcher, Stopper(progress)


def epoch(train_s: float) -> dict[str, Any]:
    known = {"epoch": 1, "val_metric": 0.5, "best_val_metric": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    return {ROWS: [{**known, "finished": False, "seconds": {"train": train_s, "eval": 0.0}}]}


def test_two_epochs_at_the_slowest_speed_are_kept_in_reserve() -> None:
    now = [93.9]
    searcher, _ = searcher_with(end_s=100.0, epoch_s=3.0, now=now)
    assert not searcher.progress.out_of_time
    searcher.on_trial_result("a", epoch(train_s=10.0))
    now[0] = 79.9
    assert not searcher.progress.out_of_time
    now[0] = 80.1
    assert searcher.progress.out_of_time
    now[0] = 0.0
    assert searcher.progress.out_of_time  # for good


def test_however_late_it_is_something_is_trained_but_what_was_drawn_ahead_waits() -> None:
    searcher, stopper = searcher_with(end_s=100.0, epoch_s=0.0, now=[200.0])
    assert searcher.progress.out_of_time and not searcher.progress.finished
    assert not stopper("a", {ROWS: []})  # it begins
    assert stopper("a", epoch(1.0))
    searcher.on_trial_complete("a", epoch(1.0))
    assert searcher.progress.finished and searcher.suggest("c") == StudySearcher.FINISHED
    assert stopper("b", {ROWS: []})
    searcher.on_trial_complete("b", {ROWS: []})
    assert [record["reason"] for record in searcher.progress.records] == ["stopped by --time-budget"]
    assert [trial.state for trial in searcher.study.trials] == [TrialState.PRUNED, TrialState.WAITING]


def test_a_budget_that_what_follows_the_search_needs_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"--time-budget: 1 min 00 s is too short: .* take about 16 min .*; give more"):
        check_time_budget(run_that_took(10.0, TuneSettings(time_budget=60.0)), WORK, [SLOW])
    check_time_budget(run_that_took(10.0, TuneSettings(time_budget=36000.0)), WORK, [SLOW])
