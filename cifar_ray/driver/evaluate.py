"""What `python -m cifar_ray.evaluate` does: score and time saved models of any runs on labelled images, and report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from cifar_ray.cli.console import Console
from cifar_ray.cli.flags import EvaluateSettings
from cifar_ray.data.decode import Images
from cifar_ray.data.labelled import load_labelled, split_fingerprint
from cifar_ray.data.sources import DATA_SETS
from cifar_ray.data.splits import load_data
from cifar_ray.driver.run import Run
from cifar_ray.driver.stages import begin, note_test_reading, recorded
from cifar_ray.driver.start import describe_data, started
from cifar_ray.errors import InputError, one_line
from cifar_ray.evaluation.evaluate import Group, evaluate
from cifar_ray.models.saved import SavedModel
from cifar_ray.results.config_json import CARD, MODULE, read_card, require_trust, write_card
from cifar_ray.results.records import CHECKPOINT, MODEL_WEIGHTS, RunFolder, read_name
from cifar_ray.text import counted, duration


@dataclass(frozen=True)
class _Given:
    """A model to evaluate."""

    folder: Path
    saved: SavedModel
    """Under the name that it has in this run."""


def evaluate_models(settings: EvaluateSettings) -> int:
    """Run `python -m cifar_ray.evaluate`; return its exit code. Raises InputError, and then leaves no run folder."""
    given, left_out = _read_models(settings.models, settings.trust_code)
    card = given[0].saved.card
    _check_classes(given)
    settings = replace(
        settings, data=settings.data or _common_source(given), metric=settings.metric or card.get("metric", "accuracy")
    )
    run, console = Run(settings, "evaluate", "evaluate"), Console()
    load = partial(_load, settings, given, console)
    with started(run, console, f"evaluation of {counted(len(given), 'model')}", load) as opened:
        assert opened is not None  # a new run has not come to its end
        (groups, about), processes, storage = opened
        for line in left_out:
            console.line(f"left out    {line}")
        run.about["left_out"] = left_out
        begin(run, console, about)
        with recorded(run, console, storage, "evaluation") as rows:
            for one in given:
                _copy(one, run.folder.model(one.saved.name))
            note_test_reading(run, console, groups[0].splits["test"], about["class_names"])
            rows += evaluate(run.folder, groups, [], processes, console.status, partial(run.spend, "evaluation"))
            console.line(f"evaluation  {counted(len(rows), 'model')} scored in {duration(run.next_phase('report'))}")
    return 0


def _read_models(paths: Sequence[Path], trust_code: bool = False) -> tuple[list[_Given], list[str]]:
    """Read the models that are given, alone or by their run, each once; also return what is wrong with the others.

    Raises:
        InputError: none can be read, or one comes with code that is not trusted.
    """
    found: dict[Path, SavedModel] = {}
    left_out: list[str] = []
    seen: set[tuple[bytes, str]] = set()
    for folder in (folder for path in paths for folder in _model_folders(path)):
        try:
            saved = SavedModel.read(folder)
        except InputError as error:
            left_out.append(str(error))
            continue
        require_trust(folder / MODULE, saved.config, trust_code)
        try:
            _check_whole(folder, saved)
        except InputError as error:
            left_out.append(str(error))
            continue
        key = saved.weights, repr(saved.card)
        if key not in seen:  # such as best/, which is a copy
            found[folder] = saved
        seen.add(key)
    if not found:
        raise InputError(left_out[0])
    return _named_apart(found), left_out


def _model_folders(path: Path) -> list[Path]:
    """The models of a run, or the one model that this is the folder of."""
    run = RunFolder(path)
    if not run.run_json.is_file():
        return [path]
    folders = sorted(file.parent for pattern in (CARD, MODEL_WEIGHTS) for file in run.models.glob(f"*/{pattern}"))
    if not folders:
        raise InputError(f"{path}: this run has no final models yet: wait for its end, or go on with it (--resume)")
    return list(dict.fromkeys(folders))


def _check_whole(folder: Path, saved: SavedModel) -> None:
    """Build a model once, so that damage is told before anything is evaluated."""
    for name in ("config_name", "name"):
        read_name(saved.card, name, str(folder / CARD))
    try:
        saved.build()
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: not a saved model: {one_line(error):.200}") from None


def _named_apart(found: Mapping[Path, SavedModel]) -> list[_Given]:
    """Name what several runs call alike by the run too."""
    runs: dict[str, set[Path]] = {}
    for folder, saved in found.items():
        runs.setdefault(saved.card["config_name"], set()).add(_run_of(folder))
    given: list[_Given] = []
    for folder, saved in found.items():
        prefix = f"{_run_of(folder).name}." if len(runs[saved.card["config_name"]]) > 1 else ""
        names = {name: prefix + saved.card[name] for name in ("config_name", "name")}
        if names["name"] in [one.saved.name for one in given]:
            raise InputError(f"{folder}: two models are called {names['name']}: evaluate them apart")
        given.append(_Given(folder, replace(saved, name=names["name"], card={**saved.card, **names})))
    return given


def _run_of(folder: Path) -> Path:
    """The folder of the run that a model is of: of `RUN/models/NAME` and of `RUN/best`."""
    return folder.parent.parent if folder.parent.name == "models" else folder.parent


def _check_classes(given: Sequence[_Given]) -> None:
    first = given[0]
    for one in given:
        if one.saved.card["class_names"] != first.saved.card["class_names"]:
            raise InputError(
                f"{one.folder}: its classes ({', '.join(one.saved.card['class_names'])}) are not those of "
                f"{first.folder} ({', '.join(first.saved.card['class_names'])}): evaluate them apart"
            )


def _common_source(given: Sequence[_Given]) -> str:
    sources = list(dict.fromkeys(str(one.saved.card["data"]["source"]) for one in given))
    if len(sources) > 1:
        raise InputError(
            f"--data: these models were trained on different data ({', '.join(sources)}): say what to evaluate them on"
        )
    return sources[0]


def _load(settings: EvaluateSettings, given: Sequence[_Given], console: Console) -> tuple[list[Group], dict[str, Any]]:
    """The models in groups that take the same images, and what run.json says of these."""
    by_resize: dict[str, list[SavedModel]] = {}
    for one in given:
        by_resize.setdefault(repr(sorted(one.saved.card["resize"].items())), []).append(one.saved)
    groups: list[Group] = []
    about: dict[str, Any] = {}
    for models in by_resize.values():
        splits, told = _load_splits(settings, models)
        about = about or told
        if groups and not np.array_equal(splits["test"].labels, groups[0].splits["test"].labels):
            raise InputError(f"{settings.data}: not the same images can be read at all sizes: mend them")
        groups.append(Group([saved.name for saved in models], splits))
    counts = np.bincount(groups[0].splits["test"].labels, minlength=len(about["class_names"]))
    console.line(f"data        {settings.data}: {counts.sum()} images of {(counts > 0).sum()} classes")
    if missing := [name for name, count in zip(about["class_names"], counts, strict=True) if not count]:
        console.line(f"            no images of {', '.join(missing)}, so no AUC")
    if about["bad_images"]:
        first = about["bad_images"][0]
        console.line(f"            {len(about['bad_images'])} unreadable images left out, the first: {first}")
    return groups, about


def _load_splits(settings: EvaluateSettings, models: Sequence[SavedModel]) -> tuple[dict[str, Images], dict[str, Any]]:
    """The images for models that all take them alike, and what run.json says of them.

    Of the data that the models were trained on it is the split that they have not seen; beside it, where nothing of
    that data has changed, what they were trained and chosen on.
    """
    source, card = str(settings.data), models[0].card
    cards = [saved.card["data"] for saved in models]
    class_names, resize = card["class_names"], card["resize"]
    if source in DATA_SETS or source in [about["source"] for about in cards]:
        own = next((about for about in cards if about["source"] == source), None)
        data = load_data(
            source,
            train_size=own and own["train_size"],
            image_size=None if resize["rule"] == "native" else resize["image_size"],
            data_dir=settings.data_dir,
            skip_bad_images=settings.skip_bad_images,
        )
        if list(data.class_names) != list(class_names):
            raise InputError(
                f"{source}: its classes ({', '.join(data.class_names)}) are not those of the models "
                f"({', '.join(class_names)}): give data with these"
            )
        if data.train.images.shape[1:] != (resize["channels"], resize["image_size"], resize["image_size"]):
            raise InputError(f"{source}: its images are not as those that the models take: give others")
        if all(about["fingerprint"] == data.fingerprint for about in cards):
            return {"test": data.test, "val": data.val, "train": data.train}, describe_data(data)
        return {"test": data.test}, describe_data(data)
    labelled = load_labelled(Path(source), resize, class_names, settings.skip_bad_images)
    counts = np.bincount(labelled.images.labels, minlength=len(class_names))
    return {"test": labelled.images}, {
        "source": source,
        "test_fingerprint": split_fingerprint(labelled.images, class_names),
        "class_names": class_names,
        "channels": resize["channels"],
        "image_size": resize["image_size"],
        "num_test": len(labelled.images.labels),
        "class_counts": {"test": counts.tolist()},
        "bad_images": list(labelled.bad_images),
    }


def _copy(one: _Given, folder: Path) -> None:
    """Copy a model into the run, which then needs no other one."""
    shutil.copytree(one.folder, folder, ignore=shutil.ignore_patterns("events.*", CHECKPOINT), dirs_exist_ok=True)
    config, _ = read_card(one.folder)
    write_card(folder, config, one.saved.card)
