"""Factors: what of a configuration an ablation varies, and at which levels.

Values that belong together move together: an optimizer comes with its weight decay, a backbone of random weights trains
at its head's rate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_ray.config import (
    FINETUNED_STAGES,
    AugmentConfig,
    BackboneConfig,
    CNNConfig,
    OptimizerConfig,
    Task,
    TrialConfig,
    from_text,
    has_value,
    replaced,
)
from cifar_ray.errors import InputError
from cifar_ray.results.ablation import EARLY_STOPPING

PATIENCES = (3, 5, 10)
"""Levels of early stopping, in epochs. They are not trained: see `loop.Experiment.kept_patiences`."""

USUAL = {
    "sgd": OptimizerConfig("sgd", 0.1, 5e-4),
    "adamw": OptimizerConfig("adamw", 3e-3, 0.01),
    "muon": OptimizerConfig("muon", 0.02, 0.01),
}
"""Each optimizer with its usual learning rate and weight decay: about the middle of what the spaces search."""

WITH_BACKBONE = "backbone"
"""Stands for all families of backbones."""

Values = dict[str, Any]
"""Values of a configuration by path, such as `model/dropout`."""


@dataclass(frozen=True)
class Level:
    """A level of a factor: the values that move together."""

    name: str
    values: Values
    usual_lr: float | None = None
    """The learning rate that its sweep is centred on, where that is not the base's."""


@dataclass(frozen=True)
class Factor:
    """Something of the base that is varied."""

    name: str
    paths: tuple[str, ...]
    base_level: str
    """What the base has."""
    levels: tuple[Level, ...]
    """The others."""


@dataclass(frozen=True)
class LeftOut:
    """A level that the base cannot have, and why."""

    factor: str
    level: str
    reason: str


# ---- factors ----


@dataclass(frozen=True)
class _Kind:
    """A factor by name: what its levels change."""

    paths: tuple[str, ...]
    levels: Callable[[TrialConfig, Task], Sequence[str]]
    """Names of the levels that are tried where none are given."""
    level: Callable[[str, TrialConfig, Task], Level]
    """The level of a name. Raises KeyError where there is none."""
    family: str | None = None
    """The one that has it, `WITH_BACKBONE` for all that have a backbone; None is all that have such values."""
    open: bool = False
    """Whether any other value is a level too."""


def _values(path: str, *names: str, family: str | None = None, open: bool = False) -> _Kind:
    """A factor whose levels are values of one path."""

    def level(name: str, base: TrialConfig, task: Task) -> Level:
        if not open and name not in names:
            raise KeyError(name)
        return Level(name, {path: from_text(name)})

    return _Kind((path,), lambda base, task: names, level, family, open)


def _pad(base: TrialConfig, task: Task) -> int:
    return base.augment.crop_padding or max(1, task.image_size // 16)


def _augmentations(base: TrialConfig, task: Task) -> dict[str, Values]:
    # Policy, colour jitter and mixing are factors of their own, and stay what the base has.
    flip = base.augment.flip if base.augment.flip != "none" else "random"
    pieces: dict[str, Values] = {"crop": {"augment/crop_padding": _pad(base, task)}}
    if flip in task.flips:
        pieces["flip"] = {"augment/flip": flip}
    pieces["cutout"] = {"augment/cutout": base.augment.cutout or max(2, task.image_size // 4)}
    nothing: Values = {"augment/crop_padding": 0, "augment/flip": "none", "augment/cutout": 0}
    names = list(pieces)
    chosen = [[], *([name] for name in names if name != "cutout"), *(names[:n] for n in range(2, len(names) + 1))]
    return {
        "+".join(some) or "none": nothing | {k: v for one in some for k, v in pieces[one].items()} for some in chosen
    }


def _augmentation(name: str, base: TrialConfig, task: Task) -> Level:
    return Level(name, _augmentations(base, task)[name])


def _optimizer(name: str, base: TrialConfig, task: Task) -> Level:
    # With its weight decay, which means something else to each; its learning rate at first stays the base's.
    usual = base.optimizer if name == base.optimizer.name else USUAL[name]
    values = {"optimizer/name": name, "optimizer/weight_decay": usual.weight_decay}
    return Level(name, values, usual.lr)


def _kernel_size(name: str, base: TrialConfig, task: Task) -> Level:
    assert isinstance(base.model, CNNConfig)
    return Level(name, {"model/kernel_sizes": [from_text(name)] * len(base.model.kernel_sizes)})


FINETUNE = tuple(FINETUNED_STAGES)


def _finetune(name: str, base: TrialConfig, task: Task) -> Level:
    if name not in FINETUNE:
        raise KeyError(name)
    augmented = base.augment != AugmentConfig()
    # A head trains on features of the images, computed once: several views of each stand for their augmentation.
    return Level(name, {"model/finetune": name, "model/feature_views": 4 if name == "head" and augmented else 1})


def _weights(name: str, base: TrialConfig, task: Task) -> Level:
    assert isinstance(base.model, BackboneConfig)
    if name == "pretrained":
        return Level(name, {"model/weights": base.model.weights if base.model.weights != "none" else task.weights})
    if name != "none":
        raise KeyError(name)
    # A backbone of random weights trains as its head does, and keeps nothing.
    one_rate = {"model/backbone_lr": 1.0, "model/layer_decay": 1.0, "model/freeze_norm_statistics": False}
    return Level(name, {"model/weights": "none", **one_rate})


HEADS: dict[str, list[int]] = {"linear": [], "256": [256], "512-128": [512, 128]}


def _head(name: str, base: TrialConfig, task: Task) -> Level:
    return Level(name, {"model/head_hidden": HEADS[name]})


def _sizes(base: TrialConfig, task: Task) -> Sequence[str]:
    return ("32", "64", "96") if task.device == "cpu" else ("64", "128", "160")


def _image_size(name: str, base: TrialConfig, task: Task) -> Level:
    return Level(name, {"image_size": from_text(name)})


def _patiences(base: TrialConfig, task: Task) -> Sequence[str]:
    return [str(patience) for patience in PATIENCES]


def _patience(name: str, base: TrialConfig, task: Task) -> Level:
    if not name.isdecimal() or int(name) < 1:
        raise KeyError(name)
    return Level(name, {})


KINDS: dict[str, _Kind] = {
    "norm": _values("model/norm", "none", "batch", "group", "evonorm_s0", "evonorm_b0", family="cnn"),
    "norm-placement": _values(
        "model/norm_placement", "before_activation", "after_activation", "before_conv", family="cnn"
    ),
    "dropout": _values("model/dropout", "0.0", "0.1", "0.3", family="cnn", open=True),
    "lr-schedule": _values("lr_schedule/name", "constant", "step", "cosine", "one_cycle", "plateau"),
    EARLY_STOPPING: _Kind((), _patiences, _patience, open=True),
    "augmentation": _Kind(("augment",), lambda base, task: list(_augmentations(base, task)), _augmentation),
    "policy": _values("augment/policy", "none", "trivialaugment", "randaugment"),
    "color-jitter": _values("augment/color_jitter", "0.0", "0.2", "0.4", open=True),
    "mix": _values("augment/mix", "none", "mixup", "cutmix"),
    "optimizer": _Kind(("optimizer",), lambda base, task: list(USUAL), _optimizer),
    "activation": _values("model/activation", "relu", "mish", "silu", "gelu", family="cnn"),
    "kernel-size": _Kind(("model/kernel_sizes",), lambda base, task: ("3", "5"), _kernel_size, "cnn", open=True),
    "residual": _values("model/residual", "false", "true", family="cnn"),
    "finetune": _Kind(("model/finetune",), lambda base, task: FINETUNE, _finetune, WITH_BACKBONE),
    "weights": _Kind(("model/weights",), lambda base, task: ("pretrained", "none"), _weights, WITH_BACKBONE),
    "image-size": _Kind(("image_size",), _sizes, _image_size, open=True),
    "head": _Kind(("model/head_hidden",), lambda base, task: list(HEADS), _head, WITH_BACKBONE),
    "head-dropout": _values("model/head_dropout", "0.0", "0.2", "0.5", open=True),
}
"""Factors that have a name."""

STANDARD = {
    "cnn": (
        "norm", "norm-placement", "dropout", "lr-schedule", EARLY_STOPPING, "augmentation", "optimizer", "activation",
        "kernel-size", "residual",
    ),
    WITH_BACKBONE: ("finetune", "weights", "image-size", "head"),
    "module": ("lr-schedule", EARLY_STOPPING, "augmentation", "optimizer"),
}  # fmt: skip
"""Factors that are varied where none are given, see :func:`kind_of`."""

NORMS_TRIED = ("none", "batch", "group", "evonorm_s0")


def kind_of(base: TrialConfig) -> str:
    """The key of `STANDARD` for a base: its family, or `WITH_BACKBONE` where it has a backbone."""
    return WITH_BACKBONE if isinstance(base.model, BackboneConfig) else base.family


def idle(config: TrialConfig, paths: Iterable[str]) -> str | None:
    """Why a change at these paths would change nothing of such a model; None where it does."""
    model = config.model
    if not isinstance(model, CNNConfig):
        return None
    if "model/norm_placement" in paths and model.norm not in ("batch", "group"):
        return f"with norm {model.norm} nothing is placed"
    if "model/residual" in paths and max(model.blocks) == 1:
        return "no block keeps its shape, so none has anything to add"
    if "model/activation" in paths and model.norm.startswith("evonorm") and not (model.head_hidden or model.whitening):
        return f"{model.norm} is the activation too"
    return None


def read_factor(text: str, base: TrialConfig, task: Task) -> tuple[Factor, list[LeftOut]]:
    """Read `--vary`: a factor by name, or the path of a key, perhaps with levels: `norm=none,batch`.

    Returns:
        The factor, with the levels that differ from the base's, and those that the base cannot have.

    Raises:
        InputError: there is no such factor or level, the base does not have it, or one level is all there is.
    """
    name, _, listed = text.partition("=")
    wanted = _split_levels(listed) if listed else None
    name = next((known for known, kind in KINDS.items() if kind.paths == (name,)), name)
    kind = KINDS.get(name)
    known = [
        known
        for known, kind in KINDS.items()
        if kind.family in (None, kind_of(base)) and all(has_value(base, path) for path in kind.paths)
    ]
    if kind is None and "/" not in name and name not in base.to_dict():
        raise InputError(f"--vary: no factor {name!r}; take one of {', '.join(known)}, or a key such as model/dropout")
    if kind is not None and name not in known:
        raise InputError(f"--vary: the base, a {base.family}, has no {name}; it has {', '.join(known)}")
    if kind is None:
        return _factor_of_path(name, wanted, base)
    left_out: list[LeftOut] = []
    levels: list[Level] = []
    names = wanted or [level for level in kind.levels(base, task) if name != "norm" or level in NORMS_TRIED]
    base_level = _base_level(name, kind, base, task)
    for level_name in names:
        try:
            level = kind.level(level_name, base, task)
            config = replaced(base, level.values, f"--vary {name}={level_name}")
        except KeyError:
            choices = ", ".join(kind.levels(base, task))
            raise InputError(f"--vary {name}: no level {level_name!r}; take of {choices}") from None
        except InputError as error:
            if wanted and kind.open:
                raise
            left_out.append(LeftOut(name, level_name, reason_of(error)))
            continue
        if reason := idle(base, kind.paths):
            left_out.append(LeftOut(name, level_name, reason))
        elif config != base or name == EARLY_STOPPING:
            levels.append(level)
    if not levels and not left_out:
        raise InputError(f"--vary {name}: {', '.join(names)} is what the base has; give another level as well")
    return Factor(name, kind.paths, base_level, tuple(levels)), left_out


def reason_of(error: InputError) -> str:
    """Why a configuration is none, without where it came from and what was given."""
    return str(error).split("Value error, ")[-1].split(" (got ")[0]


def _base_level(name: str, kind: _Kind, base: TrialConfig, task: Task) -> str:
    """What to call the level of a factor that the base has."""
    if name == EARLY_STOPPING:
        return "none"
    for level_name in kind.levels(base, task):
        try:
            if replaced(base, kind.level(level_name, base, task).values, name) == base:
                return level_name
        except InputError:
            continue
    return _value_text(_value_at(base, kind.paths[0]))


def _factor_of_path(path: str, wanted: Sequence[str] | None, base: TrialConfig) -> tuple[Factor, list[LeftOut]]:
    values = {} if wanted is None else {text: {path: from_text(text)} for text in wanted}
    levels = [Level(text, one) for text, one in values.items() if replaced(base, one, f"--vary {path}={text}") != base]
    if not levels:
        raise InputError(f"--vary {path}: give values of which one at least is not the base's, such as {path}=A,B")
    name = path.replace("/", ".")
    return Factor(name, (path,), _value_text(_value_at(base, path)), tuple(levels)), []


def _split_levels(text: str) -> list[str]:
    """The levels between commas; a comma inside brackets is part of a level."""
    levels, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            levels.append("")
        else:
            levels[-1] += letter
    return [level.strip() for level in levels if level.strip()]


def _value_at(config: TrialConfig, path: str) -> Any:
    value: Any = config.to_dict()
    for key in path.split("/"):
        value = value.get(key, "its default")  # what only a parameter of the user's own network may be without
    return value


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
