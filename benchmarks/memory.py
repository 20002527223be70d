"""What a worker's process holds in memory as it trains one network of the space `cnn` after another.

    python benchmarks/memory.py [--configs 24]

Each way in a process of its own, on random images of 32 pixels, one epoch a network, in fp32: with what the C library
keeps of freed tensors given back between trainings, as workers do, and without.
"""

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import torch

from cifar_ray.config import Task
from cifar_ray.distributed.process import give_back_memory
from cifar_ray.search.space import load_space, sample_space
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, NonFiniteLossError, run_experiment

NUM_TRAIN, NUM_VAL = 1280, 256
WAYS = ("kept", "given back")


def measure(way: str, num_configs: int) -> None:
    """Print what this process holds, in MB: at first, at most, and in the end; and the seconds that it took."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, 10, number)
    data = DeviceData.from_arrays(arrays, 10, torch.device("cpu"))
    task = Task(num_classes=10, channels=3, image_size=32, num_train=5000, device="cpu")
    configs = [config for _, config in sample_space(replace(load_space("cnn"), precision="fp32"), task, num_configs)]
    process, peak = psutil.Process(), 0

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)

    first = process.memory_info().rss
    threading.Thread(target=watch, daemon=True).start()
    began, giving_s = time.perf_counter(), 0.0
    for config in configs:
        with contextlib.suppress(NonFiniteLossError):  # as in a search, the next one is trained
            run_experiment(Experiment(config, 0, 1), data)
        if way == "given back":
            at = time.perf_counter()
            give_back_memory()
            giving_s += time.perf_counter() - at
    whole_s = time.perf_counter() - began
    last = process.memory_info().rss
    megabytes = " | ".join(f"{held / 1e6:.0f}" for held in (first, peak, last))
    print(f"| {way} | {megabytes} | {whole_s:.0f} | {giving_s:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=24, help="networks, one after another")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        measure(args.way, args.configs)
        return
    print(f"torch {torch.__version__}, {args.configs} networks; resident memory in MB\n")
    print("| freed memory | at first | at most | in the end | seconds | of them giving back |")
    print(f"|{'---|' * 6}", flush=True)
    for way in WAYS:
        subprocess.run([sys.executable, __file__, "--configs", str(args.configs), "--way", way], check=True)


if __name__ == "__main__":
    main()
