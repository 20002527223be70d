"""The records of a run as a report needs them: read once, with what follows from several of them."""

from __future__ import annotations

from collections.abc import Iterable

from cifar_ray.files import read_json
from cifar_ray.results.card import recorded_config
from cifar_ray.results.ranking import best_of_families, best_value, compare_best, is_default, summarise
from cifar_ray.results.records import DEFAULT, TRIED, Row, RunFolder, read_csv, read_name, read_predictions, read_trials
from cifar_ray.results.statistics import METRIC_NAMES


class Records:
    """All records of a run, read once; what is missing is empty."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.run: Row = read_json(folder.run_json)
        self.metric = str(self.run.get("metric") or "accuracy")
        self.metric_name = METRIC_NAMES[self.metric]
        self.searched = self.run.get("kind") != "train"
        self.trials = read_trials(folder.trials_jsonl)
        self.rows = read_csv(folder.results_csv)
        for row in self.rows:
            read_name(row, "model", str(folder.results_csv))  # its folder is read below
        self.latency = read_csv(folder.latency_csv)
        self.predictions = read_predictions(folder.predictions_npz)
        self.data: Row = self.run.get("data") or {}
        self.summaries = summarise(self.rows, self.data.get("num_val"), self.predictions)
        self.comparisons = compare_best(self.rows, self.summaries, self.predictions, self.metric)
        models = [model for one in self.summaries for model in one.models]
        self.histories = {name: read_csv(folder.model(name) / "history.csv") for name in models}
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

    def is_default(self, name: str) -> bool:
        """Whether that is a default recipe of the search; a named model may be called what it likes."""
        return self.searched and is_default(name)

    def default_of(self, name: str, among: Iterable[str]) -> str | None:
        """The default recipe in `among` that a configuration is to be measured by: its family's, of its space first."""
        family = [one for one in among if self.is_default(one) and self.family_of.get(one) == self.family_of.get(name)]
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
        return recorded_config(self.folder.model(model))
