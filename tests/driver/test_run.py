"""How a run begins: its place on disk, its lock, its clock, and what a resumed one refuses."""

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.images import make_tree, private_cache  # noqa: F401 (a fixture)

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import AugmentConfig, Task, TrialConfig
from cifar_ray.data.splits import load_data
from cifar_ray.distributed.hardware import Hardware, Node, Workers
from cifar_ray.driver.run import Phases, Run, check_batch_sizes, sigterm_as_ctrl_c
from cifar_ray.driver.start import describe_data, load_run_data, make_task
from cifar_ray.errors import InputError

HARDWARE = Hardware("cpu", "some processor", 2, 0, (Node(2, 0),))


def settings(tmp_path: Path, **values: Any) -> TuneSettings:
    return TuneSettings(data="digits", runs_dir=tmp_path / "runs", **values)


def begin(run: Run) -> None:
    run.note_device(HARDWARE, Workers(2, 1, {"CPU": 1, "GPU": 0}))
    run.begin(describe_data(load_data("digits", train_size=100)))


def resume(run: Run, tmp_path: Path) -> Run:
    return Run(settings(tmp_path, name=run.folder.root.name), "tune", "cnn", resume=str(run.folder.root))


def test_a_run_that_is_running_cannot_be_taken_up_and_one_that_ended_can(tmp_path: Path) -> None:
    run = Run(settings(tmp_path), "tune", "cnn")
    begin(run)
    with pytest.raises(InputError, match="is running; end it first"):
        resume(run, tmp_path)
    run.close()
    again = resume(run, tmp_path)
    begin(again)
    about = json.loads(run.folder.run_json.read_text())
    assert len(about["resumed"]) == 1 and about["start"] and about["end"] is None
    again.end()
    again.close()
    assert resume(run, tmp_path).finished


def test_a_run_with_other_data_or_another_space_is_not_taken_up(tmp_path: Path) -> None:
    run = Run(settings(tmp_path), "tune", "cnn")
    run.check_unchanged(data="a fingerprint", **{"the code of space cnn": "a hash"})
    begin(run)
    run.close()
    again = resume(run, tmp_path)
    again.check_unchanged(data="a fingerprint")
    with pytest.raises(InputError, match="--resume: data has changed since"):
        again.check_unchanged(data="another")
    with pytest.raises(InputError, match="--resume: the code of space cnn has changed since"):
        again.check_unchanged(**{"the code of space cnn": "another"})
    again.close()


def test_a_run_on_another_kind_of_device_is_not_taken_up(tmp_path: Path) -> None:
    data = load_data("digits", train_size=100)

    def task(run: Run, kind: str) -> Task:
        return make_task(run, data, Workers(2, 1, {"CPU": 1, "GPU": int(kind == "cuda")}).device)

    run = Run(settings(tmp_path), "tune", "cnn")
    assert task(run, "cuda").device == "cuda"
    begin(run)
    run.close()
    again = resume(run, tmp_path)
    task(again, "cuda")
    told = (
        r"--resume: the task has changed since .* began \(device was cuda, is cpu\): bring it back, or start a new run"
    )
    with pytest.raises(InputError, match=told):
        task(again, "cpu")
    again.close()


def test_images_in_two_given_splits_are_warned_of_and_recorded(tmp_path: Path) -> None:
    root = tmp_path / "d"
    make_tree(root / "train", {"a": 8, "b": 8})
    make_tree(root / "test", {"a": 3, "b": 3})
    for told, copies in ((False, 0), (True, 2)):
        for i in range(copies):
            shutil.copy(root / "train" / "a" / f"{i:04}.png", root / "test" / "b" / f"copy-{i}.png")
        run, out = Run(TuneSettings(data=str(root), runs_dir=tmp_path / "runs"), "tune", "cnn"), io.StringIO()
        data = load_run_data(run.settings, str(root), Console(out), [])
        assert ("warning: 2 of 8 test images are also training or validation images" in out.getvalue()) == told
        assert "validation images are also training images" not in out.getvalue()
        run.begin(describe_data(data))
        run.close()
        recorded = json.loads(run.folder.run_json.read_text())["data"]
        assert (recorded["num_test_copies"], recorded["num_val_copies"]) == (copies, 0)


@pytest.mark.parametrize(("second", "told"), [("val", True), ("test", False)])
def test_the_start_says_where_the_test_split_is_what_the_data_calls_validation(
    tmp_path: Path, second: str, told: bool
) -> None:
    make_tree(tmp_path / "d" / "train", {"a": 8, "b": 8})
    make_tree(tmp_path / "d" / second, {"a": 3, "b": 3})
    for _ in range(2):  # of the files, and of their decoded copy
        out = io.StringIO()
        load_run_data(settings(tmp_path), str(tmp_path / "d"), Console(out), [])
        assert ("the sealed test split is what the data calls validation" in out.getvalue()) == told


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    runs = [Run(settings(tmp_path), "tune", "cnn") for _ in range(2)]
    for run in runs:
        begin(run)
        run.close()
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_of_two_runs_with_one_name_the_second_is_refused_however_close_they_are(tmp_path: Path) -> None:
    first, second = (Run(settings(tmp_path, name="same"), "tune", "cnn") for _ in range(2))
    begin(first)
    with pytest.raises(InputError, match="a run 'same' was begun meanwhile"):
        begin(second)
    first.close()
    with pytest.raises(InputError, match="a run 'same' exists in"):
        Run(settings(tmp_path, name="same"), "tune", "cnn")


def test_a_runs_folder_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/runs"), tmp_path / "file" / "runs"):
        with pytest.raises(InputError, match=r"--runs-dir: cannot write in .*; choose another"):
            Run(TuneSettings(data="digits", runs_dir=place), "tune", "cnn")


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(InputError, match=r"--runs-dir: 5 MB are free in .*, a run needs 200: make room there"):
        Run(settings(tmp_path), "tune", "cnn")
    assert list(tmp_path.iterdir()) == []


def test_workers_that_have_one_image_each_to_mix_are_refused() -> None:
    workers = Workers(2, 2, {"CPU": 1, "GPU": 0})
    mixed = TrialConfig(augment=AugmentConfig(mix="mixup"), batch_size=4)
    check_batch_sizes(workers, "--workers", [("mixed", mixed), ("plain", TrialConfig(batch_size=2))])
    with pytest.raises(InputError) as refused:
        check_batch_sizes(workers, "--workers", [("mixed", replace(mixed, batch_size=2))])
    assert str(refused.value) == (
        "--workers: of batches of 2 images 2 workers have one each, and augment/mix 'mixup' mixes several (mixed); "
        "give fewer"
    )


def test_phases_add_up_over_the_sessions_of_a_run() -> None:
    phases = Phases({"startup": 100.0, "search": 50.0})
    startup = phases.next("search")
    assert phases.seconds["startup"] == 100.0 + startup and startup > 0  # it began with the program
    time.sleep(0.02)
    assert phases.current >= 50.02
    assert phases.total == pytest.approx(sum(phases.seconds.values()) + phases.current - 50.0, abs=0.01)
    searched = phases.next(None)
    assert phases.seconds["search"] == 50.0 + searched
    time.sleep(0.02)
    phases.next(None)
    assert sum(phases.seconds.values()) == pytest.approx(150.0 + startup + searched)


def test_what_a_shell_did_before_it_became_the_program_is_no_part_of_the_start_up() -> None:
    code = "import time; began = time.monotonic(); from cifar_ray.driver.run import Phases; "
    code += "startup_s = Phases({}).total; print(0 < startup_s <= time.monotonic() - began)"
    command = shlex.join([sys.executable, "-c", code])
    done = subprocess.run(["bash", "-c", f"sleep 1; exec {command}"], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_sigterm_is_a_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_ends_a_run_as_ctrl_c_does_also_where_that_is_ignored(ignored: bool) -> None:
    # Of a job that a script started in the background, the shell has Ctrl-C ignored.
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
