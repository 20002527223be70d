"""What a report says: the records of a run turned into sections of text, tables and images.

Knows nothing of HTML and Markdown, which only lay the sections out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cifar_ray import results
from cifar_ray.figures import COLOURS, GREYS, LINES, confusion_figure, curves_figure, png, search_figure, speed_figure
from cifar_ray.progress import duration
from cifar_ray.ranking import (
    TRIED,
    Comparison,
    ConfigSummary,
    Interval,
    best_of_families,
    best_value,
    compare_best,
    family_verdict,
    is_default,
    percent,
    points,
    summarise,
    verdict,
)
from cifar_ray.results import DEFAULT, Row, RunFolder

SECONDS = ("startup", "data", "capture", "train", "eval", "wait")
"""Kinds of trial seconds in trials.jsonl."""
STATES = {
    "complete": "reached its horizon or its patience",
    "pruned": "stopped early by ASHA",
    "infeasible": "over a limit, not trained",
    "failed": "ended by an error",
}


@dataclass
class Table:
    """Cells as text: the first `num_text` columns are words, the others numbers."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    num_text: int = 1
    marks: dict[int, list[str]] = field(default_factory=dict)
    """Labels of a row (by its index), such as `best`; they stand behind its last text cell."""
    shares: list[float] | None = None
    """A share in 0..1 for each row, drawn as a bar in its last cell."""


@dataclass
class Image:
    """A figure of evaluation/; a wide one takes the whole width of the page."""

    name: str
    title: str
    png: bytes
    wide: bool = False


@dataclass
class Section:
    """A heading with paragraphs, tables, images and folded code, in this order; one without any is left out."""

    heading: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    folded: tuple[str, str] | None = None


class Records:
    """All records of a run, read once; what is missing is empty."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.run: Row = results.read_json(folder.run_json)
        self.metric = str(self.run.get("metric") or "accuracy")
        self.metric_name = {"auc": "AUC", "f1": "F1"}.get(self.metric, self.metric)
        self.trials = results.read_trials(folder.trials_jsonl)
        self.rows = results.read_csv(folder.results_csv)
        self.latency = results.read_csv(folder.latency_csv)
        self.predictions = results.read_predictions(folder.predictions_npz)
        self.summaries = summarise(self.rows)
        self.comparisons = compare_best(self.rows, self.summaries, self.predictions)
        models = [model for one in self.summaries for model in one.models]
        self.histories = {name: results.read_csv(folder.model(name) / "history.csv") for name in models}
        self.data: Row = self.run.get("data") or {}
        self.device: Row = self.run.get("device") or {}
        self.phases = {name: s for name, s in (self.run.get("phases_s") or {}).items() if s is not None}
        self.space_of = {trial["name"]: str(trial.get("space")) for trial in self.trials}
        self.several_spaces = len(set(self.space_of.values())) > 1
        self.family_of = {trial["name"]: (trial.get("config") or {}).get("family") for trial in self.trials}
        self.family_of |= {one.config: one.family for one in self.summaries}
        self.best_of_families = best_of_families(self.summaries)
        self.several_families = len(self.best_of_families) > 1
        tried = [trial for trial in self.trials if trial["state"] in TRIED and best_value(trial) is not None]
        self.tried = sorted(tried, key=lambda trial: -best_value(trial))
        self.styles = {}
        defaults = sorted(one.config for one in self.summaries if is_default(one.config))
        for i, one in enumerate(self.summaries):
            colours, place = (GREYS, defaults.index(one.config)) if one.config in defaults else (COLOURS, i)
            line = LINES[place // len(colours) % len(LINES)]
            self.styles[one.config] = {"color": colours[place % len(colours)], "linestyle": line}

    def score(self, value: float | Interval | None) -> str:
        """The metric of the search as text: accuracy in percent, others as fractions."""
        if self.metric == "accuracy":
            return f"{percent(value)} %"
        return decimals(value.mean if isinstance(value, Interval) else value)

    def default_of(self, name: str, among: Iterable[str]) -> str | None:
        """The default recipe in `among` that a configuration is to be measured by: its family's, of its space first."""
        family = [one for one in among if is_default(one) and self.family_of.get(one) == self.family_of.get(name)]
        space = self.space_of.get(name)
        return min(family, key=lambda one: (self.space_of.get(one) != space, one != DEFAULT), default=None)

    def recipe(self, default: str) -> str:
        """What to call a default recipe."""
        if not (self.several_spaces or self.several_families):
            return "the default recipe"
        return f"the default recipe of {self.space_of.get(default) or self.family_of.get(default)}"

    def origin(self, name: str) -> Row:
        """A cell that tells where a configuration comes from, where that differs within the run."""
        if self.several_spaces:
            return {"space": self.space_of.get(name, "-")}
        return {"family": self.family_of.get(name) or "-"} if self.several_families else {}

    def class_name(self, index: int) -> str:
        names = self.data.get("class_names") or []
        return str(names[index]) if index < len(names) else str(index)

    def config(self, name: str, model: str) -> Row:
        """The configuration of that name, from the trials or else from the saved model."""
        for trial in self.trials:
            if trial["name"] == name and trial.get("config"):
                return trial["config"]
        path = self.folder.model(model) / "config.json"
        saved: Row = results.read_json(path) if path.exists() else {}
        return saved.get("config", saved)


def decimals(value: float | None, digits: int = 4) -> str:
    """A number of so many decimals, or `-`."""
    return "-" if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """Three significant digits, with thousands and millions as `12.3k` and `1.23M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value is not None and abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return "-" if value is None else f"{value:.3g}"


def _thousands(count: Any) -> str:
    return "?" if count is None else f"{int(count):,}"


def _of(count: Any, thing: str) -> str:
    return f"{'?' if count is None else count} {thing}{'' if count == 1 else 's'}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def sections_of(records: Records) -> list[Section]:
    """All sections in the order of the report, without those that the run has no records for."""
    sections = [_finalists(records) if records.summaries else _best_trials(records), _families(records)]
    sections += [_gain(records), _figures(records), _errors(records), _speed(records), _configuration(records)]
    sections += [_trials(records), _ledger(records)]
    return [one for one in sections if one.text or one.tables or one.images or one.folded]


def facts_of(records: Records) -> list[tuple[str, str]]:
    """Label and text of the key facts."""
    run, data, device = records.run, records.data, records.device
    splits = [f"{_thousands(data.get(f'num_{split}'))} {split}" for split in ("train", "val", "test")]
    side = data.get("image_size", "?")
    size = f"{side} x {side} pixels, {'grayscale' if data.get('channels') == 1 else 'colour'}"
    used = f"{_of(device.get('num_cpus'), 'CPU')}, {_of(device.get('num_gpus'), 'GPU')}, "
    used += f"{_of(device.get('slots'), 'trial')} at a time"
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
    cells |= {"val acc %": percent(one.val_accuracy), "test acc %": percent(one.test_accuracy)}
    cells["test AUC"] = decimals(one.test_auc.mean)
    if records.metric == "f1":
        cells["test F1"] = decimals(one.test_f1.mean)
    cells |= {"params": short(one.num_params), "MB": decimals(one.size_mb, 2), "p50 ms": short(one.latency_ms_p50)}
    return cells | {"p95 ms": short(one.latency_ms_p95), "images/s": short(one.images_per_s)}


def _finalists(records: Records) -> Section:
    table = Table([], [])
    for rank, one in enumerate(records.summaries, start=1):
        words = {"#": str(rank), "configuration": one.config, **records.origin(one.config)}
        cells = words | _measured(records, one) | {"seeds": str(len(one.models))}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
        table.marks[rank - 1] = ["best"] * (rank == 1) + ["baseline"] * is_default(one.config)
    threads = next((row["threads"] for row in records.rows if row.get("threads")), None)
    device = next((row["device"] for row in records.rows if row.get("device")), records.device.get("name", "?"))
    table.note = (
        f"Ranked by mean validation {records.metric_name} over seeds (ties: lower validation loss, fewer parameters); "
        "the test split ranks nothing. ± is half the width of a 95 % Student's t interval over seeds. p50 and p95: "
        f"latency of one image on {device}" + (f", {_of(threads, 'thread')}." if threads else ".")
    )
    if any(one.test_accuracy.n and one.test_auc.n == 0 for one in records.summaries):
        table.note += " No AUC where the test split lacks a class."
    return Section("Finalists", tables=[table])


def _families(records: Records) -> Section:
    section = Section("The best of each family")
    if not records.several_families:
        return section
    section.text = [" ".join(family_verdict(records.best_of_families, records.comparisons, records.metric_name))]
    winner = records.best_of_families[0].config
    by_name = {one.b: one for one in records.comparisons if one.a == winner}
    table = Table([], [], num_text=2, marks={0: ["best"]})
    for one in records.best_of_families:
        cells = {"family": str(one.family), "configuration": one.config, **_measured(records, one)}
        del cells["p95 ms"]
        cells |= {"train s": "-" if one.train_s is None else f"{one.train_s:,.1f}", "points": "-", "95 % interval": "-"}
        if found := by_name.get(one.config):  # of the winner with this one
            cells["points"] = points(-found.difference)
            cells["95 % interval"] = f"{points(-found.high)} to {points(-found.low)}"
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
        table.note += f" Points: difference of mean test accuracy to {winner}, in percentage points. {_about(shown)}"
    section.tables.append(table)
    return section


def _trains_head_only(config: Row) -> bool:
    return bool((config.get("model") or {}).get("finetune") == "head")


def _about(comparisons: list[Comparison]) -> str:
    """What the intervals of comparisons hold."""
    text = (
        "The interval counts both sources of noise, training seeds and the "
        f"{_thousands(comparisons[0].num_images)} test images (two-level paired bootstrap); from few seeds it is rough "
        "itself."
    )
    if not all(one.counts_seeds for one in comparisons):
        text += " Here it holds the test images alone where a configuration has one seed, and is then too narrow."
    return text


def _best_trials(records: Records) -> Section:
    table = Table([], [])
    for trial in records.tried[:10]:
        best = trial["best"]
        words = {"trial": trial["name"], **records.origin(trial["name"]), "state": trial["state"]}
        cells = words | {"epochs": str(trial.get("epochs", "-"))}
        cells[f"val {records.metric_name}"] = records.score(best["val_metric"])
        cells |= {"val loss": decimals(best.get("val_loss"), 3), "params": short(trial.get("num_params"))}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
    text = "No final model has been evaluated, so this report shows the search alone: one seed a trial, no test split."
    return Section("Best trials so far", [text], [table] if table.rows else [])


def headline_of(records: Records) -> str:
    """The verdict; before any final model is evaluated, the state of the search."""
    if records.summaries:
        names = [one.config for one in records.summaries]
        recipes = {name: records.recipe(name) for name in names if is_default(name)}
        # Where the default recipe of the same family is missing, that of another one tells more than none.
        default = records.default_of(names[0], names) or next(iter(recipes), DEFAULT)
        return verdict(records.summaries, records.comparisons, records.metric_name, default, recipes)
    if not records.tried:
        return "No trial has finished yet, so there is nothing to recommend."
    best, count = records.tried[0], len(records.tried)
    score = records.score(best_value(best))
    return (
        f"No final model yet. The best of {_of(count, 'trial')} so far is {best['name']}, with validation "
        f"{records.metric_name} {score}: one seed, picked for being the best, so expect less of it on new images."
    )


def _gain(records: Records) -> Section:
    names = [one.config for one in records.summaries]
    defaults = [name for name in names if is_default(name)]
    several = sum(is_default(name) for name in records.family_of) > 1
    section = Section(f"What the search gained over the default recipe{'s' * several}")
    searched = _searched(records)
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
    for one in sorted(records.comparisons, key=lambda one: (one.b != own, not is_default(one.b))):
        told = "better" if one.low > 0 else "worse" if one.high < 0 else "cannot be told apart"
        told += "" if one.counts_seeds else ", by one seed"
        words = {f"{names[0]} against": one.b, **records.origin(one.b), "on the test split it": told}
        cells = words | {"points": points(one.difference), "95 % interval": f"{points(one.low)} to {points(one.high)}"}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
    table.note = f"Difference of mean test accuracy in percentage points. {_about(records.comparisons)}"
    if several and own not in (None, names[0]):
        table.note += f" What the search gained is the difference to {own}: other spaces start from other recipes."
    if not defaults:
        section.heading = "How the configurations compare"
    section.tables.append(table)
    return section


def _searched(records: Records) -> str:
    """What the trials of each space gained over its default recipe, in words; empty where nothing says it."""
    spaces = defaultdict(list)
    for trial in records.tried:  # best first
        spaces[records.space_of[trial["name"]]].append(trial)
    said = []
    for space, tried in sorted(spaces.items(), key=lambda item: min(trial["number"] for trial in item[1])):
        default = next((trial for trial in tried if is_default(trial["name"])), None)
        if default is None or len(tried) == 1:
            continue
        reached = f"{records.recipe(default['name'])} reached {records.score(best_value(default))}"
        if tried[0] is default:
            said.append(f"{reached} and none of the other {len(tried) - 1} trials did better")
        else:
            of_space = f" of {space}" if records.several_spaces else ""
            best = f"the best trial{of_space}, {tried[0]['name']}"
            said.append(f"{reached} and {best}, {records.score(best_value(tried[0]))}")
    return "; ".join(said)


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
        f"{model} on the test split: {_thousands(right.sum())} of {_thousands(totals.sum())} images right."
    )
    title = "Confusion matrix: the darker, the larger the share of the true class"
    title += "; with numbers of test images" if num_classes <= 20 else ""
    section.images.append(Image("confusion.png", title, png(confusion_figure(counts, names)), wide=num_classes > 12))

    wrong = counts - np.diag(right)
    order = [divmod(int(i), num_classes) for i in np.argsort(-wrong, axis=None, kind="stable")[:6]]
    rows = [[names[i], names[j], str(wrong[i, j]), _share(wrong[i, j], totals[i])] for i, j in order if wrong[i, j]]
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
    rows = [[names[i], str(totals[i]), _share(right[i], totals[i])] for i in order_by_recall]
    note = "Recall by class, lowest first" + (f" (20 of {num_classes} classes)." if num_classes > 20 else ".")
    section.tables.append(Table(["class", "images", "recall"], rows, note))
    return section


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Row, prefix: str = "") -> dict[str, str]:
    """Dotted keys and JSON text of a nested configuration."""
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


def _trials(records: Records) -> Section:
    states = Counter(trial["state"] for trial in records.trials)
    rows = [[state, meaning, str(states[state])] for state, meaning in STATES.items() if states[state]]
    section = Section("Trials", tables=[Table(["state", "meaning", "trials"], rows, num_text=2)] if rows else [])
    lost = [trial for trial in records.trials if trial["state"] in ("failed", "infeasible")]
    reasons = Counter((one["state"], " ".join(str(one.get("reason") or "unknown").split())[:200]) for one in lost)
    if reasons:
        rows = [[state, reason, str(count)] for (state, reason), count in reasons.most_common(12)]
        section.tables.append(Table(["state", "reason", "trials"], rows, num_text=2))
    section.tables += _spaces(records)
    section.text += _heads(records)
    return section


def _spaces(records: Records) -> list[Table]:
    """The states and the best value of the trials of each space, and of each family within it; none of a single one."""
    families = defaultdict(set)
    for trial in records.trials:
        families[records.space_of[trial["name"]]].add(records.family_of[trial["name"]])
    groups = defaultdict(list)
    for trial in records.trials:
        space = records.space_of[trial["name"]]
        known = [str(family) for family in families[space] if family]
        # A trial without a valid configuration belongs where all others of its space do.
        family = records.family_of[trial["name"]] or (known[0] if len(known) == 1 else "-")
        groups[space, str(family)].append(trial)
    if len(groups) < 2:
        return []
    states = [state for state in STATES if any(trial["state"] == state for trial in records.trials)]
    named_alike = all(space == family for space, family in groups)
    rows = []
    for (space, family), trials in groups.items():
        counts = Counter(trial["state"] for trial in trials)
        names = {trial["name"] for trial in trials}
        best = next((trial for trial in records.tried if trial["name"] in names), None)  # best first
        row = [space, *([] if named_alike else [family]), best["name"] if best else "-"]
        row += [records.score(best_value(best)) if best else "-", *(str(counts[state]) for state in states)]
        rows.append([*row, str(len(trials))])
    words = ["space", *([] if named_alike else ["family"]), "best trial"]
    columns = [*words, f"best val {records.metric_name}", *states, "trials"]
    note = "Best value: validation, one seed, and the largest of many, so expect less of it on new images."
    return [Table(columns, rows, note, num_text=len(words))]


def _heads(records: Records) -> list[str]:
    """How many trials trained a head on features that were computed before, and what these took."""
    features = [trial["features"] for trial in records.trials if trial.get("features")]
    if not features:
        return []
    views = sorted(Counter(one["views"] for one in features).items())
    if len(views) == 1:
        of = f"for {_of(views[0][0], 'view')} of each training image"
    else:
        of = ", ".join(f"in {_of(count, 'trial')} for {_of(number, 'view')}" for number, count in views)
        of += " of each training image"
    seconds = sum(one.get("seconds") or 0.0 for one in features)
    return [
        f"{len(features)} of {_of(len(records.trials), 'trial')} trained a head alone, on features that a frozen "
        f"backbone computed once ({of}); computing or loading them took {duration(seconds)} in all."
    ]


def _ledger(records: Records) -> Section:
    section = Section("Where the time went")
    total = sum(records.phases.values())
    if total > 0:
        phases = records.phases.items()
        rows = [[phase, duration(s), _share(s, total)] for phase, s in phases] + [["all", duration(total), "100.0 %"]]
        shares = [s / total for _, s in phases]
        section.tables.append(
            Table(["phase", "wall-clock", "share"], rows, "Phases of the run.", shares=[*shares, 0.0])
        )
    slots = records.device.get("slots") or 1
    # A search that was cut short has not recorded its length: its last trial says how long it was at least.
    search_s = records.phases.get("search") or max((one.get("ended_s") or 0.0 for one in records.trials), default=0.0)
    if records.trials and search_s > 0:
        seconds = {kind: sum((one.get("seconds") or {}).get(kind) or 0.0 for one in records.trials) for kind in SECONDS}
        seconds["unaccounted"] = slots * search_s - sum(seconds.values())
        rows = [[kind, duration(s), _share(s, slots * search_s)] for kind, s in seconds.items()]
        note = f"Trial seconds of the search, as shares of its slot time: {_of(slots, 'slot')} x {duration(search_s)}."
        shares = [max(s / (slots * search_s), 0.0) for s in seconds.values()]
        section.tables.append(Table(["trial seconds", "sum", "share"], rows, note, shares=shares))
    return section


def _speed(records: Records) -> Section:
    section = Section("Speed")
    figure = speed_figure(records.summaries, records.styles)
    if figure:
        title = "Test accuracy, with its 95 % interval over seeds, against latency"
        title += "; a shape for each family" if records.several_families else ""
        section.images.append(Image("speed.png", title, png(figure)))
    columns = {"config": "configuration", "device": "device", "threads": "threads", "batch_size": "batch"}
    columns |= {"latency_ms_p50": "p50 ms", "latency_ms_p95": "p95 ms", "images_per_s": "images/s"}
    note = "Latency of a whole batch"
    for name in ("threads", "device"):  # what is the same in every row goes into the note
        values = {row.get(name) for row in records.latency}
        if len(values) == 1:
            del columns[name]
            value = values.pop()
            note += "" if value is None else f", {_of(value, 'thread')}" if name == "threads" else f", on {value}"
    rows = []
    for row in records.latency:
        cells = [row.get(name) for name in columns]
        rows.append([short(cell) if isinstance(cell, float) else str(cell or "-") for cell in cells])
    if rows:
        section.tables.append(Table(list(columns.values()), rows, f"{note}.", num_text=2 if "device" in columns else 1))
    return section
