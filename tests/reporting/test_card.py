"""The card of the chosen model: every number of it stands in the records."""

from pathlib import Path

import pytest
from helpers import records

from cifar_ray.files import read_json, write_json
from cifar_ray.reporting.card import model_card
from cifar_ray.reporting.render import build_report
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import RunFolder, read_csv


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a chosen model, of which all is recorded."""
    folder = records.make_run(tmp_path / "run")
    records.write_quality(folder)
    records.write_robustness(folder)
    best = Records(folder).summaries[0].best_model
    card = read_json(folder.model(best) / "config.json")
    card |= {
        "class_names": records.CLASS_NAMES,
        "temperature": 1.25,
        "resize": {"channels": 1, "image_size": 8, "rule": "native"},
    }
    write_json(folder.best / "config.json", card)
    return folder


def test_a_report_leaves_the_card_of_the_chosen_model(run: RunFolder) -> None:
    build_report(run.root)
    text = (run.best / "README.md").read_text()
    assert text == model_card(Records(run))
    assert text.startswith("# trial-0012-seed")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Use", "## How well", "## Where it fails", "## Size and speed", "## How it came about",
    ]  # fmt: skip


def test_its_scores_are_those_of_the_model_on_each_split(run: RunFolder) -> None:
    text = model_card(Records(run))
    best = Records(run).summaries[0]
    (row,) = (row for row in read_csv(run.results_csv) if row["model"] == best.best_model)
    assert f"| 360 test | {100 * row['test_accuracy']:.2f} |" in text
    assert f"| 288 val | {100 * row['val_accuracy']:.2f} |" in text
    assert f"over 3 seeds: {100 * best.test_accuracy.mean:.2f} (" in text
    assert "softmax(logits / 1.25)" in text


def test_it_names_the_classes_and_corruptions_that_it_fails_on(run: RunFolder) -> None:
    text = model_card(Records(run))
    best = Records(run).summaries[0].best_model
    rows = [row for row in read_csv(run.classes_csv) if row["model"] == best]
    worst = min(rows, key=lambda row: row["recall"])
    assert f"({100 * worst['recall']:.1f} % of {worst['n']})" in text
    of_noise = [row for row in read_csv(run.robustness_csv) if row["model"].startswith("trial-0012")]
    (noise,) = (row for row in of_noise if (row["corruption"], row["severity"]) == ("noise", 2))
    assert f"noise {100 * noise['accuracy']:.2f} %" in text


def test_names_of_classes_do_no_harm(run: RunFolder) -> None:
    text = model_card(Records(run))
    assert "<script>" not in text and "a\\|b\\*c\\_d\\`e" in text


def test_what_is_not_recorded_is_left_out(run: RunFolder) -> None:
    for file in (run.quality_csv, run.classes_csv, run.robustness_csv, run.latency_csv):
        file.unlink()
    text = model_card(Records(run))
    assert "## How well" not in text and "Classes that it finds least of" not in text
    assert "corrupted" not in text and "a batch of" not in text
    assert "It gives one of its classes to any image" in text


def test_a_run_without_a_chosen_model_has_no_card(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "run")
    build_report(folder.root)
    assert not folder.best.exists()
