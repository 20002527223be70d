"""What the report says of latency and throughput, and how it draws them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from helpers import records
from helpers.pages import Page, section, table_rows

from cifar_ray.files import read_json, write_json
from cifar_ray.reporting.figures import COLOURS, FIGURE_STYLE, speed_figure
from cifar_ray.reporting.render import build_report
from cifar_ray.results.ranking import summarise
from cifar_ray.results.records import (
    LATENCY_COLUMNS,
    RESULTS_COLUMNS,
    Row,
    read_csv,
    write_csv,
)


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
