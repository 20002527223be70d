"""What a trial costs beside its training: a search of 30 trivial trials on 2 slots.

    python benchmarks/trial_overhead.py

Prints the seconds a trial that the search took beyond the trials' own data, training and evaluation, once the
processes were up: per slot, from the second trial of each process on.
"""

import tempfile
import time
from pathlib import Path

import ray

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
from cifar_ray.search.samplers import tpe
from cifar_ray.search.searcher import StudySearcher
from cifar_ray.search.space import Space
from cifar_ray.search.study import SpaceStudy, open_study, study_records
from cifar_ray.search.tuner import run_search
from cifar_ray.tracking.live import SearchWatch

NUM_TRIALS = 30
SLOTS = 2


def trivial(trial: object, task: Task) -> dict[str, object]:
    return {"model": {"widths": [8], "blocks": [1], "kernel_sizes": [3]}, "batch_size": 128}


def main() -> None:
    console = Console()
    data = load_data("digits", train_size=300)
    num_train = len(data.train.images)
    task = Task(num_classes=10, channels=1, image_size=8, num_train=num_train, device="cpu", flips=("none",))
    with (
        tempfile.TemporaryDirectory() as run,
        temporary_folder() as temp,
        output_to_file(temp / "ray.log"),
        ray_session(temp, num_cpus=SLOTS),
    ):
        study = open_study(Path(run) / "study.journal", "trivial", tpe, seed=0)
        watch = SearchWatch(RunFolder(Path(run)), console, NUM_TRIALS, {})
        space = Space("trivial", trivial)
        settings = TrialSettings([ray.put(data.training_arrays())], 10, 3, 3, "accuracy", 1)
        began = time.monotonic()
        workers = Workers(SLOTS, 1, {"CPU": 1, "GPU": 0})
        with Processes(workers) as processes, open_pool(settings, processes, temp, judged=True) as pool:
            progress = Progress([], NUM_TRIALS)
            searcher = StudySearcher(SpaceStudy(space, study), task, 0, progress, pool, watch)
            run_search(searcher, settings.max_epochs, temp)
            wall = time.monotonic() - began
        records = list(study_records(study))
    later = [record["seconds"] for record in records if record["seconds"]["startup"] == 0]
    useful = sum(seconds["data"] + seconds["train"] + seconds["eval"] for seconds in later)
    wait = sum(seconds["wait"] + seconds["setup"] + seconds["scheduler"] for seconds in later)
    startup = max(record["seconds"]["startup"] for record in records)
    console.line(f"{len(records)} trials of {settings.max_epochs} epochs on {SLOTS} slots took {wall:.1f} s")
    console.line(f"processes were up after {startup:.1f} s")
    console.line(f"beyond its training, a trial in a running process took {wait / len(later):.3f} s (n = {len(later)})")
    console.line(f"its training and evaluation took {useful / len(later):.3f} s")


if __name__ == "__main__":
    main()
