"""What every run goes through, whatever it trains: start-up, records, interruption, final training, evaluation."""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainingSettings
from cifar_ray.cli.parser import option_of
from cifar_ray.config import Task, TrialConfig
from cifar_ray.data.decode import Images
from cifar_ray.data.labelled import split_fingerprint
from cifar_ray.data.splits import DataSplits, load_data
from cifar_ray.distributed.hardware import Workers, plan_workers
from cifar_ray.distributed.process import Pretrained, TrialSettings, put_weights
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.session import output_to_file, ray_session, temporary_folder
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.estimate import RAY_TRAIN_START_S, Workload
from cifar_ray.driver.finals import failed_row, train_finals
from cifar_ray.driver.run import Run, sigterm_as_ctrl_c
from cifar_ray.errors import InputError
from cifar_ray.evaluation.evaluate import Group, evaluate
from cifar_ray.reporting.parts import shared_images
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.terminal import table_of
from cifar_ray.results.readings import note_reading
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted, duration

Data = TypeVar("Data")

RAY_LOG = "ray.log"
"""What Ray printed, in the run folder."""


@contextlib.contextmanager
def started(
    run: Run[Any], console: Console, what: str, load: Callable[[], Data]
) -> Iterator[tuple[Data, Processes, Path] | None]:
    """Load the data and start Ray for a run; None where an earlier session has brought it to its end.

    Args:
        run: what begins, or is taken up.
        console: is told what there is.
        what: in words.
        load: loads the data and says what it is.

    Yields:
        The data, a process for each worker that there is room for, and a folder for Ray's own files, of no use
        afterwards.
    """
    settings = run.settings
    with contextlib.closing(run), contextlib.ExitStack() as stack:
        console.line(f"cifar_ray {version('cifar_ray')}: {what}")
        if run.finished:
            console.line(f"this run has come to its end: {run.folder.report_html}")
            given = [name for name in run.settings.extendable if getattr(run.settings, name) is not None]
            if more := " or ".join(map(option_of, given)):
                console.line(f"to extend it, resume it with more {more}")
            yield None
            return
        data = load()
        folder = stack.enter_context(temporary_folder())
        stack.enter_context(output_to_file(folder / RAY_LOG))
        hardware = stack.enter_context(ray_session(folder))
        stack.enter_context(sigterm_as_ctrl_c())
        workers = plan_workers(
            hardware,
            settings.cpus_per_trial,
            settings.gpus_per_trial,
            settings.workers_per_model,
            settings.workers_flag,
        )
        processes = stack.enter_context(Processes(workers))
        processes.start()
        run.note_device(hardware, workers)
        each = f", {workers.workers_per_model} workers each" if workers.workers_per_model > 1 else ""
        console.line(
            f"devices     {hardware.num_cpus} CPUs, {hardware.num_gpus} GPUs: "
            f"{workers.num_groups} {'trials' if run.kind == 'tune' else 'models'} side by side{each}"
        )
        yield data, processes, folder


def begin(run: Run[Any], console: Console, data: Mapping[str, Any]) -> None:
    """The run begins, or goes on: from here on it leaves records. `data`: what run.json says of it."""
    run.begin(data)
    console.line(f"run         {run.folder.root}")
    if run.resume_command:
        console.line(f"TensorBoard tensorboard --logdir {shlex.quote(str(run.folder.root))}")
        console.line(f"resume      {run.resume_command}  (if it is interrupted)")


@contextlib.contextmanager
def recorded(run: Run[Any], console: Console, storage: Path, first_phase: str) -> Iterator[list[Row]]:
    """Whatever ends the block, what was finished is kept and reported, and the user learns how to go on.

    Yields:
        A list for the rows of results.csv.
    """
    rows: list[Row] = []
    run.next_phase(first_phase)
    ended = False
    try:
        yield rows
        ended = True
    except KeyboardInterrupt:
        console.line(f"interrupted: what was finished is kept in {run.folder.root}")
        raise
    finally:
        try:
            run.phases.next(None)
            with (run.folder.root / RAY_LOG).open("ab") as log:
                log.write((storage / RAY_LOG).read_bytes())
            if ended:
                run.end()
            else:
                run.save()
            write_report(run, console, rows)
        finally:
            if not ended and run.resume_command:
                console.line(f"resume      {run.resume_command}")


def finish(
    run: Run[Any],
    console: Console,
    processes: Processes,
    storage: Path,
    data: DataSplits,
    shared: TrialSettings,
    models: Sequence[FinalModel],
    scores_only: bool = False,
    splits: Sequence[DataSplits] | None = None,
) -> list[Row]:
    """Train the final models and evaluate them, see :func:`evaluate`; return the rows of results.csv.

    `splits`: where models are trained on several, what `FinalModel.split` counts; they share the test split.
    """
    folder = run.folder
    # That of trials is for trials; an ablation has none.
    finals = replace(shared, patience=getattr(run.settings, "patience", None))
    splits = [data] if splits is None else splits
    train_finals(folder, console, processes, storage, models, finals, splits)
    trained = [model.name for model in models if folder.is_saved(model.name)]
    failed = [
        failed_row(one, failure)
        for model in models
        if (failure := folder.failure(model.name))
        for one in (model, *model.kept_models.values())
    ]
    console.line(
        f"finals      {len(trained)} of {len(models)} models trained in {duration(run.next_phase('evaluation'))}"
    )
    split_of = {one.name: one.split for model in models for one in (model, *model.kept_models.values())}
    names = [*trained, *(kept.name for model in models if model.name in trained for kept in model.kept_models.values())]
    groups = []
    for index, one in enumerate(splits):
        of_split = [name for name in names if split_of[name] == index]
        if of_split:
            groups.append(Group(of_split, {"test": one.test, "val": one.val, "train": one.train}))
    if trained:
        note_test_reading(run, console, data.test, data.class_names)
    rows = evaluate(folder, groups, failed, processes, console.status, scores_only)
    console.line(f"evaluation  {len(rows)} models scored in {duration(run.next_phase('report'))}")
    return rows


NO_DATA = Task(num_classes=10, channels=3, image_size=32, num_train=1000, device="cpu")
"""Stands for a run's task while its data is not there yet."""


def auto_image_size(configs: Iterable[TrialConfig]) -> int:
    """Side that large images are brought to, in pixels: larger where a ResNet may be trained on them."""
    if all(config.family == "cnn" for config in configs):
        return 32
    return 160 if torch.cuda.is_available() else 96


def note_test_reading(run: Run[Any], console: Console, test: Images, class_names: Sequence[str]) -> None:
    """Count that a run is about to read its test split."""
    reading = note_reading(split_fingerprint(test, class_names), run.folder.root)
    run.about["test_readings"] = reading
    run.save()
    if "error" in reading:
        console.line(f"test split  how often it was read is not known: {reading['error']}")
    elif reading["readings"] > 1:
        console.line(
            f"test split  read {reading['readings']} times by {counted(reading['runs'], 'run')}, this one included"
        )


def share_weights(run: Run[Any], console: Console, configs: Iterable[TrialConfig]) -> Pretrained:
    """Read the pretrained weights of the configurations, and see to it that a resumed run meets the same again.

    Raises:
        InputError: some cannot be read or downloaded, or `--weights` was given and no configuration uses any.
    """
    configs, given = list(configs), run.settings.weights
    refs, facts = put_weights(configs)
    if given is not None and not (refs or (given == "none" and any(config.family == "resnet" for config in configs))):
        raise InputError(
            "--weights: none of these models takes any; leave it out, or add a ResNet (--space cnn,resnet)"
        )
    for fact in facts:
        console.line(f"weights     {fact['backbone']}: {fact['source']} (SHA-256 {fact['sha256'][:12]})")
    run.check_unchanged(weights=facts)
    return refs


def make_task(
    run: Run[Any], data: DataSplits, device: Literal["cpu", "cuda"], backbones: tuple[str, ...] = Task.backbones
) -> Task:
    """What models are made for; a resumed run must meet the same, and the same data.

    Raises:
        InputError: it does not.
    """
    task = task_of(data, run.settings, device, backbones)
    # The task first: on another kind of device the data may be another too, since images come at another size.
    run.check_unchanged(**{"the task": asdict(task), "data": data.fingerprint})
    return task


def task_of(
    data: DataSplits,
    settings: TrainingSettings,
    device: Literal["cpu", "cuda"],
    backbones: tuple[str, ...] = Task.backbones,
) -> Task:
    num_train, channels, image_size, _ = data.train.images.shape
    sizes = np.bincount(data.train.labels)
    return Task(
        num_classes=len(data.class_names),
        channels=channels,
        image_size=image_size,
        num_train=num_train,
        device=device,
        flips=data.flips,
        imbalance=float(sizes.max() / sizes.min()),
        weights=settings.weights or "DEFAULT",
        backbones=backbones,
    )


def make_workload(workers: Workers, data: DataSplits, max_epochs: int, seeds: int, num_on_corrupted: int) -> Workload:
    num_train, num_val, num_test = (len(split.images) for split in (data.train, data.val, data.test))
    work = Workload(num_train, num_val, num_test, max_epochs, seeds, workers.num_groups, num_on_corrupted)
    if workers.workers_per_model == 1:
        return work
    return replace(work, search_start_s=RAY_TRAIN_START_S, finals_start_s=RAY_TRAIN_START_S)


def write_report(run: Run[Any], console: Console, rows: Sequence[Row]) -> None:
    """Write the report, and show the table and where everything is; `rows` are those that have scores."""
    html, _ = build_report(run.folder.root)
    if table := table_of(Records(run.folder)):
        console.line()
        console.line(table)
        console.line()
    if rows:
        console.line(f"best model  {run.folder.best}")
    console.line(f"report      {html}")


def load_run_data(
    settings: TrainingSettings, source: str, console: Console, configs: Iterable[TrialConfig]
) -> DataSplits:
    """Load the data of a run that may train `configs`, as far as they are known without it, and say what it is."""
    if settings.set:
        console.line(f"set         {', '.join(settings.set)}")
    data = load_data(
        source,
        train_size=settings.train_size,
        image_size=settings.image_size,
        data_dir=settings.data_dir,
        skip_bad_images=settings.skip_bad_images,
        auto_size=auto_image_size(configs),
    )
    num_train, channels, height, width = data.train.images.shape
    console.line(f"data        {data.source}: {len(data.class_names)} classes, {channels}x{height}x{width} pixels")
    console.line(
        f"            train {num_train}, validation {len(data.val.images)}, test {len(data.test.images)} (sealed)"
    )
    if data.bad_images:
        console.line(f"            {len(data.bad_images)} unreadable images left out, the first: {data.bad_images[0]}")
    for line in shared_images(describe_data(data)):
        console.line(f"            warning: {line}")
    return data


def describe_data(data: DataSplits) -> dict[str, Any]:
    """What run.json says of the data."""
    return {
        "source": data.source,
        "fingerprint": data.fingerprint,
        "class_names": list(data.class_names),
        "channels": data.train.images.shape[1],
        "image_size": data.train.images.shape[2],
        "test_fingerprint": split_fingerprint(data.test, data.class_names),
        "num_train": len(data.train.images),
        "num_val": len(data.val.images),
        "num_test": len(data.test.images),
        "class_counts": {
            name: np.bincount(split.labels, minlength=len(data.class_names)).tolist()
            for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
        },
        "num_val_copies": data.num_val_copies,
        "num_test_copies": data.num_test_copies,
        "bad_images": list(data.bad_images),
    }
