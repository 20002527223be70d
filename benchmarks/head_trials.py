"""What keeping the features of a frozen backbone saves: trials of a head on kept features, and without them.

    python benchmarks/head_trials.py --data PATH --weights PATH [--train-size 5000] [--kept 100] [--anew 5]

Trains the head of `resnet18-frozen` for 8 epochs a trial, each time with another learning rate, in one process and with
one thread: first `--kept` trials on features that the first of them computes, then `--anew` trials that run the
backbone in every epoch. Prints the seconds a trial of each kind, the pass of the backbone included.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from cifar_ray.config import Task, TrialConfig
from cifar_ray.data.splits import load_data
from cifar_ray.models.pretrained import weights_of_file
from cifar_ray.presets import preset
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Training, run_experiment

MAX_EPOCHS = 8


def train_anew(config: TrialConfig, data: DeviceData, seed: int, pretrained: dict) -> float:  # type: ignore[type-arg]
    """Train a head under its backbone; return the best validation accuracy."""
    training = Training(Experiment(config, seed=seed, max_epochs=MAX_EPOCHS), data, pretrained)
    training.features, training.part, training.parallel = None, training.model, training.model
    return max(float(training.epoch()["val_accuracy"]) for _ in range(MAX_EPOCHS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--train-size", type=int, default=5000)
    parser.add_argument("--kept", type=int, default=100)
    parser.add_argument("--anew", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_data(args.data, train_size=args.train_size)
    data = DeviceData.from_arrays(splits.training_arrays(), len(splits.class_names), torch.device("cpu"))
    num_train, channels, image_size, _ = data.train_images.shape
    base = preset("resnet18-frozen", Task(data.num_classes, channels, image_size, num_train, "cpu"))
    pretrained = weights_of_file(args.weights).tensors

    def config(index: int) -> TrialConfig:
        return replace(base, optimizer=replace(base.optimizer, lr=1e-3 * 1.05**index))

    seconds: list[float] = []
    found: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for index in range(args.kept):
            began = time.perf_counter()
            outcome = run_experiment(
                Experiment(config(index), seed=0, max_epochs=MAX_EPOCHS), data, pretrained=pretrained
            )
            seconds.append(time.perf_counter() - began)
            found.append(outcome.best["val_accuracy"])
        anew: list[float] = []
        for index in range(args.anew):
            began = time.perf_counter()
            accuracy = train_anew(config(index), data, 0, pretrained)
            anew.append(time.perf_counter() - began)
            print(f"trial {index}: validation accuracy {found[index]:.4f} on kept features, {accuracy:.4f} without")
    kept = statistics.fmean(seconds)
    print(f"{num_train} + {len(data.val_images)} images of {base.image_size} pixels, {MAX_EPOCHS} epochs a trial")
    print(f"on kept features   {kept:.2f} s a trial (n = {args.kept}): the first one {seconds[0]:.1f} s, ", end="")
    print(f"the others {statistics.median(seconds[1:]):.3f} s (median)")
    print(f"without            {statistics.fmean(anew):.1f} s a trial (n = {args.anew})")
    print(f"ratio              {statistics.fmean(anew) / kept:.0f}")


if __name__ == "__main__":
    main()
