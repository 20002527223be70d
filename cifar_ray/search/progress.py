"""How far the search of a space has come: which trials it has finished, and whether that is enough."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cifar_ray.results.records import TRIED, Row, State

MAX_INFEASIBLE = 20
"""Configurations over a limit, for each trial wanted, after which a search gives up."""

RESERVE_EPOCHS = 2
"""Epochs, as slow as the slowest so far, that a time budget leaves to the trials that are under way when it is up: they
end with their next report, and one that has just begun may be slower than all others."""


@dataclass(frozen=True)
class TimeLimit:
    """How long a search may go on; for ever by default."""

    end_s: Callable[[Sequence[Row]], float] = lambda records: math.inf
    """When it has to have ended, in seconds of `now_s`, given the records of the trials finished so far."""
    epoch_s: float = 0.0
    """Seconds that an epoch takes, as far as that is known before any trial has run."""
    now_s: Callable[[], float] = time.monotonic
    """The seconds that the search has taken so far."""


class Progress:
    """Counts the trials that end, and the time, and knows when that is enough.

    Args:
        records: of the trials that earlier sessions finished.
        num_trials: trials to end complete or pruned, those of earlier sessions included.
        time_limit: of the search.
    """

    def __init__(self, records: Iterable[Row], num_trials: int, time_limit: TimeLimit = TimeLimit()) -> None:
        self.records = list(records)
        """Of the trials finished so far."""
        self.num_trials = num_trials
        self._time_limit = time_limit
        self._num_finished = dict.fromkeys(State, 0)
        for record in self.records:
            self._num_finished[record["state"]] += 1
        self._end_s = time_limit.end_s(self.records)
        measured = [mean_epoch_s(record["seconds"], record["epochs"]) for record in self.records if record["epochs"]]
        self._slowest_epoch_s = max(time_limit.epoch_s, *measured, 0.0)
        self._time_is_up = False

    @property
    def now_s(self) -> float:
        """The seconds that the search has taken so far."""
        return self._time_limit.now_s()

    @property
    def num_usable(self) -> int:
        """Trials that ended complete or pruned."""
        return sum(self._num_finished[state] for state in TRIED)

    @property
    def finished(self) -> bool:
        """Whether enough trials ended complete or pruned, too many did not, or the time is up; once, and for good.

        However late it is, there has to be something to train afterwards.
        """
        return (
            self.num_usable >= self.num_trials
            or self._num_finished[State.FAILED] > self.num_trials
            or self._num_finished[State.INFEASIBLE] > MAX_INFEASIBLE * self.num_trials
            or (self.num_usable > 0 and self.out_of_time)
        )

    @property
    def out_of_time(self) -> bool:
        """Whether what follows the search needs the rest of the time; once it does, trials that end change nothing."""
        reserve_s = RESERVE_EPOCHS * self._slowest_epoch_s
        self._time_is_up = self._time_is_up or self.now_s + reserve_s >= self._end_s
        return self._time_is_up

    def add_epoch(self, epoch_s: float) -> None:
        """A trial under way takes so many seconds an epoch."""
        self._slowest_epoch_s = max(self._slowest_epoch_s, epoch_s)

    def add_trial(self, record: Row) -> None:
        """A trial has ended, and is told to the study."""
        self._num_finished[record["state"]] += 1
        self.records.append(record)
        self._end_s = self._time_limit.end_s(self.records)


def mean_epoch_s(seconds: Mapping[str, float], num_epochs: int) -> float:
    """Seconds of an epoch's training and validation, from a trial's seconds by kind."""
    return (seconds["train"] + seconds["eval"]) / num_epochs
