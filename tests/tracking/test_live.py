"""What is kept of a search and of the final training while they run: the live line, histories, TensorBoard events."""

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_ray.cli.console import Console
from cifar_ray.results.records import CHECKPOINT, RunFolder, read_csv
from cifar_ray.tracking.live import FinalsWatch, SearchWatch
from cifar_ray.tracking.tensorboard import SCALARS, EventWriters, clear_training

ROW = {
    "epoch": 1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "val_loss": 1.0,
    "val_accuracy": 0.5,
    "val_metric": 0.5,
    "lr": 0.1,
    "grad_norm_max": 1.0,
    "train_s": 1.0,
    "eval_s": 0.1,
    "best_val_metric": 0.5,
    "finished": False,
}


def record(number: int, state: str, value: float | None = 0.5, reason: str | None = None) -> dict[str, Any]:
    return {
        "number": number,
        "name": f"trial-{number:04d}",
        "params": {},
        "state": state,
        "reason": reason,
        "epochs": 0 if value is None else 1,
        "num_params": None,
        "best": None if value is None else {"val_metric": value},
        "seconds": {},
    }


def watch_run(folder: Path, stream: io.StringIO | None = None, finished: Sequence[dict[str, Any]] = ()) -> SearchWatch:
    return SearchWatch(RunFolder(folder), Console(stream or io.StringIO()), 10, {}, finished)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the live line believes in, to be set."""
    now = [1000.0]
    monkeypatch.setattr("cifar_ray.tracking.live.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_status_line_counts_trials_by_state_and_names_the_best(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    watch = watch_run(tmp_path, stream)
    clock[0] += 60  # two trials a minute
    for number in range(4):
        watch.trial_began(number, {})
    watch.epoch_ended(0, ROW)
    watch.trial_ended(record(0, "complete", 0.625))
    watch.trial_ended(record(1, "pruned", 0.25))
    watch.trial_ended(record(2, "failed", None, "non-finite loss in epoch 1"))
    assert watch.status() == (
        "2/10 done, 1 pruned, 1 failed | 4 min 00 s left | best 0.6250 trial-0000 | 2/min | 1 running"
    )
    assert stream.getvalue().splitlines() == [
        "0/10 done | 4 running",  # and no more for ten seconds
        "trial-0002 failed: non-finite loss in epoch 1",
    ]


def test_infeasible_trials_are_counted_and_not_told_one_by_one(tmp_path: Path) -> None:
    stream = io.StringIO()
    watch = watch_run(tmp_path, stream)
    num_threads = threading.active_count()
    for number in range(50):
        watch.trial_began(number, {})
        watch.trial_ended(record(number, "infeasible", None, "900,000 parameters, more than --max-params 100,000"))
    assert watch.status() == "0/10 done, 50 infeasible | 0 running"
    assert stream.getvalue() == "0/10 done, 1 infeasible | 0 running\n"
    assert threading.active_count() == num_threads  # there can be hundreds of them


def test_trials_of_an_earlier_session_count_as_done_but_not_towards_the_rate(
    tmp_path: Path, clock: list[float]
) -> None:
    finished = [record(0, "complete", 0.75), record(1, "pruned", 0.25), record(2, "infeasible", None)]
    watch = watch_run(tmp_path, finished=finished)
    clock[0] += 60  # one trial a minute
    assert watch.status() == "2/10 done, 1 pruned, 1 infeasible | best 0.7500 trial-0000 | 0 running"
    watch.trial_began(3, {})
    watch.trial_ended(record(3, "complete", 0.5))
    assert watch.status() == (
        "3/10 done, 1 pruned, 1 infeasible | 7 min 00 s left | best 0.7500 trial-0000 | 1/min | 0 running"
    )


def test_the_files_of_an_earlier_session_s_trials_are_left_alone(tmp_path: Path) -> None:
    watch = watch_run(tmp_path)
    watch.trial_began(0, {})
    watch.epoch_ended(0, ROW)
    watch.trial_ended(record(0, "complete"))
    before = {path: path.read_bytes() for path in (tmp_path / "trials").rglob("*.*")}
    watch_run(tmp_path, finished=[record(0, "complete")])
    assert {path: path.read_bytes() for path in (tmp_path / "trials").rglob("*.*")} == before
    assert len(before) == 2


def test_a_trial_that_is_run_again_leaves_one_history_and_one_set_of_events(tmp_path: Path) -> None:
    watch = watch_run(tmp_path)
    watch.trial_began(0, {})
    for epoch in (1, 2, 3):
        watch.epoch_ended(0, {**ROW, "epoch": epoch, "val_loss": 9.0})
    # The process is killed; in the next session the trial is stopped earlier.
    watch = watch_run(tmp_path)
    watch.trial_began(0, {})
    watch.epoch_ended(0, ROW)
    watch.trial_ended(record(0, "pruned"))
    folder = tmp_path / "trials" / "0000"
    assert [row["epoch"] for row in read_csv(folder / "history.csv")] == [1]
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/val")] == [(1, 1.0)]
    assert len(list(folder.glob("events*"))) == 1


def test_a_trials_checkpoint_stays_until_a_newer_one_comes_or_the_trial_ends(tmp_path: Path) -> None:
    watch = watch_run(tmp_path)
    checkpoint = tmp_path / "trials" / "0000" / CHECKPOINT
    watch.trial_began(0, {})
    watch.epoch_ended(0, ROW)
    watch.checkpointed(0, b"first")
    watch = watch_run(tmp_path)  # after a kill
    watch.trial_began(0, {})
    assert checkpoint.read_bytes() == b"first" and [path.name for path in checkpoint.parent.iterdir()] == [CHECKPOINT]
    watch.checkpointed(0, b"second")
    assert checkpoint.read_bytes() == b"second"
    watch.trial_ended(record(0, "pruned"))
    assert not checkpoint.exists()


def test_tensorboard_reads_the_scalars_of_a_trial_while_it_runs(tmp_path: Path) -> None:
    watch = watch_run(tmp_path)
    watch.trial_began(0, {})
    for epoch in (1, 2):
        watch.epoch_ended(0, {**ROW, "epoch": epoch, "lr": 0.5**epoch})
    events = EventAccumulator(str(tmp_path / "trials" / "0000")).Reload()
    assert set(events.Tags()["scalars"]) == set(SCALARS.values())
    assert [(event.step, event.value) for event in events.Scalars("optimizer/lr")] == [(1, 0.5), (2, 0.25)]
    watch.trial_ended(record(0, "complete", 0.625))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("trial/best_val_metric")] == [(1, 0.625)]


def test_an_epoch_is_on_disk_when_it_has_been_written(tmp_path: Path) -> None:
    writers, sizes = EventWriters(), [0]
    for epoch in range(1, 101):
        writers.epoch(tmp_path, {**ROW, "epoch": epoch})
        sizes += [path.stat().st_size for path in tmp_path.iterdir()]
    writers.close_all()
    assert len(sizes) == 101
    assert sizes == sorted(set(sizes))  # longer with every epoch


def test_final_training_tells_the_time_left_from_the_rate_of_its_epochs(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    watch = FinalsWatch(RunFolder(tmp_path), Console(stream), num_models=2, max_epochs=2)
    monkeypatch.setattr("cifar_ray.cli.console.PLAIN_INTERVAL_S", 0)
    watch.epoch_ended("default-seed0", ROW)
    clock[0] += 30
    watch.epoch_ended("default-seed0", {**ROW, "epoch": 2})
    watch.model_ended("default-seed0")
    watch.epoch_ended("default-seed1", ROW)
    assert stream.getvalue().splitlines() == [
        "finals 0/2 | epoch 1/4",
        "finals 0/2 | epoch 2/4 | 1 min 00 s left",
        "finals 1/2 | epoch 3/4 | 15 s left",
    ]
    events = EventAccumulator(str(tmp_path / "models" / "default-seed0")).Reload()
    assert [event.step for event in events.Scalars("accuracy/val")] == [1, 2]


def test_epochs_that_a_final_training_leaves_out_are_not_waited_for(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_ray.cli.console.PLAIN_INTERVAL_S", 0)
    stream = io.StringIO()
    watch = FinalsWatch(RunFolder(tmp_path), Console(stream), num_models=2, max_epochs=30)
    watch.epoch_ended("default-seed0", {**ROW, "epoch": 1})
    watch.epoch_ended("default-seed0", {**ROW, "epoch": 2, "finished": True})
    watch.events.close_all()
    assert stream.getvalue().splitlines()[-1].startswith("finals 0/2 | epoch 2/32 | ")


def test_a_final_training_that_goes_on_shows_every_epoch_once(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_ray.cli.console.PLAIN_INTERVAL_S", 0)
    before = FinalsWatch(RunFolder(tmp_path), Console(io.StringIO()), num_models=1, max_epochs=4)
    for epoch in (1, 2, 3):  # the last checkpoint is that of epoch 2
        before.epoch_ended("default-seed0", {**ROW, "epoch": epoch})
    before.events.close_all()
    clear_training(tmp_path / "models" / "default-seed0")
    stream = io.StringIO()
    watch = FinalsWatch(RunFolder(tmp_path), Console(stream), num_models=1, max_epochs=4)
    watch.model_goes_on("default-seed0", [{**ROW, "epoch": epoch} for epoch in (1, 2)])
    for epoch in (3, 4):
        watch.epoch_ended("default-seed0", {**ROW, "epoch": epoch})
    events = EventAccumulator(str(tmp_path / "models" / "default-seed0")).Reload()
    assert [event.step for event in events.Scalars("accuracy/val")] == [1, 2, 3, 4]
    assert stream.getvalue().splitlines()[-1].startswith("finals 0/1 | epoch 2/2")
