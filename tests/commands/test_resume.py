"""Runs that are interrupted, by the user or by a kill, and taken up again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import launcher

from cifar_ray.results.records import read_trials

pytestmark = pytest.mark.xdist_group("resume")
Command = Callable[..., "subprocess.CompletedProcess[str]"]
CHECKOUT = Path(__file__).parents[2]
DEADLINE_S = 240


@pytest.mark.slow
def test_nothing_that_was_finished_is_lost_to_kills_in_the_search_the_finals_and_the_evaluation(tmp_path: Path) -> None:
    script = CHECKOUT / "benchmarks" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "1", "--seed", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"killed in the (\w+)", done.stdout) == ["search", "finals", "evaluation"]
    assert "3 kills: 0 finished trials or models lost" in done.stdout


def start_search(folder: Path) -> "subprocess.Popen[str]":
    """Start a search that would take hours, in a process group of its own."""
    flags = ["--data", "digits", "--trials", "1000", "--max-epochs", "2", "--name", "stopped"]
    return launcher.start("tune", *flags, folder=folder, start_new_session=True)


def end(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Wait for its end and return what it printed; nothing of its process group is left then."""
    out, err = process.communicate(timeout=DEADLINE_S)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return out, err


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["ctrl-c", "sigterm"]
)
def test_an_interruption_keeps_what_was_finished_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start_search(tmp_path)
    folder = tmp_path / "runs" / "stopped"
    launcher.wait_for(process, (folder / "trials" / "0005" / "history.csv").exists)
    process.send_signal(number)
    out, err = end(process)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert f"interrupted: what was finished is kept in {folder}" in out
    assert out.splitlines()[-1] == f"resume      python -m cifar_ray.tune --resume {folder}"
    assert re.search(r"^#  trial +state +epochs +val accuracy +params$", out, re.MULTILINE)
    assert {record["state"] for record in read_trials(folder / "trials.jsonl")} <= {"complete", "pruned"}
    assert len(read_trials(folder / "trials.jsonl")) >= 3
    about = json.loads((folder / "run.json").read_text())
    assert about["end"] is None and about["phases_s"]["search"] > 0
    assert "stopped" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    process = start_search(tmp_path)
    launcher.wait_for(process, (tmp_path / "runs" / "stopped" / "trials" / "0003" / "history.csv").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = end(process)
    assert process.returncode == 130 and err == "interrupted\n"
    assert "Traceback" not in out


def test_a_run_that_has_come_to_its_end_is_not_run_again(run_command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ended"
    folder.mkdir(parents=True)
    about = {"kind": "tune", "settings": {"data": "digits"}, "start": "yesterday", "end": "today"}
    (folder / "run.json").write_text(json.dumps(about))
    done = run_command("tune", "--resume", "ended")
    assert done.returncode == 0, done.stderr
    assert f"this run has come to its end: {folder / 'report.html'}" in done.stdout
    assert "to extend it, resume it with more --trials\n" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.slow
def test_a_run_that_has_come_to_its_end_is_extended(tmp_path: Path) -> None:
    flags = ["--data", "digits", "--trials", "3", "--max-epochs", "1", "--finalists", "1", "--final-seeds", "1"]
    done = launcher.run("tune", *flags, "--name", "more", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "more"
    trials = read_trials(folder / "trials.jsonl")
    default = folder / "models" / "default-seed0" / "model.safetensors"
    trained_at = default.stat().st_mtime_ns
    done = launcher.run("tune", "--resume", "more", "--trials", "5", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    more = read_trials(folder / "trials.jsonl")
    assert [record["number"] for record in more] == [0, 1, 2, 3, 4] and more[:3] == trials
    assert default.stat().st_mtime_ns == trained_at
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["trials"] == 5 and about["end"]
    assert [one["trials"] for one in about["extended"]] == [[3, 5]]
    assert "read 2 times in 1 run" in (folder / "report.md").read_text()
    assert "this run has come to its end" in launcher.run("tune", "--resume", "more", folder=tmp_path).stdout
