"""What `python -m cifar_ray.tune` does once Ray is up."""

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import psutil
from optuna.trial import TrialState

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TuneSettings
from cifar_ray.config import Task, TrialConfig, trial_config
from cifar_ray.data.splits import DataSplits
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel, Pool, open_pool
from cifar_ray.driver.estimate import Clock, check_time_budget, estimate, shares
from cifar_ray.driver.finals import read_checkpoint, shared_card
from cifar_ray.driver.probe import fit_memory, measure_speeds, settle_precision
from cifar_ray.driver.run import Run, check_batch_sizes
from cifar_ray.driver.stages import begin, finish, make_workload, recorded, trial_settings
from cifar_ray.driver.start import describe_data, make_task
from cifar_ray.models.check import check_network
from cifar_ray.results.config_json import write_card
from cifar_ray.results.ranking import finalists
from cifar_ray.results.records import Row, RunFolder, State, read_name, write_trials
from cifar_ray.search.asha import Audit
from cifar_ray.search.mutation import Params
from cifar_ray.search.progress import Progress, TimeLimit
from cifar_ray.search.samplers import sampler_of
from cifar_ray.search.searcher import StudySearcher, TrialCheckpoint, count_config_params
from cifar_ray.search.space import Domain, Space, check_fixed, param_domains, sample_space, union
from cifar_ray.search.study import SpaceStudy, mend_journal, open_study, study_records
from cifar_ray.search.tuner import run_search
from cifar_ray.search.warm_start import warm_starts
from cifar_ray.text import duration
from cifar_ray.tracking.live import SearchWatch
from cifar_ray.training.seeds import derived_seed

NUM_SAMPLES = 200
"""Random configurations drawn from a space at the start: they tell its parameters, and show what is wrong with it."""

TRIAL_MB = 200
"""What a trial's process holds, which trains nothing itself."""

NUM_SHOWN = 5
"""Sampled configurations that a dry run shows."""


def search(
    run: Run[TuneSettings],
    console: Console,
    data: DataSplits,
    processes: Processes,
    storage: Path,
    spaces: Sequence[Space],
    backbones: tuple[str, ...],
) -> int:
    """Search the spaces, train, evaluate and report the finalists; return the exit code."""
    settings, workers = run.settings, processes.workers
    task = make_task(run, data, workers.device, backbones)
    samples = [sample_space(space, task, NUM_SAMPLES) for space in spaces]
    for space, drawn in zip(spaces, samples, strict=True):
        check_fixed(space, task, drawn)
        check_batch_sizes(
            workers, settings.workers_flag, ((f"as in space {space.name}", config) for _, config in drawn)
        )
        own = [config for _, config in drawn if config.family == "module"]
        for config in own[:1]:  # each of the others once it is drawn in earnest
            check_network(config, task)
    configs = [config for drawn in samples for _, config in drawn]
    shared = trial_settings(run, console, [data], configs, patience=max(2, settings.max_epochs // 3))
    precision = settle_precision(run, console, processes, spaces[0].default_config(task), shared)
    spaces = [replace(space, precision=precision) for space in spaces]
    speeds, memory = measure_speeds(processes, [space.default_config(task) for space in spaces], shared)
    fit_memory(run, console, processes, memory, TRIAL_MB)
    workers = processes.workers
    best_and_default = 2 * len(spaces)
    work = make_workload(workers, data, settings.max_epochs, settings.final_seeds, num_on_corrupted=best_and_default)
    console.line(estimate(settings, work, speeds))
    if not run.resumed:
        check_time_budget(run, work, speeds)
    if settings.dry_run:
        _show_dry_run(console, workers, samples, settings, task, data, max(of.own for of in memory))
        return 0
    first = _tried_first(run, console, spaces, task)
    begin(run, console, describe_data(data))
    with recorded(run, console, storage, "search") as rows:
        domains = union(*(param_domains(trial for trial, _ in drawn) for drawn in samples))
        clock = Clock(run, work, speeds)
        records = _search_all(run, console, data, processes, storage, spaces, task, shared, domains, clock, first)
        models = _final_models(settings, records, run.folder.study_journal)
        if not models:
            console.line(_why_no_model(records))
        rows += finish(run, console, processes, storage, data, shared, models)
    return 0 if rows else 1


def _show_dry_run(
    console: Console,
    workers: Workers,
    samples: Sequence[Sequence[tuple[optuna.trial.FrozenTrial, TrialConfig]]],
    settings: TuneSettings,
    task: Task,
    data: DataSplits,
    memory_mb: float,
) -> None:
    data_mb = sum(array.nbytes for array in data.training_arrays().values()) / 1e6
    own_mb = psutil.Process().memory_info().rss / 1e6
    whole_mb = own_mb + data_mb + workers.num_workers * memory_mb + workers.num_groups * TRIAL_MB
    console.line(
        f"memory      {whole_mb / 1e3:.1f} GB: driver {own_mb:.0f} MB, data {data_mb:.0f} MB, each of "
        f"{workers.num_workers} workers {memory_mb:.0f} MB, each of {workers.num_groups} trials {TRIAL_MB} MB"
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


def _tried_first(
    run: Run[TuneSettings], console: Console, spaces: Sequence[Space], task: Task
) -> dict[str, list[Params]]:
    """Configurations of `--warm-start` by space, each once, and without the default recipe, which is tried anyway.

    None where a run is taken up again: its study has them.
    """
    first: dict[str, list[Params]] = {space.name: [] for space in spaces}
    defaults = {space.name: space.default_params(task) for space in spaces}
    for path in () if run.resumed else run.settings.warm_start:
        for name, found in warm_starts(path, spaces, task).items():
            for one in found:
                without = f", without {', '.join(one.left_out)}" if one.left_out else ""
                console.line(f"warm start  {one.trial} of {path.name}{without}")
                if one.params not in [defaults[name], *first[name]]:
                    first[name].append(one.params)
    return first


def _open_studies(run: Run[TuneSettings], console: Console, spaces: Sequence[Space], task: Task) -> list[optuna.Study]:
    """Begin the study of each space, or go on with it."""
    settings, journal = run.settings, run.folder.study_journal
    if run.resumed and (mended := mend_journal(journal)):
        console.line(f"mended      {mended}")
    studies = [
        open_study(journal, space.name, sampler_of(settings.sampler, space, task), settings.seed + index)
        for index, space in enumerate(spaces)
    ]
    if run.resumed:
        finished = [record for study in studies for record in study_records(study)]
        again = sum(len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,))) for study in studies)
        console.line(f"taken up    {len(finished)} trials are finished, {again} were begun or drawn and are not")
        so_far = max((record["ended_s"] for record in finished), default=0.0)
        run.phases.seconds["search"] = max(run.phases.seconds.get("search", 0.0), so_far)
    return studies


def _search_all(
    run: Run[TuneSettings],
    console: Console,
    data: DataSplits,
    processes: Processes,
    storage: Path,
    spaces: Sequence[Space],
    task: Task,
    shared: TrialSettings,
    domains: dict[str, Domain],
    clock: Clock,
    first: Mapping[str, Sequence[Params]],
) -> list[Row]:
    """Search each space with its share of the trials and write the records.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the search; the records are written.
    """
    settings = run.settings
    studies = _open_studies(run, console, spaces, task)
    of_spaces = [
        SpaceStudy(space, study, index, len(spaces), first[space.name])
        for index, (space, study) in enumerate(zip(spaces, studies, strict=True))
    ]
    checkpoints = _trial_checkpoints(run.folder, console, of_spaces)
    earlier = [record for study in studies for record in study_records(study)]
    watch = SearchWatch(run.folder, console, settings.trials, domains, earlier)
    done: list[Row] = []
    try:
        with contextlib.ExitStack() as stack:
            pool: Pool | None = None
            for index, of_space in enumerate(of_spaces):
                num_trials = shares(settings.trials, len(spaces))[index]
                end_s = clock.search_end(done, len(spaces) - index)
                time_limit = TimeLimit(end_s, clock.epoch_s, now_s=lambda: run.phases.current)
                progress = Progress(study_records(of_space.study), num_trials, time_limit)
                if not progress.finished:
                    if pool is None:
                        pool = stack.enter_context(open_pool(shared, processes, storage, judged=True))
                    audit = Audit(settings.audit, settings.max_epochs, settings.seed) if settings.audit else None
                    searcher = StudySearcher(
                        of_space, task, settings.seed, progress, pool, watch, settings.max_params, checkpoints, audit
                    )
                    run_search(searcher, shared.max_epochs, storage)
                done += progress.records
                if progress.out_of_time:
                    console.line(
                        f"time budget the search of {of_space.space.name} ends here, to leave time for what follows"
                    )
    finally:
        watch.events.close_all()
        records = sorted((one for study in studies for one in study_records(study)), key=lambda one: one["number"])
        write_trials(run.folder.trials_jsonl, records)
        _write_configs(run, data, shared, records)
    console.status(watch.status(), force=True)
    console.line(f"search      {_count_states(records)} in {duration(run.next_phase('finals'))}")
    return records


def _write_configs(run: Run[TuneSettings], data: DataSplits, shared: TrialSettings, records: Sequence[Row]) -> None:
    """Leave with each trial that was trained what trains it again."""
    for record in records:
        if not record["epochs"]:
            continue
        number, config = record["number"], trial_config(record["config"], record["name"])
        card = {
            "config_name": record["name"],
            "trial": number,
            "training_seed": derived_seed(run.settings.seed, number),
            **shared_card(data, shared, config),
        }
        write_card(run.folder.trial(number), config, card, durable=False)  # what the study holds can be written again


def _trial_checkpoints(
    folder: RunFolder, console: Console, of_spaces: Sequence[SpaceStudy]
) -> dict[int, TrialCheckpoint]:
    """What trials that were running when an earlier session ended go on from, by number."""
    checkpoints = {}
    for of_space in of_spaces:
        for trial in of_space.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            number = of_space.number(trial.number)
            if found := read_checkpoint(folder.trial(number), console):
                checkpoints[number] = TrialCheckpoint(*found)
    return checkpoints


def _count_states(records: Sequence[Row]) -> str:
    states = [record["state"] for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"


def _why_no_model(records: Sequence[Row]) -> str:
    sizes = [record["num_params"] for record in records if record["state"] == State.INFEASIBLE]
    if sizes:
        return f"no trial is within the limits: the smallest of {len(sizes)} models has {min(sizes):,} parameters"
    return "no trial came to a result: what failed stands above, and in trials.jsonl"


def _final_models(settings: TuneSettings, records: Sequence[Row], journal: Path) -> list[FinalModel]:
    return [
        FinalModel(
            config_name=read_name(record, "name", str(journal)),
            number=record["number"],
            seed_index=seed_index,
            training_seed=derived_seed(settings.seed, record["number"], seed_index),
            config=trial_config(record["config"], record["name"]),
        )
        for record in finalists(records, settings.finalists)
        for seed_index in range(settings.final_seeds)
    ]
