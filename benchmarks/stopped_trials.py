"""What trials of several workers leave behind when they are stopped early.

    python benchmarks/stopped_trials.py --trials 50

Runs a search of hopeless trials with two workers each, of which ASHA stops most after their first epochs. Prints
how long after the search every CPU is free, how many placement groups remain, and what a trial took.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.samplers import RandomSampler

from cifar_ray.cli.console import Console
from cifar_ray.config import Task
from cifar_ray.data.splits import load_data
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.session import output_to_file, ray_session, temporary_folder
from cifar_ray.distributed.workers import open_pool
from cifar_ray.results.records import RunFolder
from cifar_ray.search.progress import Progress
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.space import Space
from cifar_ray.search.study import SpaceStudy, open_study, study_records
from cifar_ray.search.tuner import run_search
from cifar_ray.tracking.live import SearchWatch

MAX_EPOCHS = 10
DEADLINE_S = 120.0


def hopeless(trial: optuna.Trial, task: Task) -> dict[str, Any]:
    """Learning rates so small that no trial but the first one learns: they differ by chance, and most are stopped."""
    lr = 0.1 if trial.number == 0 else 1e-7
    return {
        "model": {"widths": [8], "blocks": [1], "kernel_sizes": [3]},
        "optimizer": {"lr": trial.suggest_float("lr", lr, lr)},
        "batch_size": 64,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=2)
    num_trials, cpus = vars(parser.parse_args()).values()
    console = Console()
    data = load_data("digits", train_size=300)
    task = Task(10, 1, 8, len(data.train.images), "cpu", flips=("none",))
    with (
        tempfile.TemporaryDirectory() as run,
        temporary_folder() as temp,
        output_to_file(temp / "ray.log"),
        ray_session(temp, num_cpus=cpus),
    ):
        study = open_study(Path(run) / "study.journal", "hopeless", RandomSampler, seed=0)
        watch = SearchWatch(RunFolder(Path(run)), console, num_trials, {})
        of_space, progress = SpaceStudy(Space("hopeless", hopeless), study), Progress([], num_trials)
        settings = TrialSettings([ray.put(data.training_arrays())], 10, MAX_EPOCHS, MAX_EPOCHS, "auc", 1)  # has no ties
        workers = Workers(cpus, 2, {"CPU": 1, "GPU": 0})
        began = time.monotonic()
        with Processes(workers) as processes, open_pool(settings, processes, temp, judged=True) as pool:
            run_search(StudySearcher(of_space, task, 0, progress, pool, watch), MAX_EPOCHS, temp)
            ended = time.monotonic()
        while ray.available_resources().get("CPU", 0) < cpus and time.monotonic() - ended < DEADLINE_S:
            time.sleep(0.05)
        freed = time.monotonic()
        groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
        free = ray.available_resources().get("CPU", 0)
        records = list(study_records(study))
    states = [record["state"] for record in records]
    seconds = [record["seconds"] for record in records[1:]]  # the first one waits for the workers to start
    console.line(f"{len(records)} trials of 2 workers on {cpus} CPUs: {states.count('pruned')} were stopped early")
    console.line(f"the search took {ended - began:.1f} s; {freed - ended:.1f} s after it {free:g} CPUs were free")
    console.line(f"placement groups that remained: {len(groups)}")
    mean = {kind: sum(one[kind] for one in seconds) / max(1, len(seconds)) for kind in ("train", "eval", "wait")}
    console.line(f"a trial (n = {len(seconds)}): " + ", ".join(f"{kind} {s:.3f} s" for kind, s in mean.items()))


if __name__ == "__main__":
    main()
