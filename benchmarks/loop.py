"""The training loop against a bare one: the same network, optimizer and augmentation in a few lines of PyTorch by hand.

    python benchmarks/loop.py [--preset small-cnn] [--rounds 12] [--num-images 2048] [--threads 1]

Random images of CIFAR-10's shape. The two take turns, an epoch each, in one process; the first round does not count.
The bare loop keeps its images as normalised floats, and measures nothing: no accuracy, no loss, no gradient norm.
Prints the images a second of both (medians over rounds) and their ratio.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ray.config import Task, TrialConfig
from cifar_ray.presets import preset
from cifar_ray.training.device_data import DeviceData
from cifar_ray.training.loop import Experiment, Training
from cifar_ray.training.optim import make_optimizer


def bare_epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    lr_schedule: torch.optim.lr_scheduler.LRScheduler,
    config: TrialConfig,
) -> None:
    """Train on normalised images (N, C, H, W), float, channels last, as one would write it for this network alone."""
    network.train()
    size, padding = images.shape[-1], config.augment.crop_padding
    padded = functional.pad(images, (padding,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    for index in torch.randperm(len(images)).split(config.batch_size):
        if len(index) < config.batch_size:
            break
        crops = padded.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, 2 p + 1, 2 p + 1, H, W), a view
        y, x = torch.randint(2 * padding + 1, (2, len(index)))
        batch = crops[index, :, y, x]  # (B, C, H, W)
        batch = torch.where(torch.rand(len(index), 1, 1, 1) < 0.5, batch.flip(3), batch)
        batch = batch.contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(network(batch), labels[index], label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-cnn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--num-images", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = preset(args.preset, Task(10, 3, 32, args.num_images, "cpu"))
    images = torch.randint(0, 256, (args.num_images, 3, 32, 32), dtype=torch.uint8)
    arrays = {"train_images": images, "train_labels": torch.randint(0, 10, (args.num_images,))}
    arrays |= {"val_images": images[:10], "val_labels": torch.arange(10)}
    numpy_arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
    data = DeviceData.from_arrays(numpy_arrays, 10, torch.device("cpu"))
    training = Training(Experiment(config, seed=0, max_epochs=args.rounds + 1), data)
    network = copy.deepcopy(training.model.network)
    floats = training.model.inputs(images).contiguous(memory_format=torch.channels_last)
    total_steps = (args.rounds + 1) * (args.num_images // config.batch_size)

    optimizer = make_optimizer(config.optimizer, network)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.optimizer.lr, total_steps, cycle_momentum=False, anneal_strategy="linear"
    )
    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_epoch(network, floats, data.train_labels, optimizer, one_cycle, config),
        "ours": lambda: training.train_batches(torch.randperm(args.num_images), epoch=1).tolist(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    num_images = args.num_images // config.batch_size * config.batch_size
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:5} {num_images / median:7.0f} images/s (n = {args.rounds} epochs of {num_images} images)")
    ratios = sorted(bare / own for bare, own in zip(seconds["bare"][1:], seconds["ours"][1:], strict=True))
    quarters = statistics.quantiles(ratios, n=4)
    print(
        f"ratio of speeds {medians['bare'] / medians['ours']:.3f}; by round {quarters[0]:.3f} to {quarters[2]:.3f}",
        end="",
    )
    print(f" (quartiles), median {quarters[1]:.3f}; {args.preset}, batch {config.batch_size}, {args.threads} threads")


if __name__ == "__main__":
    main()
