"""What a report says, in order: the headline, the key facts, and the sections, here those of the final models.

Knows nothing of HTML and Markdown, which only lay the sections out.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cifar_ray.figures import confusion_figure, curves_figure, png, search_figure, speed_figure
from cifar_ray.progress import duration
from cifar_ray.ranking import (
    Comparison,
    ConfigSummary,
    best_value,
    difference_text,
    family_verdict,
    score_text,
    verdict,
)
from cifar_ray.records import Records
from cifar_ray.report_parts import Image, Section, Table, counted, decimals, share, shared_images, short, thousands
from cifar_ray.results import Row
from cifar_ray.trial_sections import all_trials, best_trials, ledger, search_gain


def sections_of(records: Records) -> list[Section]:
    """All sections in the order of the report, without those that the run has no records for."""
    sections = [_finalists(records) if records.summaries else best_trials(records), _families(records)]
    sections += [_gain(records), _figures(records), _errors(records), _speed(records), _configuration(records)]
    sections += [all_trials(records), ledger(records)]
    return [one for one in sections if one.text or one.tables or one.images or one.folded]


def facts_of(records: Records) -> list[tuple[str, str]]:
    """Label and text of the key facts."""
    run, data, device = records.run, records.data, records.device
    splits = [f"{thousands(data.get(f'num_{split}'))} {split}" for split in ("train", "val", "test")]
    side = data.get("image_size", "?")
    size = f"{side} x {side} pixels, {'grayscale' if data.get('channels') == 1 else 'colour'}"
    used = f"{counted(device.get('num_cpus'), 'CPU')}, {counted(device.get('num_gpus'), 'GPU')}, "
    used += f"{counted(device.get('slots'), 'trial')} at a time"
    settings = run.get("settings") or {}
    workers = settings.get("workers_per_trial") or settings.get("workers") or 1
    used += f", {workers} workers each" if workers > 1 else ""
    weights = [f"{one['backbone']}: {one['source']} (SHA-256 {one['sha256'][:12]})" for one in
               (run.get("unchanged") or {}).get("weights") or ()]  # fmt: skip
    started, ended = (str(run.get(key) or "")[:19].replace("T", " ") for key in ("start", "end"))
    ended = f" to {ended}" if ended else "; not finished: interrupted, or still running"
    times = len(run.get("resumed") or [])
    ended += f" (interrupted and taken up again {'once' if times == 1 else f'{times} times'})" if times else ""
    return [
        ("Data", f"{data.get('source', '?')}: {len(data.get('class_names') or [])} classes, {size}"),
        ("Images", " / ".join(splits)),
        *([("In two splits", "; ".join(shared))] if (shared := shared_images(data)) else []),
        ("Data fingerprint", str(data.get("fingerprint") or "?")[:12]),
        *([("Weights", " · ".join(weights))] if weights else []),
        ("Device", f"{device.get('name') or device.get('kind', '?')} ({used})"),
        ("Metric and seed", f"validation {records.metric_name}, seed {run.get('seed', '?')}"),
        ("Start and end", started + ended),
        ("Wall-clock", " · ".join(f"{phase} {duration(s)}" for phase, s in records.phases.items()) or "not recorded"),
        ("Versions", " · ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())),
    ]


def _measured(records: Records, one: ConfigSummary) -> dict[str, str]:
    """Cells of what was measured of a configuration."""
    cells = {} if records.metric == "accuracy" else {f"val {records.metric_name}": records.score(one.val_metric)}
    cells |= {"val acc %": score_text(one.val_accuracy), "test acc %": score_text(one.test_accuracy)}
    cells["test AUC"] = score_text(one.test_auc, "auc")
    if records.metric == "f1":
        cells["test F1"] = score_text(one.test_f1, "f1")
    cells |= {"params": short(one.num_params), "MB": decimals(one.size_mb, 2), "p50 ms": short(one.latency_ms_p50)}
    return cells | {"p95 ms": short(one.latency_ms_p95), "images/s": short(one.images_per_s)}


def _finalists(records: Records) -> Section:
    table = Table([], [])
    for rank, one in enumerate(records.summaries, start=1):
        words = {"#": str(rank), "configuration": one.config, **records.origin(one.config)}
        cells = words | _measured(records, one) | {"seeds": one.seeds}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
        table.marks[rank - 1] = ["best"] * (rank == 1) + ["baseline"] * records.is_default(one.config) + _tta(one)
    threads = next((row["threads"] for row in records.rows if row.get("threads")), None)
    device = next((row["device"] for row in records.rows if row.get("device")), records.device.get("name", "?"))
    table.note = (
        f"Ranked by mean validation {records.metric_name} over seeds (ties: lower validation loss, fewer parameters); "
        "the test split ranks nothing. In brackets: 95 % interval over seeds and images (of validation, and of test); "
        f"from few seeds it is rough itself. p50 and p95: latency of one image{_num_timed(records)} on {device}"
        + (f", {counted(threads, 'thread')}." if threads else ".")
    )
    text = [f"{one.config} stands on {one.failed}." for one in records.summaries if one.failures]
    if text:
        text.append("A configuration of which final trainings failed ranks below all others.")
    if any(one.test_accuracy.n and one.test_auc.n == 0 for one in records.summaries):
        table.note += " No AUC where the test split lacks a class."
    if any(_tta(one) for one in records.summaries):
        table.note += f" {FLIP_TTA}: {WHAT_FLIP_TTA}."
    return Section("Finalists", text, [table])


def _num_timed(records: Records) -> str:
    """Of how many images the latencies of one image are."""
    timed = [row["n"] for row in records.latency if row.get("batch_size") == 1 and row.get("n")]
    if not timed:
        return ""
    return f", n = {min(timed)}{'' if min(timed) == max(timed) else f' to {max(timed)}'} timed,"


FLIP_TTA = "flip TTA"
WHAT_FLIP_TTA = "each image is judged together with its mirror image, in all scores and in the latency"


def _tta(one: ConfigSummary) -> list[str]:
    return [FLIP_TTA] if one.tta == "flip" else []


def _families(records: Records) -> Section:
    section = Section("The best of each family")
    if not records.several_families:
        return section
    section.text = [" ".join(family_verdict(records.best_of_families, records.comparisons, records.metric))]
    winner = records.best_of_families[0].config
    by_name = {one.b: one for one in records.comparisons if one.a == winner}
    table = Table([], [], num_text=2)
    for index, one in enumerate(records.best_of_families):
        table.marks[index] = ["best"] * (index == 0) + _tta(one)
        cells = {"family": str(one.family), "configuration": one.config, **_measured(records, one)}
        del cells["p95 ms"]
        cells |= {"train s": "-" if one.train_s is None else f"{one.train_s:,.1f}"}
        if found := by_name.get(one.config):  # of the winner with this one
            cells |= _difference_cells(records, -found.difference, -found.high, -found.low)
        else:
            cells |= {_unit(records): "-", "95 % interval": "-"}
        table.columns = list(cells)
        table.rows.append(list(cells.values()))
    table.note = (
        f"The configuration of best mean validation {records.metric_name} of each family: what was found here, not all "
        "that a family can do. p50: latency of one image. train s: the training of one model, mean over seeds, without "
        "validation"
    )
    heads = [one for one in records.best_of_families if _trains_head_only(records.config(one.config, one.best_model))]
    table.note += " and without the features that a frozen backbone computed before." if heads else "."
    shown = [by_name[one.config] for one in records.best_of_families if one.config in by_name]
    if shown:
        table.note += f" {_about(records, shown, to=winner)}"
    section.tables.append(table)
    return section


def _trains_head_only(config: Row) -> bool:
    return bool((config.get("model") or {}).get("finetune") == "head")


def _unit(records: Records) -> str:
    """What differences of test scores are in: the heading of their column."""
    return "points" if records.metric == "accuracy" else records.metric_name


def _difference_cells(records: Records, difference: float, low: float, high: float) -> dict[str, str]:
    interval = f"{difference_text(low, records.metric)} to {difference_text(high, records.metric)}"
    return {_unit(records): difference_text(difference, records.metric), "95 % interval": interval}


def _about(records: Records, comparisons: list[Comparison], to: str = "") -> str:
    """What differences are, and what their intervals hold."""
    unit = ", in percentage points" if records.metric == "accuracy" else ""
    unit = f" to {to}{unit}" if to else unit
    text = (
        f"Difference of mean test {records.metric_name}{unit}. The interval counts both sources of noise, training "
        f"seeds and the {thousands(comparisons[0].num_images)} test images, the same for all models; from few seeds it "
        "is rough itself."
    )
    if not all(one.counts_seeds for one in comparisons):
        text += " Here it holds the test images alone where a configuration has one seed, and is then too narrow."
    return text


def headline_of(records: Records) -> str:
    """The verdict; before any final model is evaluated, the state of the search."""
    if records.summaries or not records.searched:
        names = [one.config for one in records.summaries]
        recipes = {name: records.recipe(name) for name in names if records.is_default(name)}
        # Where the default recipe of the same family is missing, that of another one tells more than none.
        default = (records.default_of(names[0], names) if names else None) or next(iter(recipes), None)
        return verdict(records.summaries, records.comparisons, records.metric, default, recipes)
    if not records.tried:
        return "No trial has finished yet, so there is nothing to recommend."
    best, count = records.tried[0], len(records.tried)
    score = records.score(best_value(best))
    return (
        f"No final model yet. The best of {counted(count, 'trial')} so far is {best['name']}, with validation "
        f"{records.metric_name} {score}: one seed, picked for being the best, so expect less of it on new images."
    )


def _gain(records: Records) -> Section:
    names = [one.config for one in records.summaries]
    defaults = [name for name in names if records.is_default(name)]
    several = sum(records.is_default(name) for name in records.family_of) > 1
    section = Section(f"What the search gained over the default recipe{'s' * several}")
    searched = search_gain(records)
    if searched:
        searched = f"In the search (validation {records.metric_name}, one seed each), {searched}."
        section.text.append(searched)
    if len(names) > 1 and names[0] in defaults:
        first = f"Over the final seeds {records.recipe(names[0])} itself ranks first: the search gained nothing"
        section.text.append(f"{first} over it." if several else f"{first}.")
    if not records.comparisons:
        return section
    own = records.default_of(names[0], names)
    table = Table([], [])
    # The default recipes first, and before all others that of the same family.
    for one in sorted(records.comparisons, key=lambda one: (one.b != own, not records.is_default(one.b))):
        told = "better" if one.low > 0 else "worse" if one.high < 0 else "cannot be told apart"
        told += "" if one.counts_seeds else ", by one seed"
        words = {f"{names[0]} against": one.b, **records.origin(one.b), "on the test split it": told}
        cells = words | _difference_cells(records, one.difference, one.low, one.high)
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
    table.note = _about(records, records.comparisons)
    if several and own not in (None, names[0]):
        table.note += f" What the search gained is the difference to {own}: other spaces start from other recipes."
    if not defaults:
        section.heading = "How the configurations compare"
    section.tables.append(table)
    return section


def _figures(records: Records) -> Section:
    configs = {row["model"]: str(row["config"]) for row in records.rows}
    drawn = [
        ("search", "Search: best value so far. Trials on the lower edge have no value, or one below this range",
         search_figure(records.trials, records.metric_name)),
        ("curves", "Final training: a line for each seed", curves_figure(records.histories, configs, records.styles)),
    ]  # fmt: skip
    return Section(
        "Figures", images=[Image(f"{name}.png", title, png(figure)) for name, title, figure in drawn if figure]
    )


def _errors(records: Records) -> Section:
    section = Section("Where the best model errs")
    model = records.summaries[0].best_model if records.summaries else ""
    if model not in records.predictions:
        return section
    probabilities, labels = records.predictions[model], records.predictions["labels"]  # (N, C), (N,)
    num_classes = probabilities.shape[1]
    pairs = labels * num_classes + probabilities.argmax(axis=1)
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)  # (true, predicted)
    names = [records.class_name(index) for index in range(num_classes)]
    totals, right = counts.sum(axis=1), counts.diagonal()
    section.text.append(
        f"{model} on the test split: {thousands(right.sum())} of {thousands(totals.sum())} images right."
    )
    title = "Confusion matrix: the darker, the larger the share of the true class"
    title += "; with numbers of test images" if num_classes <= 20 else ""
    section.images.append(Image("confusion.png", title, png(confusion_figure(counts, names)), wide=num_classes > 12))

    wrong = counts - np.diag(right)
    order = [divmod(int(i), num_classes) for i in np.argsort(-wrong, axis=None, kind="stable")[:6]]
    rows = [[names[i], names[j], str(wrong[i, j]), share(wrong[i, j], totals[i])] for i, j in order if wrong[i, j]]
    if rows:
        section.tables.append(
            Table(
                ["true", "predicted", "images", "share"],
                rows,
                "Most frequent confusions, with their share of the true class.",
                2,
            )
        )
    recall = np.where(totals > 0, right / np.maximum(totals, 1), np.inf)  # classes without images come last
    order_by_recall = np.argsort(recall, kind="stable")[:20]
    rows = [[names[i], str(totals[i]), share(right[i], totals[i])] for i in order_by_recall]
    note = "Recall by class, lowest first" + (f" (20 of {num_classes} classes)." if num_classes > 20 else ".")
    section.tables.append(Table(["class", "images", "recall"], rows, note))
    return section


def _json(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"  # the whole configuration, below the table, has all digits
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Row, prefix: str = "") -> dict[str, str]:
    """Dotted keys and the text of their values in a nested configuration."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _json(value)}
    return flat


def _configuration(records: Records) -> Section:
    section = Section("The best configuration")
    if records.summaries:
        name, model = records.summaries[0].config, records.summaries[0].best_model
    elif records.tried:
        name = model = records.tried[0]["name"]
    else:
        return section
    # Keys of another family say nothing about this one.
    default = records.default_of(name, records.family_of)
    values = _flat(records.config(name, model))
    base = _flat(records.config(default, f"{default}-seed0")) if default else {}
    if default and name == default:
        section.text.append(f"It is {records.recipe(name)}.")
    elif default and values and base:
        keys = [key for key in {**base, **values} if base.get(key) != values.get(key)]
        rows = [[key, base.get(key, "-"), values.get(key, "-")] for key in keys]
        note = f"Where {name} differs from {records.recipe(default)}; all else is the same."
        section.tables.append(Table(["key", default, name], rows, note, num_text=3))
    if values:
        section.folded = (f"Whole configuration of {name}", json.dumps(records.config(name, model), indent=2))
    return section


def _speed(records: Records) -> Section:
    section = Section("Speed")
    figure = speed_figure(records.summaries, records.styles, records.metric)
    if figure:
        title = f"Test {records.metric_name}, with its 95 % interval over seeds and images, against latency"
        title += "; a shape for each family" if records.several_families else ""
        section.images.append(Image("speed.png", title, png(figure)))
    columns = {"config": "configuration", "device": "device", "threads": "threads", "batch_size": "batch"}
    columns |= {"n": "n", "latency_ms_p50": "p50 ms", "latency_ms_p95": "p95 ms", "images_per_s": "images/s"}
    note = "Latency of a whole batch, over n of them"
    for name in ("threads", "device"):  # what is the same in every row goes into the note
        values = {row.get(name) for row in records.latency}
        if len(values) == 1:
            del columns[name]
            value = values.pop()
            note += "" if value is None else f", {counted(value, 'thread')}" if name == "threads" else f", on {value}"
    rows = []
    for row in records.latency:
        cells = [row.get(name) for name in columns]
        rows.append([short(cell) if isinstance(cell, float) else str(cell or "-") for cell in cells])
    if rows:
        section.tables.append(Table(list(columns.values()), rows, f"{note}.", num_text=2 if "device" in columns else 1))
    return section
