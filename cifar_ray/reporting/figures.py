"""The figures of a report: their colours, style and shape. matplotlib is imported where it is used."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cifar_ray.results.ranking import ConfigSummary, best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import TRIED, Row, State
from cifar_ray.results.statistics import METRIC_NAMES
from cifar_ray.text import decimals, short

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
    """The bytes of a PNG file, of 256 colours: a third of the size, and no difference to be seen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(180)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    pixels = pixels.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(pixels.getpalette()).reshape(-1, 3)
    palette[np.asarray(pixels)[0, 0]] = 255  # paper, which it mixes with what is nearly white
    pixels.putpalette(palette.ravel().tolist())
    data = io.BytesIO()
    pixels.save(data, "PNG", optimize=True)
    return data.getvalue()


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no window

    return Figure(figsize=(width, height), layout=layout)


def short_label(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    num_columns = max(74 // (max(len(label) for label in labels) + 9), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(num_columns, len(labels)))


def _zoom(axes: Any, values: Sequence[float]) -> None:
    """Show the upper part, where the best quarter of values can be told apart, and cut off those far below."""
    top, upper = max(values), float(np.quantile(values, 0.75))
    bottom = max(min(values), top - max(4 * (top - upper), 0.02))
    axes.set_ylim(bottom - 0.08 * (top - bottom) - 0.002, top + 0.08 * (top - bottom) + 0.002)


def _log_where_wide(axes: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic where the values on it spread far."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if max(values) > 8 * min(values):
        axes.set_xscale("log")
        # The labels of a log axis are formulas, which this style does not draw, and many: at 1, 2 and 5 they are few.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def search_figure(trials: Sequence[Row], metric: str) -> Any:
    """Best validation value so far over finished trials, and each trial's own by its state; None without values."""
    # Configurations over a limit take no time, and there can be more of them than of all others.
    feasible = [trial for trial in trials if trial["state"] != State.INFEASIBLE]
    order = sorted(feasible, key=lambda trial: trial.get("ended_s") or 0.0)
    values = [best_value(trial) if trial["state"] in TRIED else None for trial in order]
    known = [value for value in values if value is not None]
    if not known:
        return None
    figure = new_figure(5.6, 4.0)
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


def curves_figure(
    seeds: Sequence[Sequence[Row]],
    best_epochs: Sequence[int | None],
    limits: Mapping[str, tuple[float, float]],
    metric: str | None = None,
) -> Any:
    """Loss and accuracy by epoch of one configuration: a thin line a seed, a thick one their mean, dots the best epoch.

    Args:
        seeds: the rows of each one's history.csv.
        best_epochs: of each seed.
        limits: of the axes `loss` and `accuracy`.
        metric: the validation metric to be drawn beside the accuracy, where it is another.
    """
    # There is one for each finalist, and a layout engine would take longer than all else of it.
    figure = new_figure(5.4, 2.9, layout=None)
    figure.subplots_adjust(left=0.1, right=0.985, top=0.9, bottom=0.32, wspace=0.27)
    axes_of = dict(zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True))
    lines = {"training": (COLOURS[1], "--", "train"), "validation": (COLOURS[0], "-", "val")}
    handles: dict[str, Any] = {}
    for what, axes in axes_of.items():
        drawn = {label: (colour, line, f"{split}_{what}") for label, (colour, line, split) in lines.items()}
        if metric and what == "accuracy":
            drawn[f"validation {metric}"] = (COLOURS[2], "-", "val_metric")
        for label, (colour, line, column) in drawn.items():
            curves = [[np.nan if row[column] is None else row[column] for row in rows] for rows in seeds]
            for curve in curves if len(curves) > 1 else ():
                axes.plot(range(1, len(curve) + 1), curve, line, color=colour, linewidth=0.8, alpha=0.45)
            longest = max(len(curve) for curve in curves)
            means = [_mean_of([curve[i] for curve in curves if i < len(curve)]) for i in range(longest)]
            marker = "o" if longest == 1 else None
            epochs = range(1, longest + 1)
            (handles[label],) = axes.plot(epochs, means, line, color=colour, linewidth=2.2, marker=marker)
            if label != "validation":
                continue
            dots = [(best, curve[best - 1]) for best, curve in zip(best_epochs, curves, strict=True)
                    if best is not None and best <= len(curve)]  # fmt: skip
            if dots:
                style = {"s": 30, "color": colour, "edgecolors": "white", "zorder": 4}
                handles["best epoch"] = axes.scatter(*zip(*dots, strict=True), **style)
        axes.set(xlabel="epoch", title=what, ylim=limits[what])
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles.values(), handles, loc="lower center", ncols=len(handles), columnspacing=1.2)
    return figure


def _mean_of(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def confusion_figure(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    """Confusion matrix (C, C) of counts, coloured by share of the true class; up to 20 classes with the counts."""
    num_classes = len(counts)
    side = min(5.4 + 0.24 * max(num_classes - 10, 0), 10.5)
    figure = new_figure(side + 0.2, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0.0, vmax=1.0)  # the root shows rare confusions
    step = 1 if num_classes <= 50 else 5  # beyond, the names would overlap
    names = [short_label(name) for name in class_names][::step]
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
    figure = new_figure(5.6, 4.0)
    axes = figure.subplots()
    families = sorted({one.family or "unknown" for one in shown})
    marks = []
    for one in shown:
        marker = MARKERS[families.index(one.family or "unknown") % len(MARKERS)]
        style = {"color": styles[one.config]["color"], "label": short_label(one.config), "capsize": 3, "fmt": marker}
        score = one.test_score(metric)
        bounds = None if score.low is None else np.array([[score.low], [score.high]])
        reach = None if bounds is None else abs(bounds - score.mean)
        marks.append(axes.errorbar(one.latency_ms_p50, score.mean, yerr=reach, **style))
    for family, marker in zip(families, MARKERS, strict=False) if len(families) > 1 else ():
        # Drawn nowhere: it only tells in the legend what the shape means.
        style = {"color": "black", "markerfacecolor": "white", "label": f"family {short_label(family)}"}
        marks += axes.plot([], [], marker, **style)
    _log_where_wide(axes, [one.latency_ms_p50 or 0.0 for one in shown])
    axes.margins(x=0.1)
    axes.set(xlabel="latency of one image, median (ms)", ylabel=f"test {METRIC_NAMES[metric]}")
    _legend(figure, marks, [mark.get_label() for mark in marks])
    return figure


def size_figure(trials: Sequence[Row], front: Sequence[Row], default: str | None, metric: str) -> Any:
    """The validation value of each trial against its number of parameters, and a line along the `front` of them."""
    figure = new_figure(5.6, 4.0)
    axes = figure.subplots()
    shown = [trial for trial in trials if trial.get("num_params")]
    _zoom(axes, [best_value(trial) for trial in shown])
    bottom = axes.get_ylim()[0]
    steps = [(trial["num_params"], best_value(trial)) for trial in front]
    right = max(trial["num_params"] for trial in shown)
    axes.step(*zip(*steps, (right, steps[-1][1]), strict=True), where="post", color=COLOURS[0], label="front")
    looks = {State.COMPLETE: ("o", COLOURS[0], COLOURS[0]), State.PRUNED: ("v", "white", COLOURS[4])}
    for state, (marker, face, edge) in looks.items():
        marks = [(trial["num_params"], max(best_value(trial), bottom)) for trial in shown if trial["state"] == state]
        if marks:
            style = {"marker": marker, "facecolors": face, "edgecolors": edge, "clip_on": False, "zorder": 3}
            axes.scatter(*zip(*marks, strict=True), s=34, label=f"{state} ({len(marks)})", **style)
    for trial in shown:
        if trial["name"] == default:
            place = (trial["num_params"], max(best_value(trial), bottom))
            axes.scatter(*place, s=110, facecolors="none", edgecolors="black", zorder=4, label="the default recipe")
    _log_where_wide(axes, [trial["num_params"] for trial in shown])
    axes.xaxis.set_major_formatter(lambda value, position: short(value))
    axes.set(xlabel="parameters", ylabel=f"validation {metric}")
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def roc_figure(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Any:
    """ROC curves: a thin line for each class against all others, a thick one for their mean (macro average).

    Classes without test images have none; None where fewer than two classes have any. The false-positive rate is on a
    logarithmic axis, from one image: good models differ at its lower end.

    Args:
        probabilities: (N, C).
        labels: (N,) int64.
        class_names: C of them.
    """
    present = [index for index in range(probabilities.shape[1]) if 0 < (labels == index).sum() < len(labels)]
    if len(present) < 2:
        return None
    curves = {index: _roc_curve(probabilities[:, index], labels == index) for index in present}
    areas = {index: float(np.trapezoid(true, false)) for index, (false, true) in curves.items()}
    rates = np.unique(np.concatenate([curve[0] for curve in curves.values()]))  # of false positives
    macro = np.mean([np.interp(rates, *curve) for curve in curves.values()], axis=0)
    figure = new_figure(5.6, 5.4)
    axes = figure.subplots()
    lowest = sorted(present, key=lambda index: areas[index])[: len(COLOURS)]
    handles = {}
    least = 1 / len(labels)
    for index in present:
        colour = COLOURS[lowest.index(index)] if index in lowest else "#bbbbbb"
        false, true = curves[index]
        (line,) = axes.plot(np.maximum(false, least), true, color=colour, linewidth=1.0, drawstyle="steps-post")
        if index in lowest:
            handles[f"{short_label(class_names[index])}  {decimals(areas[index])}"] = line
    handles = dict(sorted(handles.items(), key=lambda item: item[0].rsplit(" ", 1)[1]))
    (line,) = axes.plot(np.maximum(rates, least), macro, color="black", linewidth=2.6)
    handles = {f"macro average  {decimals(float(np.mean(list(areas.values()))))}": line, **handles}
    axes.set(xscale="log", xlim=(least, 1.0), ylim=(-0.01, 1.01))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    # Below the axes: in them the curves of a poor model would run behind it.
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2,
                  title="area under the curve, lowest classes")  # fmt: skip
    return figure


def _roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates from (0, 0) to (1, 1), a point for each distinct score; both (N,).

    In numpy, since scikit-learn takes longer to import than this report to draw.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(positive[order])[last_of_ties]
    false = last_of_ties + 1 - true
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def robustness_figure(
    configs: Mapping[str, tuple[float, Mapping[tuple[str, int], float]]], styles: Mapping[str, Row]
) -> Any:
    """Accuracy by severity, a panel for each corruption and a line for each configuration.

    Args:
        configs: of each one the accuracy on clean images, and that by corruption and severity.
        styles: colour and line of each one.
    """
    corruptions = list(dict.fromkeys(name for _, accuracies in configs.values() for name, _ in accuracies))
    num_rows = -(-len(corruptions) // 2)
    figure = new_figure(5.6, 0.9 + 1.7 * num_rows)
    panels = figure.subplots(num_rows, 2, sharey=True, squeeze=False).flat
    handles: dict[str, Any] = {}
    for corruption, panel in zip(corruptions, panels, strict=False):
        for config, (clean, accuracies) in configs.items():
            curve = {0: clean} | {severity: value for (name, severity), value in accuracies.items()
                                  if name == corruption}  # fmt: skip
            (line,) = panel.plot(list(curve), list(curve.values()), marker="o", markersize=4, **styles.get(config, {}))
            handles[short_label(config)] = line
        panel.set_title(corruption, fontsize=11)
        panel.xaxis.get_major_locator().set_params(integer=True)
        if corruption in corruptions[-2:]:
            panel.set_xlabel("severity")
    for panel in list(panels):  # the rest of an odd number
        panel.set_axis_off()
    figure.supylabel("accuracy", fontsize=11)
    _legend(figure, list(handles.values()), list(handles))
    return figure
