"""What the terminal shows, on a terminal and in a pipe."""

import io
import os
import pty
from pathlib import Path

from cifar_ray import pipeline
from cifar_ray.data import load_data
from cifar_ray.progress import Console, duration
from cifar_ray.results import RunFolder
from cifar_ray.settings import TuneSettings
from cifar_ray.watch import FinalsWatch, SearchWatch

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


def record(number: int, state: str, value: float | None = 0.5, reason: str | None = None) -> dict[str, object]:
    best = None if value is None else {"val_metric": value}
    return {"number": number, "name": f"trial-{number:04d}", "state": state, "best": best, "reason": reason}


def test_the_status_line_counts_trials_by_state_and_names_the_best(tmp_path: Path) -> None:
    stream = io.StringIO()
    watch = SearchWatch(RunFolder(tmp_path), Console(stream), num_trials=10, slots=2)
    for number in range(4):
        watch.trial_began(number)
    watch.epoch_ended(0, ROW)
    watch.trial_ended(record(0, "complete", 0.625))
    watch.trial_ended(record(1, "pruned", 0.25))
    watch.trial_ended(record(2, "failed", None, "non-finite loss in epoch 1"))
    watch.began -= 60  # two trials a minute
    assert watch.status() == (
        "2/10 done, 1 running, 1 pruned | 4 min 00 s left, 2/min | best 0.6250 trial-0000 | 1 failed"
    )
    assert "trial-0002 failed: non-finite loss in epoch 1\n" in stream.getvalue()


def test_a_trial_drawn_ahead_of_a_free_slot_does_not_count_as_running(tmp_path: Path) -> None:
    watch = SearchWatch(RunFolder(tmp_path), Console(io.StringIO()), num_trials=10, slots=2)
    for number in range(3):
        watch.trial_began(number)
    assert "2 running" in watch.status()


def test_final_training_tells_the_time_left_from_the_rate_of_its_epochs(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream)
    watch = FinalsWatch(RunFolder(tmp_path), console, num_models=2, max_epochs=2)
    watch.epoch_ended("default-seed0", ROW)
    assert stream.getvalue() == "finals 0/2 | epoch 1/4\n"
    watch.epoch_ended("default-seed0", {**ROW, "epoch": 2})
    watch.model_ended("default-seed0")
    assert watch.models_done == 1


def test_in_a_pipe_status_lines_come_now_and_then_and_end_in_a_line_feed() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for index in range(100):
        console.status(f"status {index}")
    console.line("done")
    assert stream.getvalue() == "status 0\ndone\n"


def test_on_a_terminal_the_status_is_one_line_that_lasting_lines_replace() -> None:
    primary, secondary = pty.openpty()
    with os.fdopen(secondary, "w") as stream:
        console = Console(stream)
        console.status("first", force=True)
        console.status("second " + "x" * 200, force=True)
        console.line("lasting")
        shown = os.read(primary, 10_000).decode()
    os.close(primary)
    assert "\n" not in shown.split("lasting")[0]
    assert "first\r     \rsecond" in shown
    assert shown.endswith("\rlasting\r\n")


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 200, 18_730)] == ["0 s", "59 s", "3 min 20 s", "5 h 12 min"]


def test_a_run_of_hours_is_met_with_a_smaller_command() -> None:
    data = load_data("digits")
    slow = {"train_images_per_s": 1.0, "eval_images_per_s": 4.0}
    text = pipeline.estimate(TuneSettings(data="digits"), data, slow, slots=2)
    assert " h " in text.splitlines()[0]
    assert "--train-size 1438 --trials 30 --max-epochs 8 would take" in text.splitlines()[1]
    fast = {"train_images_per_s": 10_000.0, "eval_images_per_s": 40_000.0}
    assert len(pipeline.estimate(TuneSettings(data="digits"), data, fast, slots=2).splitlines()) == 1
