"""How often 95 % intervals of a mean accuracy hold what is to be expected on new images with new seeds.

    python benchmarks/interval_coverage.py [--simulations 2000] [--seed 0]

Simulates accuracies of n seeds on the same N images. A seed has a true accuracy of its own (a beta distribution of the
mean and spread given); an image is hard or easy for all seeds alike (their latent normal variables correlate by 0.7).
Prints, for each candidate, N and n, the coverage over all means and spreads, the lowest of any of them, and the mean
width; then the chosen one, `statistics.score_interval`, for each mean and spread.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from cifar_ray.results.statistics import score_interval

MEANS = (0.5, 0.9, 0.99, 0.997)
SPREADS = (0.0, 0.002, 0.005, 0.01, 0.03)
"""Standard deviations of the seeds' true accuracies; those above 1 - mean are left out."""

CORRELATION = 0.7
NUM_LEVELS = 200
"""Levels of hardness, all as frequent."""

NUM_POOLED = 4
"""Configurations whose spread over seeds is pooled."""

Bounds = tuple[np.ndarray, np.ndarray]


def simulate(
    rng: np.random.Generator, mean: float, spread: float, num_images: int, num_seeds: int, num_simulations: int
) -> np.ndarray:
    """Accuracies (simulations, seeds)."""
    shape = (num_simulations, num_seeds)
    true = np.full(shape, mean)
    if spread:
        strength = mean * (1 - mean) / spread**2 - 1
        true = rng.beta(mean * strength, (1 - mean) * strength, shape).clip(1e-12, 1 - 1e-12)
    hardness = ndtri((np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS)
    at_level = ndtr((ndtri(true)[..., None] - CORRELATION**0.5 * hardness) / (1 - CORRELATION) ** 0.5)  # (R, S, L)
    num_at_level = rng.multinomial(num_images, np.full(NUM_LEVELS, 1 / NUM_LEVELS), num_simulations)  # (R, L)
    return rng.binomial(num_at_level[:, None], at_level).sum(axis=-1) / num_images


def students_t(freedom: np.ndarray | float) -> np.ndarray:
    return stdtrit(np.clip(freedom, 1, 1e9), 0.975)


def parts(scores: np.ndarray, num_images: int) -> Bounds:
    """Variance of the mean by its seeds and by the images, (simulations,) each."""
    mean = scores.mean(axis=1)
    return scores.var(axis=1, ddof=1) / scores.shape[1], mean * (1 - mean) / num_images


def satterthwaite(of_seeds: np.ndarray, total: np.ndarray, freedom: int) -> np.ndarray:
    return students_t(np.divide(total**2 * freedom, of_seeds**2, out=np.full_like(total, 1e9), where=of_seeds > 0))


def old(scores: np.ndarray, num_images: int) -> Bounds:
    mean, half = scores.mean(axis=1), students_t(scores.shape[1] - 1) * parts(scores, num_images)[0] ** 0.5
    return mean - half, mean + half


def floor(scores: np.ndarray, num_images: int) -> Bounds:
    mean, (of_seeds, of_images) = scores.mean(axis=1), parts(scores, num_images)
    half = np.maximum(students_t(scores.shape[1] - 1) * of_seeds**0.5, 1.96 * of_images**0.5)
    return (mean - half).clip(0), (mean + half).clip(max=1)


def both(scores: np.ndarray, num_images: int) -> Bounds:
    mean, (of_seeds, of_images) = scores.mean(axis=1), parts(scores, num_images)
    total = of_seeds + of_images
    half = satterthwaite(of_seeds, total, scores.shape[1] - 1) * total**0.5
    return (mean - half).clip(0), (mean + half).clip(max=1)


def logit(scores: np.ndarray, num_images: int) -> Bounds:
    mean = (scores.mean(axis=1) * num_images + 2) / (num_images + 4)  # two more right, two more wrong
    of_seeds, of_images = parts(scores, num_images)[0], mean * (1 - mean) / (num_images + 4)
    total = of_seeds + of_images
    half = satterthwaite(of_seeds, total, scores.shape[1] - 1) * total**0.5 / (mean * (1 - mean))
    centre = np.log(mean / (1 - mean))
    return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))


def wilson(mean: np.ndarray, total: np.ndarray, t: np.ndarray | float, num_images: int) -> Bounds:
    of_share = mean * (1 - mean)
    effective = np.divide(of_share, total, out=np.full_like(mean, num_images), where=of_share > 0)
    centre = (mean + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t / (1 + t**2 / effective) * (of_share / effective + t**2 / (4 * effective**2)) ** 0.5
    return centre - half, centre + half


def apart(scores: np.ndarray, num_images: int) -> Bounds:
    of_seeds, of_images = parts(scores, num_images)
    inflated = (students_t(scores.shape[1] - 1) / 1.96) ** 2 * of_seeds
    return wilson(scores.mean(axis=1), inflated + of_images, 1.96, num_images)


def pooled(scores: np.ndarray, num_images: int) -> Bounds:
    of_seeds, of_images = parts(scores, num_images)
    of_seeds = of_seeds.reshape(-1, NUM_POOLED).mean(axis=1).repeat(NUM_POOLED)
    total = of_seeds + of_images
    t = satterthwaite(of_seeds, total, NUM_POOLED * (scores.shape[1] - 1))
    return wilson(scores.mean(axis=1), total, t, num_images)


def chosen(scores: np.ndarray, num_images: int) -> Bounds:
    found = [score_interval(values, num_images) for values in scores.tolist()]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


CANDIDATES: dict[str, Callable[[np.ndarray, int], Bounds]] = {
    "t over seeds": old,
    "the same, at least the images' noise, clipped": floor,
    "t, seeds + images, clipped": both,
    "t, seeds + images, on the logit scale": logit,
    "Wilson, images + t times seeds": apart,
    f"Wilson, seeds pooled over {NUM_POOLED} alike": pooled,
    "Wilson, seeds + images (chosen)": chosen,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="of each mean and spread")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    cells = [(mean, spread) for mean, spread in itertools.product(MEANS, SPREADS) if spread <= 1 - mean]
    details = []
    for num_images, num_seeds in itertools.product((288, 10_000), (2, 3, 5)):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CANDIDATES}
        for mean, spread in cells:
            scores = simulate(rng, mean, spread, num_images, num_seeds, args.simulations)
            for name, interval in CANDIDATES.items():
                low, high = interval(scores, num_images)
                found[name].append((100 * ((low <= mean) & (mean <= high)).mean(), 100 * (high - low).mean()))
        for name, values in found.items():
            coverage, width = np.array(values).T
            print(
                f"N = {num_images:6,}, n = {num_seeds}: {name:45}  covers {coverage.mean():5.1f} % (lowest "
                f"{coverage.min():5.1f} %), mean width {width.mean():6.2f} points",
                flush=True,
            )
        of_chosen = zip(cells, found["Wilson, seeds + images (chosen)"], strict=True)
        details += [(num_images, num_seeds, *cell, *value) for cell, value in of_chosen]
    print("\nthe chosen one")
    for num_images, num_seeds, mean, spread, coverage, width in details:
        print(
            f"N = {num_images:6,}, n = {num_seeds}, mean {100 * mean:.1f} %, spread {100 * spread:.1f} points: covers "
            f"{coverage:5.1f} %, mean width {width:5.2f} points"
        )
    print(f"\n{args.simulations} simulations of each of {len(cells)} means and spreads, seed {args.seed}")


if __name__ == "__main__":
    main()
