"""How a run starts: its data, Ray, a process for each worker; without torch, which takes seconds to import."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainingSettings
from cifar_ray.cli.parser import option_of
from cifar_ray.config import BackboneConfig, Task, TrialConfig
from cifar_ray.data.labelled import split_fingerprint
from cifar_ray.data.splits import DataSplits, load_data
from cifar_ray.distributed.hardware import plan_workers
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.session import output_to_file, ray_session, temporary_folder
from cifar_ray.driver.run import Run, sigterm_as_ctrl_c
from cifar_ray.reporting.parts import shared_images

Data = TypeVar("Data")

RAY_LOG = "ray.log"
"""What Ray printed, in the run folder."""

NO_DATA = Task(num_classes=10, channels=3, image_size=32, num_train=1000, device="cpu")
"""Stands for a run's task while its data is not there yet."""


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
    if data.val_is_test:
        console.line(
            "            the sealed test split is what the data calls validation, since it brings no test split; "
            "validation is carved from train"
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


def auto_image_size(configs: Iterable[TrialConfig]) -> int:
    """Side that large images are brought to, in pixels: larger where a pretrained network may be trained on them."""
    if not any(isinstance(config.model, BackboneConfig) for config in configs):
        return 32
    import torch  # not at once: it takes seconds

    return 160 if torch.cuda.is_available() else 96


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
