"""Records on disk: what is written is read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_ray import files
from cifar_ray.config import TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.files import read_json, write_json
from cifar_ray.models.classifier import build_model
from cifar_ray.models.saved import pack_weights, save_model
from cifar_ray.results.records import (
    HISTORY_COLUMNS,
    RESULTS_COLUMNS,
    RunFolder,
    read_csv,
    read_examples,
    read_predictions,
    read_samples,
    read_trials,
    write_csv,
    write_examples,
    write_predictions,
    write_samples,
    write_trials,
)


def test_importing_the_plain_band_loads_nothing_heavy() -> None:
    code = "import sys, cifar_ray.results.records, cifar_ray.reporting.render; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cifar_ray.reporting.render" in loaded
    assert not {"torch", "ray", "optuna", "scipy", "matplotlib", "jinja2"} & set(loaded)


def test_json_round_trip_has_null_for_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_json(path, {"a": float("nan"), "b": [np.float32("inf"), np.int64(3)], "c": Path("x"), "ü": None, 4: (1,)})
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert read_json(path) == {"a": None, "b": [None, 3], "c": "x", "ü": None, "4": [1]}


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"old": 1})

    def disk_full(source: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_resumed_run_relies_on_is_on_disk_before_and_after_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix or "folder")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        steps.append(target.name)
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    write_json(tmp_path / "run.json", {})
    assert steps == [".tmp", "run.json", "folder"]
    steps.clear()
    save_model(tmp_path / "model", b"weights", TrialConfig(), {})
    assert steps == [".tmp", "model.safetensors", "folder", ".tmp", "config.json", "folder"]
    steps.clear()
    write_csv(tmp_path / "history.csv", HISTORY_COLUMNS, [])
    assert steps == ["history.csv"]


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_of_which_a_file_is_empty_or_cut_short_is_not_saved(tmp_path: Path, name: str, kept: float) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_saved("a")
    model = build_model(TrialConfig(), num_classes=2, channels=1, image_size=8)
    save_model(run.model("a"), pack_weights(model), TrialConfig(), {})
    whole = (run.model("a") / name).read_bytes()
    (run.model("a") / name).write_bytes(whole[: int(kept * len(whole))])
    assert run.is_saved("a") == (kept == 1.0)


def test_missing_and_broken_json_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: is no JSON"):
        read_json(tmp_path / "run.json")


def test_trials_round_trip_and_name_the_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert read_trials(path) == []
    records = [{"number": 0, "reason": "two\nlines \u2028", "best": None}, {"number": 1, "best": {"val_loss": 0.1}}]
    write_trials(path, records)
    assert read_trials(path) == records
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"number": 2')
    with pytest.raises(InputError, match=r"trials\.jsonl:3"):
        read_trials(path)


def test_csv_round_trip_is_typed_and_keeps_names_as_text(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first = {
        "model": 'a,"b"-seed0',
        "config": "2024",
        "torch": "2.11",
        "seed": 0,
        "val_loss": 1e-9,
        "test_accuracy": None,
    }
    write_csv(path, RESULTS_COLUMNS, [first, {"model": "nan", "val_loss": float("nan"), "seed": np.int64(7)}])
    read = read_csv(path)
    assert {key: value for key, value in read[0].items() if value is not None} == {
        k: v for k, v in first.items() if v is not None
    }
    assert isinstance(read[0]["seed"], int)
    assert (read[1]["model"], read[1]["val_loss"], read[1]["seed"]) == ("nan", None, 7)
    assert path.read_text().splitlines()[0] == ",".join(RESULTS_COLUMNS)
    assert read_csv(tmp_path / "missing.csv") == []
    with pytest.raises(ValueError, match="typo"):
        write_csv(path, RESULTS_COLUMNS, [{"typo": 1}])


def test_predictions_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    assert read_predictions(path) == {}
    probabilities = np.array([[0.25, 0.75], [1.0, 0.0]])
    write_predictions(path, np.array([1, 0]), {"a-seed0": probabilities})
    read = read_predictions(path)
    assert (read["labels"].dtype, read["a-seed0"].dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(read["a-seed0"], probabilities)


def test_pictures_round_trip(tmp_path: Path) -> None:
    assert read_examples(tmp_path / "examples.npz") == {} == read_samples(tmp_path / "samples.npz")
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2)
    write_examples(tmp_path / "examples.npz", np.array([2, 5, 9]), images)
    examples = read_examples(tmp_path / "examples.npz")
    assert list(examples) == [2, 5, 9]
    np.testing.assert_array_equal(examples[5], images[1])
    write_samples(tmp_path / "samples.npz", np.array([1, 0, 1]), images)
    samples = read_samples(tmp_path / "samples.npz")
    np.testing.assert_array_equal(samples[1], images[[0, 2]])
    assert samples[0].dtype == np.uint8 and list(samples) == [0, 1]
    write_examples(tmp_path / "none.npz", np.zeros(0, int), images[:0])
    assert read_examples(tmp_path / "none.npz") == {}


def test_written_json_is_what_json_reads(tmp_path: Path) -> None:
    write_trials(tmp_path / "t", [{"best": {"val_loss": np.float64("nan")}}])
    assert json.loads((tmp_path / "t").read_text(), parse_constant=pytest.fail) == {"best": {"val_loss": None}}
