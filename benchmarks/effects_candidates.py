"""Ways to make intervals of an ablation simultaneous: how often all of a family hold, and how wide they are.

    python benchmarks/effects_candidates.py [--families 1000] [--seed 0]

Draws means and variances of k arms of n seeds and of a base of 2 n, from normal values of given spreads, and prints for
each candidate the share of families whose intervals hold all true differences, and their mean width in standard errors
that a difference truly has. The last candidate is the chosen one, `simultaneous.Spread`, through which the whole
analysis goes in `effects_coverage.py`.
"""

import argparse
import math

import numpy as np
from effects_coverage import Spreads, equal, half, lognormal, one
from scipy.special import stdtrit

from cifar_ray.results.simultaneous import LEVEL, Spread, dunnett_critical, variance_prior

SPREADS: dict[str, Spreads] = {
    "equal": equal,
    "one arm 2 x": one(1, 2.0),
    "one arm 3 x": one(1, 3.0),
    "one arm 5 x": one(1, 5.0),
    "base 3 x": one(0, 3.0),
    "half 3 x": half,
    "log-normal": lognormal,
}

CANDIDATES = (
    "Dunnett, pooled",
    "pooled or moderated",
    "Welch, Sidak",
    "pooled or Welch",
    "pooled or wider of both",
    "wider by own spread (chosen)",
)


def welch(variances: np.ndarray, freedoms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Half widths (arms,) at Sidak's level, with Satterthwaite's degrees of freedom; the base stands first."""
    parts = variances / sizes
    freedom = (parts[1:] + parts[0]) ** 2 / (parts[1:] ** 2 / freedoms[1:] + parts[0] ** 2 / freedoms[0])
    return stdtrit(freedom, (1 + LEVEL ** (1 / (len(sizes) - 1))) / 2) * np.sqrt(parts[1:] + parts[0])


def half_widths(variances: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(candidates, arms)."""
    freedoms, num_arms = sizes - 1, len(sizes) - 1
    pooled = float((variances * freedoms).sum() / freedoms.sum())
    critical = dunnett_critical(tuple(sizes[1:].tolist()), int(sizes[0]), int(freedoms.sum()))
    dunnett = critical * np.sqrt(pooled / sizes[1:] + pooled / sizes[0])
    own = welch(variances, freedoms, sizes)
    prior, typical = variance_prior(variances, freedoms)
    alike = math.isinf(prior)
    moderated = dunnett
    if not alike:
        drawn = (prior * typical + freedoms * variances) / (prior + freedoms)
        moderated = welch(drawn, freedoms + prior, sizes)
    names = ["base", *(f"arm {place}" for place in range(num_arms))]
    spread = Spread(dict(zip(names, variances.tolist(), strict=True)), dict(zip(names, sizes.tolist(), strict=True)))
    chosen = [spread.margin({name: 1.0, "base": -1.0}, num_arms, names[1:]).half for name in names[1:]]
    either = dunnett if alike else own
    both = dunnett if alike else np.maximum(moderated, own)
    return np.array([dunnett, moderated, own, either, both, chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=1000, help="of each setting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    for name, spreads in SPREADS.items():
        for num_seeds, num_arms in ((3, 8), (3, 20), (5, 8), (5, 20)):
            sizes = np.array([2 * num_seeds] + [num_seeds] * num_arms)
            held, width = np.zeros(len(CANDIDATES)), np.zeros(len(CANDIDATES))
            for _ in range(args.families):
                true = spreads(num_arms, rng) ** 2
                means = rng.normal(size=num_arms + 1) * np.sqrt(true / sizes)
                halves = half_widths(true * rng.chisquare(sizes - 1) / (sizes - 1), sizes)
                held += (abs(means[1:] - means[0]) <= halves).all(axis=1)
                width += 2 * (halves / np.sqrt(true[1:] / sizes[1:] + true[0] / sizes[0])).mean(axis=1)
            for candidate, share, mean in zip(CANDIDATES, held / args.families, width / args.families, strict=True):
                print(
                    f"{name:12} n = {num_seeds}, k = {num_arms:2}: {candidate:30} all hold in {100 * share:5.1f} %, "
                    f"width {mean:5.2f}",
                    flush=True,
                )
    print(
        f"\n{args.families} families of each, seed {args.seed}; ± {100 * math.sqrt(0.05 * 0.95 / args.families):.1f} %"
    )


if __name__ == "__main__":
    main()
