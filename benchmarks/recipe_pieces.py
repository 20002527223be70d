"""What each piece of a recipe is worth: trains a recipe without any, with each of them alone, and with all.

    python benchmarks/recipe_pieces.py --data PATH [--shape small-cnn|airbench] [--seeds 4] [--max-epochs 8]
        [--num-train 4000] [--num-val 5000] [--piece NAME ...]

Trains on some of the training images and validates on others of them; the test split is not read. Variants share seeds,
so their differences are taken seed by seed. Two processes of one thread each. Prints, for each variant, its validation
accuracy and the difference to the recipe without pieces, with 95 % Student's t intervals over seeds, and its seconds of
training and of validation as ratios to it.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from cifar_ray.config import AugmentConfig, CNNConfig, LRScheduleConfig, OptimizerConfig, Task, TrialConfig
from cifar_ray.data import load_data
from cifar_ray.loop import DeviceData, run_experiment
from cifar_ray.presets import preset
from cifar_ray.ranking import mean_interval

AIRBENCH = TrialConfig(
    model=CNNConfig(widths=[16, 64, 64], blocks=[2, 2, 2], kernel_sizes=[3, 3, 3], activation="gelu", head_pool="max"),
    optimizer=OptimizerConfig(lr=0.25, weight_decay=5e-4),
    lr_schedule=LRScheduleConfig(name="one_cycle"),
    augment=AugmentConfig(crop_padding=2, flip="random"),
    batch_size=64,
    label_smoothing=0.2,
)
"""The network of airbench94 at a quarter of its width."""


def variants(base: TrialConfig) -> dict[str, TrialConfig]:
    """The recipe without pieces first, then with each, then with all."""
    plain = replace(
        base,
        model=replace(base.model, whitening=False, init="kaiming"),
        optimizer=replace(base.optimizer, lookahead=False),
        augment=replace(base.augment, flip="random"),
        tta="none",
    )
    pieces: dict[str, dict[str, Any]] = {
        "whitening": {"model": replace(plain.model, whitening=True)},
        "dirac": {"model": replace(plain.model, init="dirac")},
        "alternating flip": {"augment": replace(plain.augment, flip="alternating")},
        "lookahead": {"optimizer": replace(plain.optimizer, lookahead=True)},
        "flip at test time": {"tta": "flip"},
    }
    everything = pieces["whitening"] | {"model": replace(plain.model, whitening=True, init="dirac")}
    for name in ("alternating flip", "lookahead", "flip at test time"):
        everything |= pieces[name]
    return {"plain": plain} | {name: replace(plain, **changes) for name, changes in pieces.items()} | {
        "all": replace(plain, **everything)
    }  # fmt: skip


@cache
def data_of(source: str, num_train: int, num_val: int) -> DeviceData:
    splits = load_data(source)
    images = splits.train.images
    order = np.random.default_rng(0).permutation(len(images))
    train, val = order[:num_train], order[num_train : num_train + num_val]
    arrays = {"train_images": images[train], "train_labels": splits.train.labels[train]}
    arrays |= {"val_images": images[val], "val_labels": splits.train.labels[val]}
    return DeviceData.from_arrays(arrays, len(splits.class_names), torch.device("cpu"))


def train(job: tuple[argparse.Namespace, str, int, TrialConfig]) -> tuple[str, int, float, float, float]:
    args, name, seed, config = job
    torch.set_num_threads(1)
    data = data_of(args.data, args.num_train, args.num_val)
    outcome = run_experiment(config, data, seed=seed, max_epochs=args.max_epochs)
    train_s, eval_s = (sum(row[kind] for row in outcome.history) for kind in ("train_s", "eval_s"))
    return name, seed, outcome.best["val_accuracy"], train_s, eval_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--shape", default="small-cnn", choices=("small-cnn", "airbench"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-val", type=int, default=5000)
    parser.add_argument("--piece", nargs="*", help="of the variants, beside the recipe without pieces")
    args = parser.parse_args()
    base = AIRBENCH if args.shape == "airbench" else preset("small-cnn", Task(10, 3, 32, args.num_train, "cpu"))
    chosen = {
        name: config
        for name, config in variants(base).items()
        if not args.piece or name in ("plain", *args.piece)
    }  # fmt: skip
    jobs = [(args, name, seed, config) for seed, (name, config) in itertools.product(range(args.seeds), chosen.items())]
    found: dict[str, dict[int, tuple[float, float, float]]] = {name: {} for name in chosen}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, seed, *measured in pool.map(train, jobs):
            found[name][seed] = (measured[0], measured[1], measured[2])
            print(f"{name}, seed {seed}: {100 * measured[0]:.2f} %", flush=True)
    plain = np.array([found["plain"][seed] for seed in range(args.seeds)])
    for name, by_seed in found.items():
        values = np.array([by_seed[seed] for seed in range(args.seeds)])  # (seeds, 3)
        accuracy, gained = mean_interval(100 * values[:, 0]), mean_interval(100 * (values[:, 0] - plain[:, 0]))
        ratios = values[:, 1:].sum(0) / plain[:, 1:].sum(0)
        print(
            f"{name:18} {accuracy.mean:.2f} ± {accuracy.half_width or 0:.2f} %, "
            f"{gained.mean:+.2f} ± {gained.half_width or 0:.2f} points; training takes {ratios[0]:.2f}, "
            f"validation {ratios[1]:.2f} times as long (n = {args.seeds})"
        )


if __name__ == "__main__":
    main()
