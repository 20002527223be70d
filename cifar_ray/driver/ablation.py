"""What `python -m cifar_ray.ablate` does once Ray is up.

Levels that want a learning rate of their own are given one first, by a small sweep with seeds of its own; the arms then
go through the final training and evaluation of every run. What is concluded from them is the matter of
`results.effects`.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import AblateSettings
from cifar_ray.data.splits import DataSplits, redrawn
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.processes import Processes
from cifar_ray.distributed.speed import Speed
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver.estimate import Workload
from cifar_ray.driver.finals import train_finals
from cifar_ray.driver.named import Saved, design_of
from cifar_ray.driver.probe import fit_memory, measure_speeds, settle_precision
from cifar_ray.driver.run import Run, check_batch_sizes
from cifar_ray.driver.stages import begin, finish, make_workload, recorded, trial_settings
from cifar_ray.driver.start import describe_data, make_task
from cifar_ray.errors import InputError
from cifar_ray.files import read_json, write_json
from cifar_ray.models.check import check_network
from cifar_ray.results.ablation import runs_of
from cifar_ray.results.config_json import as_recorded, read_card
from cifar_ray.results.effects import effects_of
from cifar_ray.results.records import (
    EFFECTS_COLUMNS,
    RUNS_COLUMNS,
    SWEEP_COLUMNS,
    Row,
    RunFolder,
    State,
    read_csv,
    write_csv,
)
from cifar_ray.search.design import MULTIPLES, SWEPT, Arm, Design, Sweep, arms_at_own_rates, sweeps
from cifar_ray.text import counted, duration
from cifar_ray.tracking.tensorboard import write_sessions
from cifar_ray.training.seeds import derived_seed

BASE_SEEDS = 2
"""How many times the seeds of a level the base has: every level is compared with it."""

SWEEP_SEEDS = 3
"""Seeds of each learning rate of a sweep; others than those that the arms are trained with."""

OVERHEAD_S = 0.8
"""Seconds of a training beside its epochs, as measured on a machine of two cores: hundreds of short ones add up."""

TIMED_FACTORS = ("kernel-size", "image-size", "finetune", "head", "norm")
"""Factors whose levels may train much slower than the base: for the estimate those are timed too."""


def train_arms(
    run: Run[AblateSettings],
    console: Console,
    data: DataSplits,
    processes: Processes,
    storage: Path,
    saved: Sequence[Saved],
) -> int:
    """Train the arms of the design, evaluate and report them; return the exit code."""
    settings = run.settings
    assert settings.max_epochs is not None
    workers = processes.workers
    task = make_task(run, data, workers.device)
    design = design_of(settings, task, saved)
    splits = [data]
    if settings.resplit:
        splits = [redrawn(data, seed) for seed in _seeds(settings)]
    check_batch_sizes(workers, settings.workers_flag, ((arm.name, arm.config) for arm in design.trained))
    for arm in design.trained:
        if arm.config.family == "module":
            check_network(arm.config, task)
    shared = trial_settings(run, console, splits, [arm.config for arm in design.trained], patience=None)
    design = design_of(settings, task, saved, settle_precision(run, console, processes, design.base, shared))
    run.check_unchanged(arms={arm.name: as_recorded(arm.config.to_dict()) for arm in design.arms})
    _show_design(console, design, settings)
    timed = [arm for arm in design.trained if arm is design.trained[0] or _may_be_slower(arm)]
    speeds, memory = measure_speeds(processes, [arm.config for arm in timed], shared)
    fit_memory(run, console, processes, memory)
    work = make_workload(processes.workers, data, settings.max_epochs, 1, num_on_corrupted=0)
    whole = _estimate(design, settings, work, {arm.name: speed for arm, speed in zip(timed, speeds, strict=True)})
    console.line(f"estimate    {duration(whole)}")
    if settings.time_budget is not None and run.phases.total + whole > settings.time_budget:
        raise InputError(
            f"--time-budget: {duration(settings.time_budget)} is too short: this takes about "
            f"{duration(run.phases.total + whole)} here; give more, or --vary fewer factors, or fewer --seeds or "
            "--max-epochs"
        )
    if settings.dry_run:
        return 0
    begin(run, console, describe_data(data))
    asked = sweeps(design)
    with recorded(run, console, storage, "sweep" if asked else "finals") as rows:
        own: dict[str, float] = {}
        if asked:
            own = _sweep(run, console, processes, storage, splits, shared, asked)
            console.line(f"sweep       own learning rates found in {duration(run.next_phase('finals'))}")
        arms = [*design.arms, *arms_at_own_rates(design, own)]
        base_name = saved[0].name if saved else settings.preset[0]
        write_json(run.folder.design_json, _recorded_design(settings, base_name, design, arms))
        models = _models(settings, arms)
        rows += finish(run, console, processes, storage, data, shared, models, scores_only=True, splits=splits)
        _write_effects(run.folder)
    return 0 if rows else 1


def _may_be_slower(arm: Arm) -> bool:
    return arm.factor in TIMED_FACTORS or (arm.factor or "").startswith("model.params.")


def _seeds(settings: AblateSettings) -> list[int]:
    return [derived_seed(settings.seed, index) for index in range(BASE_SEEDS * settings.seeds)]


def _models(settings: AblateSettings, arms: Sequence[Arm]) -> list[FinalModel]:
    """All seeds of the arms, the first seeds of all arms first: whoever interrupts the run has something of each.

    A seed is the same for every arm: the same images in the same order, as far as the arms allow it.
    """
    kept: dict[str, list[tuple[int, str]]] = {arm.name: [] for arm in arms}
    for arm in arms:
        if arm.patience is not None:
            kept[str(arm.control)].append((arm.patience, arm.name))
    return [
        FinalModel(
            arm.name, None, index, seed, arm.config, tuple(kept[arm.name]), split=index if settings.resplit else 0
        )
        for index, seed in enumerate(_seeds(settings))
        for arm in arms
        if arm.patience is None and (index < settings.seeds or arm.control is None)
    ]


def _sweep(
    run: Run[AblateSettings],
    console: Console,
    processes: Processes,
    storage: Path,
    splits: Sequence[DataSplits],
    shared: TrialSettings,
    asked: Sequence[Sweep],
) -> dict[str, float]:
    """Train what is to be swept at each learning rate; return the best one of each arm by name.

    An arm all of whose rates failed with some seed has none.
    """
    folder = RunFolder(run.folder.sweep)
    models: dict[str, list[tuple[float, list[FinalModel]]]] = {}
    for sweep in asked:
        models[sweep.arm.name] = [
            (
                lr,
                [
                    FinalModel(f"{sweep.arm.name}, lr {lr:.3g}", None, index, seed, sweep.at(lr))
                    for index, seed in enumerate(_sweep_seeds(run.settings.seed))
                ],
            )
            for lr in sweep.rates
        ]
    flat = [model for of_arm in models.values() for _, of_rate in of_arm for model in of_rate]
    train_finals(folder, console, processes, storage, flat, shared, splits, partial(run.spend, "sweep"))
    rows: list[Row] = []
    own: dict[str, float] = {}
    for name, of_arm in models.items():
        found = {lr: [_swept(folder, name, lr, model) for model in of_rate] for lr, of_rate in of_arm}
        whole = {lr: _rank_key(of_rate) for lr, of_rate in found.items() if not any(row["failure"] for row in of_rate)}
        if whole:
            own[name] = max(whole, key=lambda lr: whole[lr])
        for lr, of_rate in found.items():
            rows += [{**row, "chosen": int(own.get(name) == lr)} for row in of_rate]
    write_csv(run.folder.sweep_csv, SWEEP_COLUMNS, rows)
    return own


def _rank_key(rows: Sequence[Row]) -> tuple[float, float]:
    # Rounded as where models are ranked: ties go to the lower loss.
    return round(fmean(row["val_metric"] for row in rows), 9), -fmean(row["val_loss"] for row in rows)


def _sweep_seeds(seed: int) -> list[int]:
    return [derived_seed(seed, zlib.crc32(b"sweep"), index) for index in range(SWEEP_SEEDS)]


def _swept(folder: RunFolder, arm: str, lr: float, model: FinalModel) -> Row:
    row: Row = {"arm": arm, "lr": lr, "seed": model.seed_index, "failure": folder.failure(model.name)}
    if row["failure"] is None:
        card = read_card(folder.model(model.name))[1]
        row |= {name: card[name] for name in ("val_metric", "val_loss")}
    return row


def _recorded_design(settings: AblateSettings, base_name: str, design: Design, arms: Sequence[Arm]) -> dict[str, Any]:
    return {
        "metric": settings.metric,
        "max_epochs": settings.max_epochs,
        "seeds": settings.seeds,
        "base_seeds": BASE_SEEDS * settings.seeds,
        "resplit": settings.resplit,
        "base": as_recorded(design.base.to_dict()),
        "base_name": base_name,
        "factors": [
            {
                "name": factor.name,
                "paths": list(factor.paths),
                "base_level": factor.base_level,
                "levels": [level.name for level in factor.levels],
            }
            for factor in design.factors
        ],
        "left_out": [{"factor": one.factor, "level": one.level, "reason": one.reason} for one in design.left_out],
        "arms": [arm.to_dict() for arm in arms],
        "cross": list(design.cross) or None,
        "sweep": {"factors": list(SWEPT), "multiples": list(MULTIPLES), "seeds": SWEEP_SEEDS},
    }


def _write_effects(folder: RunFolder) -> None:
    """Write runs.csv and effects.csv from what is recorded of the run, and its HParams."""
    design = read_json(folder.design_json)
    rows = read_csv(folder.results_csv)
    histories = {row["model"]: read_csv(folder.model(row["model"]) / "history.csv") for row in rows}
    runs = runs_of(design, rows, histories)
    write_csv(folder.runs_csv, RUNS_COLUMNS, runs)
    write_csv(folder.effects_csv, EFFECTS_COLUMNS, effects_of(design, runs))
    _write_hparams(folder, design, rows)


def _write_hparams(folder: RunFolder, design: Row, rows: Sequence[Row]) -> None:
    """The factors are the parameters; each training is a session."""
    levels = {factor["name"]: [factor["base_level"], *factor["levels"]] for factor in design["factors"]}
    arms = {arm["name"]: arm for arm in design["arms"]}
    base = {name: of_factor[0] for name, of_factor in levels.items()}
    records: dict[str, Row] = {}
    for row in rows:
        arm = arms[row["config"]]
        chosen = arm["cells"] or _own_level(arm)
        if arm["patience"] is not None:
            chosen |= _own_level(arms[arm["control"]])
        records[row["model"]] = {
            "params": {**base, **chosen, "learning rate": arm["lr"]},
            "state": State.FAILED if row["failure"] else State.COMPLETE,
            "best": {"val_metric": row["val_metric"]},
            "epochs": row["epochs"],
            "num_params": row["num_params"],
            "seconds": {"train": row["train_s"]},
        }
    rates = [arm["lr"] for arm in design["arms"]]
    write_sessions(folder, {**levels, "learning rate": (min(rates), max(rates))}, records)


def _own_level(arm: Row) -> dict[str, str]:
    return {arm["factor"]: arm["level"]} if arm["factor"] else {}


def _show_design(console: Console, design: Design, settings: AblateSettings) -> None:
    for factor in design.factors:
        levels = ", ".join(level.name for level in factor.levels)
        console.line(f"vary        {factor.name}: {factor.base_level} (base), {levels}")
    if design.cross:
        num = sum(bool(arm.cells) for arm in design.arms)
        console.line(f"cross       {' x '.join(design.cross)}: {counted(num, 'combination')} more")
    for one in design.left_out:
        console.line(f"left out    {one.factor} {one.level}: {one.reason}")
    num_arms = len(design.trained)
    num_sweeps = sum(len(sweep.rates) for sweep in sweeps(design)) * SWEEP_SEEDS
    swept = f", and before them {counted(num_sweeps, 'training')} that find learning rates" if num_sweeps else ""
    trainings = (num_arms - 1 + BASE_SEEDS) * settings.seeds
    console.line(
        f"trainings   {trainings}: {counted(num_arms - 1, 'level')} x {counted(settings.seeds, 'seed')}, the base "
        f"{BASE_SEEDS * settings.seeds}{swept}"
    )


def _estimate(design: Design, settings: AblateSettings, work: Workload, timed: Mapping[str, Speed]) -> float:
    """Seconds that all of it takes, at most: as if every level that is swept had a learning rate of its own.

    `timed`: the base, and arms that may not be as fast, by name.
    """
    arms = design.trained
    speeds = {arm.name: timed.get(arm.name, timed[arms[0].name]) for arm in arms}
    asked = sweeps(design)
    swept = [speeds[sweep.arm.name] for sweep in asked for _ in range(len(sweep.rates) * SWEEP_SEEDS)]
    at_own_rates = [sweep.arm for sweep in asked[1:]]
    extra = [arms[0]] * (BASE_SEEDS - 1)
    trained = [speeds[arm.name] for arm in [*arms, *extra, *at_own_rates] for _ in range(settings.seeds)]
    overhead_s = OVERHEAD_S * len([*swept, *trained]) / work.slots
    return work.finals_s(swept) + work.finals_s(trained) + overhead_s + work.evaluation_s(trained)
