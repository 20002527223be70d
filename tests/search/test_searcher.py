"""The search on real Ray and a real Optuna journal: how each kind of trial ends up in the study."""

import contextlib
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from helpers.searches import MAX_EPOCHS, TASK, Recorder, reopen, run_search, small_config
from helpers.tiny import without_times
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from cifar_ray.config import trial_config
from cifar_ray.distributed.process import PROCESS
from cifar_ray.distributed.rank import REPORT_EVERY_S
from cifar_ray.distributed.workers import Pool
from cifar_ray.results.ranking import finalists
from cifar_ray.results.records import TRIAL_SECONDS, slot_seconds
from cifar_ray.search import asha
from cifar_ray.search.asha import rungs
from cifar_ray.search.progress import MAX_INFEASIBLE, Progress, TimeLimit
from cifar_ray.search.samplers import sampler_of
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.space import load_space
from cifar_ray.search.study import RECORD, SpaceStudy, open_study, study_records
from cifar_ray.search.trial import ROWS
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, run_experiment
from cifar_ray.training.seeds import derived_seed


@pytest.fixture(scope="module")
def mixed(hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search, one trial at a time, with a good trial, a hopeless one, one that diverges, and one that cannot run."""
    tmp_path = tmp_path_factory.mktemp("search")
    good, hopeless, diverging = small_config(0.1), small_config(1e-7), small_config(1e30)
    impossible = {**small_config(0.1), "model": {"widths": [2**40], "blocks": [1], "kernel_sizes": [3]}}
    better = small_config(0.3, widths=[32])
    began = time.time()
    study, recorder = run_search([good, hopeless, diverging, impossible, better], digit_arrays, tmp_path, num_trials=3)
    recorder.search_s = time.time() - began
    return tmp_path, study, recorder


def test_each_kind_of_ending_reaches_the_study_under_its_own_state(mixed: Any) -> None:
    tmp_path, _, _ = mixed
    states = [trial.state for trial in reopen(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]


def test_a_complete_trial_is_told_with_its_best_value_and_every_intermediate_one(mixed: Any) -> None:
    tmp_path, _, recorder = mixed
    trial = reopen(tmp_path).trials[0]
    assert list(trial.intermediate_values) == list(range(1, MAX_EPOCHS + 1))
    assert trial.value == max(row["val_metric"] for row in recorder.rows[0])
    assert list(trial.intermediate_values.values()) == [row["best_val_metric"] for row in recorder.rows[0]]


def test_a_pruned_trial_keeps_the_value_it_was_stopped_at(mixed: Any) -> None:
    tmp_path, _, recorder = mixed
    trial = reopen(tmp_path).trials[1]
    assert len(trial.intermediate_values) == len(recorder.rows[1]) < MAX_EPOCHS
    assert trial.intermediate_values[len(recorder.rows[1])] == recorder.rows[1][-1]["best_val_metric"]


def test_failures_are_recorded_with_their_reason_and_replaced(mixed: Any) -> None:
    _, study, recorder = mixed
    records = list(study_records(study))
    assert [record["state"] for record in records] == ["complete", "pruned", "failed", "failed", "complete"]
    assert "non-finite loss in epoch 1" in records[2]["reason"]
    assert records[3]["reason"]  # the allocation is refused: how torch says so differs from platform to platform
    assert [record["number"] for record in recorder.records] == [0, 1, 2, 3, 4]


def test_trials_of_a_search_share_their_process(mixed: Any) -> None:
    _, study, _ = mixed
    startups = [record["seconds"]["startup"] for record in study_records(study)]
    assert startups[0] > 0
    assert startups[1] == startups[2] == 0.0


def test_the_seconds_of_a_record_are_not_negative(mixed: Any) -> None:
    _, study, _ = mixed
    for record in study_records(study):
        assert min(record["seconds"].values()) >= 0
        assert list(record["seconds"]) == list(TRIAL_SECONDS)


def test_no_second_of_the_slot_is_counted_twice(mixed: Any) -> None:
    _, study, recorder = mixed
    records = list(study_records(study))
    counted = sum(sum(record["seconds"].values()) - record["seconds"]["startup"] for record in records)
    assert 0 < counted < recorder.search_s  # of one slot
    spent = slot_seconds([record["seconds"] for record in records], recorder.search_s)
    assert sum(spent.values()) == pytest.approx(recorder.search_s) and min(spent.values()) >= 0
    trained = [record for record in study_records(study) if record["state"] != "failed"]
    for record in trained:
        for kind in ("data", "setup", "train", "eval", "scheduler"):
            assert record["seconds"][kind] > 0 or (kind == "scheduler" and record["state"] == "pruned")
        assert record["seconds"]["train"] == sum(row["train_s"] for row in recorder.rows[record["number"]])


def stops(scheduler: Any, values: list[float]) -> list[int]:
    """Epochs after which ASHA would stop a new trial that has these values, one an epoch, and goes on all the same."""
    trial = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    results = [{"epoch": epoch, "best_val_metric": value} for epoch, value in enumerate(values, start=1)]
    return [one["epoch"] for one in results if scheduler.on_trial_result(None, trial, one) == TrialScheduler.STOP]


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 27, 30, 46, 50, 90, 91, 100, 200])
def test_rungs_are_where_asha_decides(max_epochs: int, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.journal", "given", RandomSampler, seed=0)
    good = study.ask()
    for epoch in range(1, max_epochs + 1):
        good.report(0.9, epoch)
    study.tell(good, 0.9)
    stopped = stops(asha.make_asha(max_epochs, study), [0.1] * max_epochs)
    # At the horizon itself every trial ends, whether ASHA has a rung there or not.
    assert stopped == sorted({*rungs(max_epochs), max_epochs})


def test_short_epochs_are_reported_together_and_all_of_them_are_on_record(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    numbers: list[list[int]] = []

    class Noting(StudySearcher):
        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if result[ROWS]:  # not of the report before a trial begins
                numbers.append([row["epoch"] for row in result[ROWS]])
            super().on_trial_result(trial_id, result)

    study, recorder = run_search([small_config(0.1)], digit_arrays, tmp_path, 1, kind=Noting)
    [record] = study_records(study)
    assert record["epochs"] == MAX_EPOCHS
    assert [row["epoch"] for row in recorder.rows[0]] == list(range(1, MAX_EPOCHS + 1))
    assert list(study.trials[0].intermediate_values) == list(range(1, MAX_EPOCHS + 1))
    at_rungs = {epochs[-1] for epochs in numbers}
    assert {*rungs(MAX_EPOCHS), MAX_EPOCHS} <= at_rungs
    if sum(record["seconds"].values()) - record["seconds"]["startup"] < REPORT_EVERY_S:  # not on a machine held up
        assert at_rungs == {*rungs(MAX_EPOCHS), MAX_EPOCHS}


def stop_as_asha_does(row: dict[str, Any]) -> None:
    raise SystemExit


@ray.remote(num_cpus=1, max_calls=1)
def train_in_a_process(
    before: list[dict[str, Any]], config: dict[str, Any], data: list[Any], seed: int
) -> tuple[list[Any], float]:
    """Run trials one after the other as a worker does, and return the last one's history and weight sum."""
    for number, earlier in enumerate(before):
        PROCESS.reset(number, 1)
        with contextlib.suppress(Exception, SystemExit):
            run_experiment(
                Experiment(trial_config(earlier, "before"), seed=number, max_epochs=2),
                PROCESS.load_data(data[0], 10, torch.device("cpu")),
                report=stop_as_asha_does,
            )
    PROCESS.reset(seed, 1)
    outcome = run_experiment(
        Experiment(trial_config(config, "last"), seed=seed, max_epochs=3),
        PROCESS.load_data(data[0], 10, torch.device("cpu")),
    )
    weights = [tensor.double().sum().item() for tensor in outcome.model.state_dict().values()]
    return without_times(outcome.history), sum(weights)


def test_a_trial_in_a_reused_process_equals_the_same_in_a_fresh_one_bit_for_bit(
    hardware: Any, digit_arrays: dict[str, np.ndarray]
) -> None:
    data = [ray.put(digit_arrays)]
    last = {**small_config(0.1, dropout=0.2), "augment": {"crop_padding": 1, "cutout": 2}}
    out_of_memory = {**small_config(0.1), "model": {"widths": [2**40], "blocks": [1], "kernel_sizes": [3]}}
    before = [small_config(0.1, dropout=0.5), small_config(1e30), out_of_memory]
    fresh, reused = ray.get([train_in_a_process.remote(earlier, last, data, 7) for earlier in ([], before)])
    assert fresh == reused


def test_a_recorded_trial_repeats_from_its_config_and_seed(mixed: Any, digit_arrays: dict[str, np.ndarray]) -> None:
    import torch

    _, study, recorder = mixed
    record = next(study_records(study))
    torch.set_num_threads(1)
    data = DeviceData.from_arrays(digit_arrays, 10, torch.device("cpu"))
    again = run_experiment(
        Experiment(trial_config(record["config"], "record"), seed=derived_seed(0, 0), max_epochs=MAX_EPOCHS), data
    )
    assert [row["val_loss"] for row in again.history] == [row["val_loss"] for row in recorder.rows[0]]


class Killer(Recorder):
    """Kills the one process that calls itself so when the first trial reports."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        if not any(self.rows.values()):
            session = psutil.Process().children(recursive=True)
            (process,) = (process for process in session if self.title in " ".join(process.cmdline()))
            process.kill()
        super().epoch_ended(number, row)


def test_a_trial_whose_process_is_killed_is_failed_and_replaced(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, _ = run_search(
        [small_config(0.1)], digit_arrays, tmp_path, num_trials=2, recorder=Killer("ray::ImplicitFunc")
    )
    records = list(study_records(study))
    assert [record["state"] == "failed" for record in records] == [True, False, False]
    assert records[0]["reason"] == "the trial's process died"


def test_a_trial_whose_worker_is_killed_is_trained_again_and_tells_nothing_twice(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    recorder = Killer("ray::_Process")
    study, _ = run_search([small_config(0.1)], digit_arrays, tmp_path, num_trials=2, recorder=recorder)
    assert all(record["state"] != "failed" for record in study_records(study)) and len(study.trials) == 2
    assert [row["epoch"] for row in recorder.rows[0]] == list(range(1, MAX_EPOCHS + 1))


def test_two_slots_run_trials_side_by_side_and_all_are_recorded(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, recorder = run_search([small_config(0.1)], digit_arrays, tmp_path, num_trials=6, cpus=1)
    assert sum(record["state"] != "failed" for record in study_records(study)) == 6
    assert len(recorder.records) == len(study.trials) == 6
    # Both slots got a trial at once, although trials are shorter than a process's start.
    assert recorder.events.index(("began", 1)) < min(recorder.events.index(("ended", number)) for number in (0, 1))
    startups = [record["seconds"]["startup"] for record in study_records(study)]
    # On a busy machine one of them may come up when the other has done all.
    assert 1 <= sum(startup > 0 for startup in startups) <= 2, "each worker is used again"


def test_a_configuration_over_the_limit_is_infeasible_without_training_and_the_sampler_is_told_how_far_it_is_off(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    small, large = small_config(0.1), small_config(0.1, widths=[64])
    study, recorder = run_search([large, small, large, small], digit_arrays, tmp_path, 2, max_params=300)
    records = list(study_records(study))
    assert [r["state"] == "infeasible" for r in records] == [True, False, True, False]
    assert [r["num_params"] > 300 for r in records] == [True, False, True, False]
    assert records[0]["reason"] == "more than --max-params 300" and records[0]["epochs"] == 0
    assert recorder.rows[0] == []
    trials = reopen(tmp_path).trials
    assert trials[0].state is trials[2].state is TrialState.PRUNED
    assert [trial.constraints["max_params"] > 0 for trial in trials] == [True, False, True, False]
    assert {r["num_params"] for r in finalists(records, 3)} == {records[1]["num_params"]}


def test_a_search_gives_up_where_nothing_is_within_the_limit(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, _ = run_search([small_config(0.1)], digit_arrays, tmp_path, 1, max_params=1)
    assert {record["state"] for record in study_records(study)} == {"infeasible"}
    assert len(study.trials) == MAX_INFEASIBLE + 1


def test_a_search_whose_time_is_up_ends_its_trials_when_they_report(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    recorder = Recorder()

    # (In units that what is kept in reserve, of real seconds, does not count beside.)
    time_limit = TimeLimit(lambda records: 1000 * (MAX_EPOCHS + 3), now_s=lambda: 1000 * recorder.num_epochs)
    study, _ = run_search([small_config(0.1)], digit_arrays, tmp_path, 1000, recorder=recorder, time_limit=time_limit)
    records = list(study_records(study))
    stopped = [record for record in records if record["reason"] == "stopped by --time-budget"]
    assert {record["state"] for record in stopped} == {"pruned"}
    # One goes on to its next rung (from epoch 2 to 6).
    assert MAX_EPOCHS + 3 <= recorder.num_epochs <= MAX_EPOCHS + 2 + 4
    assert records[0]["state"] == "complete" and len(reopen(tmp_path).trials) == len(records)


class Impatient(Recorder):
    """Presses Ctrl-C when the first trial has reported."""

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        super().epoch_ended(number, row)
        if row["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_a_search_and_what_was_running_is_run_again(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_search([small_config(0.1)], digit_arrays, tmp_path, 3, recorder=Impatient())
    assert reopen(tmp_path).trials[0].state is TrialState.RUNNING
    before = signal.getsignal(signal.SIGINT)
    study, recorder = run_search([small_config(0.1)], digit_arrays, tmp_path, 2)
    assert sorted(recorder.rows) == [0, 1] and len(list(study_records(study))) == 2
    assert signal.getsignal(signal.SIGINT) is before  # what follows a search is interrupted as it was before


def test_a_killed_search_goes_on_with_what_was_running_under_its_number_and_parameters(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, _ = run_search([small_config(0.1)], digit_arrays, tmp_path, 2)
    running = study.ask()  # as at the moment of a kill: one is under way, one has ended and was not told yet
    value = running.suggest_float("unused", 0, 1)
    running.report(0.25, 1)
    ended = study.ask()
    ended.suggest_float("unused", 0, 1)
    ended.report(0.5, 1)
    ended.set_user_attr(RECORD, {**next(study_records(study)), "number": 3, "state": "pruned"})
    before = [trial.params for trial in reopen(tmp_path).trials]

    study, recorder = run_search([small_config(0.1)], digit_arrays, tmp_path, 5)
    records = list(study_records(study))
    assert [record["number"] for record in records] == [0, 1, 2, 3, 4]
    assert sorted(recorder.rows) == [2, 4]  # the finished ones are not run again
    trials = reopen(tmp_path).trials
    assert [trial.params for trial in trials[:4]] == before and trials[2].params == {"unused": value}
    assert trials[3].state is TrialState.PRUNED
    assert trials[2].intermediate_values[1] == 0.25  # what it had reported before stays


@pytest.mark.parametrize("sampler", ["tpe", "mutation"])
def test_what_is_fixed_is_in_every_trial_of_a_search_and_in_no_parameter_of_its_study(
    tmp_path: Path, sampler: str
) -> None:
    space = replace(load_space("cnn"), fixed={"model/dropout": "0.35", "optimizer/name": "adamw", "tta": "flip"})
    make_sampler = sampler_of(sampler, space, TASK)
    study, recorder = open_study(tmp_path / "study.journal", "cnn", make_sampler, seed=0), Recorder()
    searcher = StudySearcher(SpaceStudy(space, study), TASK, 0, Progress([], 5), Pool(None, 5), recorder)
    configs = []
    for name in "abcde":
        drawn = searcher.suggest(name)
        assert isinstance(drawn, dict)
        configs.append(trial_config(drawn["config"], name))
    assert configs[0] == space.default_config(TASK)
    assert {(c.model.dropout, c.optimizer.name, c.tta) for c in configs} == {(0.35, "adamw", "flip")}
    assert all(one not in configs[:index] for index, one in enumerate(configs))
    for trial in reopen(tmp_path, "cnn").trials:
        assert {"model/dropout", "optimizer/name", "tta"}.isdisjoint(trial.params)
        assert {"optimizer/adamw_lr", "model/norm"} <= trial.params.keys()


def test_asha_remembers_the_trials_of_an_earlier_session(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.journal", "given", RandomSampler, seed=0)
    for value in (0.9, 0.8, 0.7):
        trial = study.ask()
        for epoch in range(1, MAX_EPOCHS + 1):
            trial.report(value, epoch)
        study.tell(trial, value)
    assert stops(asha.make_asha(MAX_EPOCHS, study), [0.6, 0.6]) == [2]
    fresh = asha.make_asha(MAX_EPOCHS, open_study(tmp_path / "other.journal", "given", RandomSampler, seed=0))
    assert stops(fresh, [0.6, 0.6]) == []
