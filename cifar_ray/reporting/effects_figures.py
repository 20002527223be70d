"""The figures of an ablation: forest plots, learning curves by level, heat maps of crossed factors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_ray.reporting.figures import COLOURS, new_figure, short_label
from cifar_ray.results.records import Row

BETTER, WORSE, OPEN = COLOURS[0], COLOURS[1], "#777777"
BASE = "#777777"
TICKS = (
    (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0),
)
"""Of an axis of ratios: of one of many decades, a long one, and a short one; the first that has three on it."""


@dataclass(frozen=True)
class ForestRow:
    """A line of a forest plot: a heading, or a difference with its two intervals, or a note why there is none."""

    label: str
    heading: bool = False
    difference: float | None = None
    simultaneous: tuple[float, float] | None = None
    alone: tuple[float, float] | None = None
    note: str = ""


def forest_figure(
    rows: Sequence[ForestRow], what: str, words: tuple[str, str], *, higher_is_better: bool, log: bool = False
) -> Any:
    """Differences from the base as points with horizontal intervals, grouped under headings; None without any.

    Thick and pale: simultaneous intervals; thin and dark: of that comparison alone. Filled points are effects. A few
    that lie far off are cut: a triangle at the edge, with the number.

    Args:
        rows: from top to bottom; `difference` and intervals in the units of the axis, or as log ratios.
        what: the label of the axis.
        words: for effects on the good side, and on the other.
        higher_is_better: which side of zero is the good one.
        log: whether the numbers are log ratios, which the axis then shows as ratios.
    """
    known = [row for row in rows if row.difference is not None and row.simultaneous is not None]
    if not known:
        return None
    height = 0.24 * len(rows) + 1.5
    figure = new_figure(5.6, height, layout=None)  # a layout engine would take longer than all else of it
    axes = figure.subplots()
    left_edge, right_edge = 0.31, 0.975
    figure.subplots_adjust(left=left_edge, right=right_edge, top=1 - 0.12 / height, bottom=1.13 / height)
    left, right = _limits([bounds for row in known if (bounds := row.simultaneous)])
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.4, -0.7))
    axes.axvline(0.0, color="#333333", linewidth=1.0)
    for place, row in enumerate(rows):
        if row.heading:
            # From the edge of the figure, over the empty line of the plot where it is long.
            start = (0.012 - left_edge) / (right_edge - left_edge)
            axes.text(start, place, short_label(row.label, 48), transform=axes.get_yaxis_transform(), va="center",
                      fontsize=10, fontweight="bold")  # fmt: skip
        elif row.difference is not None and row.simultaneous is not None:
            _interval(axes, place, row, (left, right), higher_is_better, log)
        else:
            # On the right of zero there may be no room.
            side = "left" if right >= -left else "right"
            text = f" {row.note} "
            axes.text(0.0, place, text, ha=side, va="center", fontsize=9, color="#555555", style="italic")
    labels = ["" if row.heading else f"{short_label(row.label, 20)}  " for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    if log:
        ticks = next(
            (shown for of in TICKS if len(shown := _within(of, left, right)) > 2), _within(TICKS[-1], left, right)
        )
        axes.set_xticks([math.log(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(what)
    _forest_legend(figure, words)
    return figure


def _within(ticks: Sequence[float], left: float, right: float) -> list[float]:
    return [tick for tick in ticks if left <= math.log(tick) <= right]


def _limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of the axis: all intervals, but for a few that are far wider off than most."""
    reaches = [max(abs(low), abs(high)) for low, high in intervals]
    most = max(4 * float(np.median(reaches)), 1.5 * float(np.quantile(reaches, 0.75)))
    most = max([reach for reach in reaches if reach <= 1.4 * most], default=most)  # those not far beyond fit, too
    left = max(min([low for low, _ in intervals] + [0.0]), -most)
    right = min(max([high for _, high in intervals] + [0.0]), most)
    pad = 0.05 * (right - left) or 0.01
    return left - pad, right + pad


def _interval(
    axes: Any, place: int, row: ForestRow, limits: tuple[float, float], higher_is_better: bool, log: bool
) -> None:
    assert row.difference is not None and row.simultaneous is not None
    low, high = row.simultaneous
    effect = not low <= 0 <= high
    colour = OPEN if not effect else BETTER if (row.difference > 0) == higher_is_better else WORSE
    left, right = limits
    if left < row.difference < right:
        axes.hlines(place, low, high, color=colour, linewidth=6.0, alpha=0.35)
        if row.alone:
            axes.hlines(place, *row.alone, color=colour, linewidth=1.6)
        style = {"markersize": 6, "markeredgecolor": colour, "markerfacecolor": colour if effect else "white"}
        axes.plot(row.difference, place, "o", zorder=4, **style)
        return
    at, marker, side = (left, "<", "left") if row.difference <= left else (right, ">", "right")
    number = f"{math.exp(row.difference):.3g}" if log else f"{row.difference:+.3g}"
    axes.plot(at, place, marker, color=colour, markersize=7, clip_on=False, zorder=4)
    axes.text(at, place, f"   {number}   ", ha=side, va="center", fontsize=9, color=colour, zorder=5)


def _forest_legend(figure: Any, words: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=BETTER, marker="o", linestyle="", label=words[0]),
        Line2D([], [], color=WORSE, marker="o", linestyle="", label=words[1]),
        Line2D([], [], color=OPEN, marker="o", markerfacecolor="white", linestyle="", label="cannot be told"),
        Patch(color=OPEN, alpha=0.35, label="simultaneous 95 %"),
        Line2D([], [], color=OPEN, linewidth=1.6, label="this one alone"),
    ]
    # In columns: the three points, then the two intervals.
    style = {"columnspacing": 1.4, "handletextpad": 0.5, "borderaxespad": 0.1, "labelspacing": 0.3}
    figure.legend(handles=[handles[0], handles[3], handles[1], handles[4], handles[2]], loc="lower center", ncols=3,
                  **style)  # fmt: skip


@dataclass(frozen=True)
class LevelCurves:
    """The trainings of one arm: the rows of each seed's history.csv, and how they are drawn."""

    label: str
    seeds: Sequence[Sequence[Row]]
    style: Mapping[str, str]


def level_styles(num_levels: int) -> list[dict[str, str]]:
    """Colours of levels; beyond those that can be told apart they come again with other lines."""
    lines = ("-", "--", ":")
    return [{"color": COLOURS[i % len(COLOURS)], "linestyle": lines[i // len(COLOURS) % 3]} for i in range(num_levels)]


BASE_STYLE = {"color": BASE, "linestyle": "-"}


def level_curves_figure(arms: Sequence[LevelCurves], metric: str, highest_loss: float | None) -> Any:
    """Validation metric and loss by epoch: a line for each arm, mean of its seeds, in a band from lowest to highest.

    Args:
        arms: the base first.
        metric: the name of the validation metric.
        highest_loss: above it the losses are cut off.
    """
    num_rows = -(-len(arms) // 3)
    height = 2.65 + 0.24 * num_rows
    figure = new_figure(5.6, height, layout=None)
    bottom = (0.62 + 0.24 * num_rows) / height
    figure.subplots_adjust(left=0.1, right=0.985, top=1 - 0.32 / height, bottom=bottom, wspace=0.24)
    handles: dict[str, Any] = {}
    for axes, column, title in zip(
        figure.subplots(1, 2), ("val_metric", "val_loss"), (f"validation {metric}", "validation loss"), strict=True
    ):
        shown: list[float] = []
        for place, arm in enumerate(arms):
            length = max(len(rows) for rows in arm.seeds)
            values = np.full((len(arm.seeds), length), np.nan)  # (seeds, epochs)
            for i, rows in enumerate(arm.seeds):
                values[i, : len(rows)] = [np.nan if row[column] is None else row[column] for row in rows]
            known = np.isfinite(values).any(axis=0)
            if not known.any():
                continue
            epochs, values = np.arange(1, length + 1)[known], values[:, known]
            zorder = 2.5 if place else 2.2
            if len(values) > 1:
                low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
                axes.fill_between(epochs, low, high, color=arm.style["color"], alpha=0.15, linewidth=0)
            (handles[arm.label],) = axes.plot(
                epochs, np.nanmean(values, axis=0), linewidth=2.0, zorder=zorder, **arm.style,
                marker="o" if len(epochs) == 1 else None,
            )  # fmt: skip
            late = values[:, epochs > length // 5]
            shown += late[np.isfinite(late)].tolist()
        if column == "val_loss" and highest_loss is not None:
            shown = [min(value, highest_loss) for value in shown]
        if shown:
            pad = 0.04 * (max(shown) - min(shown)) + 0.002
            axes.set_ylim(min(shown) - pad, max(shown) + pad)
        axes.set_xlabel("epoch", labelpad=2)
        axes.set_title(title, fontsize=11)
        axes.xaxis.get_major_locator().set_params(integer=True)
    labels = [short_label(label, 28) for label in handles]
    figure.legend(handles.values(), labels, loc="lower center", ncols=min(len(handles), 3), columnspacing=1.2,
                  labelspacing=0.3, borderaxespad=0.1)  # fmt: skip
    return figure


def cross_figure(
    means: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str],
    texts: Sequence[Sequence[str]],
) -> Any:
    """Heat map of two crossed factors.

    Args:
        means: (rows, columns) of the score; NaN where there is none.
        rows: levels of the first factor.
        columns: levels of the second.
        names: of the factors.
        texts: what stands in each cell.
    """
    figure = new_figure(max(1.5 * len(columns) + 2.0, 4.2), max(0.8 * len(rows) + 1.2, 2.6))
    axes = figure.subplots()
    known = means[np.isfinite(means)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    axes.imshow(means, cmap="Blues", vmin=low - 0.1 * (high - low) - 1e-9, vmax=high + 0.2 * (high - low) + 1e-9,
                aspect="auto")  # fmt: skip
    for i, j in np.ndindex(means.shape):
        dark = np.isfinite(means[i, j]) and means[i, j] > low + 0.65 * (high - low)
        axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=10, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [short_label(one, 14) for one in columns])
    axes.set_yticks(range(len(rows)), [short_label(one, 14) for one in rows])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel=names[1], ylabel=names[0])
    return figure


def file_part(factor: str) -> str:
    """A factor as part of a file name; one that is varied by its path is called `model/dropout`."""
    return re.sub(r"[^\w.-]+", "-", factor)
