"""What a draw costs the driver, as the study of a search grows: CPU milliseconds by sampler and number of trials.

    python benchmarks/search/draws.py [--trials 3000]

Trials of the space `cnn` on digits with made-up outcomes, of which two fifths ran to the end, in a journal on disk as a
run has it. A draw is counted with its configuration, in CPU time, so that other work does not count. Means of the last
20 draws before each number of trials.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState
from tasks import TASKS

from cifar_ray.search.samplers import sampler_of
from cifar_ray.search.study import open_study

SAMPLERS = ("mutation", "tpe", "random")
AT = (50, 200, 1000, 3000)
NUM_MEASURED = 20


def draw_ms(sampler: str, num_trials: int, journal: Path) -> dict[int, float]:
    """Milliseconds of a draw, by the number of trials before it."""
    task = TASKS["digits"]
    space = task.space
    study = open_study(journal, "cnn", sampler_of(sampler, space, task.task), seed=0)
    study.enqueue_trial(task.default_params)
    rng = np.random.default_rng(0)
    took = []
    for _ in range(num_trials):
        began = time.process_time()
        trial = study.ask()
        space.config(trial, task.task)
        took.append(1000 * (time.process_time() - began))
        whole = rng.random() < 0.4
        best = rng.uniform(0.8, 0.95)
        for epoch in (6, 30) if whole else (6,):
            trial.report(best * (1 - 0.5**epoch), epoch)
        study.tell(trial, best if whole else None, state=TrialState.COMPLETE if whole else TrialState.PRUNED)
    return {n: float(np.mean(took[n - NUM_MEASURED : n])) for n in AT if n <= num_trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for sampler in SAMPLERS:
        with tempfile.TemporaryDirectory() as folder:
            found = draw_ms(sampler, args.trials, Path(folder) / "study.journal")
        print(f"{sampler:<10}" + ", ".join(f"{ms:.0f} ms at {n}" for n, ms in found.items()), flush=True)


if __name__ == "__main__":
    main()
