"""The reflection: each clause says its number where the run has recorded it, and nothing where it has not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import records

from cifar_ray.files import read_json, write_json
from cifar_ray.reporting import advice, reflection
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import (
    HISTORY_COLUMNS,
    QUALITY_COLUMNS,
    RESULTS_COLUMNS,
    Row,
    RunFolder,
    read_csv,
    read_predictions,
    read_trials,
    write_csv,
    write_predictions,
    write_trials,
)

Change = Callable[[RunFolder], None]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search of two families with all records."""
    accuracies = {"trial-0013": 0.972, "default": 0.82, "default-resnet": 0.94, "trial-0012": 0.89}
    folder = records.make_run(
        tmp_path_factory.mktemp("whole"), spaces=("cnn", "resnet"), accuracies=accuracies, num_test=500
    )
    records.write_quality(folder)
    records.write_robustness(folder)
    return folder


@pytest.fixture
def run(whole_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it to change."""
    shutil.copytree(whole_run.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def forget(*names: str) -> Change:
    """Older runs do not have these files."""

    def change(folder: RunFolder) -> None:
        for name in names:
            (folder.root / name).unlink()

    return change


def set_data(**values: Any) -> Change:
    def change(folder: RunFolder) -> None:
        about = read_json(folder.run_json)
        about["data"] |= values
        write_json(folder.run_json, about)

    return change


def set_run(**values: Any) -> Change:
    return lambda folder: write_json(folder.run_json, read_json(folder.run_json) | values)


def set_results(config: str | None = None, **values: Any) -> Change:
    """Give all models, or those of one configuration, other values in results.csv."""

    def change(folder: RunFolder) -> None:
        rows = read_csv(folder.results_csv)
        rows = [row | values if config in (None, row["config"]) else row for row in rows]
        write_csv(folder.results_csv, RESULTS_COLUMNS, rows)

    return change


def set_quality(config: str, split: str, **values: Any) -> Change:
    def change(folder: RunFolder) -> None:
        path = folder.quality_csv
        rows = [row | values if (row["config"], row["split"]) == (config, split) else row for row in read_csv(path)]
        write_csv(path, QUALITY_COLUMNS, rows)

    return change


def set_config(name: str, **values: Any) -> Change:
    """Give a configuration other values: `model={"dropout": 0.2}`."""

    def change(folder: RunFolder) -> None:
        trials = read_trials(folder.trials_jsonl)
        (config,) = [trial["config"] for trial in trials if trial["name"] == name]
        for key, value in values.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        write_trials(folder.trials_jsonl, trials)

    return change


def set_val_loss(config: str, losses: list[float], num_seeds: int = 3) -> Change:
    """The validation loss of each epoch, for the first seeds of a configuration."""

    def change(folder: RunFolder) -> None:
        for seed in range(num_seeds):
            row: Row = dict.fromkeys(HISTORY_COLUMNS, 0.5)
            rows = [row | {"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses, start=1)]
            write_csv(folder.model(f"{config}-seed{seed}") / "history.csv", HISTORY_COLUMNS, rows)

    return change


def set_mistakes(predicted: list[tuple[int, int, int]], probability: float = 0.9) -> Change:
    """What all models predict: so many images (last) of a class (first) as another one, all others right."""

    def change(folder: RunFolder) -> None:
        predictions = read_predictions(folder.predictions_npz)
        labels = predictions.pop("labels")
        guess = labels.copy()
        for true, other, count in predicted:
            guess[np.flatnonzero((labels == true) & (guess == true))[:count]] = other
        probabilities = np.full((len(labels), 10), (1 - probability) / 9, np.float32)
        probabilities[np.arange(len(labels)), guess] = probability
        write_predictions(folder.predictions_npz, labels, dict.fromkeys(predictions, probabilities))

    return change


def set_states(state: str, count: int) -> Change:
    """The last trials ended so."""

    def change(folder: RunFolder) -> None:
        trials = read_trials(folder.trials_jsonl)
        trials[-count:] = [trial | {"state": state, "best": None} for trial in trials[-count:]]
        write_trials(folder.trials_jsonl, trials)

    return change


def set_best_trial(number: int) -> Change:
    def change(folder: RunFolder) -> None:
        trials = read_trials(folder.trials_jsonl)
        trials[number] |= {"state": "complete", "best": {"epoch": 8, "val_metric": 0.999, "val_loss": 0.01}}
        write_trials(folder.trials_jsonl, trials)

    return change


def both(*changes: Change) -> Change:
    def change(folder: RunFolder) -> None:
        for one in changes:
            one(folder)

    return change


FALLING, TURNED = [1.0, 0.8, 0.6, 0.5, 0.45, 0.41], [1.0, 0.6, 0.4, 0.5, 0.6, 0.7]
CURVES_TURNED = both(set_val_loss("trial-0012", TURNED), set_val_loss("trial-0013", TURNED))
ONE_FAMILY = set_results(family="cnn")
NO_PREDICTIONS = forget("evaluation/predictions.npz")
NO_QUALITY = forget("evaluation/quality.csv")
NO_ROBUSTNESS = forget("evaluation/robustness.csv")
RARE = {"train": [20, *[125] * 9], "val": [3, *[31] * 9], "test": [50] * 10}
ONE_PAIR = set_mistakes([(0, 5, 9), (0, 3, 2), (4, 1, 3)])


def as_it_is(folder: RunFolder) -> None:
    """No change."""


def fragile(folder: RunFolder) -> None:
    """Corruption costs much."""
    records.write_robustness(folder, drop=0.2)


def set_family_tie(folder: RunFolder) -> None:
    """The best of both families are right on the same images; the runner-up is not."""
    predictions = read_predictions(folder.predictions_npz)
    labels = predictions.pop("labels")
    for seed in range(3):
        predictions[f"trial-0012-seed{seed}"] = predictions[f"trial-0013-seed{seed}"]
    write_predictions(folder.predictions_npz, labels, predictions)


CASES = [
    (reflection.family_quality, as_it_is, "Test accuracy: resnet 9", NO_PREDICTIONS),
    (reflection.family_quality, set_mistakes([(0, 5, 9)]), "they cannot be told apart (+0.00 points, 95 %", ONE_FAMILY),
    (reflection.family_auc, as_it_is, "Test AUC: resnet 0.98", set_run(metric="auc")),
    (reflection.family_size, as_it_is, "Size: resnet has 59 times the parameters (11.2M against 189k of cnn).",
     set_results(num_params=None)),
    (reflection.family_speed, as_it_is, "3.9 times the latency of one image (1.76 ms against 0.45 ms of cnn)",
     set_results(latency_ms_p50=None)),
    (reflection.family_training_time, as_it_is, "11 times the training time (62 s against 5.9 s of cnn)",
     set_results(train_s=None)),
    (reflection.family_training_time, set_config("trial-0013", model={"finetune": "head"}),
     "Not counted: the features that a frozen backbone computed before.", as_it_is),
    (reflection.family_robustness, as_it_is, "corruption changes accuracy by -5.00 points to 92.40 % for resnet, and "
     "by -10.00 points to", NO_ROBUSTNESS),
    (reflection.fit, as_it_is, "trial-0012 is right on 99.00 % of training and 87.", NO_QUALITY),
    (reflection.fit, set_quality("trial-0012", "test", accuracy=0.90), "(+9.00 points): it overfits.", NO_QUALITY),
    (reflection.fit, set_quality("trial-0012", "train", accuracy=0.89), "it underfits", NO_QUALITY),
    (reflection.fit, both(set_quality("trial-0012", "train", accuracy=0.7),
                          set_quality("trial-0012", "test", accuracy=0.5)), "learns by heart as well", NO_QUALITY),
    (reflection.fit, set_quality("trial-0012", "test", accuracy=0.985), "trial-0012 is right on 99.00 % of training "
     "and 98.50 % of test images (+0.50 points): no sign of over- or underfitting", NO_QUALITY),
    (reflection.fit, both(set_quality("trial-0012", "train", accuracy=0.5),
                          set_quality("trial-0012", "test", accuracy=0.4)),
     "(+10.00 points): it underfits: most of its error is there on its own training images.", NO_QUALITY),
    (reflection.turned_loss, set_val_loss("trial-0012", TURNED), "of trial-0012 was lowest in epoch 3 of 6 (0.400) and "
     "rose to 0.700", set_val_loss("trial-0012", FALLING)),
    (reflection.seeds_differ, as_it_is, "accuracy of trial-0013 varies by 0.", set_results(test_accuracy=None)),
    (reflection.worst_class, ONE_PAIR, "fails most on <b>&amp;: it finds 39 of 50 test images (78.0 %; of all classes "
     "97.2 %)", NO_PREDICTIONS),
    (reflection.worst_class, ONE_PAIR, "fails most", set_mistakes([])),
    (reflection.rare_class, both(ONE_PAIR, set_data(class_counts=RARE)), "It has 20 training images where the median "
     "class has 125", ONE_PAIR),
    (reflection.rare_class, both(ONE_PAIR, set_data(class_counts=RARE)), "more of them",
     both(set_mistakes([(1, 2, 9)]), set_data(class_counts=RARE))),
    (reflection.confused_pair, ONE_PAIR, "9 of its 11 mistakes are taken for 5", NO_PREDICTIONS),
    (reflection.confused_pair, ONE_PAIR, "9 of", set_mistakes([(0, 5, 3), (0, 3, 3), (0, 2, 3)])),
    (reflection.confident_mistakes, ONE_PAIR, "Of its 14 mistakes, 14 are made with a probability of 90 %",
     NO_PREDICTIONS),
    (reflection.calibration, set_quality("trial-0013", "test", calibration_error=0.0513, temperature=1.31,
                                         scaled_calibration_error=0.0124),
     "off by 5.13 points on average (expected calibration error). On validation it is too sure: with the temperature "
     "of 1.31 that mends this there, as predict uses it, they are off by 1.24 points on test.", NO_QUALITY),
    (reflection.calibration, set_quality("trial-0013", "test", calibration_error=0.05, temperature=0.8,
                                         scaled_calibration_error=0.01), "it is not sure enough", as_it_is),
    (reflection.calibration, set_quality("trial-0013", "test", calibration_error=0.05, temperature=1,
                                         scaled_calibration_error=0.05), "off by 5.00 points on average (expected "
     "calibration error).", set_quality("trial-0013", "val", calibration_error=0.05)),
    (reflection.images_in_two_splits, set_data(num_test_copies=34), "34 of 500 test images are", as_it_is),
    (reflection.read_before, set_run(test_readings={"readings": 7, "runs": 3}), "read 7 times in 3 runs", as_it_is),
    (reflection.read_before, set_run(test_readings={"readings": 2, "runs": 1}), "read 2 times in 1 run:",
     set_run(test_readings={"readings": 1, "runs": 1})),
    (reflection.read_before, set_run(test_readings={"readings": 2, "runs": 1}), "read 2 times",
     set_run(test_readings={"error": "test_readings.jsonl: no space"})),
    (reflection.wide_interval, as_it_is, "With 500 test images the test accuracy of the best is known to 1.",
     NO_PREDICTIONS),
    (advice.train_longer, set_val_loss("trial-0012", FALLING), "the last of 6 epochs in 3 of 3 seeds, at 0.410",
     CURVES_TURNED),
    (advice.train_longer, set_val_loss("trial-0012", FALLING), "Train longer",
     both(set_val_loss("trial-0013", TURNED), set_val_loss("trial-0012", TURNED),
          set_val_loss("trial-0012", FALLING, num_seeds=1))),
    (advice.train_longer, both(set_val_loss("trial-0012", FALLING), set_val_loss("trial-0013", TURNED)),
     "anneals to the end): --max-epochs 12", forget(*(f"models/{name}-seed{seed}/history.csv" for seed in range(3)
                                                      for name in ("trial-0012", "trial-0013")))),
    (advice.regularise, as_it_is, "points better on training than on test images, and has not used this yet: --set "
     "augment/crop_padding=1", NO_QUALITY),
    (advice.regularise, set_config("trial-0012", augment={"crop_padding": 1}), "--set augment/cutout=2",
     set_config("trial-0012", augment={"crop_padding": 1, "cutout": 2}, model={"dropout": 0.1, "head_dropout": 0.2})),
    (advice.larger_model, both(set_quality("trial-0012", "train", accuracy=0.89), CURVES_TURNED), "trial-0012 (189k"
     " parameters) is right on only 89.00 % of its own training images: --set model/widths=[96,192,320]", as_it_is),
    (advice.larger_model, both(set_quality("trial-0012", "train", accuracy=0.89), CURVES_TURNED), "Larger model",
     both(set_quality("trial-0012", "train", accuracy=0.89), set_val_loss("trial-0012", FALLING))),
    (advice.larger_model, both(set_quality("trial-0013", "train", accuracy=0.93), CURVES_TURNED,
                                   set_quality("trial-0013", "test", accuracy=0.93)), "backbone=resnet50", NO_QUALITY),
    (advice.pretrained_weights, set_config("trial-0013", model={"weights": "none"}), "all of its 11.2M parameters "
     "from 1,149 images: --weights DEFAULT", as_it_is),
    (advice.more_seeds, set_mistakes([(0, 5, 9)]), "trial-0013 and default-resnet cannot be told apart on test "
     "(95 % interval -", as_it_is),
    (advice.more_seeds, both(set_mistakes([(0, 5, 9)]), set_run(kind="train")), ": --seeds 6", NO_PREDICTIONS),
    (advice.more_seeds, set_family_tie, "trial-0013 and trial-0012 cannot be told apart on test", as_it_is),
    (advice.more_trials, set_best_trial(23), "the best of 20 trials was trial-0023, one of the last (validation "
     "accuracy 99.90 %): --trials 40", set_best_trial(6)),
    (advice.more_trials, set_best_trial(0), "none of 18 other trials did better than default (validation",
     set_run(kind="train")),
    (advice.weigh_classes, set_data(class_counts=RARE), "the largest has 125 training images, the smallest 20: "
     "--metric f1 --set class_weights=balanced", as_it_is),
    (advice.weigh_classes, both(set_data(class_counts=RARE), set_run(metric="f1")), "20: --set class_weights",
     both(set_data(class_counts=RARE), set_run(metric="f1"), set_config("trial-0013", class_weights="balanced"))),
    (advice.smooth_labels, ONE_PAIR, "14 of 14 mistakes are confident ones: --set label_smoothing=0.1",
     both(ONE_PAIR, set_config("trial-0013", label_smoothing=0.1))),
    (advice.smooth_labels, ONE_PAIR, "14 of 14", set_mistakes([(0, 5, 9), (4, 1, 3)], probability=0.7)),
    (advice.shift_images, fragile, "the smallest one already takes "
     "trial-0013 from 97.40 % to 87.40 %", as_it_is),
    (advice.shift_images, fragile, "crop_padding=1", NO_ROBUSTNESS),
    (advice.raise_limit, both(set_states("infeasible", 15), set_run(settings={"max_params": 150_000})),
     "of 24 configurations were over 150k parameters and not tried: --max-params 300k", set_states("infeasible", 15)),
    (advice.raise_limit, both(set_states("infeasible", 15), set_run(settings={"max_params": 150_000})),
     "A higher limit", set_run(settings={"max_params": 150_000})),
]  # fmt: skip
"""A clause, what to change for it to stand there, what it then says, and what to change for it to be silent."""


@pytest.mark.parametrize(("clause", "present", "said", "absent"), CASES)
def test_clause_stands_with_its_number_and_is_absent_without(
    run: RunFolder, tmp_path: Path, clause: reflection.Clause, present: Change, said: str, absent: Change
) -> None:
    shutil.copytree(run.root, tmp_path / "without")
    present(run)
    assert said in (clause(Records(run)) or "")
    without = RunFolder(tmp_path / "without")
    absent(without)
    assert clause(Records(without)) is None or said not in str(clause(Records(without)))


def test_every_clause_is_in_the_report_and_has_a_test(whole_run: RunFolder) -> None:
    tested = {case[0] for case in CASES}
    groups = (reflection.FAMILIES, reflection.FIT, reflection.CLASSES, reflection.CAVEATS, advice.NEXT)
    assert tested == {clause for group in groups for clause in group}
    section = reflection.reflection(Records(whole_run))
    assert section.text[0].startswith("Test accuracy: resnet") and any(
        point.startswith("Regularise: ") for point in section.points
    )


def test_what_two_findings_call_for_is_a_point_once(run: RunFolder) -> None:
    fragile(run)
    found = Records(run)
    both_say = [str(clause(found)) for clause in (advice.regularise, advice.shift_images)]
    assert all(said.endswith("--set augment/crop_padding=1") for said in both_say)
    points = reflection.reflection(found).points
    assert [point for point in points if point.endswith("--set augment/crop_padding=1")] == both_say[:1]


def test_a_run_without_final_models_has_nothing_to_reflect_on(tmp_path: Path) -> None:
    folder = records.make_run(tmp_path, finals=False, num_trials=4)
    assert reflection.reflection(Records(folder)).empty
