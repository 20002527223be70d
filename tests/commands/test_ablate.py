"""`ablate` as its user runs it: what it trains, what it leaves, what it refuses."""

import contextlib
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import launcher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from cifar_ray.ablate import main
from cifar_ray.checkpoint import load_model
from cifar_ray.data.splits import load_data
from cifar_ray.files import read_json
from cifar_ray.results.records import EFFECTS_COLUMNS, RUNS_COLUMNS, RunFolder, read_csv

Command = Callable[..., "subprocess.CompletedProcess[str]"]
FLAGS = ["--data", "digits", "--vary", "norm=none", "--vary", "dropout=0.1", "--vary", "early-stopping=1,2"]
FLAGS += ["--cross", "norm,dropout", "--seeds", "2", "--max-epochs", "4", "--name", "one"]


def share_a_run(test: Any) -> Any:
    """Mark a test that reads the one run of this file."""
    return pytest.mark.slow(pytest.mark.xdist_group("ablate")(test))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small ablation: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("ablate")
    done = launcher.run("ablate", *FLAGS, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(folder / "runs" / "one"), done.stdout


@share_a_run
def test_all_arms_are_trained_with_the_same_seeds_and_the_base_with_twice_as_many(run: Any) -> None:
    folder, _ = run
    rows = read_csv(folder.runs_csv)
    assert tuple(rows[0]) == RUNS_COLUMNS
    seeds: dict[str, list[int]] = {}
    for row in rows:
        seeds.setdefault(row["arm"], []).append(row["seed"])
    own = {name for name in seeds if name.endswith("own rate")}
    one_each = {"norm=none", "dropout=0.1", "lr-schedule=constant", "norm=none x dropout=0.1"}
    stopped = {"early-stopping=1", "early-stopping=2"}
    assert {name: seeds[name] for name in seeds.keys() - own} == {
        "base": [0, 1, 2, 3],
        **{name: [0, 1] for name in one_each | stopped},
    }
    assert len({row["training_seed"] for row in rows if row["seed"] == 0}) == 1
    assert len({row["training_seed"] for row in rows}) == 4
    design = read_json(folder.design_json)
    assert [arm["name"] for arm in design["arms"]] == list(seeds)
    assert design["base_name"] == "small-cnn" and design["cross"] == ["norm", "dropout"]


@share_a_run
def test_the_rates_of_a_sweep_are_on_record_and_the_best_on_validation_is_chosen(run: Any) -> None:
    rows = read_csv(run[0].sweep_csv)
    assert {row["arm"] for row in rows} == {"base", "norm=none"} and len(rows) == 2 * 3 * 3
    trained = {row["training_seed"] for row in read_csv(run[0].runs_csv)}
    cards = [read_json(path) for path in run[0].sweep.glob("models/*/config.json")]
    assert cards and not trained & {card["training_seed"] for card in cards}
    for name in ("base", "norm=none"):
        means: dict[float, float] = {}
        for lr in {row["lr"] for row in rows if row["arm"] == name}:
            of_rate = [row["val_metric"] for row in rows if row["arm"] == name and row["lr"] == lr]
            if None not in of_rate:
                means[lr] = float(np.mean(of_rate))
        chosen = {row["lr"] for row in rows if row["arm"] == name and row["chosen"]}
        assert chosen == {max(means, key=lambda lr: means[lr])}


@share_a_run
def test_scores_are_those_of_the_saved_models_those_of_early_stopping_among_them(run: Any) -> None:
    folder, _ = run
    data = load_data("digits")
    for row in read_csv(folder.runs_csv):
        if row["arm"] not in ("base", "early-stopping=1"):
            continue
        model = load_model(folder.model(f"{row['arm']}-seed{row['seed']}"))
        with torch.inference_mode():
            right = model(torch.tensor(data.test.images)).argmax(1).numpy() == data.test.labels
        assert right.mean() == pytest.approx(row["test_metric"])
    for seed in (0, 1):
        full = read_csv(folder.model(f"lr-schedule=constant-seed{seed}") / "history.csv")
        stopped = read_csv(folder.model(f"early-stopping=1-seed{seed}") / "history.csv")
        assert stopped == full[: len(stopped)]
        best = np.argmax([epoch["val_metric"] for epoch in stopped]) + 1
        assert len(stopped) == min(best + 1, 4)


@share_a_run
def test_every_arm_has_its_effects_and_the_report_and_terminal_tell_them(run: Any) -> None:
    folder, out = run
    effects = read_csv(folder.effects_csv)
    assert tuple(effects[0]) == EFFECTS_COLUMNS
    primary = {row["arm"]: row for row in effects if row["outcome"] == "test_metric"}
    runs = read_csv(folder.runs_csv)
    for name, row in primary.items():
        means = {
            arm: np.mean([one["test_metric"] for one in runs if one["arm"] == arm]) for arm in (name, row["control"])
        }
        if row["low"] is not None:
            assert row["difference"] == pytest.approx(means[name] - means[row["control"]], abs=1e-9)
            assert row["low"] <= row["low_alone"] <= row["difference"] <= row["high_alone"] <= row["high"]
    assert primary["early-stopping=1"]["control"] == "lr-schedule=constant"
    assert "What each choice did" in folder.report_md.read_text()
    assert "effects-performance.png" in {path.name for path in folder.evaluation.iterdir()}
    assert "difference" in out and "norm=none" in out
    assert read_csv(folder.latency_csv) == []  # nothing is timed, nothing is corrupted
    assert read_csv(folder.robustness_csv) == []


def _session(folder: Path) -> Any:
    """The parameters of a training in the HParams tab."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content).hparams


@share_a_run
def test_tensorboard_shows_the_trainings_by_factor(run: Any) -> None:
    folder, _ = run
    for name, factors in (("base-seed0", ("batch", "0.0")), ("norm=none x dropout=0.1-seed1", ("none", "0.1"))):
        events = EventAccumulator(str(folder.model(name))).Reload()
        assert events.Scalars("accuracy/val") and events.Scalars("trial/best_val_metric")
        started = _session(folder.model(name))
        assert (started["norm"].string_value, started["dropout"].string_value) == factors
        assert started["lr-schedule"].string_value == "one_cycle"
    stopped = _session(folder.model("early-stopping=1-seed0"))
    assert (stopped["early-stopping"].string_value, stopped["lr-schedule"].string_value) == ("1", "constant")


@pytest.mark.slow
@pytest.mark.xdist_group("resume")
def test_a_killed_ablation_goes_on_with_what_is_missing_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    flags = ["--data", "digits", "--vary", "norm=none", "--vary", "early-stopping=1", "--seeds", "2"]
    # In one precision: a probe, which other work may mislead, would choose it for each of the two runs.
    flags += ["--max-epochs", "4", "--resplit", "--precision", "fp32", "--name", "killed"]
    run = RunFolder(tmp_path / "runs" / "killed")
    for done in (run.sweep / "models" / "base, lr 0.25-seed0", run.model("base-seed1")):
        first = not run.run_json.exists()
        args = flags if first else ["--resume", "killed"]
        process = launcher.start("ablate", *args, folder=tmp_path, start_new_session=True)
        launcher.wait_for(process, (done / "config.json").exists)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Of models that are whole, as their card says, which is written last; the evaluation adds the temperature to it.
    weights = [card.with_name("model.safetensors") for card in run.models.glob("*/config.json")]
    before = {path: path.stat().st_mtime_ns for path in weights}
    assert before
    resumed = launcher.run("ablate", "--resume", "killed", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = launcher.run("ablate", *flags[:-1], "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    measured = ("arm", "seed", "training_seed", "val_metric", "test_metric", "epochs", "failure")
    numbers = [
        [[row[name] for name in measured] for row in read_csv(RunFolder(tmp_path / "runs" / name).runs_csv)]
        for name in ("killed", "whole")
    ]
    assert numbers[0] == numbers[1]
    # Each seed has a split of its own, the same for all arms.
    cards = {path.parent.name: read_json(path) for path in run.models.glob("*/config.json")}
    of_seeds = [{card["data"]["fingerprint"] for card in cards.values() if card["seed"] == seed} for seed in range(4)]
    assert [len(found) for found in of_seeds] == [1] * 4 and len(set.union(*of_seeds)) == 4
    assert "Each seed draws its own training and validation images" in run.report_md.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vary", "colour"], "--vary: no factor 'colour'; take one of norm, norm-placement, "),
        (["--vary", "norm=layer"], "--vary norm: no level 'layer'; take of none, batch, "),
        (["--vary", "finetune"], "--vary: the base, a cnn, has no finetune; "),
        (["--vary", "dropout=0.0"], "--vary dropout: 0.0 is what the base has; give another level as well"),
        (["--vary", "norm", "--cross", "norm,dropout"], "--cross: dropout is not varied; "),
        (["--preset", "small-cnn", "--preset", "mish-cnn"], "--preset, --config, --module: give one base"),
        (["--preset", "nosuch"], "--preset: no preset 'nosuch'"),
        (["--seeds", "1"], "--seeds: must be a whole number of at least 2"),
        (["--vary", ""], "--vary: must not be empty"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_any_data_is_loaded(
    refused: Callable[..., str], flags: list[str], message: str
) -> None:
    assert refused("ablate", "--data", "/nowhere", *flags).startswith(message)


def test_a_grid_too_large_for_the_time_budget_is_refused(refused_by_ray: Callable[..., str]) -> None:
    line = refused_by_ray("ablate", "--data", "digits", "--vary", "dropout=0.1", "--time-budget", "5s")
    assert line.startswith("--time-budget: 5 s is too short: this takes about ")
    assert "--vary fewer factors" in line


def test_a_dry_run_shows_the_design_and_trains_nothing(
    hardware: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cifar_ray.driver.start.ray_session", lambda folder: contextlib.nullcontext(hardware))
    flags = ["--data", "digits", "--vary", "norm=batch", "--vary", "norm-placement=before_conv", "--preset", "mish-cnn"]
    assert main([*flags, "--seeds", "3", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "vary        norm: none (base), batch\n" in out
    assert "left out    norm-placement before_conv: with norm none nothing is placed\n" in out
    assert (
        "trainings   9: 1 level x 3 seeds, the base 6, and before them 18 trainings that find learning rates\n" in out
    )
    assert not (tmp_path / "runs").exists()
