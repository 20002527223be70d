"""What the report says of an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import records

from cifar_ray.reporting.audit import audit
from cifar_ray.reporting.parts import Section
from cifar_ray.reporting.render import sections_of
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import read_trials, write_trials


def section_of(path: Path, audits: dict[int, dict[str, Any]]) -> Section:
    """Of a search in which these trials, by number, were covered, and went to their end."""
    folder = records.make_run(path)
    trials = read_trials(folder.trials_jsonl)
    for one in trials:
        if one["number"] in audits:
            value = one["best"]["val_metric"] if one["best"] else 0.5
            one |= {
                "state": "complete",
                "best": {"epoch": 30, "val_accuracy": value, "val_loss": 1, "val_metric": value},
            }
            one["audit"] = {"epoch": 6, "val_metric": value - 0.1, "stopped_at": None} | audits[one["number"]]
    write_trials(folder.trials_jsonl, trials)
    return audit(Records(folder))


def test_what_would_have_been_stopped_stands_beside_the_best(tmp_path: Path) -> None:
    section = section_of(tmp_path, {3: {}, 7: {"stopped_at": 6}, 1: {"stopped_at": 18}})
    assert section.text[0] == (
        "3 of 24 trials, picked beforehand, were not to be stopped early; 3 of them reached their end. ASHA would have "
        "stopped 2 of these."
    )
    expected = "trial-0007, the best of these, reached 96.80 %, and the best of all trials, trial-0012, 97.20 %."
    assert section.text[1] == expected
    assert "are of too few trials to be compared by rank (n = 3" in section.text[2]
    (table,) = section.tables
    assert table.rows[0] == ["trial-0007", "stopped it after 6 epochs", "86.80", "96.80"]
    assert {row[0]: row[1] for row in table.rows}["trial-0003"] == "let it go on"


def test_a_lost_best_trial_is_called_that(tmp_path: Path) -> None:
    section = section_of(tmp_path, {12: {"stopped_at": 6}})
    assert section.text[1].endswith("reached 97.20 %, the best of all trials: ASHA would have lost it.")


def test_from_eight_trials_on_ranks_are_compared(tmp_path: Path) -> None:
    section = section_of(tmp_path, {number: {} for number in (0, 1, 2, 3, 4, 6, 7, 9)})
    assert "have a rank correlation of 1.00 (Spearman's, n = 8)" in section.text[1]


def test_without_an_audit_there_is_nothing_to_say(tmp_path: Path) -> None:
    found = Records(records.make_run(tmp_path))
    assert audit(found).empty
    assert "What early stopping missed" not in [section.heading for section in sections_of(found)]
