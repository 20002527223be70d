"""Seeds that are drawn from the run's."""

import numpy as np


def derived_seed(study_seed: int, *path: int) -> int:
    """Seed of a trial (`path` is its number) or of a final training (trial number, seed index)."""
    # As a spawn key: behind a list of numbers a zero changes nothing, and the first final training would repeat the
    # very trial that was chosen for having gone well.
    return int(np.random.SeedSequence(study_seed, spawn_key=path).generate_state(1)[0])
