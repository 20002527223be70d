"""`report` as its user runs it: one run in its place, several in a folder of their own, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.records import make_run, write_quality, write_robustness

from cifar_ray import report
from cifar_ray.files import read_json, write_json
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import RunFolder, read_csv, read_predictions

CNNS = {"trial-0012": 0.972, "default": 0.955}
RESNETS = {"resnet18-finetune": 0.985, "default": 0.93}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """A search and a training on the same test split; both have a configuration called `default`."""
    first = make_run(tmp_path / "runs" / "search", accuracies=CNNS)
    second = make_run(tmp_path / "runs" / "named", accuracies=RESNETS, num_trials=0)
    for run in (first, second):
        write_quality(run)
        write_robustness(run)
    return first, second


def test_a_run_is_reported_again_in_its_place(
    runs: tuple[RunFolder, RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[0]
    assert report.main([str(run.root)]) == 0
    assert "The choice within your limits" not in run.report_md.read_text()
    assert report.main([str(run.root), "--max-params", "1M", "--within", "50"]) == 0
    out, text = capsys.readouterr().out, run.report_md.read_text()
    said = (
        "Take default, the smallest of those with at most 1,000,000 parameters within 50 points of the best, trial-001"
    )
    assert said in out and said in text.replace("\\", "")
    assert str(run.report_html) in out
    assert text.index("The choice within your limits") < text.index("Finalists")


def test_several_runs_are_compared_in_a_folder_of_their_own(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([*(str(run.root) for run in runs), "--runs-dir", str(tmp_path / "out"), "--name", "both"]) == 0
    merged = RunFolder(tmp_path / "out" / "both")
    records = Records(merged)
    assert [one.config for one in records.summaries] == [
        "resnet18-finetune", "trial-0012", "search.default", "named.default"
    ]  # fmt: skip
    assert {one.family for one in records.summaries} == {"cnn", "resnet"}
    assert len(records.comparisons) == 3 and len(records.histories) == 12
    # Nothing is lost, and nothing comes out changed.
    for run, prefix in zip(runs, ("search.", "named."), strict=True):
        predictions, together = read_predictions(run.predictions_npz), read_predictions(merged.predictions_npz)
        for row in read_csv(run.results_csv):
            name = (prefix if row["config"] == "default" else "") + str(row["model"])
            assert np.array_equal(predictions[str(row["model"])], together[name])
            same = next(other for other in records.rows if other["model"] == name)
            assert {**same, "model": row["model"], "config": row["config"]} == row
    assert len(records.robustness) == sum(len(read_csv(run.robustness_csv)) for run in runs) > 0
    assert len(records.quality) == sum(len(read_csv(run.quality_csv)) for run in runs)
    about = read_json(merged.run_json)
    assert [one["run"] for one in about["merged"]] == [str(run.root) for run in runs]
    assert str(runs[0].root) in merged.report_html.read_text()
    assert str(merged.report_html) in capsys.readouterr().out


def test_images_brought_to_other_sizes_are_the_same_where_source_and_labels_are(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path
) -> None:
    about = read_json(runs[1].run_json)
    about["data"] |= {"image_size": 96, "fingerprint": "other"}
    write_json(runs[1].run_json, about)
    arguments = [*(str(run.root) for run in runs), "--runs-dir", str(tmp_path / "out"), "--name", "both"]
    assert report.main(arguments) == 0
    assert read_json(tmp_path / "out" / "both" / "run.json")["same_validation"] is False


def test_runs_that_cannot_be_compared_are_refused_with_the_reason(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, refused: Callable[..., str]
) -> None:
    first = str(runs[0].root)

    def told(name: str, **changes: object) -> str:
        other = make_run(tmp_path / "others" / name, num_trials=0, **changes)  # type: ignore[arg-type]
        return refused("report", first, str(other.root))

    assert "has other test images than" in told("more", num_test=400)
    assert "ranks by another metric (AUC) than" in told("auc", metric="auc")
    assert "has other classes than" in told("classes", class_names=[str(i) for i in range(10)])
    assert "has no evaluated model" in told("unfinished", finals=False)
    other = make_run(tmp_path / "others" / "changed")
    about = read_json(other.run_json)
    write_json(other.run_json, about | {"data": about["data"] | {"fingerprint": "other"}})
    assert "have changed meanwhile" in refused("report", first, str(other.root))
    namesake = make_run(tmp_path / "others" / "search", accuracies=CNNS)
    assert "another run has this name too" in refused("report", first, str(namesake.root))
    assert "not a run" in refused("report", str(tmp_path / "nosuch"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert "run.json" in refused("report", str(tmp_path / "broken"))
    assert "--within: must be a number above 0" in refused("report", first, "--within", "0")
    assert "exists in" in refused("report", first, str(runs[1].root), "--name", "search")
    assert not list((tmp_path / "runs").glob("report-*"))


def test_test_fingerprints_tell_more_than_those_of_all_the_data(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, refused: Callable[..., str]
) -> None:
    for run, fingerprint in zip(runs, ("all", "fewer to train on"), strict=True):
        about = json.loads(run.run_json.read_text())
        about["data"] |= {"fingerprint": fingerprint, "test_fingerprint": "the same"}
        write_json(run.run_json, about)
    arguments = [*(str(run.root) for run in runs), "--runs-dir", str(tmp_path / "out")]
    assert report.main(arguments) == 0
    about["data"] |= {"test_fingerprint": "another"}
    write_json(runs[1].run_json, about)
    assert "have changed meanwhile" in refused("report", *arguments)
