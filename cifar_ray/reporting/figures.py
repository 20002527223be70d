"""The figures of a report: their colours, style and shape. matplotlib is imported where it is used."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifar_ray.results.ranking import ConfigSummary, best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import TRIED, Row, State
from cifar_ray.results.statistics import METRIC_NAMES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which stays distinct under colour blindness; greys are the default recipes'."""
GREYS = ("#4d4d4d", "#999999")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
"""Shapes of families, for eyes that see no colours."""
FIGURE_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a class may be called `$5`
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def png(figure: Any) -> bytes:
    """The bytes of a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200, facecolor="white")
    return data.getvalue()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no window

    return Figure(figsize=(width, height), layout="constrained")


def _label(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    num_columns = max(84 // (max(len(label) for label in labels) + 9), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(num_columns, len(labels)))


def _zoom(axes: Any, values: Sequence[float]) -> None:
    """Show the upper part, where the best quarter of values can be told apart, and cut off those far below."""
    top, upper = max(values), float(np.quantile(values, 0.75))
    bottom = max(min(values), top - max(4 * (top - upper), 0.02))
    axes.set_ylim(bottom - 0.08 * (top - bottom) - 0.002, top + 0.08 * (top - bottom) + 0.002)


def search_figure(trials: Sequence[Row], metric: str) -> Any:
    """Best validation value so far over finished trials, and each trial's own by its state; None without values."""
    # Configurations over a limit take no time, and there can be more of them than of all others.
    feasible = [trial for trial in trials if trial["state"] != State.INFEASIBLE]
    order = sorted(feasible, key=lambda trial: trial.get("ended_s") or 0.0)
    values = [best_value(trial) if trial["state"] in TRIED else None for trial in order]
    known = [value for value in values if value is not None]
    if not known:
        return None
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    _zoom(axes, known)
    bottom = axes.get_ylim()[0]
    so_far = np.fmax.accumulate([np.nan if value is None else value for value in values])
    axes.step(range(1, len(order) + 1), so_far, where="post", color=COLOURS[0], label="best so far")
    looks = {
        State.COMPLETE: ("o", COLOURS[0]),
        State.PRUNED: ("v", COLOURS[4]),
        State.FAILED: ("X", COLOURS[1]),
    }
    for state, (marker, colour) in looks.items():
        # What has no value, or one below the part shown, stands on the lower edge.
        marks = [
            (i, max(values[i - 1] or 0.0, bottom)) for i, one in enumerate(order, start=1) if one["state"] == state
        ]
        if marks:
            face = colour if state in (State.COMPLETE, State.FAILED) else "white"
            style = {"marker": marker, "edgecolors": colour, "facecolors": face, "clip_on": False, "zorder": 3}
            axes.scatter(*zip(*marks, strict=True), s=34, label=f"{state} ({len(marks)})", **style)
    axes.set(xlabel="trials finished", ylabel=f"validation {metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def styles_of(records: Records) -> dict[str, dict[str, str]]:
    """Colour and line of each configuration in all figures; default recipes are grey."""
    styles = {}
    defaults = sorted(one.config for one in records.summaries if records.is_default(one.config))
    for i, one in enumerate(records.summaries):
        colours, place = (GREYS, defaults.index(one.config)) if one.config in defaults else (COLOURS, i)
        line = LINES[place // len(colours) % len(LINES)]
        styles[one.config] = {"color": colours[place % len(colours)], "linestyle": line}
    return styles


def curves_figure(histories: Mapping[str, list[Row]], configs: Mapping[str, str], styles: Mapping[str, Row]) -> Any:
    """Validation accuracy by epoch, a line a model in the style of its configuration; None without histories."""
    curves = {model: [(row["epoch"], row["val_accuracy"]) for row in rows] for model, rows in histories.items()}
    curves = {model: [point for point in curve if None not in point] for model, curve in curves.items()}
    values = [value for curve in curves.values() for _, value in curve]
    if not values:
        return None
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    _zoom(axes, values)
    # Every line is seen where it is highest, also that of a family which is far behind.
    shown = min(max(value for _, value in curve) for curve in curves.values() if curve)
    axes.set_ylim(bottom=min(axes.get_ylim()[0], shown - 0.02))
    handles = {}
    for model, curve in curves.items():
        if curve:
            config = configs[model]
            marker = "o" if len(curve) == 1 else None
            lines = axes.plot(*zip(*curve, strict=True), linewidth=1.4, marker=marker, **styles[config])
            handles[_label(config)] = lines[0]
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, list(handles.values()), list(handles))
    return figure


def confusion_figure(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    """Confusion matrix (C, C) of counts, coloured by share of the true class; up to 20 classes with the counts."""
    num_classes = len(counts)
    side = min(5.4 + 0.24 * max(num_classes - 10, 0), 10.5)
    figure = _figure(side + 0.2, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0.0, vmax=1.0)  # the root shows rare confusions
    step = 1 if num_classes <= 50 else 5  # beyond, the names would overlap
    names = [_label(name, 14) for name in class_names][::step]
    size = 10 if num_classes <= 20 or step > 1 else 8
    axes.set_xticks(range(0, num_classes, step), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(0, num_classes, step), names, fontsize=size)
    if num_classes <= 20:
        for true, predicted in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[true, predicted] > 0.3 else "black"
            text = str(counts[true, predicted])
            axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=9)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def speed_figure(summaries: Sequence[ConfigSummary], styles: Mapping[str, Row], metric: str = "accuracy") -> Any:
    """The test score by `metric` with its interval against single-image latency; None with fewer than two points.

    Several families have different marks.
    """
    shown = [one for one in summaries if one.latency_ms_p50 is not None and one.test_score(metric).mean is not None]
    if len(shown) < 2:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    families = sorted({one.family or "unknown" for one in shown})
    marks = []
    for one in shown:
        marker = MARKERS[families.index(one.family or "unknown") % len(MARKERS)]
        style = {"color": styles[one.config]["color"], "label": _label(one.config), "capsize": 3, "fmt": marker}
        score = one.test_score(metric)
        bounds = None if score.low is None else np.array([[score.low], [score.high]])
        reach = None if bounds is None else abs(bounds - score.mean)
        marks.append(axes.errorbar(one.latency_ms_p50, score.mean, yerr=reach, **style))
    for family, marker in zip(families, MARKERS, strict=False) if len(families) > 1 else ():
        # Drawn nowhere: it only tells in the legend what the shape means.
        style = {"color": "black", "markerfacecolor": "white", "label": f"family {_label(family)}"}
        marks += axes.plot([], [], marker, **style)
    latencies = [one.latency_ms_p50 or 0.0 for one in shown]
    if max(latencies) > 8 * min(latencies):
        axes.set_xscale("log")
        # The labels of a log axis are formulas, which this style does not draw, and many: at 1, 2 and 5 they are few.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    axes.set(xlabel="latency of one image, median (ms)", ylabel=f"test {METRIC_NAMES[metric]}")
    _legend(figure, marks, [mark.get_label() for mark in marks])
    return figure
