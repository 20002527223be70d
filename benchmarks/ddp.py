"""Training under the pool of workers against the same training under plain `torchrun`, with one worker and with two.

    python benchmarks/ddp.py --preset small-cnn --rounds 3

All of them call the same `run_experiment` on random images of CIFAR-10's shape (`--data digits` for digits), on CPU,
one thread each. In every round they take turns. Prints for each the training images a second and the seconds of a step,
from the median time between the ends of two epochs (validation and all that comes of reporting an epoch included), and
ratios. Start-up is left out: it is seconds, once for a whole search.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
import torch.distributed as dist

from cifar_ray.cli.console import Console
from cifar_ray.config import Task, TrialConfig, trial_config
from cifar_ray.data.splits import load_data
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.jobs import Epochs, Message
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.session import output_to_file, ray_session, temporary_folder
from cifar_ray.distributed.workers import FinalModel, train_models
from cifar_ray.presets import preset
from cifar_ray.results.records import Row
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Ranks, run_experiment

SEED = 7


def load_arrays(source: str, num_images: int) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of `DeviceData.from_arrays`, and the number of classes."""
    if source == "digits":
        return load_data("digits").training_arrays(), 10
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", num_images), ("val", max(10, num_images // 10))):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number, dtype=np.int64) % 10
    return arrays, 10


def under_torchrun(folder: Path) -> None:
    """What each process that torchrun starts does; the first one writes when its epochs ended."""
    given = json.loads((folder / "given.json").read_text())
    with np.load(folder / "arrays.npz") as file:
        arrays = {name: file[name] for name in file.files}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world_size)
    data = DeviceData.from_arrays(arrays, given["num_classes"], torch.device("cpu"))
    config = trial_config(given["config"], "benchmark")
    ends: list[float] = []

    def report(row: Row) -> None:
        ends.append(time.perf_counter())

    run_experiment(Experiment(config, seed=SEED, max_epochs=given["max_epochs"]), data, report=report, ranks=ranks)
    if rank == 0:
        (folder / "ends.json").write_text(json.dumps(ends))
    dist.destroy_process_group()


def run_torchrun(folder: Path, num_workers: int) -> list[float]:
    """Return when the epochs ended, in seconds."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, "--worker", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    ends: list[float] = json.loads((folder / "ends.json").read_text())
    return ends


def run_pool(config: TrialConfig, settings: TrialSettings, num_workers: int, storage: Path) -> list[float]:
    """Return when the driver heard that the epochs ended, in seconds."""
    ends: list[float] = []

    def on_message(model: FinalModel, message: Message) -> None:
        if isinstance(message, Epochs):
            ends.append(time.perf_counter())

    workers = Workers(num_workers, num_workers, {"CPU": 1, "GPU": 0})
    with Processes(workers) as processes:
        train_models([FinalModel("benchmark", None, 0, SEED, config)], settings, processes, storage, on_message)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-cnn")
    parser.add_argument("--data", default="random", choices=("random", "digits"))
    parser.add_argument("--num-images", type=int, default=2048, help="random images to train on")
    parser.add_argument("--max-epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        under_torchrun(given.worker)
        return
    console = Console()
    arrays, num_classes = load_arrays(given.data, given.num_images)
    num_train, channels, image_size, _ = arrays["train_images"].shape
    config = preset(given.preset, Task(num_classes, channels, image_size, num_train, "cpu", flips=("none",)))
    num_steps = max(1, num_train // config.batch_size)
    epochs_s: dict[tuple[str, int], list[float]] = {}
    with (
        temporary_folder() as temp,
        output_to_file(temp / "ray.log"),
        ray_session(temp, num_cpus=2),
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        about = {"config": config.to_dict(), "num_classes": num_classes, "max_epochs": given.max_epochs}
        (folder / "given.json").write_text(json.dumps(about))
        settings = TrialSettings([ray.put(arrays)], num_classes, given.max_epochs, given.max_epochs, "accuracy", 1)
        for _ in range(given.rounds):
            for num_workers in (1, 2):
                for way in ("torchrun", "pool"):
                    ends = (
                        run_torchrun(folder, num_workers)
                        if way == "torchrun"
                        else run_pool(config, settings, num_workers, temp)
                    )
                    took = [end - before for before, end in itertools.pairwise(ends)]
                    epochs_s.setdefault((way, num_workers), []).extend(took)
    medians = {key: statistics.median(times) for key, times in epochs_s.items()}
    for (way, num_workers), epoch_s in medians.items():
        console.line(
            f"{way:9} {num_workers} workers: {num_steps * config.batch_size / epoch_s:8.0f} images/s, "
            f"{epoch_s / num_steps:.4f} s a step (n = {len(epochs_s[way, num_workers])} epochs)"
        )
    for num_workers in (1, 2):
        ratio = medians["torchrun", num_workers] / medians["pool", num_workers]
        console.line(f"speed of the pool over torchrun, {num_workers} workers: {ratio:.3f}")
    ratio = medians["pool", 1] / medians["pool", 2]
    console.line(f"speed of 2 workers over 1, both in the pool: {ratio:.3f}")


if __name__ == "__main__":
    main()
