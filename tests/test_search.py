"""The search on real Ray and a real Optuna journal: how each kind of trial ends up in the study."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import ray
from optuna.trial import TrialState

from cifar_ray import search
from cifar_ray.config import Task, trial_config
from cifar_ray.loop import DeviceData, run_experiment
from cifar_ray.trial import TrialSettings, load_device_data, reset_process

TASK = Task(num_classes=10, channels=1, image_size=8, num_train=320, device="cpu", flips=(False,))
MAX_EPOCHS = 9


def small_config(lr: float, **model: Any) -> dict[str, Any]:
    return {
        "model": {"widths": [8], "blocks": [1], "kernel_sizes": [3], **model},
        "optimizer": {"lr": lr},
        "lr_schedule": {"name": "constant"},
        "batch_size": 64,
    }


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.records: list[dict[str, Any]] = []

    def trial_began(self, number: int) -> None:
        self.rows[number] = []

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        self.rows[number].append(row)

    def trial_ended(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def run_search(
    space_configs: list[dict[str, Any]],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    num_trials: int,
    cpus: int = 2,
    recorder: Recorder | None = None,
) -> tuple[optuna.Study, Recorder]:
    """Search a space that gives these configurations in turn (the last one again and again)."""

    def draw(trial: optuna.Trial, task: Task) -> dict[str, Any]:
        trial.suggest_float("unused", 0, 1)
        return space_configs[min(trial.number, len(space_configs) - 1)]

    study = search.create_study(tmp_path / "study.journal", "random", seed=0)
    recorder = recorder or Recorder()
    space = search.Space("given", draw, lambda task: {"unused": 0.5})
    searcher = search.StudySearcher(study, space, TASK, num_trials, seed=0, watcher=recorder)
    settings = TrialSettings([ray.put(arrays)], 10, MAX_EPOCHS, MAX_EPOCHS, 1)
    search.run_search(searcher, settings, {"CPU": cpus, "GPU": 0}, tmp_path)
    return study, recorder


def reopen(tmp_path: Path) -> optuna.Study:
    """The study as another program sees it."""
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    return optuna.load_study(study_name="cifar_ray", storage=optuna.storages.JournalStorage(backend))


@pytest.fixture(scope="module")
def mixed(hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search, one trial at a time, with a good trial, a hopeless one, one that diverges, and one that cannot run."""
    tmp_path = tmp_path_factory.mktemp("search")
    good, hopeless, diverging = small_config(0.1), small_config(1e-7), small_config(1e30)
    impossible = {**small_config(0.1), "model": {"widths": [2**40], "blocks": [1], "kernel_sizes": [3]}}
    study, recorder = run_search([good, hopeless, diverging, impossible, good], digit_arrays, tmp_path, num_trials=3)
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
    records = list(search.study_records(study))
    assert [record["state"] for record in records] == ["complete", "pruned", "failed", "failed", "complete"]
    assert "non-finite loss in epoch 1" in records[2]["reason"]
    assert records[3]["reason"]  # the allocation is refused: how torch says so differs from platform to platform
    assert [record["number"] for record in recorder.records] == [0, 1, 2, 3, 4]


def test_trials_of_a_search_share_their_process(mixed: Any) -> None:
    _, study, _ = mixed
    startups = [record["seconds"]["startup"] for record in search.study_records(study)]
    assert startups[0] > 0
    assert startups[1] == startups[2] == 0.0


def test_the_seconds_of_a_record_are_not_negative(mixed: Any) -> None:
    _, study, _ = mixed
    for record in search.study_records(study):
        assert min(record["seconds"].values()) >= 0
        assert set(record["seconds"]) == {"startup", "data", "capture", "train", "eval", "wait"}


def stop_as_asha_does(row: dict[str, Any]) -> None:
    raise SystemExit


@ray.remote(num_cpus=1, max_calls=1)
def train_in_a_process(
    before: list[dict[str, Any]], config: dict[str, Any], data: list[Any], seed: int
) -> tuple[list[Any], float]:
    """Run trials one after the other as `train_trial` does, and return the last one's history and weight sum."""
    for number, earlier in enumerate(before):
        reset_process(number, 1)
        with contextlib.suppress(Exception, SystemExit):
            run_experiment(
                trial_config(earlier, "before"),
                load_device_data(data[0], 10),
                seed=number,
                max_epochs=2,
                report=stop_as_asha_does,
            )
    reset_process(seed, 1)
    outcome = run_experiment(trial_config(config, "last"), load_device_data(data[0], 10), seed=seed, max_epochs=3)
    weights = [tensor.double().sum().item() for tensor in outcome.model.state_dict().values()]
    timed = ("train_s", "eval_s")
    return [{name: row[name] for name in row if name not in timed} for row in outcome.history], sum(weights)


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
    record = next(search.study_records(study))
    torch.set_num_threads(1)
    data = DeviceData.from_arrays(digit_arrays, 10, torch.device("cpu"))
    again = run_experiment(
        trial_config(record["config"], "record"), data, seed=search.trial_seed(0, 0), max_epochs=MAX_EPOCHS
    )
    assert [row["val_loss"] for row in again.history] == [row["val_loss"] for row in recorder.rows[0]]


class Killer(Recorder):
    """Kills the first trial's process when it reports."""

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        if not any(self.rows.values()):
            session = psutil.Process().children(recursive=True)
            trials = [process for process in session if "ray::ImplicitFunc" in " ".join(process.cmdline())]
            assert len(trials) == 1
            trials[0].kill()
        super().epoch_ended(number, row)


def test_a_trial_whose_process_is_killed_is_failed_and_replaced(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, _ = run_search([small_config(0.1)], digit_arrays, tmp_path, num_trials=2, recorder=Killer())
    records = list(search.study_records(study))
    assert [record["state"] == "failed" for record in records] == [True, False, False]
    assert records[0]["reason"] == "the trial's process died"


def test_two_slots_run_trials_side_by_side_and_all_are_recorded(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    study, recorder = run_search([small_config(0.1)], digit_arrays, tmp_path, num_trials=6, cpus=1)
    assert sum(record["state"] != "failed" for record in search.study_records(study)) == 6
    assert len(recorder.records) == len(study.trials) == 6


def record(number: int, val: float, loss: float = 1.0, state: str = "complete", lr: float | None = None) -> Any:
    best = {"epoch": 1, "val_metric": val, "val_loss": loss, "val_accuracy": val}
    config = {"lr": number if lr is None else lr}
    return {"number": number, "config": config, "state": state, "best": best}


def test_finalists_are_the_best_by_validation_and_trial_0_beside_them() -> None:
    records = [record(0, 0.5), record(1, 0.9), record(2, 0.8), record(3, 0.7)]
    assert [r["number"] for r in search.finalists(records, 2)] == [1, 2, 0]


def test_trial_0_is_not_listed_twice_when_it_is_among_the_best() -> None:
    assert [r["number"] for r in search.finalists([record(0, 0.9), record(1, 0.8)], 2)] == [0, 1]


def test_equal_configurations_take_one_place_among_the_finalists() -> None:
    records = [record(0, 0.1), record(1, 0.9, lr=1), record(2, 0.8, lr=1), record(3, 0.7)]
    assert [r["number"] for r in search.finalists(records, 2)] == [1, 3, 0]


def test_ties_go_to_the_lower_validation_loss_and_pruned_trials_come_last() -> None:
    records = [record(0, 0.1), record(1, 0.9, 2.0), record(2, 0.9, 1.0), record(3, 0.95, state="pruned")]
    assert [r["number"] for r in search.finalists(records, 3)] == [2, 1, 0]
    assert [r["number"] for r in search.finalists(records, 4)] == [2, 1, 0, 3]
    assert [r["number"] for r in search.finalists([record(0, 0.1, state="failed")], 4)] == []
