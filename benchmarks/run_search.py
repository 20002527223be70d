"""Run `cifar_ray.tune` with the given flags and print what it cost and what it gained.

    python benchmarks/run_search.py --space cnn --data digits
    python benchmarks/run_search.py --space cnn --data PATH --train-size 5000 --trials 30 --max-epochs 8 \
        --finalists 2 --final-seeds 3 --sampler random

Prints the wall-clock from start to report by phase, where the slots' time went, the peak memory of the driver and of
a trial process (proportional set size: shared pages counted by share), and the test accuracy of the best sampled
configuration against the default recipe.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from cifar_ray.ranking import Interval, compare, mean_interval
from cifar_ray.results import DEFAULT, RunFolder, read_csv, read_json, read_predictions, read_trials, slot_seconds


def peak_memory(driver: psutil.Process, peaks: dict[str, float]) -> None:
    """Update the peaks of this moment, in MB."""
    for process in [driver, *driver.children(recursive=True)]:
        try:
            line = " ".join(process.cmdline())
            kind = "driver" if process == driver else "trial" if "ray::ImplicitFunc" in line else None
            if kind:
                peaks[kind] = max(peaks.get(kind, 0.0), process.memory_full_info().pss / 1e6)
        except psutil.Error:
            continue  # it ended meanwhile


def show(name: str, value: Interval) -> None:
    half = "no interval" if value.half_width is None else f"+- {100 * value.half_width:.2f}"
    print(f"{name:<28} {100 * value.mean:.2f} % {half} (95 % t interval, n = {value.n} seeds)")


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
    run = RunFolder(runs_dir / name)
    about, trials, rows = read_json(run.run_json), read_trials(run.trials_jsonl), read_csv(run.results_csv)

    print(f"\ncommand    {about['command']}")
    print(
        f"hardware   {about['device']['name']}, {about['device']['num_cpus']} CPUs, {about['device']['num_gpus']} GPUs"
    )
    print(f"versions   {', '.join(f'{package} {number}' for package, number in about['versions'].items())}")
    print(f"wall       {wall:.1f} s from start to end of the process")
    print("phases     " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in about["phases_s"].items()))
    slot_s = about["device"]["slots"] * about["phases_s"]["search"]
    kinds = slot_seconds(trials, slot_s)
    print("slot time  " + ", ".join(f"{kind} {100 * seconds / slot_s:.1f} %" for kind, seconds in kinds.items()))
    epochs = sum(trial["epochs"] for trial in trials)
    print(f"trials     {len(trials)} trials, {epochs} epochs of {len(trials) * about['settings']['max_epochs']}")
    print("memory     " + ", ".join(f"{kind} {peak:.0f} MB" for kind, peak in peaks.items()) + " at the peak (PSS)")

    sampled = [row for row in rows if row["config"] != DEFAULT]
    means = {
        c: mean_interval(r["val_metric"] for r in sampled if r["config"] == c) for c in {r["config"] for r in sampled}
    }
    for config in [DEFAULT, *([max(means, key=lambda c: means[c].mean)] if means else [])]:
        show(f"test accuracy {config}", mean_interval(row["test_accuracy"] for row in rows if row["config"] == config))
        if config != DEFAULT:
            gain = compare(rows, config, DEFAULT, read_predictions(run.predictions_npz))
            bounds = [f"{100 * bound:+.2f}" for bound in (gain.low, gain.high) if bound is not None]
            print(f"{config} minus default      {100 * gain.difference:+.2f} points (95 %: {' to '.join(bounds)})")


if __name__ == "__main__":
    main()
