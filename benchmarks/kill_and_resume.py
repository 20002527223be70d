"""Kill a run in its search, its final training and its evaluation, take it up each time, and count what is lost.

    python benchmarks/kill_and_resume.py --rounds 10 --seed 0

A round is one small run on digits. SIGKILL comes at a random moment of each phase; then the run is taken up with
`--resume`. Before each resume the finished trials are read from the study's journal, and the finished models from
`models/`: at the end every one of them must be there unchanged. Prints a line for each kill; the exit code is 1 if
anything was lost.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_ray.files import read_json
from cifar_ray.results.records import RunFolder, read_csv, read_trials

FLAGS = ["--data", "digits", "--train-size", "400", "--trials", "10", "--max-epochs", "4", "--finalists", "1"]
FLAGS += ["--final-seeds", "2", "--name", "run"]
DEADLINE_S = 300.0


def finished_trials(journal: Path) -> dict[str, Any]:
    """Records of the finished trials by number, as far as the journal has whole lines."""
    records = {}
    for line in journal.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line).get("user_attr", {}).get("record")
        if record:
            records[str(record["number"])] = record
    return records


def finished_models(run: RunFolder) -> dict[str, Any]:
    """Hashes of the weights of the finished models."""
    folders = sorted(run.models.iterdir()) if run.models.exists() else []
    saved = [folder for folder in folders if run.is_saved(folder.name)]
    return {folder.name: hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in saved}


def phase_begun(run: RunFolder, phase: str) -> bool:
    """Whether a run has come to `phase`."""
    if phase == "search":
        return run.trial(0).exists()
    if phase == "finals":
        return run.models.exists()
    return run.run_json.exists() and "finals" in read_json(run.run_json)["phases_s"]


def start(folder: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cifar_ray.tune", *flags]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds or the process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "the run does not come on"
        time.sleep(0.05)


def one_round(rng: random.Random) -> int:
    """Kill and resume one run three times; return the number of finished trials and models that were lost."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "runs" / "run")
        process = start(Path(folder), *FLAGS)
        trials: dict[str, Any] = {}
        models: dict[str, Any] = {}
        for phase, longest_s in (("search", 4.0), ("finals", 4.0), ("evaluation", 2.0)):
            wait(process, lambda phase=phase: phase_begun(run, phase))  # type: ignore[misc]
            delay = rng.uniform(0, longest_s)
            time.sleep(delay)
            in_time = process.poll() is None
            if in_time:
                os.kill(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            assert in_time, f"the run ended before it was killed:\n{output}"
            trials |= finished_trials(run.study_journal)
            models |= finished_models(run)
            print(
                f"killed in the {phase} after {delay:.2f} s: {len(trials)} trials and {len(models)} models finished",
                flush=True,
            )
            process = start(Path(folder), "--resume", "run")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        after = {str(record["number"]): record for record in read_trials(run.trials_jsonl)}
        lost = [number for number, record in trials.items() if after.get(number) != record]
        lost += [name for name, sha256 in models.items() if finished_models(run).get(name) != sha256]
        usable = [record for record in after.values() if record["state"] in ("complete", "pruned")]
        rows = read_csv(run.results_csv)
        whole = len(usable) >= 10 and len(rows) >= 2 and run.report_html.exists() and run.best.exists()
        print(
            f"taken up to its end: {len(after)} trials, {len(rows)} models scored; lost: {lost or 'nothing'}",
            flush=True,
        )
        assert whole, output
        return len(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    lost = sum(one_round(rng) for _ in range(arguments.rounds))
    print(f"{arguments.rounds} rounds, {3 * arguments.rounds} kills: {lost} finished trials or models lost")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
