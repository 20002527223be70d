"""What the report says of an audit: whether ASHA stopped what would have become good."""

from __future__ import annotations

from cifar_ray.reporting.parts import Section, Table, score_text, with_unit
from cifar_ray.results.ranking import best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import State
from cifar_ray.text import counted

MIN_RANKED = 8
"""Trials of which a rank correlation is told: of fewer it says nothing."""


def audit(records: Records) -> Section:
    """The trials that went on where ASHA would have stopped them, and those that it would have let go on."""
    section = Section("What early stopping missed")
    covered = [one for one in records.trials if one.get("audit")]
    if not covered:
        return section
    ended = [one for one in covered if one["state"] == State.COMPLETE and one["audit"]["val_metric"] is not None]
    spared = [one for one in ended if one["audit"]["stopped_at"]]
    section.text.append(
        f"{len(covered)} of {counted(len(records.trials), 'trial')}, picked beforehand, were not to be stopped early; "
        f"{len(ended)} of them reached their end. ASHA would have stopped {len(spared)} of these."
    )
    best = records.tried[0]
    if spared:
        top = max(spared, key=best_value)
        reached = f"{top['name']}, the best of these, reached {with_unit(records.metric, best_value(top))}"
        lost = "the best of all trials: ASHA would have lost it" if top is best else (
            f"and the best of all trials, {best['name']}, {with_unit(records.metric, best_value(best))}"
        )  # fmt: skip
        section.text.append(f"{reached}, {lost}.")
    if not ended:
        return section
    epoch = ended[0]["audit"]["epoch"]
    if len(ended) >= MIN_RANKED:
        from scipy.stats import spearmanr  # slow to import, and few reports need it

        early, final = [one["audit"]["val_metric"] for one in ended], [best_value(one) for one in ended]
        told = f"have a rank correlation of {spearmanr(early, final)[0]:.2f} (Spearman's, n = {len(ended)})"
    else:
        told = f"are of too few trials to be compared by rank (n = {len(ended)}, from {MIN_RANKED} on it is told)"
    section.text.append(f"Their best values until epoch {epoch}, where ASHA first decides, and at the end {told}.")
    unit = " %" if records.metric == "accuracy" else ""
    columns = ["trial", "ASHA would have", *(f"{what}{unit}" for what in (f"until epoch {epoch}", "at the end"))]
    table = Table(columns, [], f"Validation {records.metric_name}, one training each.", num_text=2)
    for one in sorted(ended, key=lambda one: -best_value(one)):
        stopped_at = one["audit"]["stopped_at"]
        decided = f"stopped it after {counted(stopped_at, 'epoch')}" if stopped_at else "let it go on"
        values = (one["audit"]["val_metric"], best_value(one))
        table.rows.append([one["name"], decided, *(score_text(value, records.metric) for value in values)])
    section.tables.append(table)
    return section
