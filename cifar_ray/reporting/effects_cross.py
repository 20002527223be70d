"""What the report of an ablation says of crossed factors: whether two choices do together what they do alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cifar_ray.reporting.effects_figures import cross_figure, file_part
from cifar_ray.reporting.effects_words import base_level, bounds, difference_cell, metric_name, size
from cifar_ray.reporting.experiment import PRIMARY, Experiment
from cifar_ray.reporting.figures import png
from cifar_ray.reporting.parts import Image, Section, Table, difference_text, score_text
from cifar_ray.results.effects import is_effect
from cifar_ray.results.records import Row

INTERACTION = f"interaction: {PRIMARY}"


def interactions(x: Experiment, cross: str) -> Section:
    """Whether two choices do together what they do alone."""
    section = Section(f"Together: {cross}")
    arms = [arm for arm in x.levels if arm.get("factor") == cross]
    rows = x.effects(INTERACTION, arms)
    found = [(arm, row) for arm, row in rows if is_effect(row)]
    said = [
        f"{_cells_text(arm)} is {size(x, row['difference'])} of test {metric_name(x)} "
        f"{'better' if row['difference'] > 0 else 'worse'} than its single changes add up to ({bounds(x, row)})."
        for arm, row in found
    ]
    told = [row for _, row in rows if row.get("low") is not None]
    if told and not found:
        seen = [row["detectable"] for row in told if row.get("detectable") is not None]
        said.append(
            "No interaction can be told: each pair does what its single changes add up to, as far as this number of "
            "seeds shows" + (f" (one of {size(x, max(seen))} would have been seen)." if seen else ".")
        )
    section.text = [" ".join(said)] if said else []
    names = list(arms[0]["cells"])
    score = f"test {metric_name(x)}{' %' if x.metric == 'accuracy' else ''}"
    table = Table([*names, score, "difference", "interaction"], [], num_text=len(names))
    for arm in arms:
        row = x.effect(INTERACTION, arm)
        if x.runs(arm) or row:
            mean = score_text(None if x.num_diverged(arm) else x.mean(arm, PRIMARY), x.metric)
            cells = [mean, difference_cell(x, x.effect(PRIMARY, arm)), difference_cell(x, row)]
            table.rows.append([*(str(arm["cells"][name]) for name in names), *cells])
    if table.rows:
        table.note = (
            "difference: to the base. interaction: that difference without the sum of those of its single changes; "
            "zero where they add up."
        )
        section.tables.append(table)
    image = _heat_map(x, cross, arms)
    section.images = [image] if image else []
    return section


def _cells_text(arm: Row) -> str:
    return " with ".join(f"{factor}={level}" for factor, level in arm["cells"].items())


def _heat_map(x: Experiment, cross: str, arms: Sequence[Row]) -> Image | None:
    """The mean test score of all pairs of levels, the base's included; None unless two factors are crossed."""
    names = list(dict.fromkeys(name for arm in arms for name in arm["cells"]))
    if len(names) != 2:
        return None
    levels = {name: list(dict.fromkeys([base_level(x, name), *(str(arm["cells"][name]) for arm in arms)]))
              for name in names}  # fmt: skip
    shape = len(levels[names[0]]), len(levels[names[1]])
    means, texts = np.full(shape, np.nan), [["-"] * shape[1] for _ in range(shape[0])]
    single = {(str(arm["factor"]), str(arm["level"])): arm for arm in x.levels
              if arm.get("rate") != "own" and not arm.get("cells")}  # fmt: skip
    pairs = {(str(arm["cells"][names[0]]), str(arm["cells"][names[1]])): arm for arm in arms}
    base = x.mean(x.base, PRIMARY) if x.base else None
    for i, j in np.ndindex(shape):
        one, other = levels[names[0]][i], levels[names[1]][j]
        if i and j:
            arm = pairs.get((one, other), {})
        else:
            arm = single.get((names[0], one), {}) if i else single.get((names[1], other), {}) if j else x.base
        mean = x.mean(arm, PRIMARY) if arm and not x.num_diverged(arm) else None
        if mean is not None:
            means[i, j] = mean
            change = "" if base is None or not (i or j) else f"\n{difference_text(mean - base, x.metric)}"
            texts[i][j] = score_text(mean, x.metric) + (change or "\nbase")
        elif arm and x.num_diverged(arm):
            texts[i][j] = "diverged"
    if np.isfinite(means).sum() < 2:
        return None
    rows, columns = ([f"{one} (base)" if not i else one for i, one in enumerate(levels[name])] for name in names)
    figure = cross_figure(means, rows, columns, (names[0], names[1]), texts)
    title = f"Mean test {metric_name(x)}, and its difference from the base, for each pair of {names[0]} and {names[1]}"
    return Image(f"cross-{file_part(names[0])}-{file_part(names[1])}.png", title, png(figure))
