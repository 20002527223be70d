"""`train` as its user runs it: named models over several seeds, the same evaluation and report as after a search."""

import csv
import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import launcher

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import TrainSettings, TuneSettings
from cifar_ray.config import LRScheduleConfig, Task, TrialConfig, trial_config
from cifar_ray.data.splits import load_data
from cifar_ray.distributed.hardware import Workers
from cifar_ray.distributed.process import TrialSettings
from cifar_ray.distributed.workers import FinalModel
from cifar_ray.driver import finals
from cifar_ray.driver.named import named_configs, read_saved
from cifar_ray.driver.run import Run
from cifar_ray.driver.stages import finish
from cifar_ray.driver.start import describe_data
from cifar_ray.driver.train import train
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import has_bf16
from cifar_ray.presets import PRESETS, preset
from cifar_ray.results.config_json import TO_TRAIN_AGAIN
from cifar_ray.train import main

share_a_run = pytest.mark.xdist_group("train")
Command = Callable[..., "subprocess.CompletedProcess[str]"]
MAX_EPOCHS = 12
PRECISION = "bf16" if has_bf16("cpu") else "fp32"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two presets, two seeds each, with patience, in bf16 where there is any: the run's folder and what it printed."""
    folder = tmp_path_factory.mktemp("train")
    flags = ["--preset", "mish-cnn", "--preset", "mish-bn-cnn", "--data", "digits", "--train-size", "400"]
    flags += ["--set", "lr_schedule/name=constant", "--patience", "1", "--max-epochs", str(MAX_EPOCHS)]
    flags += ["--precision", PRECISION]
    done = launcher.run("train", *flags, "--seeds", "2", "--name", "two", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "two", done


def read_results(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@share_a_run
def test_presets_end_in_a_comparison_over_their_seeds(compared: Any) -> None:
    run, done = compared
    rows = read_results(run)
    assert [row["model"] for row in rows] == [f"{name}-seed{k}" for name in ("mish-cnn", "mish-bn-cnn") for k in (0, 1)]
    assert all(row["trial"] == "" and row["test_accuracy"] and row["latency_ms_p50"] for row in rows)
    report = (run / "report.md").read_text()
    assert "mish-bn-cnn" in report and "95 % interval" in report and "## Trials" not in report
    assert not (run / "study.journal").exists()
    about = json.loads((run / "run.json").read_text())
    assert about["kind"] == "train" and set(about["phases_s"]) == {"startup", "finals", "evaluation", "report"}
    slots = about["device"]["slots"]
    for phase, spent in about["slots_s"].items():
        assert 0 < sum(spent.values()) <= slots * about["phases_s"][phase]
    assert about["slots_s"]["finals"]["train"] == pytest.approx(sum(float(row["train_s"]) for row in rows))
    assert set(about["slots_s"]) == {"finals", "evaluation"} and about["slots_s"]["evaluation"]["timing"] > 0
    assert done.stderr == ""


@share_a_run
def test_patience_ends_final_trainings_and_keeps_their_best_weights(compared: Any) -> None:
    run, _ = compared
    cards = [json.loads((folder / "config.json").read_text()) for folder in (run / "models").iterdir()]
    assert {card["config"]["lr_schedule"]["name"] for card in cards} == {"constant"}
    assert {card["patience"] for card in cards} == {1}
    stopped = [card for card in cards if card["epochs"] < MAX_EPOCHS]
    assert stopped and all(card["best_epoch"] == card["epochs"] - 1 for card in stopped)
    assert "patience    " not in compared[1].stdout


@share_a_run
def test_the_precision_stands_in_all_records_and_models_are_scored_and_timed_in_fp32_too(compared: Any) -> None:
    run, done = compared
    assert f"precision   {PRECISION}: as asked" in done.stdout
    assert json.loads((run / "run.json").read_text())["precision"] == {"used": PRECISION, "why": "as asked"}
    cards = [json.loads((folder / "config.json").read_text()) for folder in (run / "models").iterdir()]
    assert {card["config"]["precision"] for card in cards} == {PRECISION}
    rows = read_results(run)
    assert {row["precision"] for row in rows} == {PRECISION}
    for row in rows:
        in_fp32 = [row[f"{name}_fp32"] for name in ("test_accuracy", "latency_ms_p50", "images_per_s")]
        assert all(in_fp32) if PRECISION == "bf16" else not any(in_fp32)
    if PRECISION == "bf16":
        assert all(abs(float(row["test_accuracy_fp32"]) - float(row["test_accuracy"])) < 0.02 for row in rows)
        assert "Scores are in bf16, as models were trained." in (run / "report.md").read_text()


@share_a_run
@pytest.mark.slow
def test_a_saved_configuration_alone_trains_the_same_model_again(
    compared: Any, run_command: Command, tmp_path: Path
) -> None:
    best = compared[0] / "best"
    done = run_command("train", "--config", str(best / "config.json"), "--seeds", "1", "--name", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = (tmp_path / "runs" / "again" / "models").iterdir()
    assert re.search(rf"^repeated    mish-(bn-)?cnn: \d+ epochs as in {best}, to the last digit$", done.stdout, re.M)
    assert (model / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    about = json.loads((tmp_path / "runs" / "again" / "run.json").read_text())
    assert about["settings"]["data"] == "digits" and about["settings"]["max_epochs"] == MAX_EPOCHS
    assert about["settings"]["patience"] == 1 and about["settings"]["precision"] == PRECISION
    assert about["data"]["num_train"] + about["data"]["num_val"] == 400


@pytest.mark.slow
def test_final_trainings_that_fail_are_recorded_and_not_tried_again(run_command: Command, tmp_path: Path) -> None:
    (tmp_path / "wild.json").write_text(json.dumps({"optimizer": {"name": "sgd", "lr": 1e30}}))
    flags = ["--data", "digits", "--train-size", "400", "--max-epochs", "1", "--seeds", "2", "--name", "wild"]
    done = run_command("train", "--config", "wild.json", "--preset", "mish-cnn", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "wild"
    failures = {row["model"]: row["failure"] for row in read_results(run)}
    assert failures == {
        "mish-cnn-seed0": "",
        "mish-cnn-seed1": "",
        "wild-seed0": "non-finite loss in epoch 1",
        "wild-seed1": "non-finite loss in epoch 1",
    }
    assert json.loads((run / "models" / "wild-seed0" / "failed.json").read_text())["failure"] == failures["wild-seed0"]
    told = "wild: 0 of 2 seeds; 2 failed: non-finite loss"
    assert told in done.stdout and "0 of 2 seeds; 2 failed: non-finite loss" in (run / "report.md").read_text()

    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"end": None}))  # as if it had been interrupted in the evaluation
    (run / "evaluation" / "results.csv").unlink()
    done = run_command("train", "--resume", "wild")
    assert done.returncode == 0, done.stdout + done.stderr
    again = f"wild-seed0 failed before, remove {run / 'models' / 'wild-seed0' / 'failed.json'} to try it again: non-"
    assert again in done.stdout and "2 of 4 final models are there already" in done.stdout and told in done.stdout
    assert {row["model"]: row["failure"] for row in read_results(run)} == failures


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --preset NAME (simple-cnn, "),
        (["--preset", "nosuch"], "--preset: no preset 'nosuch'; take one of simple-cnn, "),
        (["--config", "nosuch.json"], "nosuch.json: cannot read"),
        (["--config", "broken.json"], "broken.json: cannot read a configuration"),
        (["--config", "wrong.json"], "wrong.json: model/width: Unexpected keyword argument"),
        (["--preset", "mish-cnn", "--config", "mish-cnn.json"], "two models are called mish-cnn"),
        (["--config", "half.json"], "half.json: has no config_name; take the config.json of a model"),
        (["--config", "list.json"], "list.json: configuration: Input should be a dictionary"),
        (["--preset", "mish-cnn", "--seeds", "0"], "--seeds: must be a whole number of at least 1"),
        (["--preset", "mish-cnn", "--metric", "top5"], "--metric: must be one of accuracy, auc, f1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run_folder(
    refused: Callable[..., str], tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "wrong.json").write_text('{"model": {"width": 3}}')
    (tmp_path / "half.json").write_text('{"config": {}, "training_seed": 3}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "mish-cnn.json").write_text("{}")
    assert message in refused("train", "--data", "digits", *flags)
    assert not (tmp_path / "runs").exists()


def test_finals_have_the_patience_of_the_run_and_tell_where_it_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patiences: list[int | None] = []
    monkeypatch.setattr(finals, "train_models", lambda models, shared, *rest: patiences.append(shared.patience))
    settings, stream = TuneSettings(patience=4, runs_dir=tmp_path, name="run"), io.StringIO()
    run, workers, data = Run(settings, "tune", "cnn"), Workers(2, 1, {"CPU": 1, "GPU": 0}), load_data("digits")
    run.begin(describe_data(data))
    models = [
        FinalModel(name, None, index, 0, TrialConfig(lr_schedule=LRScheduleConfig(name=name)))  # type: ignore[arg-type]
        for name in ("constant", "cosine", "step", "one_cycle", "plateau")
        for index in range(2)
    ]
    shared = TrialSettings([], 10, 30, 10, "accuracy", 1)  # in the search trials had a patience of 10
    assert finish(run, Console(stream), workers, tmp_path, data, shared, models) == []
    assert patiences == [4]
    told = "patience    does not end cosine, one_cycle: the learning rate anneals to the last epoch\n"
    assert stream.getvalue().startswith(told)


def test_what_is_set_stands_in_every_named_model(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    settings = TrainSettings(
        preset=("small-cnn", "mish-cnn"), config=(tmp_path / "mine.json",), set=("model/dropout=0.2", "batch_size=32")
    )
    task = Task(10, 3, 32, 1000, "cpu")
    configs = named_configs(settings, task, [read_saved(path) for path in settings.config])
    assert set(configs) == {"small-cnn", "mish-cnn", "mine"}
    assert {(config.model.dropout, config.batch_size) for config in configs.values()} == {(0.2, 32)}
    plain = named_configs(TrainSettings(preset=("small-cnn",)), task, [])["small-cnn"]
    assert configs["small-cnn"] == replace(plain, model=replace(plain.model, dropout=0.2), batch_size=32)


def shown(capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    assert main([*flags, "--show"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_preset_is_shown_as_the_json_that_config_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cifar_ray.driver.start.started", None)  # nothing begins
    task = Task(10, 3, 32, 1000, "cuda" if torch.cuda.is_available() else "cpu")
    for name in PRESETS:
        assert trial_config(shown(capsys, "--preset", name), "shown") == preset(name, task)
    (tmp_path / "mine.json").write_text(json.dumps(shown(capsys, "--preset", "mish-cnn", "--set", "batch_size=32")))
    assert shown(capsys, "--config", "mine.json") == replace(preset("mish-cnn", task), batch_size=32).to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_preset_is_shown_as_for_the_data_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    for data, augment in (("cifar10", (2, "random")), ("digits", (0, "none"))):  # the first one is not read
        values = shown(capsys, "--preset", "mish-cnn", "--data", data)["augment"]
        assert (values["crop_padding"], values["flip"]) == augment


@pytest.mark.parametrize("name", ["/{}/other/models/a", "../../other/models/a", "a/b", "..", "", "a\0b", 3, None])
def test_a_name_in_a_saved_model_that_is_a_path_is_refused_and_nothing_is_deleted(tmp_path: Path, name: Any) -> None:
    other = tmp_path / "other" / "models" / "a-seed0" / "history.csv"
    other.parent.mkdir(parents=True)
    other.write_text("epoch")
    path = tmp_path / "config.json"
    name = name.replace("/{}", str(tmp_path)) if isinstance(name, str) else name
    path.write_text(json.dumps({"config": {}, **dict.fromkeys(TO_TRAIN_AGAIN), "config_name": name}))
    with pytest.raises(InputError) as error:
        train(TrainSettings(config=(path,), data="digits", max_epochs=1, metric="accuracy", runs_dir=tmp_path / "runs"))
    assert str(error.value) == f"--config: {path}: config_name: must be the name of a folder, not a path: {name!r}"
    assert other.exists() and not (tmp_path / "runs").exists()


def test_weights_replace_those_of_the_presets_but_a_model_from_scratch_stays_so() -> None:
    names = ("resnet18-scratch", "resnet18-frozen", "resnet50-frozen-mlp", "small-cnn")
    settings = TrainSettings(preset=names, weights="/some/file.pth", seeds=1)
    configs = named_configs(settings, Task(10, 3, 32, 1000, "cpu"), [])
    weights = {name: getattr(config.model, "weights", None) for name, config in configs.items()}
    assert list(weights.values()) == ["none", "/some/file.pth", "/some/file.pth", None]


def test_a_frozen_backbone_without_weights_is_refused(refused_by_ray: Callable[..., str], tmp_path: Path) -> None:
    line = refused_by_ray("train", "--preset", "resnet18-frozen", "--weights", "none", "--data", "digits")
    assert line.startswith("--weights none: resnet18-frozen: model: ")
    assert "freezes a backbone of random weights" in line
    assert not (tmp_path / "runs").exists()


def test_a_backbone_that_torchvision_does_not_have_is_refused(refused_by_ray: Callable[..., str]) -> None:
    line = refused_by_ray("train", "--preset", "resnet19-scratch", "--data", "digits")
    assert line.startswith("model/backbone: torchvision has no 'resnet19'; take one of resnet101, ")
