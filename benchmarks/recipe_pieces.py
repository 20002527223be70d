"""What pieces of a recipe are worth: trains a recipe without any, with each of them alone, and with all together.

    python benchmarks/recipe_pieces.py --data PATH [--shape small-cnn|airbench] [--seeds 4] [--max-epochs 8]
        [--num-train 4000] [--num-val 5000] [--variants whitening whitening+dirac ...]

Trains on some of the training images and validates on others of them; the test split is not read. Variants share seeds,
so their differences are taken seed by seed. Two processes of one thread each. Prints, for each variant, its validation
accuracy and the difference to the recipe without pieces, with 95 % Student's t intervals over seeds, and its seconds of
training and of validation as ratios to it.
"""

import argparse
import itertools
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context

import numpy as np
import torch
from scipy import stats

from cifar_ray.config import AugmentConfig, CNNConfig, LRScheduleConfig, OptimizerConfig, Task, TrialConfig
from cifar_ray.data.splits import load_data
from cifar_ray.presets import preset
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, run_experiment

AIRBENCH = TrialConfig(
    model=CNNConfig(widths=[16, 64, 64], blocks=[2, 2, 2], kernel_sizes=[3, 3, 3], activation="gelu", head_pool="max"),
    optimizer=OptimizerConfig(lr=0.25, weight_decay=5e-4),
    lr_schedule=LRScheduleConfig(name="one_cycle"),
    augment=AugmentConfig(crop_padding=2, flip="random"),
    batch_size=64,
    label_smoothing=0.2,
)
"""The network of airbench94 at a quarter of its width."""


PIECES = ("whitening", "dirac", "alternating", "lookahead", "tta")


def with_pieces(base: TrialConfig, pieces: Collection[str]) -> TrialConfig:
    """The recipe with these pieces and no others."""
    assert set(pieces) <= set(PIECES), pieces
    assert isinstance(base.model, CNNConfig)
    return replace(
        base,
        model=replace(base.model, whitening="whitening" in pieces, init="dirac" if "dirac" in pieces else "kaiming"),
        optimizer=replace(base.optimizer, lookahead="lookahead" in pieces),
        augment=replace(base.augment, flip="alternating" if "alternating" in pieces else "random"),
        tta="flip" if "tta" in pieces else "none",
    )


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
    outcome = run_experiment(Experiment(config, seed=seed, max_epochs=args.max_epochs), data)
    train_s, eval_s = (sum(row[kind] for row in outcome.history) for kind in ("train_s", "eval_s"))
    return name, seed, outcome.best["val_accuracy"], train_s, eval_s


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """Mean of values (seeds,) and half of the width of its 95 % Student's t interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0.0
    return f"{values.mean():{sign}.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--shape", default="small-cnn", choices=("small-cnn", "airbench"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-val", type=int, default=5000)
    parser.add_argument("--variants", nargs="+", default=[*PIECES, "+".join(PIECES)], help="pieces, joined by +")
    args = parser.parse_args()
    base = AIRBENCH if args.shape == "airbench" else preset("small-cnn", Task(10, 3, 32, args.num_train, "cpu"))
    chosen = {"plain": with_pieces(base, ())}
    chosen |= {name: with_pieces(base, name.split("+")) for name in args.variants}
    jobs = [(args, name, seed, config) for seed, (name, config) in itertools.product(range(args.seeds), chosen.items())]
    found: dict[str, dict[int, tuple[float, float, float]]] = {name: {} for name in chosen}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, seed, *measured in pool.map(train, jobs):
            found[name][seed] = (measured[0], measured[1], measured[2])
            print(f"{name}, seed {seed}: {100 * measured[0]:.2f} %", flush=True)
    plain = np.array([found["plain"][seed] for seed in range(args.seeds)])
    for name, by_seed in found.items():
        values = np.array([by_seed[seed] for seed in range(args.seeds)])  # (seeds, 3)
        ratios = values[:, 1:].sum(0) / plain[:, 1:].sum(0)
        print(
            f"{name:24} {with_interval(100 * values[:, 0])} %, "
            f"{with_interval(100 * (values[:, 0] - plain[:, 0]), '+')} points; training takes {ratios[0]:.2f}, "
            f"validation {ratios[1]:.2f} times as long (n = {args.seeds})"
        )


if __name__ == "__main__":
    main()
