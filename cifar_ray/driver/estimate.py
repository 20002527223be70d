"""How long the phases of a run take, given how fast its models are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cifar_ray.cli.flags import TuneSettings
from cifar_ray.distributed.speed import Speed
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError
from cifar_ray.evaluation.evaluate import MAX_CORRUPTED, MAX_TRAIN_IMAGES
from cifar_ray.evaluation.latency import MAX_TIMING_S, NUM_TIMED_IMAGES
from cifar_ray.results.ranking import finalists
from cifar_ray.results.records import CORRUPTIONS, SEVERITIES, Row
from cifar_ray.text import duration

SEARCH_SHARE = 0.5
"""Share of `trials * max_epochs` that ASHA lets a search train, about."""

SEARCH_START_S = 5.0
"""Seconds until the first trials are handed to workers. This and the next ones were measured on two cores."""

FINALS_START_S = 2.0
"""Seconds until workers that are up take their first final training."""

RAY_TRAIN_START_S = 20.0
"""Seconds until Ray Train takes its first step, where several workers train a model; in search and finals."""

EVALUATION_START_S = 10.0
"""Seconds until the workers have imported what they score with, and for the report."""

MARGIN = 1.15
"""By how much what is still to come may take longer than it should, where a time budget is to be kept."""

LONG_S = 3600.0
"""A run estimated to take longer is met with a smaller command."""

SMALLER = {"train_size": 5000, "trials": 30, "max_epochs": 8}


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
    num_on_corrupted: int
    """Models that the evaluation scores on corrupted images too, at most."""
    search_start_s: float = SEARCH_START_S
    finals_start_s: float = FINALS_START_S

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
        return self.finals_start_s + features_s + sum(trainings) / self.slots + max(trainings) * (1 - 1 / self.slots)

    def evaluation_s(self, speeds: Sequence[Speed]) -> float:
        """Seconds of the evaluation of configurations with these speeds, and of the report."""
        num_images = self.num_test + self.num_val + min(self.num_train, MAX_TRAIN_IMAGES)
        scoring = sum(self.seeds * num_images / speed.test for speed in speeds)
        # Which models are scored on corrupted images is not known: the slowest, to be safe.
        by_speed = sorted(speeds, key=lambda speed: speed.test)
        slowest = by_speed[: self.num_on_corrupted]
        num_corrupted = min(self.num_test, MAX_CORRUPTED) * (1 + len(CORRUPTIONS) * len(SEVERITIES))
        scoring += sum(num_corrupted / speed.test for speed in slowest)
        # One of them is timed twice.
        timing = sum(min(NUM_TIMED_IMAGES / speed.test, MAX_TIMING_S) for speed in [*by_speed[:1], *speeds])
        return EVALUATION_START_S + scoring / self.slots + timing

    def after_search_s(self, speeds: Sequence[Speed]) -> float:
        """Seconds to keep for what follows a search that has chosen configurations with these speeds."""
        return MARGIN * (self.finals_s(speeds) + self.evaluation_s(speeds))


def estimate(settings: TuneSettings, work: Workload, speeds: Sequence[Speed]) -> str:
    """Say how long the whole run will take, given the speed of each space's default recipe; name a smaller one."""

    def seconds(work: Workload, trials: int) -> float:
        each = shares(trials, len(speeds))
        search_s = sum(work.search_s(share, speed) for share, speed in zip(each, speeds, strict=True))
        return search_s + work.finals_s(_finals(settings, speeds)) + work.evaluation_s(_finals(settings, speeds))

    whole = seconds(work, settings.trials)
    rates = " and ".join(f"{speed.train:.0f}" for speed in speeds)
    text = (
        f"estimate    {duration(whole)} in all, if the search's models are as fast as the default\n"
        f"            recipe{'s' * (len(speeds) > 1)} ({rates} images/s each, {work.slots} side by side)"
    )
    num_images = work.num_train + work.num_val
    size = min(SMALLER["train_size"], num_images)
    trials, max_epochs = min(SMALLER["trials"], settings.trials), min(SMALLER["max_epochs"], settings.max_epochs)
    smaller = replace(
        work,
        num_train=work.num_train * size // num_images,
        num_val=work.num_val * size // num_images,
        max_epochs=max_epochs,
    )
    if whole > LONG_S and settings.time_budget is None and seconds(smaller, trials) < whole / 2:
        flags = f"--train-size {size} --trials {trials} --max-epochs {max_epochs}"
        text += f"\n            that is long: {flags} would take {duration(seconds(smaller, trials))}"
    return text


def shares(trials: int, num_spaces: int) -> list[int]:
    """How many of the trials each space gets."""
    return [trials // num_spaces + (index < trials % num_spaces) for index in range(num_spaces)]


def _finals(settings: TuneSettings, speeds: Sequence[Speed]) -> list[Speed]:
    """Speeds of the final training: finalists as fast as the slowest default recipe, and each space's default."""
    slowest = min(speeds, key=lambda speed: speed.train)
    return [slowest] * settings.finalists + list(speeds)


def check_time_budget(run: Run[TuneSettings], work: Workload, speeds: Sequence[Speed]) -> None:
    """Refuse a budget in which not even the default recipes could be tried, trained and evaluated."""
    settings = run.settings
    if settings.time_budget is None:
        return
    least = run.phases.total + work.after_search_s(_finals(settings, speeds))
    least += sum(work.search_s(1, speed) + work.max_epochs * work.epoch_s(speed) for speed in speeds)
    if least > settings.time_budget:
        raise InputError(
            f"--time-budget: {duration(settings.time_budget)} is too short: start-up, final training and evaluation "
            f"alone take about {duration(least)} here; give more, or fewer --finalists, --final-seeds or --max-epochs"
        )


class Clock:
    """Tells a search when what follows it needs the rest of `--time-budget`."""

    def __init__(self, run: Run[TuneSettings], work: Workload, defaults: Sequence[Speed]) -> None:
        self.run = run
        self.work = work
        self.defaults = defaults

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch of the slowest default recipe."""
        return max(map(self.work.epoch_s, self.defaults))

    def after_s(self, records: Sequence[Row]) -> float:
        """Seconds to keep for what follows the search."""
        chosen = [self._speed(record) for record in finalists(records, self.run.settings.finalists)]
        return self.work.after_search_s(chosen + _finals(self.run.settings, self.defaults)[len(chosen) :])

    def _speed(self, record: Row) -> Speed:
        train_s, eval_s = record["seconds"]["train"], record["seconds"]["eval"]
        epochs = record["epochs"]
        val = self.work.num_val * epochs / eval_s
        # Features that were computed for a trial are there for its final training.
        test = record["features"]["images_per_s"] if record["features"] else val
        return Speed(self.work.num_train * epochs / train_s, val, test)

    def search_end(self, earlier: Sequence[Row], spaces_left: int) -> Callable[[Sequence[Row]], float]:
        """Return what tells, given the records of a space, when its search has to have ended, in seconds of the phase.

        Args:
            earlier: records of the spaces before it.
            spaces_left: how many spaces share the time that is left, itself included.
        """
        phases, budget = self.run.phases, self.run.settings.time_budget
        if budget is None:
            return lambda records: float("inf")
        at_most = budget - (phases.total - phases.current)
        for_others = (at_most - self.after_s(earlier) - phases.current) * (1 - 1 / spaces_left)
        return lambda records: at_most - self.after_s([*earlier, *records]) - for_others
