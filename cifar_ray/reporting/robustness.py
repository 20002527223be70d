"""What the report says of corrupted images: how much accuracy noise, blur and the like cost each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from cifar_ray.reporting.figures import png, robustness_figure, styles_of
from cifar_ray.reporting.parts import Image, Section, Table, difference_text, score_text
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import CLEAN
from cifar_ray.text import thousands


@dataclass(frozen=True)
class Corrupted:
    """Accuracies of a configuration on the same images: as they are, and by corruption and severity."""

    clean: float
    accuracies: dict[tuple[str, int], float]

    @property
    def mean(self) -> float:
        """Over all corruptions and severities."""
        return fmean(self.accuracies.values())

    @property
    def worst(self) -> tuple[str, int]:
        """The corruption, and its severity, that costs most."""
        return min(self.accuracies, key=lambda kind: self.accuracies[kind])


def corrupted(records: Records) -> dict[str, Corrupted]:
    """What robustness.csv says of each configuration."""
    found = {}
    for config in dict.fromkeys(str(row["config"]) for row in records.robustness):
        rows = [row for row in records.robustness if row["config"] == config and row["accuracy"] is not None]
        clean = next((row["accuracy"] for row in rows if row["corruption"] == CLEAN), None)
        accuracies = {(r["corruption"], r["severity"]): r["accuracy"] for r in rows if r["corruption"] != CLEAN}
        if clean is not None and accuracies:
            found[config] = Corrupted(clean, accuracies)
    return found


def robustness(records: Records) -> Section:
    section = Section("Robustness to corrupted images")
    found = corrupted(records)
    if not found:
        return section
    n = max(row["n"] for row in records.robustness)
    section.text.append(
        f"Accuracy of one model of each configuration on {thousands(n)} test images, corrupted in the same way for all "
        "models, at rising severity. Of these, augmentation in training shows a model shifts at most."
    )
    section.tables = [_overview(records, found), _changes(records, found)]
    figure = robustness_figure({config: (one.clean, one.accuracies) for config, one in found.items()},
                               styles_of(records))  # fmt: skip
    title = "Accuracy by severity (0: images as they are), a panel for each corruption"
    section.images.append(Image("robustness.png", title, png(figure)))
    return section


def _overview(records: Records, found: Mapping[str, Corrupted]) -> Table:
    table = Table(["configuration", "clean %", "corrupted %", "change", "worst %"], [])
    for config, one in found.items():
        table.marks[len(table.rows)] = ["baseline"] * records.is_default(config)
        row = [config, score_text(one.clean), score_text(one.mean)]
        row.append(difference_text(one.mean - one.clean))
        table.rows.append([*row, f"{score_text(one.accuracies[one.worst])} ({one.worst[0]} {one.worst[1]})"])
    table.note = "corrupted: mean over all corruptions and severities; change: in percentage points."
    return table


def _changes(records: Records, found: Mapping[str, Corrupted]) -> Table:
    """Change of accuracy by corruption and severity, the best of each family side by side."""
    shown = {one.config: str(one.family) for one in records.best_of_families if one.config in found}
    shown = shown or {config: config for config in found}
    kinds = list(dict.fromkeys(kind for config in shown for kind in found[config].accuracies))
    severities = sorted({severity for _, severity in kinds})
    columns = [(config, severity) for config in shown for severity in severities]
    table = Table(["corruption", *(f"{shown[config]} {severity}" for config, severity in columns)], [])
    for corruption in dict.fromkeys(name for name, _ in kinds):
        values = [found[config].accuracies.get((corruption, severity)) for config, severity in columns]
        changes = [
            "-" if value is None else difference_text(value - found[config].clean)
            for value, (config, _) in zip(values, columns, strict=True)
        ]
        table.rows.append([corruption, *changes])
    table.note = "Change of accuracy in percentage points, by severity."
    return table
