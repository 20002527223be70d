"""The flags of the commands."""

import os
from dataclasses import dataclass
from pathlib import Path

from cifar_ray.command import at_least, flag, one_of


def _run_name(text: str) -> str:
    if not text or text.startswith(".") or "/" in text or os.sep in text:
        raise ValueError(f"must be the name of a folder, not a path: {text!r}")
    return text


@dataclass(frozen=True)
class TuneSettings:
    """Search a space for the best model, train the finalists over several seeds, evaluate them, write a report."""

    space: str = flag("cnn", "search space: a built-in name or the path of a Python file", metavar="NAME|FILE.py")
    data: str = flag("cifar10", "cifar10, digits, or a folder of images or parquet files", metavar="NAME|PATH")
    data_dir: Path | None = flag(None, "where cifar10 is kept or downloaded to (default: the user's cache folder)")
    skip_bad_images: bool = flag(False, "leave out images that cannot be read, and list them in run.json")
    train_size: int | None = flag(None, "use this many training images, validation included", at_least(1), "N")
    trials: int = flag(50, "trials that end complete or pruned", at_least(1), "N")
    max_epochs: int = flag(30, "epochs of a trial that is not stopped, and of each final training", at_least(1), "N")
    sampler: str = flag("tpe", "how configurations are drawn: tpe or random", one_of("tpe", "random"))
    finalists: int = flag(3, "best configurations that are trained again, beside the default", at_least(1), "N")
    final_seeds: int = flag(3, "seeds of each final configuration", at_least(1), "N")
    cpus_per_trial: int = flag(1, "CPUs of each trial and of each final training", at_least(1), "N")
    seed: int = flag(0, "seed of the whole search", at_least(0))
    name: str | None = flag(None, "name of the run (default: from space, data and time)", _run_name)
    runs_dir: Path = flag(Path("runs"), "folder that run folders are made in", Path)
