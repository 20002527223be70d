"""The report of synthetic runs: what it says, and of what it is made."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import records
from helpers.pages import FIGURES, TWO_FAMILIES, Page, section, table_rows
from matplotlib.image import imread

from cifar_ray.errors import InputError
from cifar_ray.files import read_json, write_json
from cifar_ray.reporting import verdict
from cifar_ray.reporting.figures import search_figure
from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.terminal import results_table
from cifar_ray.results import statistics
from cifar_ray.results.ranking import compare_best, summarise
from cifar_ray.results.records import (
    EVALUATION_SECONDS,
    RESULTS_COLUMNS,
    TRIAL_SECONDS,
    Row,
    RunFolder,
    read_csv,
    read_predictions,
    read_trials,
    write_csv,
)


def test_report_is_self_contained_and_loads_nothing(run: RunFolder) -> None:
    text = run.report_html.read_text()
    page = Page(text)
    links = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    images = [link for link in links if not link.startswith("#")]
    assert len(images) == len(FIGURES) and all(link.startswith("data:image/png;base64,") for link in images)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_report_says_what_the_records_say(run: RunFolder) -> None:
    page, markdown = Page(run.report_html.read_text()), run.report_md.read_text()
    rows, predictions = read_csv(run.results_csv), read_predictions(run.predictions_npz)
    summaries = summarise(rows, 288, predictions)
    comparisons = compare_best(rows, summaries, predictions)
    for said in (
        verdict.verdict(summaries, comparisons),
        "--trials 24 --name 'a b'",
        "9f86d081884c",
        "1,149 train / 288 val / 360 test",
        score_text(summaries[0].test_accuracy),
        score_text(summaries[0].val_accuracy),
        score_text(summaries[0].test_auc, "auc"),
        "n = 200 timed",
        "optuna 5.0.0",
        "search 1 min 18 s",
        "non-finite training loss at epoch 1",
        "model.activation",
        "347 of 360 images right",
    ):
        assert said in page.text
        assert said in re.sub(r"\\(.)", r"\1", markdown)
    assert re.findall(r"\| (\d) \| (\S+)", markdown)[:4] == [
        (str(i), one.config) for i, one in enumerate(summaries, start=1)
    ]


def test_hostile_class_names_are_only_text(run: RunFolder) -> None:
    text = run.report_html.read_text()
    page = Page(text)
    assert all(name in page.text for name in records.CLASS_NAMES[:4])
    assert "<script>" not in text and "<b>" not in text
    markdown = run.report_md.read_text()
    assert "<script>" not in markdown and "<b>" not in markdown and "a\\|b\\*c\\_d\\`e" in markdown
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) >= 8
    for table in tables:  # an unescaped bar would make a column more
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_every_heading_is_in_the_contents_and_is_where_they_lead(run: RunFolder) -> None:
    text = run.report_html.read_text()
    headings = re.findall(r'<section id="([^"]+)">\s*<h2>([^<]*)</h2>', text)
    assert len(headings) > 8 and headings[-1] == ("run", "The run")
    assert re.findall(r'<li><a href="#([^"]+)">([^<]*)</a>', text) == headings
    assert headings[0][1] == "What to make of it"  # right below the verdict


def test_figures_lie_in_evaluation_and_markdown_links_them(run: RunFolder) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", run.report_md.read_text())
    assert links == [f"evaluation/{name}.png" for name in FIGURES]
    for link in links:
        pixels = imread(run.root / link)  # (H, W, 4)
        assert min(pixels.shape[:2]) > 500 and pixels[..., :3].std() > 0.02
        assert pixels[0, 0, :3].min() == 1.0  # white paper, also in the dark


def test_ledger_accounts_for_the_slot_time(run: RunFolder) -> None:
    slot_s = 2 * (78.4 + 55.0 + 11.3)
    kinds = [trial["seconds"] for trial in read_trials(run.trials_jsonl)]
    train_s = sum(kind["train"] for kind in kinds)
    idle_s = [2 * 78.4 - sum(sum(kind.values()) for kind in kinds), 2 * 55.0 - 92, 2 * 11.3 - 20]
    table = run.report_md.read_text().partition("| slot time |")[2].partition("\n\n")[0]
    heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert heads == ["what", "search", "finals", "evaluation", "share"]
    cells = {kind: (times, float(share.removesuffix(" %"))) for kind, _, *times, share in rows}
    search_s = f"{int(train_s // 60)} min {round(train_s % 60):02d} s"
    assert cells["train"] == ([search_s, "1 min 20 s", "-"], round(100 * (train_s + 80) / slot_s, 1))
    assert cells["idle"] == ([f"{round(s)} s" for s in idle_s], round(100 * sum(idle_s) / slot_s, 1))
    assert cells["timing"] == (["-", "-", "5 s"], round(100 * 5 / slot_s, 1))
    _, whole = cells.pop("all")
    assert whole == 100 and sum(share for _, share in cells.values()) == pytest.approx(100, abs=0.05 * len(cells))
    assert {*cells} == {*TRIAL_SECONDS, *EVALUATION_SECONDS, "idle"} - {"checkpoint"}  # which took no time


def test_best_so_far_counts_complete_and_pruned_trials_in_the_order_they_ended() -> None:
    def trial(number: int, state: str, value: float | None, ended_s: float) -> Row:
        return {"number": number, "state": state, "best": value and {"val_metric": value}, "ended_s": ended_s}

    trials = [
        trial(0, "complete", 0.5, 9.0),
        trial(1, "failed", 0.99, 1.0),
        trial(2, "pruned", 0.6, 2.0),
        trial(3, "infeasible", None, 3.0),
        trial(4, "complete", 0.8, 4.0),
    ]
    (line,) = search_figure(trials, "accuracy").axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.6, 0.8, 0.8])  # the infeasible one has no place
    assert search_figure(trials[1:2], "accuracy") is None


def test_interrupted_search_reports_its_trials(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, finals=False)
    build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "No final model yet. The best of 19 trials so far is trial-0012" in text
    assert "not finished" in text and "Best trials so far" in text and "Finalists" not in text
    assert {path.name for path in folder.evaluation.iterdir()} == {"search.png", "sizes.png"}


def test_run_without_any_finished_trial_still_reports(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.run_json, {"command": "python -m cifar_ray.tune", "end": None})
    build_report(tmp_path)
    assert "nothing to recommend" in Page(folder.report_html.read_text()).text


def test_one_seed_and_an_absent_class_are_said_not_hidden(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "accuracy", seeds=1, absent_class=True)
    build_report(folder.root)
    text = Page(folder.report_html.read_text()).text
    assert "one seed, so no interval" in text and "One seed is too few" in text
    assert "No AUC where the test split lacks a class." in text
    folder = records.make_run(tmp_path / "auc", absent_class=True, metric="auc")
    build_report(folder.root)
    text = Page(folder.report_html.read_text()).text
    assert "test AUC unknown" in text and "is unknown, since the test split has no AUC" in text and "val AUC" in text
    (nine,) = table_rows(section(folder, "Where the best model errs"), "nine", "0")  # which has no test image
    assert nine[3:] == ["-", "-"]


def test_default_that_wins_is_said_plainly(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, accuracies={"default": 0.99, "trial-0007": 0.95})
    build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "Take default" in text and "It is the default recipe, and the search found nothing better" in text
    assert "It is the default recipe." in text


def test_test_time_augmentation_is_declared_where_its_scores_stand(run: RunFolder, tmp_path: Path) -> None:
    rows = read_csv(run.results_csv)
    assert "TTA" not in run.report_md.read_text() + results_table(summarise(rows))
    folder = RunFolder(tmp_path / "flipped")
    shutil.copytree(run.root, folder.root)
    chosen = next(row["config"] for row in rows if row["config"] != "default")
    flipped = [{**row, "tta": "flip" if row["config"] == chosen else "none"} for row in rows]
    write_csv(folder.results_csv, RESULTS_COLUMNS, flipped)
    build_report(folder.root)
    text = folder.report_md.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("|") and "**flip TTA**" in line]
    assert f" {chosen} " in line
    assert "flip TTA: each image is judged together with its mirror image" in text
    assert results_table(summarise(flipped)).endswith(f"with flip test-time augmentation: {chosen}")
    assert not table_rows(text, "space")


def test_records_without_trials_take_configurations_from_the_models(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    configs = {trial["name"]: trial["config"] for trial in read_trials(folder.trials_jsonl)}
    folder.trials_jsonl.unlink()
    folder.latency_csv.unlink()
    folder.predictions_npz.unlink()
    for row in read_csv(folder.results_csv):
        write_json(folder.model(row["model"]) / "config.json", {"config": configs[row["config"]], "classes": []})
    build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "model.activation" in text and "predictions are missing" in text and "Trials" not in text


def test_a_model_name_in_the_results_that_is_a_path_is_an_input_error(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    text = folder.results_csv.read_text()
    first = read_csv(folder.results_csv)[0]["model"]
    folder.results_csv.write_text(text.replace(f"\n{first},", "\n../../elsewhere,"))
    with pytest.raises(InputError, match=r"results\.csv: model: must be the name of a folder, not a path: '\.\./"):
        build_report(tmp_path)


def test_folder_that_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        build_report(tmp_path)


def test_failed_final_trainings_are_told_in_the_report(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, failed=("trial-0012-seed0", "trial-0012-seed1"), num_test=1000)
    build_report(tmp_path)
    said = section(folder, "Finalists")
    assert "trial-0012 stands on 1 of 3 seeds; 2 failed: non-finite loss." in said
    (row,) = table_rows(said, "4", "trial-0012")  # whose survivor has the best validation accuracy of all
    assert row[-1] == "1 of 3" and table_rows(said, "1", "trial-0007 **best**")
    assert "Take trial-0007" in folder.report_md.read_text().replace("\\", "")


def test_run_whose_final_trainings_all_failed_says_why(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, seeds=1, failed=("default-seed0", "trial-0007-seed0"),
                              accuracies={"default": 0.9, "trial-0007": 0.9})  # fmt: skip
    build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "Every final training failed, so there is no verdict. default: 0 of 1 seeds; 1 failed: non-finite" in text


@pytest.mark.parametrize(("metric", "name"), [("auc", "AUC"), ("f1", "F1")])
def test_report_of_another_metric_compares_by_that_metric(tmp_path: Path, metric: str, name: str) -> None:
    folder = records.make_run(tmp_path, spaces=("cnn", "resnet"), accuracies=TWO_FAMILIES, num_test=500, metric=metric)
    build_report(tmp_path)
    rows, predictions = read_csv(folder.results_csv), read_predictions(folder.predictions_npz)
    found = statistics.compare(rows, "trial-0013", "default-resnet", predictions, metric)
    difference, low, high = (difference_text(value, metric) for value in (found.difference, found.low, found.high))
    gain = f"{difference} in {name} (95 % interval {low} to {high})"
    text = Page(folder.report_html.read_text()).text
    assert f"Take trial-0013: test {name} 0.9" in text and f"It beats the default recipe of resnet: {gain}" in text
    said = section(folder, "What the search gained over the default recipes")
    assert table_rows(said, "default-resnet")[0][-2:] == [difference, f"{low} to {high}"]
    assert f"Difference of mean test {name}. The interval" in said
    found = statistics.compare(rows, "trial-0013", "trial-0012", predictions, metric)
    assert table_rows(section(folder, "The best of each family"), "cnn", "trial-0012")[0][-2:] == [
        difference_text(-found.difference, metric),
        f"{difference_text(-found.high, metric)} to {difference_text(-found.low, metric)}",
    ]
    assert "points" not in text and "mean test accuracy" not in text
    (row,) = table_rows(section(folder, "Finalists"), "1")
    assert len(re.findall(r"0\.\d{4} \(0\.\d{4} to [01]\.\d{4}\)", " ".join(row))) == (2 if metric == "f1" else 1)


def test_training_of_named_models_does_not_speak_of_a_search(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "both", accuracies={"default": 0.9, "default-wide": 0.96}, num_trials=0)
    build_report(folder.root)
    text = Page(folder.report_html.read_text()).text
    assert "Take default-wide" in text and "beats the runner-up default:" in text
    assert "How the configurations compare" in text
    empty = RunFolder(tmp_path / "empty")
    write_json(empty.run_json, {**read_json(folder.run_json), "end": None})
    build_report(empty.root)
    text += Page(empty.report_html.read_text()).text
    assert "No final model has been trained and evaluated" in text
    assert "search" not in text.lower() and "trial has" not in text and "baseline" not in text
    assert "default recipe" not in text
