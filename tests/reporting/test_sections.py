"""Sections of the report that rest on records which older runs do not have."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers import records

from cifar_ray.files import read_json, write_json
from cifar_ray.reporting.curves import curves, limits_of
from cifar_ray.reporting.data import data
from cifar_ray.reporting.facts import facts_of
from cifar_ray.reporting.figures import curves_figure, robustness_figure, roc_figure
from cifar_ray.reporting.mistakes import mistakes
from cifar_ray.reporting.parts import Sheet, Table, Tile, difference_text, score_text
from cifar_ray.reporting.quality import quality
from cifar_ray.reporting.reflection import reflection
from cifar_ray.reporting.render import build_report, sections_of
from cifar_ray.reporting.robustness import robustness
from cifar_ray.reporting.sheets import GAP, data_uri, sheet_png
from cifar_ray.reporting.summary import gain
from cifar_ray.results.examples import find_examples
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import (
    CORRUPTIONS,
    QUALITY_COLUMNS,
    RESULTS_COLUMNS,
    Row,
    RunFolder,
    read_csv,
    read_trials,
    write_csv,
    write_trials,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search of two families with all records."""
    accuracies = {"trial-0013": 0.972, "default": 0.82, "default-resnet": 0.971, "trial-0012": 0.89}
    folder = records.make_run(
        tmp_path_factory.mktemp("run"), spaces=("cnn", "resnet"), accuracies=accuracies, num_test=500
    )
    records.write_quality(folder)
    records.write_robustness(folder)
    records.write_pictures(folder)
    return folder


def row_of(table: Table, name: str) -> dict[str, str]:
    ((index, row),) = [(i, row) for i, row in enumerate(table.rows) if row[0] == name]
    return dict(zip(table.columns, row, strict=True)) | {"marks": " ".join(table.marks.get(index, []))}


def test_quality_stands_side_by_side_with_its_gap_and_what_is_tied(run: RunFolder) -> None:
    found = Records(run)
    tables = {table.columns[0]: table for table in quality(found).tables}
    assert list(tables) == ["accuracy %", "AUC", "F1", "log-loss", "top-5 accuracy %"]
    rows = [row for row in read_csv(run.results_csv) if row["config"] == "trial-0012"]
    test = float(np.mean([row["test_accuracy"] for row in rows]))
    accuracy, auc = row_of(tables["accuracy %"], "trial-0012"), row_of(tables["AUC"], "trial-0012")
    assert (accuracy["train"], accuracy["test"]) == ("99.00", score_text(test))
    assert accuracy["gap"] == difference_text(0.99 - test)
    assert auc["test"] == score_text(float(np.mean([row["test_auc_macro_ovr"] for row in rows])), "auc")
    comparison = found.comparison("trial-0013", "default-resnet", "accuracy")
    assert comparison is not None and comparison.low < 0 < comparison.high
    marks = {name: row_of(tables["accuracy %"], name)["marks"] for name in ("trial-0013", "default-resnet", "default")}
    assert marks == {"trial-0013": "best", "default-resnet": "tie", "default": ""}
    assert not any("tie" in marks for marks in tables["log-loss"].marks.values())  # nothing tells of it


def test_what_is_better_on_test_than_the_best_is_no_tie(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    rows = [row | {"val_metric": 0.999} if row["config"] == "default" else row for row in read_csv(run.results_csv)]
    write_csv(folder.results_csv, RESULTS_COLUMNS, rows)
    table = quality(Records(folder)).tables[0]
    assert row_of(table, "default")["marks"] == "best" and row_of(table, "trial-0013")["marks"] == ""


def test_older_runs_have_no_such_sections(tmp_path: Path) -> None:
    found = Records(records.make_run(tmp_path))
    assert quality(found).empty and robustness(found).empty and data(found).empty
    headings = [section.heading for section in sections_of(found)]
    assert "Learning curves" in headings and "Where the best model errs" in headings
    assert not [heading for heading in headings if heading.startswith(("Quality", "Robustness", "The data"))]


def test_classes_of_the_best_of_each_family_come_worst_first(run: RunFolder) -> None:
    sections = mistakes(Records(run))
    assert [section.heading for section in sections] == ["Where the best resnet errs", "Where the best cnn errs"]
    for section in sections:
        assert [image.name.split("-")[0] for image in section.images] == ["confusion", "roc"]
        model = section.text[0].split()[0]
        measured = {row["class"]: row for row in read_csv(run.classes_csv) if row["model"] == model}
        table = section.tables[0]
        assert table.columns == ["class", "images", "precision", "recall", "F1", "AUC"]
        f1 = [float(row[4]) for row in table.rows]
        assert f1 == sorted(f1)
        index = records.CLASS_NAMES.index(table.rows[0][0])
        assert table.rows[0][2:] == [
            *(f"{100 * measured[index][name]:.1f} %" for name in ("precision", "recall")),
            *(f"{measured[index][name]:.4f}" for name in ("f1", "auc_ovr")),
        ]


def test_roc_curves_have_the_areas_that_scikit_learn_says() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    probabilities = rng.dirichlet(np.ones(5), 300) + 0.5 * np.eye(5)[labels]  # the fifth class has no images
    figure = roc_figure(probabilities, labels, list("abcde"))
    axes = figure.axes[0]
    of_classes = {name: roc_auc_score(labels == i, probabilities[:, i]) for i, name in enumerate("abcd")}
    said = dict(text.get_text().rsplit("  ", 1) for text in figure.legends[0].get_texts())
    assert said == {name: f"{area:.4f}" for name, area in of_classes.items()} | {
        "macro average": f"{np.mean(list(of_classes.values())):.4f}"
    }
    *_, macro = axes.lines
    assert macro.get_linewidth() > 2 * axes.lines[0].get_linewidth()
    assert roc_figure(probabilities, np.zeros(300, np.int64), list("abcde")) is None


def test_curves_show_seeds_their_mean_and_the_best_epoch() -> None:
    def seed(shift: float) -> list[Row]:
        values = [{"epoch": e, "train_loss": 2 / e, "val_loss": 1 / e + shift, "train_accuracy": 1 - 1 / e} for e in
                  range(1, 6)]  # fmt: skip
        return [row | {"val_accuracy": 0.9 - shift - 0.5 / row["epoch"], "val_metric": 0.8} for row in values]

    limits = {"loss": (0.0, 1.0), "accuracy": (0.0, 1.0)}
    loss, accuracy = curves_figure([seed(0.0), seed(0.2)], [5, 3], limits).axes
    means = [line for line in loss.lines if line.get_linewidth() > 2]
    assert len(loss.lines) == 6 and len(means) == 2
    np.testing.assert_allclose(means[1].get_ydata(), [1 / e + 0.1 for e in range(1, 6)])
    (dots,) = loss.collections
    np.testing.assert_allclose(dots.get_offsets(), [(5, 0.2), (3, 1 / 3 + 0.2)])
    assert loss.get_ylim() == (0.0, 1.0) and accuracy.get_title() == "accuracy"
    _, accuracy = curves_figure([seed(0.0)], [5], limits, "AUC").axes
    assert len(accuracy.lines) == 3  # the metric that ranks, too


def test_every_finalist_has_its_curves_in_the_same_range_however_far_behind_it_is(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, accuracies={"trial-0012": 0.95, "default": 0.3})
    section = curves(Records(folder))
    assert [image.title for image in section.images] == [
        f"{name}: 3 seeds, the thick line their mean" for name in ("trial-0012", "default")
    ]
    low, high = limits_of(list(Records(folder).histories.values()))["accuracy"]
    assert 0.05 < low < 0.25 and 0.95 < high < 0.99


def test_corruptions_are_told_for_families_side_by_side(run: RunFolder) -> None:
    found = Records(run)
    section = robustness(found)
    overview, changes = section.tables
    assert changes.columns == ["corruption", "resnet 1", "resnet 2", "resnet 3", "cnn 1", "cnn 2", "cnn 3"]
    assert list(row_of(changes, "blur").values())[1:7] == ["-2.50", "-5.00", "-7.50", "-5.00", "-10.00", "-15.00"]
    assert len(changes.rows) == len(CORRUPTIONS)
    assert row_of(overview, "default-resnet")["marks"] == "baseline"
    (clean,) = [row["test_accuracy"] for row in found.rows if row["model"] == "trial-0012-seed0"]
    cells = row_of(overview, "trial-0012")
    assert (cells["clean %"], cells["change"]) == (score_text(clean), "-10.00")
    assert cells["worst %"] == f"{score_text(clean - 0.15)} (noise 3)"


def test_corruption_figure_has_a_panel_each_that_begins_with_the_clean_images() -> None:
    kinds = {(name, severity): 0.9 - 0.1 * severity for name in "abc" for severity in (1, 2)}
    figure = robustness_figure({"x": (0.95, kinds), "y": (0.9, kinds)}, {"x": {"color": "k"}})
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]  # the fourth is empty
    np.testing.assert_allclose(panels[0].lines[0].get_xydata(), [(0, 0.95), (1, 0.8), (2, 0.7)])


def test_the_data_is_told_class_by_class_with_what_is_wrong_with_it(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    about = read_json(folder.run_json)
    about["data"] |= {"class_counts": {"train": [100] * 9 + [20], "val": [10] * 10, "test": [50] * 10}}
    about["data"] |= {"bad_images": [f"a/{i}.png: truncated" for i in range(7)], "num_test_copies": 3}
    about["test_readings"] = {"readings": 7, "runs": 3}
    write_json(folder.run_json, about)
    section = data(Records(folder))
    (table,) = section.tables
    assert table.rows[0] == ["nine", "20", "10", "50", "2.2 %"] and table.shares and table.shares[:2] == [0.2, 1.0]
    assert "The largest class has 5.0 times the train images" in table.note
    text = " ".join(section.text)
    assert re.search(r"7 images could not be read and are left out: a/0\.png: truncated, .* and 2 more", text)
    assert "3 of 500 test images are also" in text and "has been read 7 times so far, in 3 runs" in text
    write_json(folder.run_json, about | {"test_readings": {"error": "test_readings.jsonl: no space"}})
    assert any("not known: test_readings.jsonl: no space." in said for said in data(Records(folder)).text)


def test_an_evaluation_knows_the_classes_of_the_test_split_alone(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, class_names=["a", "b"], num_trials=0, accuracies={"default": 0.9})
    about = read_json(folder.run_json)
    about["data"]["class_counts"] = {"test": [90, 0]}
    write_json(folder.run_json, about | {"kind": "evaluate"})
    (table,) = data(Records(folder)).tables
    assert table.columns == ["class", "test", "share of test"]
    assert table.rows == [["b", "0", "0.0 %"], ["a", "90", "100.0 %"]] and "times" not in table.note
    about["data"]["class_counts"] = {"test": [45, 45]}
    write_json(folder.run_json, about)
    assert "times" not in data(Records(folder)).tables[0].note  # 1.0 times


def test_calibration_stands_beside_the_temperature_that_mends_it(run: RunFolder, tmp_path: Path) -> None:
    assert not [table for table in quality(Records(run)).tables if table.columns[0] == "calibration error"]
    shutil.copytree(run.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    measured = {"calibration_error": 0.05, "scaled_calibration_error": 0.0125, "temperature": 1.5}
    rows = [row | measured if row["config"] == "trial-0012" else row for row in read_csv(folder.quality_csv)]
    write_csv(folder.quality_csv, QUALITY_COLUMNS, rows)
    table = quality(Records(folder)).tables[-1]
    assert table.rows == [["trial-0012", "5.00", "1.25", "1.50"]] and "15 bins of equal width" in table.note


def test_an_evaluation_speaks_of_no_other_split_than_test(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    rows = [row for row in read_csv(folder.quality_csv) if row["split"] == "test"]
    write_csv(folder.quality_csv, QUALITY_COLUMNS, [row | {"auc_macro_ovr": None} for row in rows])
    about = read_json(folder.run_json)
    about["data"] = {name: value for name, value in about["data"].items() if name in ("class_names", "num_test")}
    write_json(folder.run_json, about | {"kind": "evaluate", "seed": None})
    found = Records(folder)
    section = quality(found)
    assert section.heading == "Quality on test images"
    assert section.tables[0].columns == ["accuracy %", "test"] and len(section.tables[0].rows[0]) == 2
    assert section.text[0] == "Means over 3 seeds, on 500 test images. F1 is the mean over classes."
    assert "those of python -m cifar_ray.train" in reflection(found).text[-1]
    assert "those of python -m cifar_ray.train" not in " ".join(reflection(Records(run)).text)
    facts = dict(facts_of(found))
    assert facts["Images"] == "500 test" and not {"Data fingerprint", "Seed"} & set(facts)
    assert dict(facts_of(Records(run)))["Images"] == "1,149 train / 288 val / 500 test"


def test_many_classes_are_shown_by_the_worst_and_the_rarest(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(60)]
    folder = records.make_run(tmp_path, class_names=names, num_test=600)
    records.write_quality(folder)
    about = read_json(folder.run_json)
    about["data"]["class_counts"] = {"train": list(range(1, 61))}
    write_json(folder.run_json, about)
    (table,) = data(Records(folder)).tables
    assert len(table.rows) == 20 and table.columns == ["class", "train", "share of train"]
    assert table.rows[0][0] == "class 0" and "(20 of 60 classes)" in table.note
    (section,) = mistakes(Records(folder))
    assert len(section.tables[0].rows) == 20 and "(20 of 60 classes)" in section.tables[0].note


def test_quality_of_some_splits_alone_leaves_the_others_out(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    path = folder.quality_csv
    rows = [row for row in read_csv(path) if row["split"] == "test"]
    write_csv(path, list(rows[0]), rows)
    section = quality(Records(folder))
    cells = row_of(section.tables[0], "trial-0012")
    assert not {"train", "val", "gap"} & set(cells) and "on 500 test images" in section.text[0]


def test_contact_sheets_show_the_images_that_the_model_gets_wrong(run: RunFolder) -> None:
    found = Records(run)
    for section in mistakes(found):
        model = section.text[0].split()[0]
        probabilities, labels = found.predictions[model], found.predictions["labels"]
        chosen = find_examples(probabilities, labels)
        wrong, unsure, pairs = section.sheets
        assert [tile.pixels[0, 0] for tile in wrong.tiles] == [index % 256 for index in chosen.mistakes]
        assert [tile.pixels[0, 0] for tile in unsure.tiles] == [index % 256 for index in chosen.unsure]
        names = [
            records.CLASS_NAMES[i] for i in (labels[chosen.mistakes[0]], probabilities[chosen.mistakes[0]].argmax())
        ]
        assert wrong.tiles[0].caption == f"{names[0]} → {names[1]} 90 %"
        assert unsure.tiles[0].caption == f"{records.CLASS_NAMES[labels[chosen.unsure[0]]]} 90 %"
        first = chosen.pairs[0]
        assert pairs.tiles[0].caption.endswith(f": {first.count} images" if first.count > 1 else ": 1 image")
        assert pairs.tiles[0].pixels.shape == (8, 4 * 8 + 3 * GAP)
        brightness = [index % 256 for index in first.examples] + [255] * (4 - len(first.examples))
        assert pairs.tiles[0].pixels[0, :: 8 + GAP].tolist() == brightness


def test_samples_of_the_data_come_by_class(run: RunFolder) -> None:
    (sheet,) = data(Records(run)).sheets
    assert [tile.caption for tile in sheet.tiles] == records.CLASS_NAMES
    assert sheet.tiles[0].pixels.shape == (8, 5 * 8 + 4 * GAP)


@pytest.mark.parametrize(("shape", "kind"), [((8, 8), "png"), ((32, 32, 3), "png"), ((96, 96), "jpeg")])
def test_tiles_keep_their_pixels_in_a_page_and_in_a_picture(shape: tuple[int, ...], kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    uri = data_uri(pixels)
    assert uri.startswith(f"data:image/{kind};base64,")
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == shape[1::-1] and (kind == "jpeg" or np.array_equal(np.asarray(image), pixels))
    sheet = Sheet("x.png", "x", [Tile(np.zeros_like(pixels), "black"), Tile(np.full_like(pixels, 128), "grey")])
    with PIL.Image.open(io.BytesIO(sheet_png(sheet))) as image:
        drawn = np.asarray(image.convert("RGB"))
    scale = max(64 // shape[0], 1)
    assert (drawn[0, 0] < 5).all() and (abs(drawn[0, scale * shape[1] + 8].astype(int) - 128) < 5).all()
    assert len(drawn) == scale * shape[0] + 8


def test_a_report_of_photographs_of_many_classes_stays_small(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, class_names=[f"class {i}" for i in range(20)], accuracies={"default": 0.6})
    records.write_quality(folder)
    records.write_robustness(folder)
    records.write_pictures(folder, side=96, channels=3)
    html, markdown = build_report(folder.root)
    assert html.stat().st_size < 3e6  # of noise, which JPEG makes no smaller than it must
    assert html.read_text().count("data:image/jpeg") == 12 + 12 + 6 + 20
    assert "](evaluation/samples.png)" in markdown.read_text()
    assert (folder.evaluation / "mistakes.png").exists()


def test_what_was_picked_stands_beside_what_it_came_to(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path)
    trials = [one | {"state": "pruned", "epochs": 3} if one["name"] == "trial-0007" else one
              for one in read_trials(folder.trials_jsonl)]  # fmt: skip
    write_trials(folder.trials_jsonl, trials)
    found = Records(folder)
    table = gain(found).tables[-1]
    assert table.columns == ["configuration", "in the search %", "trained again %", "on test %"]
    for one, row in zip(found.summaries, table.rows, strict=True):
        trial = next(trial for trial in trials if trial["name"] == one.config)
        values = (trial["best"]["val_metric"], one.val_metric, one.test_accuracy.mean)
        assert row == [one.config, *map(score_text, values)]
    marks = {row[0]: table.marks.get(index) for index, row in enumerate(table.rows)}
    assert marks == {"trial-0012": None, "default": None, "trial-0019": None, "trial-0007": ["stopped after 3 epochs"]}


def test_named_models_were_not_picked(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, num_trials=0, accuracies={"small-cnn": 0.9, "mish-cnn": 0.88})
    (table,) = gain(Records(folder)).tables
    assert table.columns[0] == "small-cnn against"
