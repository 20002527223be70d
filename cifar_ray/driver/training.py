"""What `python -m cifar_ray.train` does once Ray is up."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainSettings
from cifar_ray.config import TrialConfig
from cifar_ray.data.splits import DataSplits
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.named import Saved, named_configs
from cifar_ray.driver.probe import fit_memory, measure_speeds, settle_precision
from cifar_ray.driver.run import Run, check_batch_sizes
from cifar_ray.driver.stages import begin, finish, make_workload, recorded, trial_settings
from cifar_ray.driver.start import describe_data, make_task
from cifar_ray.models.check import check_network
from cifar_ray.results.records import HISTORY_COLUMNS, read_csv
from cifar_ray.text import counted, duration
from cifar_ray.training.seeds import derived_seed

REPEATED = [name for name in HISTORY_COLUMNS if name != "train_s"]
"""Columns of history.csv that a training with the same seed has again."""


def train_named(
    run: Run[TrainSettings],
    console: Console,
    data: DataSplits,
    processes: Processes,
    storage: Path,
    saved: Sequence[Saved],
) -> int:
    """Train the models, evaluate and report them; return the exit code."""
    settings = run.settings
    assert settings.max_epochs is not None
    workers = processes.workers
    task = make_task(run, data, workers.device)
    configs = named_configs(settings, task, saved)
    check_batch_sizes(workers, settings.workers_flag, configs.items())
    for config in configs.values():
        if config.family == "module":
            check_network(config, task)
    shared = trial_settings(run, console, [data], configs.values(), settings.patience)
    precision = settle_precision(run, console, processes, next(iter(configs.values())), shared)
    configs = named_configs(settings, task, saved, precision)
    models = _named_models(settings, configs, saved)
    families = {config.family for config in configs.values()}
    speeds, memory = measure_speeds(processes, configs.values(), shared)
    fit_memory(run, console, processes, memory)
    work = make_workload(processes.workers, data, settings.max_epochs, settings.seeds, num_on_corrupted=len(families))
    whole = work.finals_s(speeds) + work.evaluation_s(speeds)
    console.line(f"estimate    {duration(whole)} for {len(models)} models")
    begin(run, console, describe_data(data))
    with recorded(run, console, storage, "finals") as rows:
        rows += finish(run, console, processes, storage, data, shared, models)
        for one in saved:
            if one.card.get("data", {}).get("fingerprint") == data.fingerprint and configs[one.name] == one.config:
                _tell_whether_repeated(run, console, one)
    return 0 if rows else 1


def _tell_whether_repeated(run: Run[TrainSettings], console: Console, saved: Saved) -> None:
    """Say whether a training went, epoch by epoch, as the one did that its configuration is of, as far as both go."""
    folder = saved.path.parent
    there, here = (read_csv(of / "history.csv") for of in (folder, run.folder.model(f"{saved.name}-seed0")))
    epochs = list(zip(there, here, strict=False))
    if not epochs or saved.card["max_epochs"] != run.settings.max_epochs:
        return
    for before, now in epochs:
        known = [name for name in REPEATED if name in before]  # another version may have fewer
        if name := next((name for name in known if before[name] != now[name]), None):
            console.line(
                f"repeated    {saved.name}: not as in {folder} from epoch {now['epoch']} on ({name} {before[name]} "
                f"there, {now[name]} here): another machine, version, or number of threads or workers"
            )
            return
    console.line(f"repeated    {saved.name}: {counted(len(epochs), 'epoch')} as in {folder}, to the last digit")


def _named_models(
    settings: TrainSettings, configs: Mapping[str, TrialConfig], saved: Sequence[Saved]
) -> list[FinalModel]:
    """The models of `--preset` and `--config`, all their seeds.

    The first seed of a saved model is the one that it was trained with.
    """
    recorded = {one.name: one.card.get("training_seed") for one in saved}
    return [
        FinalModel(name, None, index, _training_seed(settings.seed, name, index, recorded.get(name)), config)
        for name, config in configs.items()
        for index in range(settings.seeds)
    ]


def _training_seed(seed: int, name: str, seed_index: int, recorded: int | None) -> int:
    if seed_index == 0 and recorded is not None:
        return recorded
    return derived_seed(seed, zlib.crc32(name.encode()), seed_index)
