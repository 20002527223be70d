"""What every run goes through, whatever it trains: start-up, records, interruption, final training, evaluation."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np
import optuna
import ray
from ray.exceptions import RayTaskError

from cifar_ray.config import InputError, Task, TrialConfig
from cifar_ray.data import DataSplits
from cifar_ray.estimate import Speed, Workload
from cifar_ray.finals import evaluate_finals, train_finals, write_report
from cifar_ray.launch import Place, Run, check_devices, load_run_data, sigterm_as_ctrl_c
from cifar_ray.progress import Console, duration
from cifar_ray.results import Row
from cifar_ray.runtime import output_to_file, ray_session, temporary_folder
from cifar_ray.trial import TrialSettings, measure_speed
from cifar_ray.worker import FinalModel

RAY_LOG = "ray.log"
"""What Ray printed, in the run folder."""


@contextlib.contextmanager
def started(run: Run, what: str, source: str) -> Iterator[tuple[Place, DataSplits] | None]:
    """Load the data and start Ray for a run; None where an earlier session has brought it to its end."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console()
    with contextlib.closing(run), contextlib.ExitStack() as stack:
        console.line(f"cifar_ray {version('cifar_ray')}: {what}")
        if run.finished:
            console.line(f"this run has come to its end: {run.folder.report_html}")
            yield None
            return
        data = load_run_data(run, source, console)
        folder = stack.enter_context(temporary_folder())
        stack.enter_context(output_to_file(folder / RAY_LOG))
        hardware = stack.enter_context(ray_session(folder))
        stack.enter_context(sigterm_as_ctrl_c())
        place = Place(run, console, hardware, folder)
        check_devices(place)
        console.line(
            f"devices     {hardware.num_cpus} CPUs, {hardware.num_gpus} GPUs: {place.slots} trials side by side"
        )
        yield place, data


def begin(place: Place, data: DataSplits) -> None:
    """The run begins, or goes on: from here on it leaves records."""
    run, console = place.run, place.console
    run.begin(data, place.hardware, place.slots)
    console.line(f"run         {run.folder.root}")
    console.line(f"TensorBoard tensorboard --logdir {shlex.quote(str(run.folder.root))}")
    console.line(f"resume      {run.resume_command}  (if it is interrupted)")


@contextlib.contextmanager
def recorded(place: Place, first_phase: str) -> Iterator[list[Row]]:
    """Whatever ends the block, what was finished is kept and reported, and the user learns how to go on.

    Yields:
        A list for the rows of results.csv.
    """
    run, console = place.run, place.console
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
                log.write((place.storage / RAY_LOG).read_bytes())
            if ended:
                run.end()
            else:
                run.save()
            write_report(place, rows)
        finally:
            if not ended:
                console.line(f"resume      {run.resume_command}")


def finish(
    place: Place,
    data: DataSplits,
    arrays: "ray.ObjectRef[dict[str, np.ndarray]]",
    models: Sequence[FinalModel],
    max_epochs: int,
) -> list[Row]:
    """Train the final models and evaluate them; return the rows of results.csv."""
    run, console = place.run, place.console
    train_finals(place, models, arrays, data, max_epochs)
    trained = [model for model in models if place.folder.is_saved(model.name)]
    console.line(
        f"finals      {len(trained)} of {len(models)} models trained in {duration(run.next_phase('evaluation'))}"
    )
    rows = evaluate_finals(place, trained, data) if trained else []
    console.line(f"evaluation  {len(rows)} models scored in {duration(run.next_phase('report'))}")
    return rows


def make_task(place: Place, data: DataSplits) -> Task:
    num_train, channels, image_size, _ = data.train.images.shape
    sizes = np.bincount(data.train.labels)
    return Task(
        num_classes=len(data.class_names),
        channels=channels,
        image_size=image_size,
        num_train=num_train,
        device="cuda" if place.resources["GPU"] else "cpu",
        flips=data.flips,
        imbalance=float(sizes.max() / sizes.min()),
    )


def make_workload(place: Place, data: DataSplits, max_epochs: int, seeds: int) -> Workload:
    num_train, num_val, num_test = (len(split.images) for split in (data.train, data.val, data.test))
    return Workload(num_train, num_val, num_test, max_epochs, seeds, place.slots)


def measure_speeds(place: Place, config: TrialConfig, shared: TrialSettings) -> tuple[Speed, float]:
    """Time a configuration on every slot at once; return the mean speed, and the memory of a trial process in MB.

    Raises:
        InputError: it cannot be trained on this data.
    """
    task = ray.remote(num_cpus=place.resources["CPU"], num_gpus=place.resources["GPU"])(measure_speed)
    try:
        measured = ray.get([task.remote(config, shared) for _ in range(place.slots)])
    except RayTaskError as error:
        cause = " ".join(str(error.cause).split())
        raise InputError(f"this configuration cannot be trained here: {cause:.200} ({config})") from error
    mean = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    return Speed(mean["train_images_per_s"], mean["eval_images_per_s"]), mean["memory_mb"]
