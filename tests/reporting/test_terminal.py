"""The table that ends a run in the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import records

from cifar_ray.reporting.parts import score_text
from cifar_ray.reporting.terminal import results_table
from cifar_ray.results.ranking import summarise
from cifar_ray.results.recorded_run import Records


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
