"""What `python -m cifar_ray.tune` does: search each space, then train, evaluate and report the finalists."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import optuna
import psutil
import ray
from optuna.trial import TrialState

from cifar_ray.config import InputError, Task, TrialConfig, trial_config
from cifar_ray.data import DataSplits
from cifar_ray.estimate import Speed, Workload
from cifar_ray.hparams import Domain, union
from cifar_ray.launch import Place, Run
from cifar_ray.pipeline import begin, finish, make_task, make_workload, measure_speeds, recorded, started
from cifar_ray.progress import Console, duration
from cifar_ray.results import write_trials
from cifar_ray.search import (
    Limits,
    Record,
    StudySearcher,
    count_config_params,
    finalists,
    mend_journal,
    open_study,
    run_search,
    study_records,
    trial_seed,
)
from cifar_ray.settings import TuneSettings
from cifar_ray.space import Space, load_spaces, param_domains, sample_space
from cifar_ray.trial import TrialSettings
from cifar_ray.watch import SearchWatch
from cifar_ray.worker import FinalModel

LONG_S = 3600.0
"""A run estimated to take longer is met with a smaller command."""

SMALLER = {"train_size": 5000, "trials": 30, "max_epochs": 8}

NUM_SAMPLES = 200
"""Random configurations drawn from a space at the start: they tell its parameters, and show what is wrong with it."""

NUM_SHOWN = 5
"""Sampled configurations that a dry run shows."""


def tune(settings: TuneSettings) -> int:
    """Run `python -m cifar_ray.tune`; return its exit code. Raises InputError, and then leaves no run folder."""
    spaces = load_spaces(settings.space)
    names = [space.name for space in spaces]
    run = Run(settings, "tune", "-".join(names))
    run.check_unchanged(**{f"the file of space {space.name}": space.sha256 for space in spaces})
    with started(run, f"search of {' and '.join(names)}", str(settings.data)) as opened:
        return 0 if opened is None else _tune(*opened, settings, spaces)


def _tune(place: Place, data: DataSplits, settings: TuneSettings, spaces: Sequence[Space]) -> int:
    run, console = place.run, place.console
    task = make_task(place, data)
    samples = [sample_space(space, task, NUM_SAMPLES) for space in spaces]
    shared = TrialSettings(
        data=[ray.put(data.training_arrays())],
        num_classes=task.num_classes,
        max_epochs=settings.max_epochs,
        patience=max(2, settings.max_epochs // 3),
        metric=str(settings.metric),
        num_threads=settings.cpus_per_trial,
    )
    speed, memory_mb = measure_speeds(place, spaces[0].default_config(task), shared)
    work = make_workload(place, data, settings.max_epochs, settings.final_seeds)
    console.line(estimate(settings, work, speed))
    if not run.resumed:
        check_time_budget(settings, run, work, speed)
    if settings.dry_run:
        _show_dry_run(console, samples, settings, work, speed, task, data, memory_mb)
        return 0
    begin(place, data)
    with recorded(place, "search") as rows:
        domains = union(*(param_domains(trial for trial, _ in drawn) for drawn in samples))
        records = _search(place, settings, spaces, task, shared, domains, Clock(settings, run, work, speed))
        models = _final_models(settings, records)
        if not models:
            console.line(_why_no_model(records))
        rows += finish(place, data, shared.data[0], models, settings.max_epochs)
    return 0 if rows else 1


def estimate(settings: TuneSettings, work: Workload, speed: Speed) -> str:
    """Say how long the whole run will take, given the default recipe's `speed`; name a smaller one if that is long."""

    def seconds(work: Workload, trials: int) -> float:
        finals = [speed] * (settings.finalists + 1)
        return work.search_s(trials, speed) + work.finals_s(finals) + work.evaluation_s(finals)

    whole = seconds(work, settings.trials)
    text = (
        f"estimate    {duration(whole)} in all, if the search's models are as fast as the default\n"
        f"            recipe ({speed.train:.0f} images/s on each of {work.slots} slots)"
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


def check_time_budget(settings: TuneSettings, run: Run, work: Workload, speed: Speed) -> None:
    """Refuse a budget in which not even the default recipe could be tried, trained and evaluated."""
    if settings.time_budget is None:
        return
    least = run.phases.total + work.after_search_s([speed] * (settings.finalists + 1))
    least += work.search_s(1, speed) + work.max_epochs * work.epoch_s(speed)
    if least > settings.time_budget:
        raise InputError(
            f"--time-budget: {duration(settings.time_budget)} is too short: start-up, final training and evaluation "
            f"alone take about {duration(least)} here; give more, or fewer --finalists, --final-seeds or --max-epochs"
        )


def _show_dry_run(
    console: Console,
    samples: Sequence[Sequence[tuple[optuna.trial.FrozenTrial, TrialConfig]]],
    settings: TuneSettings,
    work: Workload,
    speed: Speed,
    task: Task,
    data: DataSplits,
    memory_mb: float,
) -> None:
    data_mb = sum(array.nbytes for array in data.training_arrays().values()) / 1e6
    own_mb = psutil.Process().memory_info().rss / 1e6
    whole_mb = own_mb + data_mb + work.slots * memory_mb
    console.line(
        f"memory      {whole_mb / 1e3:.1f} GB: driver {own_mb:.0f} MB, data {data_mb:.0f} MB, each of {work.slots} "
        f"trial processes {memory_mb:.0f} MB"
    )
    num_models = (settings.finalists + 1) * settings.final_seeds
    params = [count_config_params(config, task) for drawn in samples for _, config in drawn]
    disk_mb = (num_models + 1) * 4e-6 * float(np.mean(params)) + 0.05 * (settings.trials + num_models) + 1
    console.line(f"disk        about {disk_mb:.0f} MB for {num_models} final models and the records of the trials")
    start = 0
    for drawn in samples:
        for (trial, _), num_params in list(zip(drawn, params[start:], strict=False))[: NUM_SHOWN + 1]:
            name = "default" if trial.number == 0 else f"sample {trial.number}"
            values = ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                               for key, value in trial.params.items())  # fmt: skip
            console.line(f"{name}, {num_params:,} parameters")
            console.line(textwrap.fill(values, 78, initial_indent="  ", subsequent_indent="  "))
        start += len(drawn)
    console.line("dry run: nothing was trained, and no run folder was made")


class Clock:
    """Tells a search when what follows it needs the rest of `--time-budget`."""

    def __init__(self, settings: TuneSettings, run: Run, work: Workload, default: Speed) -> None:
        self.settings = settings
        self.run = run
        self.work = work
        self.default = default

    def left_s(self, records: Sequence[Record]) -> float:
        """Seconds that are left for the search."""
        if self.settings.time_budget is None:
            return float("inf")
        chosen = [self._speed(record) for record in finalists(records, self.settings.finalists)]
        chosen += [self.default] * (self.settings.finalists + 1 - len(chosen))
        # Trials end after the epoch in which the time is up.
        after = self.work.after_search_s(chosen) + max(self.work.epoch_s(speed) for speed in chosen)
        return self.settings.time_budget - self.run.phases.total - after

    def _speed(self, record: Record) -> Speed:
        train_s, eval_s = record["seconds"]["train"], record["seconds"]["eval"]
        epochs = record["epochs"]
        return Speed(self.work.num_train * epochs / train_s, self.work.num_val * epochs / eval_s)

    def out_of_time(self, records: Sequence[Record], spaces_left: int) -> Callable[[Sequence[Record]], bool]:
        """Return a test for the search of a space, given the `records` of those before it; it takes an equal share."""
        left_s = self.left_s(records)
        for_others = left_s * (1 - 1 / spaces_left) if left_s < float("inf") else 0.0
        return lambda own: self.left_s([*records, *own]) <= for_others


def _search(
    place: Place,
    settings: TuneSettings,
    spaces: Sequence[Space],
    task: Task,
    shared: TrialSettings,
    domains: dict[str, Domain],
    clock: Clock,
) -> list[Record]:
    """Search each space with its share of the trials and write the records.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the search, which Tune takes as a wish to stop; the records are written.
    """
    run, console, journal = place.run, place.console, place.folder.study_journal
    if run.resumed and (mended := mend_journal(journal)):
        console.line(f"mended      {mended}")
    studies = [
        open_study(journal, space.name, settings.sampler, settings.seed + index) for index, space in enumerate(spaces)
    ]
    earlier = [list(study_records(study)) for study in studies]
    if run.resumed:
        again = sum(len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,))) for study in studies)
        console.line(
            f"taken up    {sum(map(len, earlier))} trials are finished, {again} were running and are run again"
        )
        so_far = max((record["ended_s"] for records in earlier for record in records), default=0.0)
        run.phases.seconds["search"] = max(run.phases.seconds.get("search", 0.0), so_far)
    watch = SearchWatch(
        place.folder, console, settings.trials, place.slots, domains, [one for records in earlier for one in records]
    )
    done: list[Record] = []
    try:
        for index, (space, study) in enumerate(zip(spaces, studies, strict=True)):
            num_trials = settings.trials // len(spaces) + (index < settings.trials % len(spaces))
            limits = Limits(settings.max_params, clock.out_of_time(done, len(spaces) - index))
            searcher = StudySearcher(
                study,
                space,
                task,
                num_trials,
                settings.seed,
                watch,
                limits,
                index,
                len(spaces),
                clock=lambda: run.phases.current,
            )
            if not searcher.finished:
                run_search(searcher, shared, place.resources, place.storage)
            done += searcher.records
            if not searcher.finished:
                raise KeyboardInterrupt
            if searcher.out_of_time:
                console.line(f"time budget the search of {space.name} ends here, to leave time for what follows")
    finally:
        watch.events.close_all()
        records = sorted((one for study in studies for one in study_records(study)), key=lambda one: one["number"])
        write_trials(place.folder.trials_jsonl, records)
    console.status(watch.status(), force=True)
    console.line(f"search      {_count_states(records)} in {duration(run.next_phase('finals'))}")
    return records


def _count_states(records: Sequence[Record]) -> str:
    states = [record["state"] for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"


def _why_no_model(records: Sequence[Record]) -> str:
    sizes = [record["num_params"] for record in records if record["state"] == "infeasible"]
    if sizes:
        return f"no trial is within the limits: the smallest of {len(sizes)} models has {min(sizes):,} parameters"
    return "no trial came to a result: what failed stands above, and in trials.jsonl"


def _final_models(settings: TuneSettings, records: Sequence[Record]) -> list[FinalModel]:
    return [
        FinalModel(
            config_name=record["name"],
            number=record["number"],
            seed_index=seed_index,
            training_seed=trial_seed(settings.seed, record["number"], seed_index),
            config=trial_config(record["config"], record["name"]),
        )
        for record in finalists(records, settings.finalists)
        for seed_index in range(settings.final_seeds)
    ]
