"""The records of a run as a report needs them: each read once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from statistics import fmean

import numpy as np

from cifar_ray.files import read_json
from cifar_ray.results.config_json import recorded_config
from cifar_ray.results.ranking import (
    ConfigSummary,
    best_of_families,
    best_value,
    compare_best,
    is_default,
    summarise,
)
from cifar_ray.results.records import (
    DEFAULT,
    TRIED,
    Row,
    RunFolder,
    read_csv,
    read_examples,
    read_name,
    read_predictions,
    read_samples,
    read_trials,
    slot_seconds,
)
from cifar_ray.results.statistics import METRIC_NAMES, Comparison, compare, image_scores


class Records:
    """All records of a run; what is missing is empty.

    Raises:
        InputError: there is no run.json, or it is broken; any other record that is broken raises when it is asked for.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.run: Row = read_json(folder.run_json)

    # What run.json says.

    @property
    def metric(self) -> str:
        return str(self.run.get("metric") or "accuracy")

    @property
    def metric_name(self) -> str:
        return METRIC_NAMES[self.metric]

    @property
    def searched(self) -> bool:
        """Whether there was a search, and not a training or an evaluation of named models."""
        return self.run.get("kind") not in ("train", "ablate", "evaluate", "report")

    @property
    def ablated(self) -> bool:
        """Whether it was a designed experiment around a base configuration."""
        return self.run.get("kind") == "ablate"

    @property
    def data(self) -> Row:
        return self.run.get("data") or {}

    @property
    def device(self) -> Row:
        return self.run.get("device") or {}

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """Images of each class, by split; older runs have none."""
        return self.data.get("class_counts") or {}

    @property
    def test_readings(self) -> Row:
        """How often the test split was read: `readings` in so many `runs`, or `error`. Older runs do not know."""
        return self.run.get("test_readings") or {}

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase that has come to its end."""
        return {name: s for name, s in (self.run.get("phases_s") or {}).items() if s is not None}

    @property
    def slot_seconds(self) -> dict[str, dict[str, float]]:
        """Where the time of the slots went, by phase and kind, see `records.slot_seconds`."""
        of_trials = [trial.get("seconds") or {} for trial in self.trials]
        spent = {phase: [seconds] for phase, seconds in (self.run.get("slots_s") or {}).items()} | {"search": of_trials}
        # A search that was cut short has not recorded its length: its last trial says how long it was at least.
        ended_s = max((trial.get("ended_s") or 0.0 for trial in self.trials), default=0.0)
        lengths = {"search": ended_s, **self.phases}
        slots = self.device.get("slots") or 1
        return {phase: slot_seconds(spent[phase], slots * s) for phase, s in lengths.items() if spent.get(phase) and s}

    # What the other files hold.

    @cached_property
    def trials(self) -> list[Row]:
        return read_trials(self.folder.trials_jsonl)

    @cached_property
    def rows(self) -> list[Row]:
        """Of results.csv."""
        rows = read_csv(self.folder.results_csv)
        for row in rows:
            read_name(row, "model", str(self.folder.results_csv))  # its folder is read for `histories`
        return rows

    @cached_property
    def latency(self) -> list[Row]:
        return read_csv(self.folder.latency_csv)

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        return read_predictions(self.folder.predictions_npz)

    @cached_property
    def quality(self) -> list[Row]:
        """Of quality.csv: the scores of each final model on each split."""
        return read_csv(self.folder.quality_csv)

    @cached_property
    def classes(self) -> list[Row]:
        """Of classes.csv: the scores of each final model on each class of each split."""
        return read_csv(self.folder.classes_csv)

    @cached_property
    def robustness(self) -> list[Row]:
        """Of robustness.csv: the accuracy of some models on corrupted test images."""
        return read_csv(self.folder.robustness_csv)

    @cached_property
    def sweep(self) -> list[Row]:
        """Of sweep.csv: the trainings that found the learning rates of an ablation's levels."""
        return read_csv(self.folder.sweep_csv)

    @cached_property
    def examples(self) -> dict[int, np.ndarray]:
        """Thumbnails (C, H, W) uint8 by index into the test split, of the images that `find_examples` chooses."""
        return read_examples(self.folder.examples_npz)

    @cached_property
    def samples(self) -> dict[int, np.ndarray]:
        """Thumbnails (K, C, H, W) uint8 of training images by class."""
        return read_samples(self.folder.samples_npz)

    @cached_property
    def histories(self) -> dict[str, list[Row]]:
        """Rows of history.csv of each final model."""
        models = [model for one in self.summaries for model in one.models]
        return {name: read_csv(self.folder.model(name) / "history.csv") for name in models}

    @cached_property
    def design(self) -> Row:
        """Of an ablation: what design.json says."""
        return read_json(self.folder.design_json) if self.folder.design_json.exists() else {}

    @cached_property
    def ablation_runs(self) -> list[Row]:
        """Of runs.csv: one row for each training of an ablation."""
        return read_csv(self.folder.runs_csv)

    @cached_property
    def effects(self) -> list[Row]:
        """Of effects.csv: one row for each outcome and each arm of an ablation but its base."""
        return read_csv(self.folder.effects_csv)

    # What follows from several of them.

    @cached_property
    def summaries(self) -> list[ConfigSummary]:
        return summarise(self.rows, self.data.get("num_val"), self.predictions)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return compare_best(self.rows, self.summaries, self.predictions, self.metric)

    @cached_property
    def best_of_families(self) -> list[ConfigSummary]:
        return best_of_families(self.summaries)

    def mean_quality(self, config: str, split: str, column: str) -> float | None:
        """A score of a configuration on a split, the mean over its seeds; None where it is not recorded."""
        rows = [row for row in self.quality if row["config"] == config and row["split"] == split]
        known = [row[column] for row in rows if row.get(column) is not None]
        return fmean(known) if known else None

    def comparison(self, a: str, b: str, metric: str) -> Comparison | None:
        """How two configurations compare on test by any metric; None where their predictions do not tell."""
        labels = self.predictions.get("labels", np.zeros(0, np.int64))
        for config in (a, b):
            models = [row["model"] for row in self.rows if row["config"] == config and row["model"] in self.predictions]
            if not models or image_scores(metric, self.predictions[models[0]], labels) is None:
                return None
        return compare(self.rows, a, b, self.predictions, metric)

    @property
    def several_families(self) -> bool:
        return len(self.best_of_families) > 1

    @cached_property
    def tried(self) -> list[Row]:
        """The trials whose best value counts, best first."""
        tried = [trial for trial in self.trials if trial["state"] in TRIED and best_value(trial) is not None]
        return sorted(tried, key=lambda trial: -best_value(trial))

    @cached_property
    def space_of(self) -> dict[str, str]:
        """The space of each trial."""
        return {trial["name"]: str(trial.get("space")) for trial in self.trials}

    @property
    def several_spaces(self) -> bool:
        return len(set(self.space_of.values())) > 1

    @cached_property
    def family_of(self) -> dict[str, str | None]:
        """The family of each trial and each final configuration, where it is known."""
        of_trials = {trial["name"]: (trial.get("config") or {}).get("family") for trial in self.trials}
        return of_trials | {one.config: one.family for one in self.summaries}

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

    def trains_head_only(self, one: ConfigSummary) -> bool:
        """Whether a configuration trains a head on features that a frozen backbone computed before."""
        return (self.config(one.config, one.best_model).get("model") or {}).get("finetune") == "head"
