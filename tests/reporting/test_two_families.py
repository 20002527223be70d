"""Two families in one report: the best of each side by side, and each measured by its own default recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers import records
from helpers.pages import TWO_FAMILIES, Page, section, table_rows

from cifar_ray.reporting.parts import difference_text
from cifar_ray.reporting.render import build_report
from cifar_ray.results import statistics
from cifar_ray.results.records import (
    RESULTS_COLUMNS,
    RunFolder,
    read_csv,
    read_predictions,
    read_trials,
    write_csv,
    write_trials,
)


@pytest.fixture(scope="module")
def two_families(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search of two spaces, each of its own family, with its report."""
    folder = records.make_run(
        tmp_path_factory.mktemp("runs"), spaces=("cnn", "resnet"), accuracies=TWO_FAMILIES, num_test=1000
    )
    build_report(folder.root)
    return folder


def test_the_best_of_each_family_stand_side_by_side(two_families: RunFolder) -> None:
    rows = read_csv(two_families.results_csv)
    found = statistics.compare(rows, "trial-0013", "trial-0012", read_predictions(two_families.predictions_npz))
    low, high = difference_text(found.low), difference_text(found.high)
    said = section(two_families, "The best of each family")
    gain = f"{difference_text(found.difference)} points (95 % interval {low} to {high})"
    assert f"Take resnet, whose best configuration beats that of cnn on test: {gain}, for 59 times the " in said
    ((resnet,), (cnn,)) = (table_rows(said, family) for family in ("resnet", "cnn"))
    (header,) = table_rows(said, "family")
    columns = ["configuration", "params", "MB", "p50 ms", "train s", "points", "95 % interval"]
    assert [dict(zip(header, resnet, strict=True))[name] for name in columns] == [
        "trial-0013 **best**", "11.2M", "44.80", "1.76", "62.0", "-", "-",
    ]  # fmt: skip
    # The second one is seen from the other side.
    assert [dict(zip(header, cnn, strict=True))[name] for name in columns] == [
        "trial-0012", "189k", "0.74", "0.45", "5.9",
        difference_text(-found.difference),
        f"{difference_text(-found.high)} to {difference_text(-found.low)}",
    ]  # fmt: skip
    assert "features" not in said
    assert "The best of each family" in Page(two_families.report_html.read_text()).text


def test_one_family_is_not_compared_with_itself(run: RunFolder) -> None:
    text = run.report_md.read_text().lower()
    assert "family" not in text.replace('"family": "cnn"', "") and "features" not in text


def test_family_that_one_seed_stands_for_is_not_called_better(tmp_path: Path) -> None:
    accuracies = {"trial-0011": 0.97, "default": 0.82, "default-resnet": 0.94, "trial-0012": 0.89}
    folder = records.make_run(tmp_path, spaces=("cnn", "resnet"), accuracies=accuracies, seeds=1)
    build_report(tmp_path)
    said = section(folder, "The best of each family")
    assert "resnet ranks first by mean validation accuracy, but one seed is too few to compare it with cnn" in said
    assert "from the test images alone" in said and "is then too narrow" in said and "Take" not in said
    assert "without the features that a frozen backbone computed before" in said  # trial 11 trains a head alone


def test_named_models_of_two_families_are_compared_without_a_search(tmp_path: Path) -> None:
    accuracies = {"small-cnn": 0.89, "resnet18-finetune": 0.95}
    folder = records.make_run(tmp_path, accuracies=accuracies, num_trials=0, num_test=1000)
    build_report(tmp_path)
    assert "Take resnet, whose best" in section(folder, "The best of each family")
    assert table_rows(section(folder, "Finalists"), "1", "resnet18-finetune", "resnet **best**")
    assert table_rows(section(folder, "How the configurations compare"), "small-cnn", "cnn", "better")
    assert not table_rows(section(folder, "The best configuration"), "key")
    assert section(folder, "Trials") == ""


def test_gain_is_told_by_the_default_recipe_of_the_same_family(two_families: RunFolder) -> None:
    assert "It beats the default recipe of resnet: +" in Page(two_families.report_html.read_text()).text
    said = section(two_families, "What the search gained over the default recipes")
    assert "(validation accuracy, one seed each), the default recipe of cnn reached 82.00 % and the best trial" in said
    assert "the default recipe of resnet reached 94.00 % and the best trial of resnet, trial-0013, 97.20 %." in said
    assert re.findall(r"^\| (default\S*|trial-\d+) \| (\w+) \|", said, re.MULTILINE) == [
        ("default-resnet", "resnet"), ("default", "cnn"), ("trial-0012", "cnn"), ("trial-0010", "cnn"),
    ]  # fmt: skip
    assert "What the search gained is the difference to default-resnet" in said
    finalists = section(two_families, "Finalists")
    assert re.findall(r"\| (\S+) \| (\w+) \*\*baseline", finalists) == [
        ("default-resnet", "resnet"),
        ("default", "cnn"),
    ]


def test_configuration_is_compared_with_the_default_recipe_of_the_same_family(
    two_families: RunFolder, tmp_path: Path
) -> None:
    said = section(two_families, "The best configuration")
    assert table_rows(said, "key", "default-resnet", "trial-0013")
    assert [row[0] for row in table_rows(said)[2:]] == ["model.layer_decay", "optimizer.lr"]  # and nothing of a CNN
    assert "differs from the default recipe of resnet;" in said

    shutil.copytree(two_families.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    trials = read_trials(folder.trials_jsonl)
    write_trials(folder.trials_jsonl, [trial for trial in trials if trial["name"] != "default-resnet"])
    rows = [row for row in read_csv(folder.results_csv) if row["config"] != "default-resnet"]
    write_csv(folder.results_csv, RESULTS_COLUMNS, rows)
    build_report(folder.root)
    said = section(folder, "The best configuration")
    assert "Whole configuration of trial-0013" in said and not table_rows(said)
    assert "It beats the default recipe of cnn: +" in Page(folder.report_html.read_text()).text


def test_second_default_recipe_that_wins_is_said_plainly(tmp_path: Path) -> None:
    accuracies = {"trial-0013": 0.93, "default": 0.82, "default-resnet": 0.97, "trial-0012": 0.89}
    folder = records.make_run(tmp_path, spaces=("cnn", "resnet"), accuracies=accuracies)
    build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "Take default-resnet" in text
    assert "It is the default recipe of resnet, and the search found nothing better; it beats the runner-up tri" in text
    assert "the default recipe of resnet itself ranks first: the search gained nothing over it." in text
    assert "reached 97.00 % and none of the other 8 trials did better." in text  # of the resnets
    assert "It is the default recipe of resnet." in text and "What the search gained is the difference" not in text


def test_gain_over_a_default_recipe_that_was_stopped_early_says_so(two_families: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(two_families.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    trials = read_trials(folder.trials_jsonl)
    pruned = [
        trial | {"state": "pruned", "epochs": 1} if trial["name"] == "default-resnet" else trial for trial in trials
    ]
    write_trials(folder.trials_jsonl, pruned)
    build_report(folder.root)
    said = section(folder, "What the search gained over the default recipes")
    assert "of resnet reached 94.00 %, stopped early after 1 epoch, and the best trial of resnet" in said
    assert "of cnn reached 82.00 % and the best trial" in said


def test_trials_are_counted_by_space_and_their_features_told(two_families: RunFolder) -> None:
    trials = read_trials(two_families.trials_jsonl)
    said = section(two_families, "Trials")
    (header,) = table_rows(said, "space")
    assert header == [
        "space", "best trial", "best val accuracy", "complete", "pruned", "infeasible", "failed", "trials",
    ]  # fmt: skip
    for space in ("cnn", "resnet"):
        states = [trial["state"] for trial in trials if trial["space"] == space]
        scored = [trial for trial in trials if trial["space"] == space and trial["best"]]
        values = {trial["name"]: trial["best"]["val_metric"] for trial in scored}
        best = max(values, key=lambda name: values[name])
        counts = [str(states.count(state)) for state in header[3:-1]]
        assert table_rows(said, space) == [[space, best, f"{100 * values[best]:.2f} %", *counts, "12"]]
    assert (
        "5 of 24 trials trained a head alone, on features that a frozen backbone computed once (in 2 trials for 1 "
        "view, in 3 trials for 4 views of each training image); computing or loading them took 1 min 02 s in all."
        in said
    )


def test_trials_of_a_space_that_draws_both_families_are_counted_by_family(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, spaces=("cnn", "resnet"), finals=False)
    trials = [trial | {"space": "both"} for trial in read_trials(folder.trials_jsonl)]
    trials = [trial for trial in trials if not trial["features"] or trial["number"] == 11]
    trials[-1] |= {"config": None, "state": "failed", "best": None}
    write_trials(folder.trials_jsonl, trials)
    build_report(tmp_path)
    said = section(folder, "Trials")
    assert [row[:3] for row in table_rows(said, "both")] == [
        ["both", "cnn", "trial-0012"], ["both", "resnet", "trial-0009"], ["both", "-", "-"],
    ]  # fmt: skip
    assert "1 of 20 trials trained a head alone" in said
    assert "computed once (for 4 views of each training image)" in said
