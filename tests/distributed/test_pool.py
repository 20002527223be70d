"""Searches whose trials are trained by groups of workers, on real Ray: what they leave behind, and what kills them."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import ray
from helpers import launcher
from helpers.searches import TASK, Recorder, small_config
from helpers.tiny import without_times
from optuna.samplers import RandomSampler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_ray.data.splits import load_data
from cifar_ray.distributed import workers
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.jobs import Message, Trained
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel, open_pool, train_models, unpack_history
from cifar_ray.files import read_json
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.records import CHECKPOINT, RunFolder, read_csv, read_trials
from cifar_ray.search import tuner
from cifar_ray.search.progress import Progress
from cifar_ray.search.searcher import StudySearcher, TrialCheckpoint
from cifar_ray.search.space import Space
from cifar_ray.search.study import SpaceStudy, open_study, study_records

MAX_EPOCHS = 9
SOON_S = 10.0
GOOD, HOPELESS, DIVERGING = small_config(0.1), small_config(1e-7), small_config(1e30)


class Watcher(Recorder):
    """A recorder that does something once, at the second epoch of the first trial."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.act = act
        self.checkpoints: dict[int, list[bytes]] = {}

    def epoch_ended(self, number: int, row: dict[str, Any]) -> None:
        super().epoch_ended(number, row)
        if number == 0 and row["epoch"] == 2:
            self.act()

    def checkpointed(self, number: int, packed: bytes) -> None:
        self.checkpoints.setdefault(number, []).append(packed)


def run_search(
    configs: list[dict[str, Any]],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    num_trials: int,
    watcher: Watcher,
    checkpoints: dict[int, TrialCheckpoint] | None = None,
) -> list[dict[str, Any]]:
    """Search with one group of two workers, one configuration after another; return the records."""

    def draw(trial: optuna.Trial, task: Any) -> dict[str, Any]:
        trial.suggest_float("unused", 0, 1)
        return configs[min(trial.number, len(configs) - 1)]

    study = open_study(tmp_path / "study.journal", "given", RandomSampler, seed=0)
    space = Space("given", draw, lambda task: {"unused": 0.5})
    settings = TrialSettings([ray.put(arrays)], 10, MAX_EPOCHS, MAX_EPOCHS, "accuracy", 1)
    workers = Workers(2, 2, {"CPU": 1, "GPU": 0})
    try:
        with Processes(workers) as processes, open_pool(settings, processes, tmp_path, judged=True) as pool:
            progress = Progress([], num_trials)
            searcher = StudySearcher(
                SpaceStudy(space, study), TASK, 0, progress, pool, watcher, checkpoints=checkpoints or {}
            )
            tuner.run_search(searcher, MAX_EPOCHS, tmp_path)
    finally:
        records = list(study_records(study))
    return records


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def num_placement_groups() -> int:
    table = ray.util.placement_group_table()
    return sum(entry["state"] != "REMOVED" for entry in table.values())


def wait_for_all_cpus() -> float:
    """Return the seconds until all CPUs of the session are free."""
    began = time.monotonic()
    while free_cpus() < 2:
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    return time.monotonic() - began


def processes(title: str) -> list[psutil.Process]:
    """Processes of this test's Ray session that call themselves so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_a_worker() -> None:
    workers = processes("ray::RayTrainWorker")
    assert len(workers) == 2
    workers[1].kill()


def test_trials_that_are_stopped_early_leave_nothing_behind(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    wait_for_all_cpus()
    watcher = Watcher()
    records = run_search([GOOD, HOPELESS, HOPELESS, DIVERGING, HOPELESS], digit_arrays, tmp_path, 4, watcher)
    assert wait_for_all_cpus() < SOON_S
    assert num_placement_groups() == 0
    assert [record["state"] for record in records] == ["complete", "pruned", "pruned", "failed", "pruned"]
    assert "non-finite loss in epoch 1" in records[3]["reason"]
    assert [row["epoch"] for row in watcher.rows[0]] == list(range(1, MAX_EPOCHS + 1))
    for record in records:
        assert min(record["seconds"].values()) >= 0
        if record["state"] != "failed":
            assert record["seconds"]["train"] == pytest.approx(
                sum(row["train_s"] for row in watcher.rows[record["number"]])
            )
    assert sum(record["seconds"]["startup"] > 0 for record in records) == 1  # they share a process


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_run_again(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    watcher = Watcher(kill_a_worker)
    records = run_search([GOOD, HOPELESS], digit_arrays, tmp_path, 2, watcher)
    assert [record["state"] for record in records] == ["complete", "pruned"]
    assert [row["epoch"] for row in watcher.rows[0]] == list(range(1, MAX_EPOCHS + 1))


@pytest.mark.slow
def test_when_the_workers_are_given_up_the_search_ends_and_says_why(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MAX_RESTARTS", 0)
    watcher = Watcher(kill_a_worker)
    with pytest.raises(ray.train.TrainingFailedError):
        run_search([GOOD], digit_arrays, tmp_path, 5, watcher)
    (record,) = watcher.records
    assert record["state"] == "failed" and record["reason"].startswith("the workers were given up: ")


@pytest.mark.slow
def test_a_trial_whose_own_process_is_killed_is_replaced_and_its_workers_go_on(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def kill_the_trial() -> None:
        (process,) = processes("ray::ImplicitFunc")
        process.kill()

    records = run_search([GOOD], digit_arrays, tmp_path, 1, Watcher(kill_the_trial))
    assert records[0]["reason"] == "the trial's process died"
    assert [record["state"] in ("complete", "pruned") for record in records] == [False, True]


@pytest.mark.slow
def test_a_trial_goes_on_from_its_checkpoint_as_if_it_had_never_ended(
    hardware: Any, digit_arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHECKPOINT_EVERY_S", 0.0)
    whole = Watcher()
    (tmp_path / "whole").mkdir()
    (expected,) = run_search([GOOD], digit_arrays, tmp_path / "whole", 1, whole)
    assert len(whole.checkpoints[0]) == MAX_EPOCHS - 1
    packed = whole.checkpoints[0][3]
    rows = unpack_history(packed)
    assert rows is not None and [row["epoch"] for row in rows] == [1, 2, 3, 4]
    rest = Watcher()
    (tmp_path / "rest").mkdir()
    checkpoint = TrialCheckpoint(packed, rows)
    (record,) = run_search([GOOD], digit_arrays, tmp_path / "rest", 1, rest, checkpoints={0: checkpoint})
    first, second = (without_times([{**row, "seconds": {}} for row in watcher.rows[0]]) for watcher in (whole, rest))
    assert first == second
    assert {**record, "seconds": 0, "ended_s": 0} == {**expected, "seconds": 0, "ended_s": 0}
    assert record["seconds"]["train"] == pytest.approx(sum(row["train_s"] for row in rest.rows[0]))


def test_a_checkpoint_that_is_damaged_is_told_from_a_whole_one() -> None:
    assert unpack_history(b"") is None
    assert unpack_history(b"PK\x03\x04" + bytes(100)) is None


# ---- the commands, with two workers for each model ----

ALWAYS = "from cifar_ray.distributed import workers; workers.CHECKPOINT_EVERY_S = 0.0"
"""A checkpoint is written after every epoch."""


def start(folder: Path, *flags: str) -> "subprocess.Popen[str]":
    return launcher.start("tune", *flags, folder=folder, before=ALWAYS, start_new_session=True)


def kill_when(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> str:
    """Kill a command and return what it had printed."""
    launcher.wait_for(process, condition)
    process.kill()
    return process.communicate()[0]


@pytest.mark.slow
def test_a_run_killed_in_its_search_and_in_its_finals_goes_on_each_time_from_its_last_epoch(
    hardware: Any, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / "killed")
    trial = run.trial(0) / CHECKPOINT
    flags = ["--data", "digits", "--train-size", "400", "--gpus-per-trial", "0", "--workers-per-trial", "2"]
    flags += ["--trials", "2", "--max-epochs", "20", "--finalists", "1", "--final-seeds", "1", "--name", "killed"]
    kill_when(start(tmp_path, *flags), trial.exists)
    trial_rows = unpack_history(trial.read_bytes())
    second = kill_when(start(tmp_path, "--resume", "killed"), lambda: any(run.models.glob(f"*/{CHECKPOINT}")))
    (final,) = run.models.glob(f"*/{CHECKPOINT}")
    final_rows = unpack_history(final.read_bytes())
    third = start(tmp_path, "--resume", "killed")
    output, errors = third.communicate(timeout=300)
    assert third.returncode == 0, output + errors

    assert trial_rows and final_rows and len(trial_rows) < 20 and len(final_rows) < 20
    assert f"            0000 goes on after epoch {len(trial_rows)}\n" in second
    assert f"            {final.parent.name} goes on after epoch {len(final_rows)}\n" in output
    assert read_trials(run.trials_jsonl)[0]["epochs"] == 20
    for folder in (trial.parent, final.parent):
        assert [row["epoch"] for row in read_csv(folder / "history.csv")] == list(range(1, 21))
        events = EventAccumulator(str(folder)).Reload().Scalars("loss/val")
        assert [event.step for event in events] == list(range(1, 21))
    assert not list(run.root.rglob(CHECKPOINT))
    about = read_json(run.run_json)
    assert about["settings"]["workers_per_trial"] == 2 and about["device"]["slots"] == about["device"]["num_cpus"] // 2

    saved = SavedModel.read(final.parent)
    card = saved.card
    assert card["workers"] == 2
    uninterrupted = FinalModel("again", None, 0, card["training_seed"], saved.config)
    arrays = load_data("digits", train_size=400).training_arrays()
    trained: list[Message] = []
    train_models(
        [uninterrupted],
        TrialSettings([ray.put(arrays)], 10, 20, 20, "accuracy", 1),
        Processes(Workers(2, 2, {"CPU": 1, "GPU": 0})),
        tmp_path / "storage",
        lambda model, message: trained.append(message),
    )
    assert isinstance(trained[-1], Trained) and trained[-1].weights == saved.weights
