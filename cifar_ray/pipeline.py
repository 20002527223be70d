"""A run from data to report: search, final training, evaluation."""

import dataclasses
import datetime
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import ray

from cifar_ray.config import InputError, Task, TrialConfig, trial_config
from cifar_ray.data import DataSplits, load_data
from cifar_ray.finals import Phases, Place, evaluate_finals, train_finals, write_report
from cifar_ray.progress import Console, duration
from cifar_ray.results import Row, RunFolder, write_json, write_trials
from cifar_ray.runtime import Hardware, output_to_file, ray_session, temporary_folder
from cifar_ray.search import (
    Space,
    StudySearcher,
    create_study,
    finalists,
    load_space,
    run_search,
    study_records,
    trial_seed,
)
from cifar_ray.settings import TuneSettings
from cifar_ray.trial import TrialSettings, measure_speed
from cifar_ray.watch import SearchWatch
from cifar_ray.worker import FinalModel, Workers

ESTIMATED_SHARE = 0.5
"""Share of `trials * max_epochs` that ASHA lets a search train, about."""

ESTIMATED_OVERHEAD_S = 40.0
"""Seconds that starting processes for finals and evaluation takes on a small machine."""

LONG_S = 3600.0
"""A run estimated to take longer is met with a smaller command."""

RAY_LOG = "ray.log"
"""What Ray printed, in the run folder."""

SMALLER = {"train_size": 5000, "trials": 30, "max_epochs": 8}


def tune(settings: TuneSettings) -> int:
    """Run `python -m cifar_ray.tune`; return its exit code. Raises InputError, and then leaves no run folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console, phases = Console(), Phases()
    space = load_space(settings.space)
    run = _free_run_folder(settings)
    console.line(f"cifar_ray {version('cifar_ray')}: {space.name} space, run {run.root.name}")
    data = load_data(
        settings.data,
        train_size=settings.train_size,
        data_dir=settings.data_dir,
        skip_bad_images=settings.skip_bad_images,
    )
    console.line(_describe_data(data))
    with temporary_folder() as folder, output_to_file(folder / RAY_LOG), ray_session(folder) as hardware:
        return _run(settings, Place(run, console, phases, hardware, folder), space, data)


def _free_run_folder(settings: TuneSettings) -> RunFolder:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = settings.name or f"{Path(settings.space).stem}-{Path(settings.data).name}-{stamp}"
    folder = (settings.runs_dir / name).absolute()
    if folder.exists():
        raise InputError(f"--name: a run {name!r} exists in {settings.runs_dir}; choose another name")
    return RunFolder(folder)


def _describe_data(data: DataSplits) -> str:
    num_train, channels, height, width = data.train.images.shape
    text = (
        f"data        {data.source}: {len(data.class_names)} classes, {channels}x{height}x{width} pixels; "
        f"train {num_train}, validation {len(data.val.images)}, test {len(data.test.images)} (sealed)"
    )
    if data.bad_images:
        text += f"\n            {len(data.bad_images)} unreadable images left out, the first: {data.bad_images[0]}"
    return text


def _run(settings: TuneSettings, place: Place, space: Space, data: DataSplits) -> int:
    run, console, phases, hardware = place.run, place.console, place.phases, place.hardware
    if settings.cpus_per_trial > hardware.num_cpus:
        raise InputError(f"--cpus-per-trial: {settings.cpus_per_trial} is more than the {hardware.num_cpus} CPUs")
    slots, resources = hardware.slots(settings.cpus_per_trial), hardware.resources(settings.cpus_per_trial)
    console.line(f"devices     {hardware.num_cpus} CPUs, {hardware.num_gpus} GPUs: {slots} trials side by side")
    task = _task(data, hardware)
    shared = TrialSettings(
        data=[ray.put(data.training_arrays())],
        num_classes=task.num_classes,
        max_epochs=settings.max_epochs,
        patience=max(2, settings.max_epochs // 3),
        num_threads=settings.cpus_per_trial,
    )
    speed = _measure_speed(space.default_config(task), shared, slots, resources)
    console.line(estimate(settings, data, speed, slots))
    about = _describe_run(settings, data, hardware, slots)
    write_json(run.run_json, about)
    console.line(f"TensorBoard tensorboard --logdir {shlex.quote(str(run.root))}")
    phases.end("startup")

    rows: list[Row] = []
    try:
        records = _search(settings, place, space, task, shared, slots, resources)
        console.line(f"search      {_count_states(records)} in {duration(phases.end('search'))}")

        models = _final_models(settings, records)
        workers = Workers(min(slots, len(models)), 1, resources)
        trained = train_finals(place, models, shared.data[0], data, settings.max_epochs, workers) if models else []
        console.line(f"finals      {len(trained)} of {len(models)} models trained in {duration(phases.end('finals'))}")

        rows = evaluate_finals(place, trained, data, settings.max_epochs, slots, resources) if trained else []
        console.line(f"evaluation  {len(rows)} models scored in {duration(phases.end('evaluation'))}")
        write_json(run.run_json, {**about, "end": _now(), "phases_s": phases.seconds})
    except KeyboardInterrupt:
        console.line(f"interrupted: what was finished is kept in {run.root}")
        write_json(run.run_json, {**about, "phases_s": phases.seconds})
        raise
    finally:
        shutil.copy(place.storage / RAY_LOG, run.root / RAY_LOG)
        write_report(place, rows)
    return 0 if rows else 1


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _task(data: DataSplits, hardware: Hardware) -> Task:
    num_train, channels, image_size, _ = data.train.images.shape
    return Task(
        num_classes=len(data.class_names),
        channels=channels,
        image_size=image_size,
        num_train=num_train,
        device="cuda" if hardware.num_gpus else "cpu",
        flips=data.flips,
    )


def _search(
    settings: TuneSettings,
    place: Place,
    space: Space,
    task: Task,
    shared: TrialSettings,
    slots: int,
    resources: dict[str, float],
) -> list[dict[str, Any]]:
    """Run the search and write its records.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the search, which Tune takes as a wish to stop; the records are written.
    """
    study = create_study(place.run.study_journal, settings.sampler, settings.seed)
    watch = SearchWatch(place.run, place.console, settings.trials, slots)
    searcher = StudySearcher(study, space, task, settings.trials, settings.seed, watch)
    try:
        run_search(searcher, shared, resources, place.storage)
    finally:
        watch.events.close_all()
        records = list(study_records(study))
        write_trials(place.run.trials_jsonl, records)
    place.console.status(watch.status(), force=True)
    if not searcher.finished:
        raise KeyboardInterrupt
    return records


def _final_models(settings: TuneSettings, records: list[dict[str, Any]]) -> list[FinalModel]:
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


def _measure_speed(
    config: TrialConfig, shared: TrialSettings, slots: int, resources: dict[str, float]
) -> dict[str, float]:
    """Time the default recipe on every slot at once; return the mean of each rate."""
    task = ray.remote(num_cpus=resources["CPU"], num_gpus=resources["GPU"])(measure_speed)
    measured = ray.get([task.remote(config, shared) for _ in range(slots)])
    return {name: sum(one[name] for one in measured) / slots for name in measured[0]}


def estimate(settings: TuneSettings, data: DataSplits, speed: dict[str, float], slots: int) -> str:
    """Say how long the whole run will take, given the default recipe's `speed`; name a smaller one if that is long."""
    num_images = len(data.train.images) + len(data.val.images)
    val_share = len(data.val.images) / num_images

    def seconds(train_size: int, trials: int, max_epochs: int) -> float:
        epoch = train_size * ((1 - val_share) / speed["train_images_per_s"] + val_share / speed["eval_images_per_s"])
        num_finals = (settings.finalists + 1) * settings.final_seeds
        return (trials * ESTIMATED_SHARE + num_finals) * max_epochs * epoch / slots + ESTIMATED_OVERHEAD_S

    whole = seconds(num_images, settings.trials, settings.max_epochs)
    text = (
        f"estimate    {duration(whole)} in all, if the search's models are as fast as the default recipe "
        f"({speed['train_images_per_s']:.0f} images/s on each of {slots} slots)"
    )
    smaller = {
        name: min(size, num_images if name == "train_size" else getattr(settings, name))
        for name, size in SMALLER.items()
    }
    if whole > LONG_S and seconds(**smaller) < whole / 2:
        flags = " ".join(f"--{name.replace('_', '-')} {size}" for name, size in smaller.items())
        text += f"\n            that is long: {flags} would take {duration(seconds(**smaller))}"
    return text


def _describe_run(settings: TuneSettings, data: DataSplits, hardware: Hardware, slots: int) -> dict[str, Any]:
    packages = ("cifar_ray", "torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn")
    return {
        "command": "python -m cifar_ray.tune " + shlex.join(sys.argv[1:]),
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": {**dataclasses.asdict(hardware), "slots": slots},
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "channels": data.train.images.shape[1],
            "image_size": data.train.images.shape[2],
            "num_train": len(data.train.images),
            "num_val": len(data.val.images),
            "num_test": len(data.test.images),
            "bad_images": list(data.bad_images),
        },
        "seed": settings.seed,
        "metric": "accuracy",
        "start": _now(),
        "end": None,
        "phases_s": {},
    }


def _count_states(records: Sequence[dict[str, Any]]) -> str:
    states = [record["state"] for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"
