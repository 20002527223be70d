"""Run `cifar_ray.tune` with the given flags and print what it cost and what it gained.

    python benchmarks/run_search.py --space cnn --data digits
    python benchmarks/run_search.py --space cnn --data PATH --train-size 5000 --trials 30 --max-epochs 8 \
        --finalists 2 --final-seeds 3 --sampler random

Prints the wall-clock from start to report by phase, where the slots' time went, the peak memory of the driver, of a
worker and of a trial's process that hands it on (proportional set size: shared pages counted by share), and the test
accuracy of the best sampled configuration against the default recipe.
"""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import DEFAULT, RunFolder
from cifar_ray.results.statistics import compare

KINDS = {"ray::_Process": "worker", "ray::RayTrainWorker": "worker", "ray::ImplicitFunc": "trial"}
"""Kinds of processes, by what they call themselves."""


def peak_memory(driver: psutil.Process, peaks: dict[str, float]) -> None:
    """Update the peaks of this moment, in MB."""
    for process in [driver, *driver.children(recursive=True)]:
        try:
            line = " ".join(process.cmdline())
            named = next((kind for title, kind in KINDS.items() if title in line), None)
            kind = "driver" if process == driver else named
            if kind:
                peaks[kind] = max(peaks.get(kind, 0.0), process.memory_full_info().pss / 1e6)
        except psutil.Error:
            continue  # it ended meanwhile


def main() -> None:
    name = f"benchmark-{time.strftime('%Y%m%d-%H%M%S')}"
    command = [sys.executable, "-m", "cifar_ray.tune", *sys.argv[1:], "--name", name]
    began = time.monotonic()
    driver = subprocess.Popen(command)
    peaks: dict[str, float] = {}
    while driver.poll() is None:
        peak_memory(psutil.Process(driver.pid), peaks)
        time.sleep(1)
    wall = time.monotonic() - began
    if driver.returncode:
        sys.exit(driver.returncode)
    runs_dir = Path(sys.argv[sys.argv.index("--runs-dir") + 1]) if "--runs-dir" in sys.argv else Path("runs")
    records = Records(RunFolder(runs_dir / name))
    about, trials = records.run, records.trials

    print(f"\ncommand    {about['command']}")
    print(
        f"hardware   {about['device']['name']}, {about['device']['num_cpus']} CPUs, {about['device']['num_gpus']} GPUs"
    )
    print(f"versions   {', '.join(f'{package} {number}' for package, number in about['versions'].items())}")
    print(f"wall       {wall:.1f} s from start to end of the process")
    print("phases     " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in about["phases_s"].items()))
    by_phase = records.slot_seconds
    for phase, kinds in {**by_phase, "all": sum(map(Counter, by_phase.values()), Counter())}.items():
        slot_s = sum(kinds.values())
        shares = ", ".join(f"{kind} {100 * seconds / slot_s:.1f} %" for kind, seconds in kinds.items())
        print(f"slots      {phase}: {shares}")
    epochs = sum(trial["epochs"] for trial in trials)
    print(f"trials     {len(trials)} trials, {epochs} epochs of {len(trials) * about['settings']['max_epochs']}")
    print("memory     " + ", ".join(f"{kind} {peak:.0f} MB" for kind, peak in peaks.items()) + " at the peak (PSS)")

    sampled = next((one.config for one in records.summaries if one.config != DEFAULT), None)
    for one in records.summaries:
        if one.config in (DEFAULT, sampled):
            accuracy = score_text(one.test_accuracy)
            print(f"test accuracy {one.config:<14} {accuracy} % (95 %: seeds and images, n = {one.seeds} seeds)")
    if sampled:
        gain = compare(records.rows, sampled, DEFAULT, records.predictions)
        bounds = f"{difference_text(gain.low)} to {difference_text(gain.high)}"
        print(f"{sampled} minus default      {difference_text(gain.difference)} points (95 %: {bounds})")


if __name__ == "__main__":
    main()
