"""Accuracy against size: the front in the report, and front.csv."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import records

from cifar_ray.files import write_json
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.sizes import sizes
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import FRONT_COLUMNS, RunFolder, read_csv, read_trials, write_trials


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search whose trials are the larger, the later they came: the default recipe is the smallest."""
    return records.make_run(tmp_path_factory.mktemp("run"))


def test_the_report_shows_the_front_and_how_to_train_what_is_on_it(run: RunFolder) -> None:
    section = sizes(Records(run))
    (table,) = section.tables
    assert table.columns == ["trial", "val accuracy %", "params", "p50 ms"]
    values = [float(row[1]) for row in table.rows]
    assert table.rows[0][0] == "default" and values == sorted(values) and values[-1] == 97.2
    assert {row[0]: row[3] for row in table.rows}["trial-0012"] == "0.45"
    marks = {row[0]: table.marks[index] for index, row in enumerate(table.rows)}
    assert marks["trial-0012"] == ["finalist"]
    assert f"{len(table.rows)} are on the front" in section.text[0]
    assert "--config" not in table.note  # older runs keep no configuration with a trial


def test_a_trial_that_was_no_finalist_can_be_trained_from_its_folder(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    trials = [one | {"best": one["best"] | {"val_metric": 0.99}} if one["number"] == 21 else one
              for one in read_trials(folder.trials_jsonl)]  # fmt: skip
    write_trials(folder.trials_jsonl, trials)
    path = folder.trial(21) / "config.json"
    write_json(path, {})
    assert sizes(Records(folder)).tables[0].note.endswith(f"python -m cifar_ray.train --config {path}")


def test_front_csv_has_every_trial_with_a_value(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    build_report(folder.root)
    rows = read_csv(folder.front_csv)
    assert tuple(rows[0]) == FRONT_COLUMNS
    tried = {one["name"]: one for one in read_trials(folder.trials_jsonl) if one["best"]}
    assert {row["config"] for row in rows} == set(tried)
    for row in rows:
        one = tried[row["config"]]
        assert (row["state"], row["val_metric"], row["family"]) == (one["state"], one["best"]["val_metric"], "cnn")
        as_small = [other for other in tried.values() if other["num_params"] <= one["num_params"]]
        as_good = [other for other in as_small if other["best"]["val_metric"] >= row["val_metric"]]
        assert row["on_front"] == ([other for other in as_good if other["state"] == "complete"] == [one])
    assert {row["config"] for row in rows if row["latency_ms_p50"]} == {
        "default", "trial-0007", "trial-0012", "trial-0019"
    }  # fmt: skip
    assert "sizes.png" in (folder.root / "report.md").read_text()


def test_one_size_has_no_front(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    write_trials(folder.trials_jsonl, [one | {"num_params": 94_000} for one in read_trials(folder.trials_jsonl)])
    assert sizes(Records(folder)).empty


def test_named_models_have_no_front(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, num_trials=0, accuracies={"small-cnn": 0.9})
    build_report(folder.root)
    assert not folder.front_csv.exists() and sizes(Records(folder)).empty
