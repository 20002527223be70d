"""The flags of the commands."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cifar_ray.cli import values
from cifar_ray.cli.parser import at_least, flag, one_of
from cifar_ray.data.sources import DATA_SETS, DEFAULT_DATA
from cifar_ray.results.records import folder_name

METRICS = ("accuracy", "auc", "f1")

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
"""Whether `ray job submit` started this process. Its working folder belongs to Ray then."""


@dataclass(frozen=True)
class RunSettings:
    """What every run takes: its data, its metric, its devices and its folder."""

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "what to evaluate": ("models",),
        "what to search or train": (
            *(
                "space",
                "preset",
                "config",
                "module",
                "trust_code",
                "vary",
                "cross",
                "set",
                "metric",
                "trials",
                "max_epochs",
                "finalists",
                "final_seeds",
                "seeds",
                "resplit",
            ),
            *("patience", "sampler", "warm_start", "audit", "weights", "precision", "seed", "show"),
        ),
        "on what data": ("data", "data_dir", "train_size", "image_size", "skip_bad_images"),
        "limits": ("time_budget", "max_params", "dry_run"),
        "where to run": (
            *("cpus_per_trial", "gpus_per_trial", "workers_per_trial", "workers"),
            "address",
        ),
        "what comes out": ("name", "runs_dir", "resume"),
    }
    """Headings of `--help`, and the flags of all commands that stand under each."""

    extendable: ClassVar[tuple[str, ...]] = ()
    """Flags that may be given a higher value when a run is taken up again, even one that has come to its end."""

    data: str | None = flag(
        DEFAULT_DATA, f"{', '.join(DATA_SETS)}, or a folder of images or parquet", values.data_source, "NAME|PATH"
    )
    data_dir: Path | None = flag(
        None, "where data sets with a name are or are downloaded to (default: the user's cache folder)", values.path
    )
    skip_bad_images: bool = flag(False, "leave out images that cannot be read, and list them in run.json")
    metric: str | None = flag("accuracy", "what ranks models: accuracy, auc or f1 (macro)", one_of(*METRICS), "NAME")
    cpus_per_trial: int = flag(
        1, "CPUs of each worker of a trial or final training, and of each evaluation actor", at_least(1), "N"
    )
    gpus_per_trial: int | None = flag(
        None, "GPUs of each, 0 or 1 (default: auto, 1 where there are GPUs)", values.gpus_per_trial, "auto|N"
    )
    name: str | None = flag(None, "name of the run (default: what it does, its data, and the time)", folder_name)
    runs_dir: Path = flag(
        Path.home() / "cifar_ray_runs" if SUBMITTED else Path("runs"),
        "folder that run folders are made in",
        values.path,
    )
    address: str | None = flag(
        None,
        "join the Ray cluster at this address (auto or HOST:PORT) instead of using this machine alone",
        values.not_empty,
    )

    @property
    def workers_per_model(self) -> int:
        """How many workers train a model together; one evaluates it."""
        return 1

    @property
    def workers_flag(self) -> str:
        """The flag that says so, if one does."""
        return ""


@dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """What every run that trains takes beside that."""

    train_size: int | None = flag(None, "use this many training images, validation included", at_least(1), "N")
    image_size: int | None = flag(
        None,
        "side of the images in pixels (default: auto, native up to 64, else 32; with backbones 96, or 160 on GPUs)",
        values.image_size,
        "auto|N",
    )
    weights: str | None = flag(
        None,
        "weights of backbones: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, none, or a file (.pth, .safetensors) with "
        "torchvision's keys (default: what a configuration says, DEFAULT in a search)",
        values.weights,
        "NAME|PATH",
    )
    precision: str | None = flag(
        "auto",
        "what models compute in: fp32, bf16, or auto, which takes bf16 where the processor or GPU has it and the "
        "default recipe is found to be faster with it",
        one_of("auto", "fp32", "bf16"),
        "NAME",
    )
    set: tuple[str, ...] = flag(
        (),
        "give all configurations this value, such as model/dropout=0.2 or optimizer/name=adamw, and do not search it; "
        "may be given several times",
        values.key_and_value,
        "KEY=VALUE",
    )
    seed: int = flag(0, "seed of the whole run", at_least(0), "N")
    resume: str | None = flag(
        None,
        "go on with an interrupted run, given by name or folder; all else comes from it, but a search may get more "
        "--trials or --time-budget, also when it has ended",
        values.not_empty,
        "RUN",
    )

    @property
    def fixed(self) -> dict[str, str]:
        """The texts of `--set` by their keys."""
        return {key: value for key, _, value in (text.partition("=") for text in self.set)}


def _patience() -> Any:
    return flag(
        None,
        "end a final training after so many epochs without a better validation metric, and keep its best weights; for "
        "schedules that do not anneal: constant, plateau, and step after its last drop (default: none)",
        at_least(1),
        "N",
    )


def _trust_code(of: str) -> Any:
    return flag(False, f"run the code that comes with {of} whose network is somebody's own (--module)")


@dataclass(frozen=True)
class TuneSettings(TrainingSettings):
    """Search a space for the best model, train the finalists over several seeds, evaluate them, write a report."""

    extendable = ("trials", "time_budget")

    space: str = flag(
        "cnn",
        "search spaces, built-in names or Python files; several share the trials",
        values.spaces,
        "NAME|FILE.py[,...]",
    )
    module: str | None = flag(
        None,
        "the network of the configurations of family module, a class or function of a Python file: Net(num_classes, "
        "channels, image_size, **params) gives an nn.Module; the space module searches its training recipe",
        values.module,
        "FILE.py:NAME",
    )
    trials: int = flag(50, "configurations to try, beside those that fail or are over a limit", at_least(1), "N")
    max_epochs: int = flag(
        30, "epochs of each final training, and of a trial that is not stopped early", at_least(1), "N"
    )
    patience: int | None = _patience()
    time_budget: float | None = flag(
        None,
        "end the search early enough to have all done in this time, report included: 10m, 1h30m",
        values.seconds,
        "T",
    )
    workers_per_trial: int = flag(
        1, "workers that train each model together, in the search and in the finals", at_least(1), "N"
    )
    sampler: str = flag(
        "mutation",
        "how configurations are drawn: mutation (changes the best trial so far in one parameter or a few), tpe "
        "(Optuna's) or random",
        one_of("mutation", "tpe", "random"),
    )
    warm_start: tuple[Path, ...] = flag(
        (),
        "try the best three trials of this run first, which searched the same space; may be given several times",
        values.path,
        "RUN",
    )
    audit: float = flag(
        0.0,
        "let this share of the trials, picked by the seed, go on where ASHA would stop them, to see what it misses",
        values.share_of_trials,
        "SHARE",
    )
    max_params: int | None = flag(None, "only models of at most this many parameters: 150k, 1M", values.count, "N")
    finalists: int = flag(
        3, "best configurations that are trained again over several seeds, beside the default recipe", at_least(1), "N"
    )
    final_seeds: int = flag(3, "seeds of each final configuration", at_least(1), "N")
    dry_run: bool = flag(False, "show sampled configurations, and the time, memory and disk it takes; train nothing")

    @property
    def workers_flag(self) -> str:
        return "--workers-per-trial"

    @property
    def workers_per_model(self) -> int:
        return self.workers_per_trial


@dataclass(frozen=True)
class NamedSettings(TrainingSettings):
    """What a run takes that trains configurations with a name."""

    preset: tuple[str, ...] = flag((), "a model by name, may be given several times", metavar="NAME")
    config: tuple[Path, ...] = flag(
        (),
        "a model by its config.json, such as best/config.json or trials/0012/config.json of a run; may be given "
        "several times",
        values.path,
        "FILE",
    )
    module: tuple[str, ...] = flag(
        (),
        "a network of your own, a class or function of a Python file: Net(num_classes, channels, image_size, **params) "
        "gives an nn.Module; --set model/params/KEY=VALUE is passed on; may be given several times",
        values.module,
        "FILE.py:NAME",
    )
    trust_code: bool = _trust_code("a --config")
    data: str | None = flag(
        None,
        f"as for tune (default: that of the first --config, else {DEFAULT_DATA})",
        values.data_source,
        "NAME|PATH",
    )
    metric: str | None = flag(
        None, "as for tune (default: that of the first --config, else accuracy)", one_of(*METRICS), "NAME"
    )
    precision: str | None = flag(
        None,
        "as for tune (default: that of the first --config, else auto)",
        one_of("auto", "fp32", "bf16"),
        "NAME",
    )
    max_epochs: int | None = flag(
        None, "epochs of each training (default: those of the first --config, else 30)", at_least(1), "N"
    )
    workers: int = flag(1, "workers that train each model together", at_least(1), "N")

    @property
    def workers_flag(self) -> str:
        return "--workers"

    @property
    def workers_per_model(self) -> int:
        return self.workers


@dataclass(frozen=True)
class TrainSettings(NamedSettings):
    """Train named models over several seeds, evaluate them as after a search, write a report."""

    patience: int | None = _patience()
    seeds: int = flag(3, "seeds of each configuration", at_least(1), "N")
    show: bool = flag(False, "print the configurations as JSON, for --config; train nothing")


@dataclass(frozen=True)
class AblateSettings(NamedSettings):
    """Change one thing at a time in a configuration, its base, and tell what each change does to it."""

    preset: tuple[str, ...] = flag((), "the base by name (default: small-cnn)", metavar="NAME")
    config: tuple[Path, ...] = flag(
        (), "the base by its config.json, such as best/config.json of a run", values.path, "FILE"
    )
    module: tuple[str, ...] = flag((), "the base, as for train: a network of your own", values.module, "FILE.py:NAME")
    vary: tuple[str, ...] = flag(
        (),
        "a factor and its levels, such as norm, or norm=none,batch, or a key and its values: model/dropout=0,0.1,0.3; "
        "may be given several times (default: all factors below)",
        values.not_empty,
        "FACTOR[=LEVEL,...]",
    )
    cross: str | None = flag(
        None,
        "train every combination of the levels of these factors, and tell how they interact",
        metavar="FACTOR,FACTOR",
    )
    max_epochs: int | None = flag(
        None, "epochs of each training (default: those of --config, else 30)", at_least(1), "N"
    )
    seeds: int = flag(5, "seeds of each level; the base has twice as many", at_least(2), "N")
    resplit: bool = flag(
        False, "each seed draws its own training and validation images, so that what is told holds for other splits too"
    )
    time_budget: float | None = flag(
        None, "begin only if it is estimated to be done in this time: 10m, 1h30m", values.seconds, "T"
    )
    dry_run: bool = flag(False, "show what would be trained, and how long it takes; train nothing")


@dataclass(frozen=True)
class EvaluateSettings(RunSettings):
    """Score and time saved models on labelled images, such as a test set that came later, and write a report."""

    models: tuple[Path, ...] = flag(
        (),
        "folders of saved models (runs/NAME/best), and runs, for all of their models",
        values.path,
        "MODEL",
        positional=True,
    )
    trust_code: bool = _trust_code("a model")
    data: str | None = flag(
        None,
        f"{', '.join(DATA_SETS)}, or a folder of labelled images or parquet: the test split, or all of a folder that "
        "has none (default: the test split of the data that the models were trained on)",
        values.data_source,
        "NAME|PATH",
    )
    metric: str | None = flag(
        None,
        "what the report compares by: accuracy, auc or f1 (default: that of the first model)",
        one_of(*METRICS),
        "NAME",
    )


@dataclass(frozen=True)
class ReportSettings:
    """Rebuild the report of a run, or of several on the same test split; choose from what was measured."""

    runs: tuple[Path, ...] = flag((), "folders of runs, such as runs/NAME", values.path, "RUN", positional=True)
    max_params: int | None = flag(
        None, "choose among models of at most this many parameters: 150k, 1M", values.count, "N"
    )
    max_latency_ms: float | None = flag(
        None,
        "choose among models whose median latency of one image is at most so many milliseconds",
        values.above_zero,
        "MS",
    )
    within: float | None = flag(
        None,
        "choose the smallest and the fastest of those that are at most so many points (hundredths of the metric) worse "
        "than the best on validation, and say whether the test split confirms it",
        values.above_zero,
        "POINTS",
    )
    name: str | None = flag(None, "name of the folder for several runs (default: report and the time)", folder_name)
    runs_dir: Path = flag(RunSettings.runs_dir, "folder that it is made in", values.path)


@dataclass(frozen=True)
class PredictSettings:
    """Classify images with a saved model: print the class of each one and how probable it is."""

    model: Path = flag(None, "folder of a saved model, such as runs/NAME/best", values.path, "MODEL", positional=True)
    images: tuple[Path, ...] = flag((), "images, and folders of images", Path, "IMAGE", positional=True)
    json: bool = flag(False, "print one JSON object a line")
    at_least: float | None = flag(
        None, "give no class to an image where none is so probable: 95%% or 0.95", values.probability, "P"
    )
    trust_code: bool = _trust_code("the model")
