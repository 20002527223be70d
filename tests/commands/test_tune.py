"""The command as its user runs it: a whole run on the embedded digits, and what it leaves."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import launcher
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_ray.data.splits import load_data
from cifar_ray.models.saved import load_model
from cifar_ray.results.config_json import read_config
from cifar_ray.results.records import HISTORY_COLUMNS, RESULTS_COLUMNS, read_trials

pytestmark = pytest.mark.xdist_group("tune")
Command = Callable[..., "subprocess.CompletedProcess[str]"]
ONE_RUN = ["--space", "cnn", "--data", "digits", "--train-size", "500", "--trials", "5", "--max-epochs", "3"]
ONE_RUN += ["--finalists", "1", "--final-seeds", "2", "--name", "small"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small run: its folder and what it printed."""

    folder = tmp_path_factory.mktemp("tune")
    done = launcher.run("tune", *ONE_RUN, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "small", done


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_run_folder_holds_what_it_promises(run: Any) -> None:
    folder, _ = run
    expected = {"run.json", "study.journal", "trials.jsonl", "trials", "models", "best", "evaluation", "hparams"}
    assert {path.name for path in folder.iterdir()} == expected | {"report.html", "report.md", "front.csv", "ray.log"}
    evaluated = {path.name for path in (folder / "evaluation").iterdir()}
    assert {f"{name}.csv" for name in ("results", "latency", "quality", "classes", "robustness")} < evaluated
    assert {"predictions.npz", "val_predictions.npz", "train_predictions.npz"} < evaluated
    assert {"examples.npz", "samples.npz"} < evaluated
    assert (folder / "evaluation" / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_run_json_says_how_the_run_came_about(run: Any) -> None:
    about = json.loads((run[0] / "run.json").read_text())
    assert about["command"].endswith("--name small")
    assert about["settings"]["trials"] == 5 and about["settings"]["sampler"] == "mutation"
    assert about["data"]["fingerprint"] == load_data("digits", train_size=500).fingerprint
    assert about["data"]["num_train"] + about["data"]["num_val"] == 500
    assert set(about["phases_s"]) == {"startup", "search", "finals", "evaluation", "report"}
    assert about["versions"]["torch"] in torch.__version__
    assert about["start"] < about["end"]
    assert about["test_readings"] == {"readings": 1, "runs": 1}


def test_every_trial_has_its_record_and_its_history(run: Any) -> None:
    records = read_trials(run[0] / "trials.jsonl")
    assert [record["number"] for record in records] == list(range(5))
    assert records[0]["name"] == "default"
    if records[0]["state"] != "complete":  # it is stopped early only where another trial was ahead of it
        epoch, value = records[0]["epochs"], records[0]["best"]["val_metric"]
        others = [read_csv(run[0] / "trials" / f"{number:04d}" / "history.csv")[:epoch] for number in range(1, 5)]
        assert any(row["val_metric"] > value for rows in others for row in rows)
    assert {record["state"] for record in records} <= {"complete", "pruned"}
    for record in records:
        history = read_csv(run[0] / "trials" / f"{record['number']:04d}" / "history.csv")
        assert list(history[0]) == list(HISTORY_COLUMNS)
        assert len(history) == record["epochs"]
        assert max(float(row["val_metric"]) for row in history) == pytest.approx(record["best"]["val_metric"])


def test_tensorboard_reads_the_scalars_of_every_trial_and_final_model(run: Any) -> None:
    folders = sorted((run[0] / "trials").iterdir()) + sorted((run[0] / "models").iterdir())
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        history = read_csv(folder / "history.csv")
        scalars = events.Scalars("accuracy/val")
        assert [event.step for event in scalars] == [int(row["epoch"]) for row in history]
        np.testing.assert_allclose([e.value for e in scalars], [float(r["val_accuracy"]) for r in history], rtol=1e-6)
        assert {"accuracy/val", "loss/train", "optimizer/lr", "seconds/train"} < set(events.Tags()["scalars"])


def test_results_have_a_row_for_each_final_model_with_the_default_among_them(run: Any) -> None:
    rows = read_csv(run[0] / "evaluation" / "results.csv")
    assert list(rows[0]) == list(RESULTS_COLUMNS)
    configs = {row["config"] for row in rows}
    assert "default" in configs
    assert len(rows) == 2 * len(configs) == len(list((run[0] / "models").iterdir()))
    for row in rows:
        known = {column: value for column, value in row.items() if column != "failure" and not column.endswith("_fp32")}
        assert not row["failure"] and all(known.values()), row
        weights = run[0] / "models" / row["model"] / "model.safetensors"
        assert float(row["size_mb"]) == pytest.approx(weights.stat().st_size / 1e6)


def test_the_numbers_of_a_saved_model_can_be_had_again_from_its_folder(run: Any) -> None:
    data = load_data("digits", train_size=500)
    for row in read_csv(run[0] / "evaluation" / "results.csv"):
        model = load_model(run[0] / "models" / row["model"])
        with torch.inference_mode():
            test, val = (model(torch.tensor(split.images)).softmax(1).numpy() for split in (data.test, data.val))
        assert (test.argmax(1) == data.test.labels).mean() == pytest.approx(float(row["test_accuracy"]))
        assert (val.argmax(1) == data.val.labels).mean() == pytest.approx(float(row["val_accuracy"]))
        auc = roc_auc_score(data.test.labels, test, multi_class="ovr", average="macro")
        assert auc == pytest.approx(float(row["test_auc_macro_ovr"]), abs=1e-4)
        predictions = np.load(run[0] / "evaluation" / "predictions.npz")
        np.testing.assert_allclose(predictions[row["model"]], test, atol=1e-4)


def test_best_is_the_best_validation_seed_of_the_best_configuration(run: Any) -> None:
    rows = read_csv(run[0] / "evaluation" / "results.csv")
    mean = {c: np.mean([float(r["val_metric"]) for r in rows if r["config"] == c]) for c in {r["config"] for r in rows}}
    card = json.loads((run[0] / "best" / "config.json").read_text())
    chosen = next(row for row in rows if row["model"] == card["name"])
    assert mean[chosen["config"]] == max(mean.values())
    assert float(chosen["val_metric"]) == max(float(r["val_metric"]) for r in rows if r["config"] == chosen["config"])
    assert read_config(run[0] / "best" / "config.json")[0].family == "cnn"


def test_the_output_reads_well_in_a_pipe(run: Any) -> None:
    out = run[1].stdout
    assert run[1].stderr == ""
    assert "\r" not in out and "\x1b" not in out
    assert "train 125, validation 375, test 1000 (sealed)" in out
    assert f"resume      python -m cifar_ray.tune --resume {run[0]}" in out
    assert re.search(r"^devices     \d+ CPUs, \d+ GPUs: \d+ trials side by side$", out, re.MULTILINE)
    assert re.search(r"^estimate    .+ in all, if .*\n +recipe \(\d+ images/s each, \d+ side by side\)$", out, re.M)
    assert f"tensorboard --logdir {run[0]}" in out
    assert f"report      {run[0] / 'report.html'}" in out and f"best model  {run[0] / 'best'}" in out
    assert "ray" not in out.replace("cifar_ray", "").lower()  # its chatter is in ray.log
    assert "Ray" in (run[0] / "ray.log").read_text()


@pytest.mark.slow
def test_any_trial_can_be_trained_again_and_comes_out_as_it_was(run: Any, tmp_path: Path) -> None:
    folders = sorted((run[0] / "trials").iterdir())
    cards = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [card["config_name"] for card in cards] == ["default", *(f"trial-{number:04d}" for number in range(1, 5))]
    other = tmp_path / "other"
    shutil.copytree(folders[3], other)
    history = read_csv(other / "history.csv")
    (other / "history.csv").write_text((other / "history.csv").read_text().replace(history[0]["val_loss"], "7.5"))
    told, flags = [], []
    for folder, card in zip([*folders[1:3], other], cards[1:4], strict=True):
        flags += ["--config", str(folder / "config.json")]
        count = len(read_csv(folder / "history.csv"))
        came = f"{count} epoch{'s' * (count > 1)} as in {folder}, to the last digit"
        told.append(f"repeated    {card['config_name']}: {came}")
    told[2] = (
        f"repeated    {cards[3]['config_name']}: not as in {other} from epoch 1 on (val_loss 7.5 there, "
        f"{float(history[0]['val_loss'])} here): another machine, version, or number of threads or workers"
    )
    done = launcher.run("train", *flags, "--seeds", "1", "--name", "again", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("repeated")] == told


@pytest.mark.slow
def test_a_warm_start_tries_the_best_of_another_run_first(run: Any, tmp_path: Path) -> None:
    folder, _ = run
    flags = ["--data", "digits", "--train-size", "500", "--trials", "3", "--max-epochs", "1", "--final-seeds", "1"]
    done = launcher.run("tune", *flags, "--warm-start", str(folder), "--name", "warm", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    complete = [one for one in read_trials(folder / "trials.jsonl") if one["state"] == "complete"]
    best = sorted(complete, key=lambda one: (-one["best"]["val_metric"], one["best"]["val_loss"]))[:3]
    for one in best:
        assert f"warm start  {one['name']} of small\n" in done.stdout
    tried = {one["number"]: one["params"] for one in read_trials(tmp_path / "runs" / "warm" / "trials.jsonl")}
    assert [tried[number] for number in range(3)] == [
        tried[0],
        *(one["params"] for one in best if one["name"] != "default"),
    ][:3]


def test_help_shows_every_default(run_command: Command) -> None:
    done = run_command("tune", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for shown in ("(default: cifar10)", "(default: 50)", "(default: 30)", "(default: mutation)", "(default: runs)"):
        assert shown in text
