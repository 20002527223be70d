"""How long the phases of a run take, given how fast its models are."""

from collections.abc import Sequence
from dataclasses import dataclass

SEARCH_SHARE = 0.5
"""Share of `trials * max_epochs` that ASHA lets a search train, about."""

SEARCH_START_S = 5.0
"""Seconds until the processes of trials are up. This and the next two were measured on a machine of two cores."""

FINALS_START_S = 20.0
"""Seconds until Ray Train takes its first step."""

EVALUATION_START_S = 10.0
"""Seconds until the evaluation actors are up, and for the report."""

NUM_TIMED_IMAGES = 8000
"""Images that the evaluation runs through each configuration to time it."""

MOST_TIMING_S = 40.0
"""Seconds that it takes to time a slow configuration: `benchmark.MAX_TIMED_S` for each size of batch."""

MARGIN = 1.15
"""By how much what is still to come may take longer than it should, where a time budget is to be kept."""

RESERVE_EPOCHS = 2
"""Epochs, as slow as the slowest so far, that a time budget leaves to the trials that are under way when it is up: they
end with their next report, and one that has just begun may be slower than all others."""


@dataclass(frozen=True)
class Speed:
    """Images a second of one configuration on one slot, where all slots are busy."""

    train: float
    val: float
    """In the validation of an epoch."""
    test: float
    """Of the whole model; that differs from `val` where features of a frozen backbone are kept."""
    feature_views: int = 0
    """Versions of the training images whose features are computed before a head trains on them."""


@dataclass(frozen=True)
class Workload:
    """What a run has to do, apart from which configurations it does it with."""

    num_train: int
    num_val: int
    num_test: int
    max_epochs: int
    seeds: int
    """Of each configuration in the final training."""
    slots: int
    search_start_s: float = SEARCH_START_S

    def epoch_s(self, speed: Speed) -> float:
        """Seconds of one epoch of training and its validation."""
        return self.num_train / speed.train + self.num_val / speed.val

    def features_s(self, speed: Speed) -> float:
        """Seconds that a frozen backbone takes for its features, once."""
        return (speed.feature_views * self.num_train + self.num_val) / speed.test if speed.feature_views else 0.0

    def search_s(self, num_trials: int, speed: Speed) -> float:
        """Seconds of a search whose models are about as fast as `speed`."""
        training_s = num_trials * SEARCH_SHARE * self.max_epochs * self.epoch_s(speed) / self.slots
        return self.search_start_s + self.features_s(speed) + training_s

    def finals_s(self, speeds: Sequence[Speed]) -> float:
        """Seconds of the final training of configurations with these speeds, at most: the slots may share it badly."""
        # After its last epoch each of them runs over all training images once more, for the train accuracy.
        each = [self.max_epochs * self.epoch_s(speed) + self.num_train / speed.val for speed in speeds]
        trainings = each * self.seeds
        if not trainings:
            return 0.0
        features_s = sum(self.features_s(speed) for speed in speeds)
        return FINALS_START_S + features_s + sum(trainings) / self.slots + max(trainings) * (1 - 1 / self.slots)

    def evaluation_s(self, speeds: Sequence[Speed]) -> float:
        """Seconds of the evaluation of configurations with these speeds, and of the report."""
        scoring = sum(self.seeds * self.num_test / speed.test for speed in speeds) / self.slots
        return EVALUATION_START_S + scoring + sum(min(NUM_TIMED_IMAGES / speed.test, MOST_TIMING_S) for speed in speeds)

    def after_search_s(self, speeds: Sequence[Speed]) -> float:
        """Seconds to keep for what follows a search that has chosen configurations with these speeds."""
        return MARGIN * (self.finals_s(speeds) + self.evaluation_s(speeds))
