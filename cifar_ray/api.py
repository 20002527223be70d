"""The commands as Python functions: in a notebook they show their progress, and give back the run.

Each command runs in a process of its own, as in a terminal: it is the same code with the same flags, it takes its
memory and Ray with it when it ends, and an interrupted cell ends it as Ctrl-C does.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cifar_ray.cli.flags import (
    AblateSettings,
    EvaluateSettings,
    PredictSettings,
    RunSettings,
    TrainSettings,
    TuneSettings,
)
from cifar_ray.cli.parser import option_of, parse_flags
from cifar_ray.cli.resume import run_settings
from cifar_ray.errors import InputError
from cifar_ray.results.records import RunFolder, read_csv, run_name

Function = TypeVar("Function", bound=Callable[..., Any])

REPORT_HEIGHT = 800
"""Of a report in a notebook, in pixels."""


class Report(os.PathLike[str]):
    """The report of a run, a file; as the value of a notebook's cell it is drawn below it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        # In a document of its own, so that its style and the notebook's do not mix.
        page = html.escape(self.path.read_text())
        return f'<iframe srcdoc="{page}" width="100%" height="{REPORT_HEIGHT}" style="border: 0"></iframe>'


class Run:
    """A run that has ended, or any run's folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises InputError where there is no run."""
        self._files = RunFolder(Path(folder).absolute())
        if not self._files.run_json.is_file():
            raise InputError(f"{self.folder}: is no run; give the folder of one, such as runs/NAME")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """What it left."""
        return self._files.root

    @property
    def results(self) -> Any:
        """A row for each final model: scores, size, speed. A pandas DataFrame, or a list of dicts without pandas."""
        return self.table("evaluation/results.csv")

    def table(self, path: str) -> Any:
        """Another of its CSV files in the same form, such as `ablation/effects.csv`; without rows where it has none."""
        rows = read_csv(self.folder / path)
        try:
            import pandas  # takes half a second to import
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    @property
    def report(self) -> Report:
        """Its report."""
        return Report(self._files.report_html)

    @property
    def best(self) -> Path | None:
        """Folder of the model to take, for `load_model` and `predict`; None where there is none."""
        return self._files.best if self._files.best.is_dir() else None


def _with_flags_of(settings: type) -> Callable[[Function], Function]:
    """Show the flags of a command in the signature and the docstring of its function."""

    def decorate(function: Function) -> Function:
        fields = dataclasses.fields(settings)
        parameters = [
            inspect.Parameter(f.name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            if f.metadata["positional"]
            else inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
            for f in sorted(fields, key=lambda field: not field.metadata["positional"])
        ]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        helps = "\n".join(f"    {f.name}: {f.metadata['help'].replace('%%', '%')}" for f in fields)
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nFlags:\n{helps}\n"
        return function

    return decorate


@_with_flags_of(TuneSettings)
def tune(**flags: Any) -> Run | None:
    """Search a space for the best model, train the finalists over several seeds, evaluate them, write a report.

    What is said on the way is printed. The values of flags are numbers and texts as on the command line; where a flag
    may be given several times, a list of them; and of `set` a dict as well: `set={"model/dropout": 0.2}`. Returns the
    run; None with `dry_run`.

    Raises:
        InputError: bad input, in one line; a flag is named as on the command line.
        KeyboardInterrupt: the cell was interrupted; `tune(resume=NAME)` goes on.
        RuntimeError: the command failed otherwise, as the lines that it printed say.
    """
    return _run("tune", TuneSettings, flags)


@_with_flags_of(TrainSettings)
def train(**flags: Any) -> Run | None:
    """Train named models over several seeds, evaluate them, write a report.

    Values, errors and what is returned (None with `show`) are as those of `tune`.
    """
    return _run("train", TrainSettings, flags)


@_with_flags_of(AblateSettings)
def ablate(**flags: Any) -> Run | None:
    """Change one thing at a time in a configuration, its base, and tell what each change does to it.

    Values, errors and what is returned (None with `dry_run`) are as those of `tune`. The effects are in
    `run.table("ablation/effects.csv")`.
    """
    return _run("ablate", AblateSettings, flags)


@_with_flags_of(EvaluateSettings)
def evaluate(models: Any, **flags: Any) -> Run:
    """Score and time one or several saved models, and all those of runs, on labelled images, and write a report.

    Values, errors and what is returned are as those of `tune`.
    """
    run = _run("evaluate", EvaluateSettings, {"models": models, **flags})
    assert run is not None
    return run


@_with_flags_of(PredictSettings)
def predict(model: Any, images: Any, **flags: Any) -> list[dict[str, Any]]:
    """Classify images, and those in folders, with a saved model, in this process.

    Returns a dict for each image, as `python -m cifar_ray.predict --json` prints them: `image`, `class`, `probability`,
    `probabilities` by class, and with `at_least` `abstains`; or `image` and `error` where one cannot be read.

    Raises:
        InputError: there is no such model, or no such image.
    """
    arguments = _arguments(PredictSettings, {"model": model, "images": images, **flags})
    settings = PredictSettings(**parse_flags(PredictSettings, "predict", arguments))
    import torch  # takes seconds to import

    from cifar_ray.evaluation.predictions import classify, find_images, prediction
    from cifar_ray.models.saved import load_model
    from cifar_ray.results.config_json import read_card, temperature_of

    _, card = read_card(settings.model)
    files = find_images(settings.images)
    loaded = load_model(settings.model, "cuda" if torch.cuda.is_available() else "cpu", settings.trust_code)
    return [
        {"image": str(file), "error": str(found)}
        if isinstance(found, InputError)
        else prediction(file, card["class_names"], found, settings.at_least)
        for file, found in classify(loaded, card["resize"], files, temperature_of(card))
    ]


def _run(command: str, kind: type[Any], given: Mapping[str, Any]) -> Run | None:
    """Run a command with the flags `given`, and print what it says."""
    arguments = _arguments(kind, given)
    settings: RunSettings = run_settings(kind, command, parse_flags(kind, command, arguments))
    name = settings.name
    if name is None:
        name = run_name(f"{command}-{Path(settings.data).name}" if settings.data else command)
        arguments.append(f"--name={name}")
    failure = _follow([sys.executable, "-m", f"cifar_ray.{command}", *arguments])
    if failure:
        raise InputError(failure)
    if getattr(settings, "dry_run", False) or getattr(settings, "show", False):
        return None
    return Run(settings.runs_dir / name)


def _arguments(kind: type[Any], given: Mapping[str, Any]) -> list[str]:
    """The command line of these flags. Raises TypeError where there is no such flag."""
    inspect.signature(kind).bind(**given)
    options, values = [], []
    for field in dataclasses.fields(kind):
        value = given.get(field.name)
        if value is None or value is False:
            continue
        if value is True:
            options.append(option_of(field.name))
            continue
        texts = _texts(value)
        if not isinstance(field.default, tuple):
            texts = [",".join(texts)]  # several spaces, say
        if field.metadata["positional"]:
            values += [f"./{text}" if text.startswith("-") else text for text in texts]
        else:
            options += [f"{option_of(field.name)}={text}" for text in texts]
    return options + values


def _texts(value: Any) -> list[str]:
    """A value, or several, as they are typed."""
    if isinstance(value, Mapping):
        return [f"{key}={one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text for one in value for text in _texts(one)]
    return [str(value)]


def _follow(command: Sequence[str]) -> str | None:
    """Run a command and print its lines as they come; return what was bad input, if anything was.

    Raises:
        KeyboardInterrupt: it was interrupted, and has ended.
        RuntimeError: it failed.
    """
    failure = None
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        # Jupyter interrupts all of its group of processes, and the command is to be interrupted once.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            while True:
                try:
                    for line in process.stdout:
                        if line.startswith("error: "):
                            failure = line.removeprefix("error: ").strip()
                        else:
                            print(line, end="", flush=True)
                    process.wait()
                    break
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)
        finally:
            process.terminate()  # where what it said could not be printed
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode == 2 and failure:
        return failure
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: ended with exit code {process.returncode}: see what it printed")
    return None
