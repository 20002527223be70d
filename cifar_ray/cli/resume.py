"""The settings of a run that is taken up again, or begun."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from cifar_ray.cli.flags import TrainingSettings
from cifar_ray.cli.parser import option_of
from cifar_ray.errors import InputError
from cifar_ray.files import read_json
from cifar_ray.results.records import RunFolder

Run = TypeVar("Run", bound=TrainingSettings)

NOT_OF_THE_RUN = ("resume", "runs_dir", "address")
"""Flags that may differ when a run is taken up again."""


def run_settings(kind: type[Run], command: str, given: Mapping[str, Any]) -> Run:
    """The settings of a run from the flags `given`, or from the run that `--resume` names.

    Raises:
        InputError: there is no such run, or another flag contradicts it.
    """
    if given.get("resume") is None:
        return kind(**given)
    folder = _find_run(given["resume"], given.get("runs_dir", kind.runs_dir))
    try:
        about = read_json(folder.run_json)
    except InputError as error:
        raise InputError(f"--resume: {error}; start a new run") from None
    if not isinstance(about, dict) or about.get("kind") != command:
        begun = about.get("kind") if isinstance(about, dict) else None
        hint = f"it was begun by cifar_ray.{begun}: resume it with that" if begun else "its run.json is from elsewhere"
        raise InputError(f"--resume: {folder.root} cannot be taken up by cifar_ray.{command}: {hint}")
    try:
        # From JSON back into their types: paths from text, tuples from lists.
        recorded = pydantic.TypeAdapter(kind).validate_python(about.get("settings"))
    except pydantic.ValidationError as error:
        where, why = "/".join(map(str, error.errors()[0]["loc"])) or "settings", error.errors()[0]["msg"]
        raise InputError(f"--resume: {folder.run_json}: {where}: {why}; start a new run") from None
    recorded = replace(recorded, name=folder.root.name, runs_dir=folder.root.parent, resume=str(folder.root))
    extended = {name: given[name] for name in kind.extendable if given.get(name) is not None}
    for name in given.keys() - set(NOT_OF_THE_RUN):
        value, began = given[name], getattr(recorded, name)
        if value == began or (name in extended and began is not None and value > began):
            continue
        what, remedy = f"{value} contradicts {began} of the run {folder.root}", "leave it out, or start a new run"
        if name in extended and began is not None:
            what, remedy = f"{value} is less than the {began} of the run {folder.root}", "a run can only be extended"
        raise InputError(f"{option_of(name)}: {what}; {remedy}")
    return replace(recorded, **extended, address=given.get("address", recorded.address))


def _find_run(name: str, runs_dir: Path) -> RunFolder:
    tried = [Path(name).expanduser().absolute(), (runs_dir / name).absolute()]
    for folder in tried:
        if os.path.isfile(RunFolder(folder).run_json):  # False, too, for what may not be looked at
            return RunFolder(folder)
    raise InputError(f"--resume: no run in {tried[0]} nor in {tried[1]}: give the name or the folder of a run")
