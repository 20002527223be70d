"""What every run goes through once it has started: records, interruption, final training, evaluation, report."""

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cifar_ray.cli.console import Console
from cifar_ray.config import BackboneConfig, TrialConfig
from cifar_ray.data.decode import Images
from cifar_ray.data.labelled import split_fingerprint
from cifar_ray.data.splits import DataSplits
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import Pretrained, TrialSettings, put_weights
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.estimate import RAY_TRAIN_START_S, Workload
from cifar_ray.driver.finals import failed_row, train_finals
from cifar_ray.driver.run import Run
from cifar_ray.driver.start import RAY_LOG
from cifar_ray.errors import InputError
from cifar_ray.evaluation.evaluate import Group, evaluate
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.terminal import table_of
from cifar_ray.results.readings import note_reading
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted, duration


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
    train_finals(folder, console, processes, storage, models, finals, splits, partial(run.spend, "finals"))
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
    spend = partial(run.spend, "evaluation")
    rows = evaluate(folder, groups, failed, processes, console.status, spend, scores_only)
    console.line(f"evaluation  {len(rows)} models scored in {duration(run.next_phase('report'))}")
    return rows


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
    with_backbone = any(isinstance(config.model, BackboneConfig) for config in configs)
    if given is not None and not (refs or (given == "none" and with_backbone)):
        raise InputError(
            "--weights: none of these models takes any; leave it out, or add a pretrained one (--space cnn,resnet)"
        )
    for fact in facts:
        console.line(f"weights     {fact['backbone']}: {fact['source']} (SHA-256 {fact['sha256'][:12]})")
    run.check_unchanged(weights=facts)
    return refs


def trial_settings(
    run: Run[Any], console: Console, splits: Sequence[DataSplits], configs: Iterable[TrialConfig], patience: int | None
) -> TrialSettings:
    """What the trainings of a run share, with all images and weights put where every process finds them.

    Raises:
        InputError: see :func:`share_weights`.
    """
    settings = run.settings
    return TrialSettings(
        data=[ray.put(one.training_arrays()) for one in splits],
        num_classes=len(splits[0].class_names),
        max_epochs=settings.max_epochs,
        patience=patience,
        metric=str(settings.metric),
        num_threads=settings.cpus_per_trial,
        pretrained=share_weights(run, console, configs),
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
