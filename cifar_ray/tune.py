"""`python -m cifar_ray.tune`: search, final training of the finalists, evaluation, report."""

import datetime
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

from cifar_ray.command import at_least, flag, parse_flags, run_command
from cifar_ray.config import InputError, Task, TrialConfig
from cifar_ray.data import DataSplits, load_data
from cifar_ray.progress import Console, duration
from cifar_ray.results import RunFolder, write_json, write_trials

ESTIMATED_SHARE = 0.5
"""Share of `trials * max_epochs` that ASHA lets a search train, about."""

ESTIMATED_OVERHEAD_S = 40.0
"""Seconds that starting processes for finals and evaluation takes on a small machine."""

LONG_S = 3600.0
"""A run estimated to take longer is met with a smaller command."""

SMALLER = {"train_size": 5000, "trials": 30, "max_epochs": 8}


def _choice(*names: str) -> Any:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {text!r}")
        return text

    return parse


def _run_name(text: str) -> str:
    if not text or text.startswith(".") or "/" in text or os.sep in text:
        raise ValueError(f"must be the name of a folder, not a path: {text!r}")
    return text


@dataclass(frozen=True)
class TuneSettings:
    """Search a space for the best model, train the finalists over several seeds, evaluate them, write a report."""

    space: str = flag("cnn", "search space: a built-in name or the path of a Python file", metavar="NAME|FILE.py")
    data: str = flag("cifar10", "cifar10, digits, or a folder of images or parquet files", metavar="NAME|PATH")
    data_dir: Path | None = flag(None, "where cifar10 is kept or downloaded to (default: the user's cache folder)")
    train_size: int | None = flag(None, "use this many training images, validation included", at_least(1), "N")
    trials: int = flag(50, "trials that end complete or pruned", at_least(1), "N")
    max_epochs: int = flag(30, "epochs of a trial that is not stopped, and of each final training", at_least(1), "N")
    sampler: str = flag("tpe", "how configurations are drawn: tpe or random", _choice("tpe", "random"))
    finalists: int = flag(3, "best configurations that are trained again, beside the default", at_least(1), "N")
    final_seeds: int = flag(3, "seeds of each final configuration", at_least(1), "N")
    cpus_per_trial: int = flag(1, "CPUs of each trial and of each final training", at_least(1), "N")
    seed: int = flag(0, "seed of the whole search", at_least(0))
    name: str | None = flag(None, "name of the run (default: from space, data and time)", _run_name)
    runs_dir: Path = flag(Path("runs"), "folder that run folders are made in", Path)


def main(argv: Sequence[str]) -> int:
    settings = parse_flags(TuneSettings, "tune", argv)
    console = Console()
    from cifar_ray import search  # imports torch and Ray: a wrong flag is told before that

    space = search.load_space(settings.space)
    run = _free_run_folder(settings)
    console.line(f"cifar_ray {version('cifar_ray')}: {space.name} space, run {run.root.name}")
    data = load_data(settings.data, train_size=settings.train_size, data_dir=settings.data_dir)
    console.line(_describe_data(data))
    return _run(settings, console, space, run, data)


def _free_run_folder(settings: TuneSettings) -> RunFolder:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = settings.name or f"{Path(settings.space).stem}-{Path(settings.data).name}-{stamp}"
    folder = (settings.runs_dir / name).absolute()
    if folder.exists():
        raise InputError(f"--name: a run {name!r} exists in {settings.runs_dir}; choose another name")
    return RunFolder(folder)


def _describe_data(data: DataSplits) -> str:
    num_train, channels, height, width = data.train.images.shape
    return (
        f"data        {data.source}: {len(data.class_names)} classes, {channels}x{height}x{width} pixels; "
        f"train {num_train}, validation {len(data.val.images)}, test {len(data.test.images)} (sealed)"
    )


def _run(settings: TuneSettings, console: Console, space: Any, run: RunFolder, data: DataSplits) -> int:
    import ray

    from cifar_ray import finals, search
    from cifar_ray.runtime import output_to_file, ray_session, temporary_folder
    from cifar_ray.trial import TrialSettings, measure_speed
    from cifar_ray.watch import SearchWatch
    from cifar_ray.worker import FinalModel, Workers

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    phases = finals.Phases()
    start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with temporary_folder() as temp_dir, output_to_file(temp_dir / "ray.log"), ray_session(temp_dir) as hardware:
        if settings.cpus_per_trial > hardware.num_cpus:
            raise InputError(
                f"--cpus-per-trial: {settings.cpus_per_trial} asked for, but there are only {hardware.num_cpus} CPUs"
            )
        place = finals.Place(run, console, temp_dir)
        slots, resources = hardware.slots(settings.cpus_per_trial), hardware.resources(settings.cpus_per_trial)
        console.line(f"devices     {hardware.num_cpus} CPUs, {hardware.num_gpus} GPUs: {slots} trials side by side")
        task = Task(
            num_classes=len(data.class_names),
            channels=data.train.images.shape[1],
            image_size=data.train.images.shape[2],
            num_train=len(data.train.images),
            device="cuda" if hardware.num_gpus else "cpu",
            flips=data.flips,
        )
        arrays = ray.put(
            {
                "train_images": data.train.images,
                "train_labels": data.train.labels,
                "val_images": data.val.images,
                "val_labels": data.val.labels,
            }
        )
        trial_settings = TrialSettings(
            data=[arrays],
            num_classes=task.num_classes,
            max_epochs=settings.max_epochs,
            patience=max(2, settings.max_epochs // 3),
            num_threads=settings.cpus_per_trial,
            search_began=time.time(),
        )
        default = space.config(optuna.trial.FixedTrial(space.default(task)), task)
        speed = _measure_speed(measure_speed, default, trial_settings, slots, resources)
        console.line(_estimate(settings, data, speed, slots))
        run.root.mkdir(parents=True)
        run_json = _describe_run(settings, data, hardware, slots, start)
        write_json(run.run_json, run_json)
        console.line(f"TensorBoard tensorboard --logdir {shlex.quote(str(run.root))}")
        phases.end("startup")

        trial_settings = TrialSettings(**{**vars(trial_settings), "search_began": time.time()})
        study = search.create_study(run.study_journal, settings.sampler, settings.seed)
        watch = SearchWatch(run, console, settings.trials, slots)
        searcher = search.StudySearcher(study, space, task, settings.trials, settings.seed, watch)
        search.run_search(searcher, trial_settings, resources, temp_dir)
        watch.events.close_all()
        console.status(watch.status(), force=True)
        records = list(search.study_records(study))
        write_trials(run.trials_jsonl, records)
        console.line(f"search      {_count_states(records)} in {duration(phases.end('search'))}")
        if not searcher.finished:
            raise KeyboardInterrupt

        models = [
            FinalModel(
                record["name"],
                record["number"],
                seed_index,
                search.trial_seed(settings.seed, record["number"], seed_index),
                search.trial_config(record["config"], record["name"]),
            )
            for record in search.finalists(records, settings.finalists)
            for seed_index in range(settings.final_seeds)
        ]
        workers = Workers(min(slots, len(models)), 1, resources)
        trained = finals.train_finals(place, models, arrays, data, settings.max_epochs, workers) if models else []
        console.line(f"finals      {len(trained)} of {len(models)} models trained in {duration(phases.end('finals'))}")
        rows = []
        if trained:
            rows = finals.evaluate_finals(place, trained, data, settings.max_epochs, slots, resources)
            finals.choose_best(place, rows)
        console.line(f"evaluation  {len(rows)} models scored in {duration(phases.end('evaluation'))}")
        end = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(run.run_json, {**run_json, "end": end, "phases_s": phases.seconds})
        finals.write_report(place, rows)
        shutil.copy(temp_dir / "ray.log", run.root / "ray.log")
    return 0 if rows else 1


def _measure_speed(
    measure: Any, config: TrialConfig, trial_settings: Any, slots: int, resources: dict[str, float]
) -> dict[str, float]:
    """Time the default recipe on every slot at once, which also warms the processes that the trials then use."""
    import ray

    task = ray.remote(num_cpus=resources["CPU"], num_gpus=resources["GPU"])(measure)
    measured = ray.get([task.remote(config, trial_settings) for _ in range(slots)])
    return {name: sum(one[name] for one in measured) / slots for name in measured[0]}


def _estimate(settings: TuneSettings, data: DataSplits, speed: dict[str, float], slots: int) -> str:
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


def _describe_run(settings: TuneSettings, data: DataSplits, hardware: Any, slots: int, start: str) -> dict[str, Any]:
    packages = ("cifar_ray", "torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn")
    return {
        "command": "python -m cifar_ray.tune " + shlex.join(sys.argv[1:]),
        "settings": asdict(settings),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": {**asdict(hardware), "name": platform.processor() or platform.machine(), "slots": slots},
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "channels": data.train.images.shape[1],
            "image_size": data.train.images.shape[2],
            "num_train": len(data.train.images),
            "num_val": len(data.val.images),
            "num_test": len(data.test.images),
        },
        "seed": settings.seed,
        "metric": "accuracy",
        "start": start,
        "end": None,
        "phases_s": {},
    }


def _count_states(records: Sequence[dict[str, Any]]) -> str:
    states = [record["state"] for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"


if __name__ == "__main__":
    run_command(main)
