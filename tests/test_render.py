"""The report of synthetic runs: what it says, and what a browser makes of it."""

from __future__ import annotations

import html
import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import records
from matplotlib.image import imread

from cifar_ray import figures, ranking, render, results
from cifar_ray.config import InputError

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
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> results.RunFolder:
    """A finished search with its report."""
    folder = records.make_run(tmp_path_factory.mktemp("runs") / "a <run> & more")
    assert render.build_report(folder.root) == (folder.report_html, folder.report_md)
    return folder


def test_report_is_self_contained_and_loads_nothing(run: results.RunFolder) -> None:
    text = run.report_html.read_text()
    page = Page(text)
    links = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert len(links) == 4 and all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_report_says_what_the_records_say(run: results.RunFolder) -> None:
    page, markdown = Page(run.report_html.read_text()), run.report_md.read_text()
    summaries = ranking.summarise(results.read_csv(run.results_csv))
    comparisons = ranking.compare_best(
        results.read_csv(run.results_csv), summaries, results.read_predictions(run.predictions_npz)
    )
    for said in (
        ranking.verdict(summaries, comparisons),
        "--trials 24 --name 'a b'",
        "9f86d081884c",
        "1,149 train / 288 val / 360 test",
        ranking.percent(summaries[0].test_accuracy),
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


def test_hostile_class_names_are_only_text(run: results.RunFolder) -> None:
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


def test_figures_lie_in_evaluation_and_markdown_links_them(run: results.RunFolder) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", run.report_md.read_text())
    assert links == [f"evaluation/{name}.png" for name in ("search", "curves", "confusion", "speed")]
    for link in links:
        pixels = imread(run.root / link)  # (H, W, 4)
        assert min(pixels.shape[:2]) > 700 and pixels[..., :3].std() > 0.02
        assert pixels[0, 0, :3].min() == 1.0  # white paper, also in the dark


def test_ledger_accounts_for_the_slot_time(run: results.RunFolder) -> None:
    slot_s = 2 * 78.4
    kinds = [trial["seconds"] for trial in results.read_trials(run.trials_jsonl)]
    train_s = sum(kind["train"] for kind in kinds)
    rest_s = slot_s - sum(sum(kind.values()) for kind in kinds)
    markdown = run.report_md.read_text()
    assert (
        f"| train | {int(train_s // 60)} min {round(train_s % 60):02d} s | {100 * train_s / slot_s:.1f} % |" in markdown
    )
    assert f"| unaccounted | {round(rest_s)} s | {100 * rest_s / slot_s:.1f} % |" in markdown


def test_best_so_far_counts_complete_and_pruned_trials_in_the_order_they_ended() -> None:
    def trial(number: int, state: str, value: float | None, ended_s: float) -> results.Row:
        return {"number": number, "state": state, "best": value and {"val_metric": value}, "ended_s": ended_s}

    trials = [
        trial(0, "complete", 0.5, 9.0),
        trial(1, "failed", 0.99, 1.0),
        trial(2, "pruned", 0.6, 2.0),
        trial(3, "infeasible", None, 3.0),
        trial(4, "complete", 0.8, 4.0),
    ]
    (line,) = figures.search_figure(trials, "accuracy").axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.6, 0.8, 0.8])  # the infeasible one has no place
    assert figures.search_figure(trials[1:2], "accuracy") is None


def test_interrupted_search_reports_its_trials(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, finals=False)
    render.build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "No final model yet. The best of 19 trials so far is trial-0012" in text
    assert "not finished" in text and "Best trials so far" in text and "Finalists" not in text
    assert [path.name for path in folder.evaluation.iterdir()] == ["search.png"]


def test_run_without_any_finished_trial_still_reports(tmp_path: Path) -> None:
    folder = results.RunFolder(tmp_path)
    results.write_json(folder.run_json, {"command": "python -m cifar_ray.tune", "end": None})
    render.build_report(tmp_path)
    assert "nothing to recommend" in Page(folder.report_html.read_text()).text


def test_one_seed_and_an_absent_class_are_said_not_hidden(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, seeds=1, absent_class=True, metric="auc")
    render.build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "one seed, so no interval" in text and "One seed is too few" in text and "±" not in text.split("Ranked")[0]
    assert "No AUC where the test split lacks a class." in text and "val AUC" in text
    assert re.search(r"\| nine \| 0 \| - \|", folder.report_md.read_text())


def test_default_that_wins_is_said_plainly(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, accuracies={"default": 0.99, "trial-0007": 0.95})
    render.build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "Take default" in text and "The search found nothing better than the default recipe" in text
    assert "It is the default recipe." in text


def test_records_without_trials_take_configurations_from_the_models(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    configs = {trial["name"]: trial["config"] for trial in results.read_trials(folder.trials_jsonl)}
    folder.trials_jsonl.unlink()
    folder.latency_csv.unlink()
    folder.predictions_npz.unlink()
    for row in results.read_csv(folder.results_csv):
        results.write_json(
            folder.model(row["model"]) / "config.json", {"config": configs[row["config"]], "classes": []}
        )
    render.build_report(tmp_path)
    text = Page(folder.report_html.read_text()).text
    assert "model.activation" in text and "predictions are missing" in text and "Trials" not in text


def test_folder_that_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        render.build_report(tmp_path)


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
    lines = render.results_table(ranking.summarise(rows), metric).splitlines()
    assert len(lines) == 3 and {len(line) for line in lines} == {80}
    assert ("91.33" if metric == "accuracy" else "0.9133") in lines[1] or "±" in lines[1]
    assert "12.3M" in lines[1] and "…" in lines[2]
    assert len(render.results_table([]).splitlines()) == 1


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_the_report_without_sideways_scrolling(
    run: results.RunFolder, tmp_path: Path, width: int
) -> None:
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
    assert measured == {"width": str(width), "window": str(width), "shown": "4", "loaded": "0"}
    (seen,) = re.findall(r'data-text="([^"]*)"', dom)
    assert records.CLASS_NAMES[3] in html.unescape(seen) and "Take trial-0012" in seen


@needs_chromium
def test_browser_screenshots_differ_in_the_dark(run: results.RunFolder, tmp_path: Path) -> None:
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
