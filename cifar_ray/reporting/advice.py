"""What to try next: each suggestion with what calls for it, and the flag that does it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cifar_ray.reporting.findings import (
    best_of,
    num_confident_mistakes,
    overfits,
    shown,
    train_and_test,
    underfits,
    val_losses,
)
from cifar_ray.reporting.parts import difference_text, score_text, with_unit
from cifar_ray.reporting.robustness import Corrupted, corrupted
from cifar_ray.results.ranking import best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import Row
from cifar_ray.text import counted, decimals, short, thousands

LARGE_DROP = 0.05
"""Loss of accuracy under a corruption that is worth an augmentation."""


def _still_falls(curves: Sequence[Sequence[float]]) -> bool:
    """Whether half of the curves or more are lowest at their end."""
    return bool(curves) and 2 * sum(min(curve) == curve[-1] for curve in curves) >= len(curves)


def train_longer(records: Records) -> str | None:
    """The validation loss was still falling when the training ended."""
    for one in shown(records):
        curves = val_losses(records, one)
        last = [curve for curve in curves if min(curve) == curve[-1]]
        if not _still_falls(curves):
            continue
        epochs = max(len(curve) for curve in last)
        schedule = (records.config(one.config, one.best_model).get("lr_schedule") or {}).get("name")
        anneals = " (in part since its learning rate anneals to the end)" * (schedule in ("one_cycle", "cosine"))
        return (
            f"Train longer: the validation loss of {one.config} was lowest in the last of {epochs} epochs in "
            f"{len(last)} of {counted(len(curves), 'seed')}, at {decimals(fmean(curve[-1] for curve in last), 3)}"
            f"{anneals}: --max-epochs {2 * epochs}"
        )
    return None


def regularise(records: Records) -> str | None:
    """It overfits: augment, or drop out, what does not do so yet."""
    for one in shown(records):
        found = train_and_test(records, one)
        config = records.config(one.config, one.best_model)
        value = _next_regulariser(config, int(records.data.get("image_size") or 32))
        if found is None or not overfits(*found) or value is None:
            continue
        return (
            f"Regularise: {one.config} is {difference_text(found[0] - found[1])[1:]} points better on training than on "
            f"test images, and has not used this yet: --set {value}"
        )
    return None


def _next_regulariser(config: Row, image_size: int) -> str | None:
    """The first of some regularisers that a configuration does without, as a value for `--set`."""
    model, augment = config.get("model") or {}, config.get("augment") or {}
    if model.get("finetune") == "head" and model.get("feature_views") == 1:
        return "model/feature_views=4"  # augmentation needs several
    if augment.get("crop_padding") == 0:
        return f"augment/crop_padding={max(image_size // 8, 1)}"
    if augment.get("cutout") == 0:
        return f"augment/cutout={max(image_size // 4, 1)}"
    if model.get("dropout") == 0:
        return "model/dropout=0.1"
    if model.get("head_dropout") == 0:
        return "model/head_dropout=0.3"
    return None


def larger_model(records: Records) -> str | None:
    """It underfits, and not for want of epochs: it needs more capacity."""
    for one in shown(records):
        found = train_and_test(records, one)
        if found is None or not underfits(*found) or _still_falls(val_losses(records, one)):
            continue
        config = records.config(one.config, one.best_model).get("model") or {}
        value = None
        if config.get("widths"):
            value = "model/widths=[" + ",".join(str(2 * width) for width in config["widths"]) + "]"
        elif config.get("backbone") == "resnet18":
            value = "model/backbone=resnet50"
        if value is None:
            continue
        return (
            f"Larger model: {one.config} ({short(one.num_params)} parameters) is right on only "
            f"{with_unit('accuracy', found[0])} of its own training images: --set {value}"
        )
    return None


def pretrained_weights(records: Records) -> str | None:
    """A backbone that started from random weights."""
    num_train = records.data.get("num_train")
    for one in shown(records):
        model = records.config(one.config, one.best_model).get("model") or {}
        if model.get("weights") == "none" and num_train:
            return (
                f"Pretrained weights: {one.config} learned all of its {short(one.num_params)} parameters from "
                f"{thousands(num_train)} images: --weights DEFAULT"
            )
    return None


def more_seeds(records: Records) -> str | None:
    """The best cannot be told apart from the runner-up, or from the best of another family."""
    best = best_of(records)
    if best is None:
        return None
    for other in [*records.summaries[1:2], *records.best_of_families[1:]]:
        found = records.comparison(best.config, other.config, records.metric) if other.models else None
        if found is None or not found.low <= 0 <= found.high:
            continue
        flag = f"--{'final-' * records.searched}seeds {2 * max(len(best.models), len(other.models))}"
        low, high = (difference_text(value, records.metric) for value in (found.low, found.high))
        return (
            f"More seeds: {best.config} and {other.config} cannot be told apart on test (95 % interval {low} to "
            f"{high}, {counted(len(best.models), 'seed')}): {flag}"
        )
    return None


def more_trials(records: Records) -> str | None:
    """The search had not come to rest, or found nothing."""
    trials = [trial for trial in records.tried if trial.get("number") is not None]
    if not records.searched or len(trials) < 5:
        return None
    best, count = trials[0], len(trials)
    if records.is_default(best["name"]):
        why = f"none of {count - 1} other trials did better than {best['name']} ({_val(records, best)})"
    elif sum(trial["number"] > best["number"] for trial in trials) < count / 3:
        why = f"the best of {count} trials was {best['name']}, one of the last ({_val(records, best)})"
    else:
        return None
    return f"Search on: {why}: --trials {2 * count}"


def _val(records: Records, trial: Row) -> str:
    return f"validation {records.metric_name} {with_unit(records.metric, best_value(trial))}"


def weigh_classes(records: Records) -> str | None:
    """The classes differ in size, and the ranking counts images."""
    train = records.class_counts.get("train")
    if not train or min(train) == 0 or max(train) < 2 * min(train):
        return None
    config = records.config(best.config, best.best_model) if (best := best_of(records)) else {}
    flags = [flag for flag, open_yet in (("--metric f1", records.metric == "accuracy"),
             ("--set class_weights=balanced", config.get("class_weights") != "balanced")) if open_yet]  # fmt: skip
    if not flags:
        return None
    return (
        f"Rare classes: the largest has {thousands(max(train))} training images, the smallest {thousands(min(train))}: "
        f"{' '.join(flags)}"
    )


def smooth_labels(records: Records) -> str | None:
    """Most mistakes are confident ones, and the loss rewards confidence."""
    found, best = num_confident_mistakes(records), best_of(records)
    if found is None or best is None or found[0] < max(0.5 * found[1], 2):
        return None
    if records.config(best.config, best.best_model).get("label_smoothing") != 0:
        return None
    return f"Less confidence: {found[0]} of {found[1]} mistakes are confident ones: --set label_smoothing=0.1"


def shift_images(records: Records) -> str | None:
    """Shifted images are lost, and none were in training."""
    found, best = corrupted(records), best_of(records)
    one: Corrupted | None = found.get(best.config) if best else None
    if one is None or best is None:
        return None
    of_shift = {severity: value for (name, severity), value in one.accuracies.items() if name == "shift"}
    augment = records.config(best.config, best.best_model).get("augment") or {}
    if not of_shift or one.clean - of_shift[min(of_shift)] < LARGE_DROP or augment.get("crop_padding") != 0:
        return None
    padding = max(int(records.data.get("image_size") or 32) // 8, 1)
    return (
        f"Shifts: the smallest one already takes {best.config} from {with_unit('accuracy', one.clean)} to "
        f"{score_text(of_shift[min(of_shift)])} %, and it saw none in training: --set augment/crop_padding={padding}"
    )


def raise_limit(records: Records) -> str | None:
    """Most of what was drawn was over the limit on parameters."""
    limit = (records.run.get("settings") or {}).get("max_params")
    num_over = sum(trial["state"] == "infeasible" for trial in records.trials)
    if not limit or 2 * num_over < len(records.trials) or not num_over:
        return None
    return (
        f"A higher limit: {num_over} of {counted(len(records.trials), 'configuration')} were over "
        f"{short(limit)} parameters and not tried: --max-params {short(2 * limit)}"
    )


NEXT = (
    train_longer, regularise, larger_model, pretrained_weights, smooth_labels, shift_images, weigh_classes, more_trials,
    raise_limit, more_seeds,
)  # fmt: skip
