"""Transfer learning from end to end: both families in one run, on real images with real weights."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import launcher
from helpers.resnets import random_network

from cifar_ray import load_model
from cifar_ray.files import read_json
from cifar_ray.results.records import RunFolder, read_csv, read_trials

share_a_run = pytest.mark.xdist_group("transfer")
SHARED = Path(os.path.abspath(os.environ.get("CIFAR_RAY_SHARED", Path(__file__).resolve().parents[2] / "shared")))
PETS, WEIGHTS = SHARED / "data" / "pet_breeds", SHARED / "weights" / "resnet18-tinyimagenet191.pth"

needs_shared = pytest.mark.skipif(
    not (PETS.is_dir() and WEIGHTS.is_file()),
    reason="the shared pet_breeds and weights are absent: set CIFAR_RAY_SHARED",
)

SPACE = """
def space(trial, task):
    finetune = trial.suggest_categorical("model/finetune", ["head", "last_stage"])
    views = trial.suggest_categorical("model/feature_views", [1, 2]) if finetune == "head" else 1
    return {
        "family": "resnet",
        "model": {"backbone": task.backbones[0], "weights": task.weights, "finetune": finetune, "feature_views": views},
        "image_size": 32,
        "optimizer": {"name": "adamw", "lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True)},
        "augment": {"flip": "random"} if views > 1 else {},
        "batch_size": 30,
    }


def default(task):
    return {"model/finetune": "head", "model/feature_views": 2, "lr": 3e-3}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", RunFolder]:
    """A search of the built-in CNNs and of small fine-tunings, which ends in a comparison."""
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "small_resnet.py").write_text(SPACE)
    for split, num_images in (("train", 20), ("val", 10)):
        for images in (PETS / split).iterdir():
            (folder / "pets" / split / images.name).mkdir(parents=True)
            for image in sorted(images.iterdir())[:num_images]:
                shutil.copy(image, folder / "pets" / split / images.name)
    flags = "--space cnn,small_resnet.py --data pets --trials 6 --max-epochs 2"
    flags += " --finalists 1 --final-seeds 2 --image-size 32 --name both"
    done = launcher.run("tune", *flags.split(), "--weights", str(WEIGHTS), folder=folder, timeout=600)
    return done, RunFolder(folder / "runs" / "both")


@pytest.mark.slow
@needs_shared
@share_a_run
def test_both_families_end_in_one_report(run: tuple["subprocess.CompletedProcess[str]", RunFolder]) -> None:
    done, folder = run
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(folder.results_csv)
    assert {row["family"] for row in rows} == {"cnn", "resnet"}
    assert {row["config"] for row in rows} >= {"default", "default-small_resnet"}
    report = folder.report_md.read_text()
    assert "The best of each family" in report
    assert "resnet" in report


@pytest.mark.slow
@needs_shared
@share_a_run
def test_the_records_tell_the_weights_and_what_features_were_kept(
    run: tuple["subprocess.CompletedProcess[str]", RunFolder],
) -> None:
    done, folder = run
    [weights] = read_json(folder.run_json)["unchanged"]["weights"]
    sums = dict(reversed(line.split()) for line in (WEIGHTS.parent / "SHA256SUMS").read_text().splitlines())
    assert weights == {"backbone": "resnet18", "source": str(WEIGHTS), "sha256": sums[WEIGHTS.name]}
    assert f"resnet18: {WEIGHTS}" in done.stdout
    for trial in read_trials(folder.trials_jsonl):
        model = trial["config"]["model"]
        if model.get("finetune") == "head":
            assert trial["features"]["views"] == model["feature_views"]
        else:
            assert trial["features"] is None


@pytest.mark.slow
@needs_shared
@share_a_run
def test_a_saved_fine_tuning_needs_neither_its_weights_nor_its_images(
    run: tuple["subprocess.CompletedProcess[str]", RunFolder],
    tmp_path: Path,
    run_command: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    _, folder = run
    model = folder.model("default-small_resnet-seed0")
    card = json.loads((model / "config.json").read_text())
    assert card["config"]["model"]["weights"] == str(WEIGHTS)
    assert card["features"]["views"] == 2
    card["config"]["model"]["weights"] = "/nowhere/at/all.pth"
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(card))
    (copy / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    image = next((PETS / "val").rglob("*.jp*g"))
    done = run_command("predict", str(copy), str(image), "--json")
    assert done.returncode == 0, done.stderr
    predicted = json.loads(done.stdout)
    assert sum(predicted["probabilities"].values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_another_backbone_is_trained_searched_and_saved(
    tmp_path: Path, run_command: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    torch.save(random_network("mobilenet_v3_small").state_dict(), tmp_path / "mine.pth")
    common = "--data digits --train-size 60 --max-epochs 2 --weights mine.pth"
    presets = "--preset mobilenet_v3_small-frozen --preset mobilenet_v3_small-finetune"
    done = run_command("train", *f"{presets} {common} --seeds 2 --set image_size=32 --name named".split(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(RunFolder(tmp_path / "runs" / "named").results_csv)
    assert [row["family"] for row in rows] == ["mobilenetv3"] * 4
    assert f"mobilenet_v3_small: {tmp_path / 'mine.pth'}" in done.stdout
    fixed = "--space resnet --set model/backbone=mobilenet_v3_small --set image_size=32 --set model/finetune=head"
    flags = f"{fixed} {common} --trials 3 --finalists 1 --final-seeds 1 --name searched"
    done = run_command("tune", *flags.split(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = read_trials(RunFolder(tmp_path / "runs" / "searched").trials_jsonl)
    assert {trial["config"]["model"]["backbone"] for trial in trials} == {"mobilenet_v3_small"}
    assert all(trial["features"] for trial in trials)
    model = load_model(tmp_path / "runs" / "searched" / "best")
    assert model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


@needs_shared
@pytest.mark.parametrize(
    ("command", "flags", "says"),
    [
        ("tune", ["--space", "resnet", "--weights", "absent.pth"], "absent.pth"),
        ("tune", ["--space", "cnn", "--weights", str(WEIGHTS)], "--weights: none of these models takes any"),
        (
            "train",
            ["--preset", "resnet50-frozen", "--weights", str(WEIGHTS)],
            "has the weights of resnet18, not of resnet50",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told(
    command: str,
    flags: list[str],
    says: str,
    refused_by_ray: Callable[..., str],
    tmp_path: Path,
) -> None:
    assert says in refused_by_ray(command, "--data", "digits", *flags)
    assert not (tmp_path / "runs").exists()


def test_without_network_the_file_to_fetch_and_its_place_are_named(
    refused_by_ray: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # made once, it would keep these proxies for other tests
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    line = refused_by_ray("tune", "--space", "resnet", "--data", "digits")
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in line
    assert ".pth" in line and "--weights PATH" in line
    assert not (tmp_path / "runs").exists()
