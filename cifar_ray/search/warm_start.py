"""What a search tries before it draws anything: the best configurations of other runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_ray.config import Task
from cifar_ray.errors import InputError
from cifar_ray.results.records import RunFolder, State, read_trials
from cifar_ray.search.mutation import Params, draw
from cifar_ray.search.space import Space

NUM_BEST = 3
"""Of the trials of a run, those that are tried: as many as are finalists by default."""


@dataclass(frozen=True)
class WarmStart:
    """A trial of another run, as this run's space gives it."""

    trial: str
    params: Params
    left_out: tuple[str, ...]
    """Names of parameters that it had, and that this space does not draw, or not with that value."""


def warm_starts(run: Path, spaces: Sequence[Space], task: Task) -> dict[str, list[WarmStart]]:
    """Return the best complete trials of a run, the best one first, by space.

    What a trial does not say, or this space would not draw, is as in the default recipe, if that says it.

    Raises:
        InputError: it is no search, or one of other spaces, or none of its trials has come to its end.
    """
    where = f"--warm-start: {run}"
    folder = RunFolder(run)
    if not folder.trials_jsonl.is_file():
        raise InputError(f"{where}: has no trials of a search (trials.jsonl); give the folder of a run of tune")
    trials = read_trials(folder.trials_jsonl)
    names = [space.name for space in spaces]
    others = sorted({str(trial.get("space")) for trial in trials})
    if not set(names) & set(others):
        raise InputError(
            f"{where}: searched {', '.join(others) or 'nothing'}, and not {' or '.join(names)}; give a run of that"
        )
    complete = [trial for trial in trials if trial["state"] == State.COMPLETE and trial["params"]]
    complete.sort(key=lambda trial: (-trial["best"]["val_metric"], trial["best"]["val_loss"], trial["number"]))
    found = {space.name: [trial for trial in complete if trial["space"] == space.name] for space in spaces}
    if not any(found.values()):
        raise InputError(f"{where}: none of its trials has come to its end; give another run, or resume that one")
    return {
        name: [_carried_over(trial["name"], trial["params"], space, task) for trial in found[name][:NUM_BEST]]
        for name, space in zip(names, spaces, strict=True)
    }


def _carried_over(name: str, params: Params, space: Space, task: Task) -> WarmStart:
    like = {**space.default_params(task), **params}
    carried = draw(space, task, np.random.default_rng(0), like, ()).params
    left_out = tuple(key for key, value in params.items() if key not in carried or carried[key] != value)
    return WarmStart(name, carried, left_out)
