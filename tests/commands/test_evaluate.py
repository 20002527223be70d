"""`evaluate` as its user runs it: models of several runs on images given later, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import make_tree
from helpers.saved import save_untrained
from sklearn.metrics import log_loss, roc_auc_score

from cifar_ray.cli.flags import EvaluateSettings
from cifar_ray.data.splits import load_data
from cifar_ray.driver.evaluate import _load_splits, _read_models
from cifar_ray.files import write_json
from cifar_ray.results.records import RunFolder, read_csv, read_predictions

NAMES = ["bird", "cat", "dog"]


def save(root: Path, name: str, seed: int = 0, size: int = 8, **card: Any) -> Path:
    """A model in the run at `root`."""
    data = {"source": "digits", "fingerprint": "?", "train_size": 797}
    folder = RunFolder(root).model(f"{name}-seed{seed}")
    card = {"class_names": NAMES, "name": folder.name, "config_name": name, "data": data, **card}
    save_untrained(folder, card.pop("class_names"), seed, size, **card)
    write_json(root / "run.json", {"kind": "train"})
    return folder


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `a` with two models of one configuration, run `b` with one of the same name for larger images, and images."""
    root = tmp_path_factory.mktemp("evaluate")
    for seed in (0, 1):
        save(root / "a", "default", seed, val_metric=0.5 + 0.1 * seed)
    save(root / "b", "default", size=16)
    shutil.copytree(root / "a" / "models" / "default-seed1", root / "a" / "best")
    make_tree(root / "later", {"cat": 6, "dog": 9, "bird": 5})
    return root


@pytest.mark.slow
def test_models_of_several_runs_are_compared_on_images_given_later(
    two_runs: Path, run_command: Callable[..., Any], tmp_path: Path
) -> None:
    damaged = save(two_runs / "c", "damaged")
    (damaged / "model.safetensors").write_bytes(b"damaged")
    done = run_command("evaluate", *(str(two_runs / name) for name in ("a", "a/best", "b", "c")), "--data",
                       str(two_runs / "later"), "--name", "later")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "runs" / "later")
    rows = read_csv(run.results_csv)
    # best/ is a copy, and the configurations that two runs call `default` are not mixed up.
    assert [row["model"] for row in rows] == ["a.default-seed0", "a.default-seed1", "b.default-seed0"]
    assert {row["config"] for row in rows} == {"a.default", "b.default"}
    assert "left out" in done.stdout and str(damaged) in done.stdout
    predictions = read_predictions(run.predictions("test"))
    labels = predictions["labels"]
    assert labels.tolist() == [0] * 5 + [1] * 6 + [2] * 9  # in the order of the models' classes
    for row in read_csv(run.quality_csv):
        probabilities = predictions[str(row["model"])].astype(float)
        probabilities /= probabilities.sum(1, keepdims=True)
        assert row["split"] == "test" and row["n"] == 20
        assert row["accuracy"] == np.mean(probabilities.argmax(1) == labels)
        assert row["log_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-6)
        auc = roc_auc_score(labels, probabilities, multi_class="ovr")
        assert row["auc_macro_ovr"] == pytest.approx(auc, abs=1e-6)
    about = json.loads(run.run_json.read_text())
    assert about["test_readings"]["readings"] >= 1 and about["data"]["class_counts"] == {"test": [5, 6, 9]}
    assert len(about["left_out"]) == 1 and about["end"]
    report = run.report_html.read_text()
    assert "a.default" in report and "b.default" in report and "Finalists" in report
    assert (run.best / "model.safetensors").is_file() and str(run.best) in done.stdout
    assert "--resume" not in done.stdout


def settings(data: str, *models: Path) -> EvaluateSettings:
    return EvaluateSettings(models=models, data=data)


def test_models_are_scored_on_all_splits_of_their_own_data_unless_it_has_changed(tmp_path: Path) -> None:
    digits = load_data("digits")
    about = {"source": "digits", "fingerprint": digits.fingerprint, "train_size": 797}
    same = save(tmp_path / "run", "same", class_names=list(digits.class_names), data=about)
    given, _ = _read_models([same])
    splits, told = _load_splits(settings("digits", same), [given[0].saved])
    assert sorted(splits) == ["test", "train", "val"] and told["num_val"] == 597
    assert np.array_equal(splits["test"].images, digits.test.images)
    changed = save(tmp_path / "run", "changed", class_names=list(digits.class_names), data=about | {"fingerprint": "0"})
    given, _ = _read_models([changed])
    splits, _ = _load_splits(settings("digits", changed), [given[0].saved])
    assert sorted(splits) == ["test"]


def test_the_folder_that_models_were_trained_on_is_not_tested_on_whole(tmp_path: Path) -> None:
    make_tree(tmp_path / "images", {name: 20 for name in NAMES})
    data = load_data(str(tmp_path / "images"))
    about = {"source": str(tmp_path / "images"), "fingerprint": data.fingerprint, "train_size": 48}
    size = data.resize["image_size"]
    card = {"data": about, "channels": 3, "size": size}
    model = save(tmp_path / "run", "own", **card)
    given, _ = _read_models([model])
    splits, _ = _load_splits(settings(about["source"], model), [given[0].saved])
    assert len(splits["test"].labels) == 12 and np.array_equal(splits["test"].images, data.test.images)


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    two_runs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    later, first = str(two_runs / "later"), str(two_runs / "a" / "models" / "default-seed0")
    assert "not a saved model" in refused("evaluate", str(tmp_path / "nosuch"), "--data", later)
    write_json(tmp_path / "empty" / "run.json", {})
    assert "has no final models yet" in refused("evaluate", str(tmp_path / "empty"), "--data", later)
    other = str(save(tmp_path / "run", "other", class_names=["a", "b"]))
    assert "its classes (a, b) are not those of" in refused("evaluate", first, other, "--data", later)
    about = {"source": "cifar10", "fingerprint": "?", "train_size": 50000}
    elsewhere = str(save(tmp_path / "run", "elsewhere", data=about))
    assert "trained on different data (digits, cifar10)" in refused("evaluate", first, elsewhere)
    assert "its classes (0, 1, 2" in refused("evaluate", first)  # on digits, which it says it was trained on
    cat = str(two_runs / "later" / "cat")
    assert f"python -m cifar_ray.predict MODEL {cat}" in refused("evaluate", first, "--data", cat)
    namesake = str(save(tmp_path / "a", "default", val_metric=0.1))
    assert "two models are called a.default-seed0" in refused("evaluate", first, namesake, "--data", later)
