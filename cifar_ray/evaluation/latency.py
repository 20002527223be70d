"""How long models take: timed in turn, by a process that has its node to itself."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cifar_ray.models.classifier import Classifier
from cifar_ray.models.saved import SavedModel

BATCHES_TIMED = {1: 200, 256: 20}
"""How many batches of which size are timed; those of large images are smaller."""

NUM_ROUNDS = 5
"""Models take turns in so many rounds, so that what else the machine does meets all of them alike."""

NUM_WARMUP = 10
"""Batches of each size that do not count, of the first round; of each other round it is one."""

MAX_WARMUP_S, MAX_TIMED_S = 2.0, 20.0
"""Seconds after which a slow model is warm enough, and after which no more batches of a size are timed."""

NUM_TIMED_IMAGES = sum((NUM_WARMUP + NUM_ROUNDS - 1 + n) * batch_size for batch_size, n in BATCHES_TIMED.items())
"""Images that a configuration is timed with."""

MAX_TIMING_S = len(BATCHES_TIMED) * (MAX_WARMUP_S + MAX_TIMED_S)
"""Seconds that it takes to time a slow configuration."""


@dataclass(frozen=True)
class Latency:
    """How long one configuration takes from a batch of uint8 images to logits, on one device."""

    device: str
    threads: int
    batch_size: int
    n: int
    """Batches timed."""
    latency_ms_p50: float
    """Median time of a whole batch, in milliseconds."""
    latency_ms_p95: float
    images_per_s: float
    """At the median time."""
    precision: str
    """What it computes in."""
    tta: str
    """Test-time augmentation, which the times include."""
    round_ms_low: float
    """Lowest of the rounds' median times."""
    round_ms_high: float
    again_ms_p50: float | None = None
    """Median time of the same model, timed as one more among the others; of the first configuration alone."""


class Timer:
    """Times models on one device.

    Args:
        images: (N, C, H, W) uint8, of which 1,000 at most are used.
        device: to time on.
    """

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.images = torch.tensor(images[:1000], device=device)

    @torch.inference_mode()
    def time(self, models: dict[str, SavedModel]) -> dict[str, list[Latency]]:
        """Time single images and batches of models, in turn; one entry each, then one each in fp32 if that is another.

        The first model is timed twice, as if it were two, which tells how far times can be trusted.
        """
        first = next(iter(models))
        named = [(name, network) for name, model in models.items() for network in self._networks(model)]
        networks = [*(network for _, network in named), models[first].build(self.device)]
        rounds: list[dict[int, list[list[float]]]] = [{size: [] for size in BATCHES_TIMED} for _ in networks]
        for index in range(NUM_ROUNDS):
            for network, of_model in zip(networks, rounds, strict=True):
                for size, of_size in of_model.items():
                    of_size.append(self._time_round(network, _batch_size(network, size), size, index == 0))
        again = rounds.pop()
        timed: dict[str, list[Latency]] = {name: [] for name in models}
        for (name, network), of_model in zip(named, rounds, strict=True):
            timed[name] += [self._latency(network, size, of_size) for size, of_size in of_model.items()]
        for index, of_size in enumerate(again.values()):
            timed[first][index] = replace(timed[first][index], again_ms_p50=_milliseconds(of_size))
        return timed

    def _networks(self, model: SavedModel) -> Iterator[Classifier]:
        """The model in its own precision, and in fp32 if that is another."""
        network = model.build(self.device)
        yield network
        if network.precision != "fp32":
            network = model.build(self.device)
            network.precision = "fp32"
            yield network

    def _time_round(self, network: Classifier, batch_size: int, asked: int, first: bool) -> list[float]:
        """Seconds of each batch of one round; `asked` is the batch size in `BATCHES_TIMED`."""
        warmup: list[float] = []
        timed: list[float] = []
        while len(warmup) < (NUM_WARMUP if first else 1) and sum(warmup) < MAX_WARMUP_S:
            warmup.append(self._time_batch(network, batch_size, len(warmup)))
        n, at_most_s = -(-BATCHES_TIMED[asked] // NUM_ROUNDS), MAX_TIMED_S / NUM_ROUNDS
        while len(timed) < n and (sum(timed) < at_most_s or not timed):
            timed.append(self._time_batch(network, batch_size, len(warmup) + len(timed)))
        return timed

    def _latency(self, network: Classifier, asked: int, rounds: Sequence[Sequence[float]]) -> Latency:
        batch_size = _batch_size(network, asked)
        seconds = [value for one in rounds for value in one]
        p50, p95 = np.percentile(seconds, [50, 95])
        medians = [_milliseconds([one]) for one in rounds]
        return Latency(
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
            batch_size=batch_size,
            n=len(seconds),
            latency_ms_p50=float(p50 * 1e3),
            latency_ms_p95=float(p95 * 1e3),
            images_per_s=float(batch_size / p50),
            precision=network.precision,
            tta=network.tta,
            round_ms_low=min(medians),
            round_ms_high=max(medians),
        )

    def _time_batch(self, network: Classifier, batch_size: int, index: int) -> float:
        """Seconds of one batch, of other images each time; a small test split is used several times over."""
        wanted = torch.arange(index * batch_size, (index + 1) * batch_size) % len(self.images)
        images = self.images[wanted.to(self.device)].contiguous(memory_format=torch.channels_last)
        self._wait_for_device()
        began = time.perf_counter()
        network(images)
        self._wait_for_device()
        return time.perf_counter() - began

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _batch_size(network: Classifier, asked: int) -> int:
    return min(asked, network.eval_batch_size)


def _milliseconds(rounds: Sequence[Sequence[float]]) -> float:
    """The median of all times."""
    return float(np.median([value for one in rounds for value in one]) * 1e3)
