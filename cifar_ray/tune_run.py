"""What `python -m cifar_ray.tune` does: search each space, then train, evaluate and report the finalists."""

import contextlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import psutil
import ray
from optuna.trial import TrialState

from cifar_ray import pipeline
from cifar_ray.config import InputError, Task, TrialConfig, trial_config
from cifar_ray.data import DataSplits
from cifar_ray.estimate import Speed, Workload
from cifar_ray.finals import read_checkpoint
from cifar_ray.hparams import Domain, union
from cifar_ray.launch import Place, Run, check_batch_sizes
from cifar_ray.pretrained import backbones_with
from cifar_ray.progress import duration
from cifar_ray.results import read_name, write_trials
from cifar_ray.search import Limits, StudySearcher, TrialCheckpoint, count_config_params, run_search
from cifar_ray.settings import TuneSettings
from cifar_ray.space import Space, check_fixed, load_spaces, param_domains, sample_space
from cifar_ray.study import Record, finalists, mend_journal, open_study, study_records, trial_seed
from cifar_ray.trial import TrialSettings
from cifar_ray.watch import SearchWatch
from cifar_ray.worker import FinalModel, Pool, Workers, open_pool

LONG_S = 3600.0
"""A run estimated to take longer is met with a smaller command."""

SMALLER = {"train_size": 5000, "trials": 30, "max_epochs": 8}

NUM_SAMPLES = 200
"""Random configurations drawn from a space at the start: they tell its parameters, and show what is wrong with it."""

NUM_SHOWN = 5
"""Sampled configurations that a dry run shows."""


def tune(settings: TuneSettings) -> int:
    """Run `python -m cifar_ray.tune`; return its exit code. Raises InputError, and then leaves no run folder."""
    spaces = [replace(space, fixed=settings.fixed) for space in load_spaces(settings.space)]
    names = [space.name for space in spaces]
    backbones = backbones_with(settings.weights or "DEFAULT")
    provisional = replace(pipeline.NO_DATA, weights=settings.weights or "DEFAULT", backbones=backbones)
    configs = [config for space in spaces for _, config in sample_space(space, provisional, NUM_SHOWN)]
    run = Run(settings, "tune", "-".join(names))
    run.check_unchanged(**{f"the code of space {space.name}": space.sha256 for space in spaces})
    with pipeline.started(run, f"search of {' and '.join(names)}", str(settings.data), configs) as opened:
        return 0 if opened is None else _tune(*opened, settings, spaces, backbones)


def _tune(
    place: Place, data: DataSplits, settings: TuneSettings, spaces: Sequence[Space], backbones: tuple[str, ...]
) -> int:
    run, console = place.run, place.console
    task = pipeline.make_task(place, data, backbones)
    samples = [sample_space(space, task, NUM_SAMPLES) for space in spaces]
    for space, drawn in zip(spaces, samples, strict=True):
        check_fixed(space, task, drawn)
        check_batch_sizes(place, ((f"as in space {space.name}", config) for _, config in drawn))
    shared = TrialSettings(
        data=[ray.put(data.training_arrays())],
        num_classes=task.num_classes,
        max_epochs=settings.max_epochs,
        patience=max(2, settings.max_epochs // 3),
        metric=str(settings.metric),
        num_threads=settings.cpus_per_trial,
        pretrained=pipeline.share_weights(place, [config for drawn in samples for _, config in drawn]),
    )
    measured = [pipeline.measure_speeds(place, space.default_config(task), shared) for space in spaces]
    speeds = [speed for speed, _ in measured]
    work = pipeline.make_workload(place, data, settings.max_epochs, settings.final_seeds)
    console.line(estimate(settings, work, speeds))
    if not run.resumed:
        check_time_budget(settings, run, work, speeds)
    if settings.dry_run:
        memory_mb = max(memory_mb for _, memory_mb in measured)
        _show_dry_run(place, samples, settings, task, data, memory_mb)
        return 0
    pipeline.begin(place, data)
    with pipeline.recorded(place, "search") as rows:
        domains = union(*(param_domains(trial for trial, _ in drawn) for drawn in samples))
        records = _search(place, settings, spaces, task, shared, domains, Clock(settings, run, work, speeds))
        models = _final_models(settings, records, place.folder.study_journal)
        if not models:
            console.line(_why_no_model(records))
        rows += pipeline.finish(place, data, shared, models)
    return 0 if rows else 1


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
        f"            recipe{'s' * (len(speeds) > 1)} ({rates} images/s on each of {work.slots} slots)"
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


def check_time_budget(settings: TuneSettings, run: Run, work: Workload, speeds: Sequence[Speed]) -> None:
    """Refuse a budget in which not even the default recipes could be tried, trained and evaluated."""
    if settings.time_budget is None:
        return
    least = run.phases.total + work.after_search_s(_finals(settings, speeds))
    least += sum(work.search_s(1, speed) + work.max_epochs * work.epoch_s(speed) for speed in speeds)
    if least > settings.time_budget:
        raise InputError(
            f"--time-budget: {duration(settings.time_budget)} is too short: start-up, final training and evaluation "
            f"alone take about {duration(least)} here; give more, or fewer --finalists, --final-seeds or --max-epochs"
        )


def _show_dry_run(
    place: Place,
    samples: Sequence[Sequence[tuple[optuna.trial.FrozenTrial, TrialConfig]]],
    settings: TuneSettings,
    task: Task,
    data: DataSplits,
    memory_mb: float,
) -> None:
    data_mb = sum(array.nbytes for array in data.training_arrays().values()) / 1e6
    own_mb = psutil.Process().memory_info().rss / 1e6
    console, num_processes = place.console, place.worker_slots
    if place.workers > 1:
        num_processes += place.slots  # trials that pass on what their workers report
    whole_mb = own_mb + data_mb + num_processes * memory_mb
    console.line(
        f"memory      {whole_mb / 1e3:.1f} GB: driver {own_mb:.0f} MB, data {data_mb:.0f} MB, each of {num_processes} "
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

    def __init__(self, settings: TuneSettings, run: Run, work: Workload, defaults: Sequence[Speed]) -> None:
        self.settings = settings
        self.run = run
        self.work = work
        self.defaults = defaults

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch of the slowest default recipe."""
        return max(map(self.work.epoch_s, self.defaults))

    def after_s(self, records: Sequence[Record]) -> float:
        """Seconds to keep for what follows the search."""
        chosen = [self._speed(record) for record in finalists(records, self.settings.finalists)]
        return self.work.after_search_s(chosen + _finals(self.settings, self.defaults)[len(chosen) :])

    def _speed(self, record: Record) -> Speed:
        train_s, eval_s = record["seconds"]["train"], record["seconds"]["eval"]
        epochs = record["epochs"]
        val = self.work.num_val * epochs / eval_s
        # Features that were computed for a trial are there for its final training.
        test = record["features"]["images_per_s"] if record["features"] else val
        return Speed(self.work.num_train * epochs / train_s, val, test)

    def search_end(self, earlier: Sequence[Record], spaces_left: int) -> Callable[[Sequence[Record]], float]:
        """Return what tells, given the records of a space, when its search has to have ended, in seconds of the phase.

        Args:
            earlier: records of the spaces before it.
            spaces_left: how many spaces share the time that is left, itself included.
        """
        phases, budget = self.run.phases, self.settings.time_budget
        if budget is None:
            return lambda records: float("inf")
        at_most = budget - (phases.total - phases.current)
        for_others = (at_most - self.after_s(earlier) - phases.current) * (1 - 1 / spaces_left)
        return lambda records: at_most - self.after_s([*earlier, *records]) - for_others


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
        KeyboardInterrupt: Ctrl-C ended the search; the records are written.
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
            f"taken up    {sum(map(len, earlier))} trials are finished, {again} were begun or drawn and are not"
        )
        so_far = max((record["ended_s"] for records in earlier for record in records), default=0.0)
        run.phases.seconds["search"] = max(run.phases.seconds.get("search", 0.0), so_far)
    checkpoints = _trial_checkpoints(place, studies)
    watch = SearchWatch(
        place.folder, console, settings.trials, place.slots, domains, [one for records in earlier for one in records]
    )
    done: list[Record] = []
    try:
        with contextlib.ExitStack() as stack:
            pool: Pool | None = None
            for index, (space, study) in enumerate(zip(spaces, studies, strict=True)):
                num_trials = shares(settings.trials, len(spaces))[index]
                limits = Limits(settings.max_params, clock.search_end(done, len(spaces) - index), clock.epoch_s)
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
                    checkpoints=checkpoints,
                )
                if not searcher.finished:
                    if place.workers > 1 and pool is None:
                        workers = Workers(place.worker_slots, place.workers, place.resources)
                        pool = stack.enter_context(open_pool(shared, workers, place.storage, judged=True))
                    run_search(searcher, shared, place.resources, place.slots, place.storage, pool)
                done += searcher.records
                if searcher.out_of_time:
                    console.line(f"time budget the search of {space.name} ends here, to leave time for what follows")
    finally:
        watch.events.close_all()
        records = sorted((one for study in studies for one in study_records(study)), key=lambda one: one["number"])
        write_trials(place.folder.trials_jsonl, records)
    console.status(watch.status(), force=True)
    console.line(f"search      {_count_states(records)} in {duration(run.next_phase('finals'))}")
    return records


def _trial_checkpoints(place: Place, studies: Sequence[optuna.Study]) -> dict[int, TrialCheckpoint]:
    """What trials that were running when an earlier session ended go on from, by number."""
    checkpoints = {}
    for index, study in enumerate(studies):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            number = trial.number * len(studies) + index
            if found := read_checkpoint(place, place.folder.trial(number)):
                checkpoints[number] = TrialCheckpoint(*found)
    return checkpoints


def _count_states(records: Sequence[Record]) -> str:
    states = [record["state"] for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"


def _why_no_model(records: Sequence[Record]) -> str:
    sizes = [record["num_params"] for record in records if record["state"] == "infeasible"]
    if sizes:
        return f"no trial is within the limits: the smallest of {len(sizes)} models has {min(sizes):,} parameters"
    return "no trial came to a result: what failed stands above, and in trials.jsonl"


def _final_models(settings: TuneSettings, records: Sequence[Record], journal: Path) -> list[FinalModel]:
    return [
        FinalModel(
            config_name=read_name(record, "name", str(journal)),
            number=record["number"],
            seed_index=seed_index,
            training_seed=trial_seed(settings.seed, record["number"], seed_index),
            config=trial_config(record["config"], record["name"]),
        )
        for record in finalists(records, settings.finalists)
        for seed_index in range(settings.final_seeds)
    ]
