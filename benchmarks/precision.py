"""bf16 against fp32: what it costs in accuracy, and what it gains in speed.

    python benchmarks/precision.py --data PATH [--preset small-cnn] [--train-size 5000] [--max-epochs 5] [--seeds 16]

Each seed draws its own images: train and validation in the ratio of a run, and 5,000 others of the training images, or
what there is of them, to score on. No test split is read. The two precisions take turns, in one process of one thread.
Prints both accuracies, their difference, paired by seed, with its 90 % t interval, and whether that tells them to be
equivalent within half a point (two one-sided tests at 5 %), worse by more, or neither; and the ratio of training times.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from cifar_ray.config import Precision, Task
from cifar_ray.data.decode import Images, take_images
from cifar_ray.data.splits import load_data
from cifar_ray.data.stratified import stratified_split
from cifar_ray.models.classifier import has_bf16
from cifar_ray.presets import preset
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, eval_model, run_experiment

MARGIN = 0.5
"""Points of accuracy."""

MAX_HOLDOUT = 5000

BOTH: tuple[Precision, Precision] = ("fp32", "bf16")


def draw(pool: Images, sizes: tuple[int, ...], seed: int) -> list[Images]:
    """Stratified, disjoint parts of these sizes."""
    pool = take_images(pool, np.random.RandomState(seed).permutation(len(pool.labels)))
    parts = []
    for size in sizes:
        left, taken = stratified_split(pool.labels, size, min_left=0)
        parts.append(take_images(pool, taken))
        pool = take_images(pool, left)
    return parts


def verdict(low: float, high: float) -> str:
    if low > -MARGIN and high < MARGIN:
        return "equivalent"
    return "worse" if high < -MARGIN else "better" if low > MARGIN else "undecided"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--preset", default="small-cnn")
    parser.add_argument("--train-size", type=int, help="training images, validation included (default: those of a run)")
    parser.add_argument("--max-epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    whole, cut = load_data(args.data), load_data(args.data, train_size=args.train_size)
    pool = Images(
        np.concatenate([whole.train.images, whole.val.images]), np.concatenate([whole.train.labels, whole.val.labels])
    )
    num_train, num_val = len(cut.train.labels), len(cut.val.labels)
    num_holdout = min(MAX_HOLDOUT, len(pool.labels) - num_train - num_val)
    if not num_holdout:  # all are used: half of validation is scored on
        num_val, num_holdout = num_val // 2, num_val - num_val // 2
    _, channels, size, _ = pool.images.shape
    task = Task(len(whole.class_names), channels, size, num_train, "cpu", flips=whole.flips)
    accuracies: dict[str, list[float]] = {name: [] for name in BOTH}
    seconds: dict[str, list[float]] = {name: [] for name in BOTH}
    for seed in range(args.seeds):
        train, val, holdout = draw(pool, (num_train, num_val, num_holdout), seed)
        arrays = {"train_images": train.images, "train_labels": train.labels}
        arrays |= {"val_images": val.images, "val_labels": val.labels}
        data = DeviceData.from_arrays(arrays, task.num_classes, torch.device("cpu"))
        for precision in BOTH if seed % 2 else BOTH[::-1]:
            config = replace(preset(args.preset, task), precision=precision)
            began = time.process_time()
            outcome = run_experiment(Experiment(config, seed, args.max_epochs), data)
            seconds[precision].append(time.process_time() - began)
            right = eval_model(outcome.model, torch.tensor(holdout.images)).argmax(1).numpy() == holdout.labels
            accuracies[precision].append(100 * right.mean())
        print(f"seed {seed}: {', '.join(f'{name} {accuracies[name][-1]:.2f} %' for name in BOTH)}", flush=True)
    found = stats.ttest_rel(accuracies["bf16"], accuracies["fp32"])
    low, high = found.confidence_interval(0.9)
    difference = float(np.mean(accuracies["bf16"]) - np.mean(accuracies["fp32"]))
    for name in BOTH:
        mean, sd = np.mean(accuracies[name]), np.std(accuracies[name], ddof=1)
        print(f"{name}: {mean:.2f} %, standard deviation {sd:.2f}, {np.mean(seconds[name]):.1f} CPU seconds a training")
    ratio = np.median(np.array(seconds["fp32"]) / np.array(seconds["bf16"]))
    print(
        f"{args.preset}, {num_train} / {num_val} / {num_holdout} images, {args.max_epochs} epochs, n = {args.seeds}: "
        f"bf16 {difference:+.2f} points ({low:+.2f} to {high:+.2f}): {verdict(low, high)}; "
        f"{ratio:.2f} times as fast (median){'' if has_bf16('cpu') else ', emulated: this processor has no bf16'}"
    )


if __name__ == "__main__":
    main()
