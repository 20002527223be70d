"""The report of synthetic runs: what it says, and what a browser makes of it."""

from __future__ import annotations

import html
import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers import records
from matplotlib.image import imread

from cifar_ray.errors import InputError
from cifar_ray.files import read_json, write_json
from cifar_ray.reporting import verdict
from cifar_ray.reporting.figures import COLOURS, FIGURE_STYLE, search_figure, speed_figure
from cifar_ray.reporting.parts import difference_text, score_text
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.terminal import results_table
from cifar_ray.results import statistics
from cifar_ray.results.ranking import compare_best, summarise
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import (
    EVALUATION_SECONDS,
    LATENCY_COLUMNS,
    RESULTS_COLUMNS,
    TRIAL_SECONDS,
    Row,
    RunFolder,
    read_csv,
    read_predictions,
    read_trials,
    write_csv,
    write_trials,
)

CHROMIUM = shutil.which("chromium")
# fmt: off
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]
# fmt: on
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the report with")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Open a page in headless chromium with a new profile and return its standard output."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search with its report."""
    folder = records.make_run(tmp_path_factory.mktemp("runs") / "a <run> & more")
    assert build_report(folder.root) == (folder.report_html, folder.report_md)
    return folder


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


FIGURES = ("curves-1", "curves-2", "curves-3", "curves-4", "confusion", "roc", "speed", "search")


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
    assert [path.name for path in folder.evaluation.iterdir()] == ["search.png"]


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


TWO_FAMILIES = {"trial-0013": 0.972, "default": 0.82, "default-resnet": 0.94, "trial-0012": 0.89, "trial-0010": 0.87}
"""Finalists of a search of the spaces cnn and resnet: odd numbers are ResNets."""


def section(folder: RunFolder, heading: str) -> str:
    """A section of report.md, as its reader sees it; empty where the report has none."""
    found = re.search(rf"^## {heading}$.*?(?=^## |\Z)", folder.report_md.read_text(), re.MULTILINE | re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found.group()) if found else ""


def table_rows(text: str, *first: str) -> list[list[str]]:
    """Cells of the rows of Markdown tables whose first cells are these."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[: len(first)] == list(first)]


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


def test_speed_figure_has_a_shape_for_each_family_and_plain_numbers() -> None:
    rows = [
        {
            "model": name,
            "config": name,
            "family": family,
            "test_accuracy": 0.9,
            "latency_ms_p50": latency,
            "val_metric": 1,
        }
        for name, family, latency in (("a", "cnn", 0.2), ("b", "resnet", 3.0), ("c", "cnn", 0.3))
    ]
    styles = {name: {"color": colour} for name, colour in zip("abc", COLOURS, strict=False)}

    def drawn(rows: list[Row]) -> tuple[dict[str, str], list[str]]:
        with matplotlib.rc_context(FIGURE_STYLE):
            figure = speed_figure(summarise(rows), styles)
            figure.draw_without_rendering()
            labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels(which="both")]
        axes, (legend,) = figure.axes[0], figure.legends
        shapes = {one.get_label(): one.lines[0].get_marker() for one in axes.containers}
        shapes |= {one.get_label(): one.get_marker() for one in axes.lines if len(one.get_xdata()) == 0}
        assert [text.get_text() for text in legend.get_texts()] == list(shapes)
        return shapes, labels

    shapes, labels = drawn(rows)
    assert list(shapes) == ["a", "b", "c", "family cnn", "family resnet"]
    assert shapes["a"] == shapes["c"] == shapes["family cnn"] != shapes["b"] == shapes["family resnet"]
    assert {"0.2", "0.5", "1", "2"} <= set(labels) and not any("$" in label for label in labels)  # a log axis
    assert list(drawn([rows[0], rows[2]])[0]) == ["a", "c"]


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


@pytest.mark.parametrize("metric", ["accuracy", "auc"])
def test_results_table_fits_a_terminal(metric: str) -> None:
    rows = [
        {
            "model": f"{config}-seed{seed}",
            "config": config,
            "val_metric": 0.912345 + seed / 999,
            "num_params": 12_345_678,
        }
        | {
            "val_accuracy": 0.9 + seed / 9,
            "test_accuracy": 0.9 + seed / 9,
            "latency_ms_p50": 123.4,
            "images_per_s": 54_321.0,
        }
        for config in ("default", "a-preset-whose-name-does-not-end-where-anyone-would-expect")
        for seed in range(3)
    ]
    lines = results_table(summarise(rows), metric).splitlines()
    assert len(lines) == 3 and {len(line) for line in lines} == {80}
    assert ("91.33" if metric == "accuracy" else "0.9133") in lines[1]
    assert "12.3M" in lines[1] and "…" in lines[2]
    assert len(results_table([]).splitlines()) == 1


@pytest.mark.parametrize("metric", ["accuracy", "auc", "f1"])
def test_results_table_with_intervals_and_failed_seeds_fits_a_terminal(tmp_path: Path, metric: str) -> None:
    lost = ("default-seed0", "trial-0007-seed0", "trial-0007-seed1", "trial-0007-seed2")
    folder = records.make_run(tmp_path, metric=metric, failed=lost)
    found = Records(folder)
    lines = results_table(found.summaries, metric).splitlines()
    assert max(len(line) for line in lines) <= 80 and not any("…" in line for line in lines)
    name = {"accuracy": "acc %", "auc": "AUC", "f1": "F1"}[metric]
    assert re.search(rf"^# +config +val {name} +test {name} +params +p50 ms +img/s +seeds$", lines[0])
    assert [re.split(r"  +", line)[1] for line in lines[1:5]] == ["trial-0012", "trial-0019", "default", "trial-0007"]
    assert score_text(found.summaries[0].test_score(metric), metric) in lines[1]
    assert lines[3].endswith("2 of 3") and lines[4].endswith("0 of 3")
    assert "default: 2 of 3 seeds; 1 failed: non-finite loss" in lines
    assert "trial-0007: 0 of 3 seeds; 3 failed: non-finite loss" in lines
    assert lines[-1] == "in brackets: 95 % interval over seeds and test images"


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


def test_percentiles_of_the_latency_are_told_with_their_n(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    rows = read_csv(folder.latency_csv)
    write_csv(folder.latency_csv, LATENCY_COLUMNS, [{**rows[0], "n": 3}, *rows[1:]])
    build_report(tmp_path)
    (header,) = table_rows(section(folder, "Speed"), "configuration")
    shown = [dict(zip(header, row, strict=True)) for row in table_rows(section(folder, "Speed"), rows[0]["config"])]
    assert [row["n"] for row in shown] == ["3", "200"]
    assert "latency of one image, n = 3 to 200 timed, on AMD" in section(folder, "Finalists")


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (2.1, "2.1 instead of 2 ms for one image, 5.0 % apart. That lies within its rounds (1.9 to 2.2 ms); smaller "),
        (2.4, "20.0 % apart. That is more than its rounds differ by (1.9 to 2.2 ms): the machine was not quiet, and "
              "differences below 40 % mean nothing."),
    ],
)  # fmt: skip
def test_a_model_that_was_timed_twice_tells_how_far_latencies_can_be_trusted(
    tmp_path: Path, again: float, said: str
) -> None:
    folder = records.make_run(tmp_path)
    rows = read_csv(folder.latency_csv)
    rows[0] |= {"latency_ms_p50": 2.0, "round_ms_low": 1.9, "round_ms_high": 2.2, "again_ms_p50": again}
    write_csv(folder.latency_csv, LATENCY_COLUMNS, rows)
    build_report(tmp_path)
    text = section(folder, "Speed")
    assert f"{rows[0]['config']} was timed a second time" in text and said in text
    (header,) = table_rows(text, "configuration")
    shown = [dict(zip(header, row, strict=True)) for row in table_rows(text, rows[0]["config"])]
    assert [row["p50 by round"] for row in shown] == ["1.9 to 2.2", "-"]


def test_what_models_compute_in_is_told_and_what_fp32_would_change(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    build_report(tmp_path)
    assert "In fp32" not in section(folder, "Speed") and "precision" not in section(folder, "Speed")
    rows = read_csv(folder.latency_csv)
    both = [{**row, "precision": precision} for row in rows for precision in ("bf16", "fp32")]
    write_csv(folder.latency_csv, LATENCY_COLUMNS, both)
    results = read_csv(folder.results_csv)
    for index, row in enumerate(results):
        row |= {"precision": "bf16", "test_accuracy_fp32": row["test_accuracy"] + (0.001 if index else -0.002)}
    write_csv(folder.results_csv, RESULTS_COLUMNS, results)
    run = read_json(folder.run_json)
    write_json(folder.run_json, {**run, "precision": {"used": "bf16", "why": "bf16 trains 1.60 times as fast here"}})
    build_report(tmp_path)
    text = section(folder, "Speed")
    told = f"In fp32 the test accuracy of these {len(results)} models differs from it by -0.20 to +0.10 points"
    assert told in text
    (header,) = table_rows(text, "configuration")
    shown = [dict(zip(header, row, strict=True)) for row in table_rows(text, rows[0]["config"])]
    assert [row["precision"] for row in shown] == ["bf16", "fp32"] * (len(shown) // 2)
    assert "bf16: bf16 trains 1.60 times as fast here" in Page(folder.report_html.read_text()).text


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_the_report_without_sideways_scrolling(run: RunFolder, tmp_path: Path, width: int) -> None:
    probe = """<script>addEventListener("load", () => {
        const view = document.querySelector("iframe").contentWindow, data = document.body.dataset;
        data.window = view.innerWidth;
        data.width = view.document.documentElement.scrollWidth;
        data.shown = [...view.document.images].filter(one => one.naturalWidth > 700 && one.width > 300).length;
        const entries = view.performance.getEntriesByType("resource");
        data.loaded = entries.filter(one => !one.name.startsWith("data:")).length;
        data.text = view.document.body.innerText;
    })</script>"""
    report = html.escape(run.report_html.read_text())  # in a frame, since a window has at least 500 pixels
    page = tmp_path / "frame.html"
    page.write_text(f'<body><iframe style="border: 0; width: {width}px" srcdoc="{report}"></iframe>{probe}</body>')
    dom = browse(page, tmp_path / "profile", "--window-size=1400,2400", "--dump-dom")
    measured = dict(re.findall(r'data-(window|width|shown|loaded)="(\d+)"', dom))
    assert measured == {"width": str(width), "window": str(width), "shown": str(len(FIGURES)), "loaded": "0"}
    (seen,) = re.findall(r'data-text="([^"]*)"', dom)
    assert records.CLASS_NAMES[3] in html.unescape(seen) and "Take trial-0012" in seen


@needs_chromium
def test_browser_screenshots_differ_in_the_dark(run: RunFolder, tmp_path: Path) -> None:
    corners = []
    for scheme in ("light", "dark"):
        shot = tmp_path / f"{scheme}.png"
        flags = [f"--screenshot={shot}", "--window-size=1280,2400"]
        flags += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        browse(run.report_html, tmp_path / scheme, *flags)
        pixels = imread(shot)  # (H, W, C)
        assert pixels.shape[:2] == (2400, 1280) and pixels.std() > 0.05
        corners.append(float(pixels[0, 0, :3].mean()))
    assert corners[0] > 0.9 and corners[1] < 0.2


def test_the_facts_name_the_pretrained_weights_and_the_workers_of_a_model(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "run")
    html_file, _ = build_report(folder.root)
    assert "Weights" not in html_file.read_text()
    assert "workers each" not in html_file.read_text()
    about = read_json(folder.run_json)
    about["settings"]["workers_per_trial"] = 3
    about["unchanged"] = {"weights": [{"backbone": "resnet18", "source": "/a/b.pth", "sha256": "0123456789abcdef" * 4}]}
    write_json(folder.run_json, about)
    html_file, markdown = build_report(folder.root)
    for text in (html_file.read_text(), markdown.read_text()):
        assert "resnet18: /a/b.pth (SHA-256 0123456789ab)" in text
        assert "2 trials at a time, 3 workers each" in text


def test_the_facts_say_how_many_images_are_in_two_splits(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path / "run")
    html_file, _ = build_report(folder.root)
    assert "In two splits" not in html_file.read_text()
    about = read_json(folder.run_json)
    about["data"] |= {"num_test_copies": 34, "num_val_copies": 1}
    write_json(folder.run_json, about)
    html_file, markdown = build_report(folder.root)
    for text in (html_file.read_text(), markdown.read_text()):
        assert "34 of 360 test images are also training or validation images" in text
        assert "1 of 288 validation images" in text
