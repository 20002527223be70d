"""The design of an ablation: which arms a base and its factors give, what is left out, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cifar_ray.config import AugmentConfig, LRScheduleConfig, Task, TrialConfig, trial_config
from cifar_ray.errors import InputError
from cifar_ray.presets import PRESETS, preset
from cifar_ray.search.design import BASE, Arm, Design, arms_at_own_rates, make_design, sweeps
from cifar_ray.search.factors import KINDS, STANDARD, kind_of

TASK = Task(10, 3, 32, 4000, "cpu")
DIGITS = Task(10, 1, 8, 200, "cpu", flips=("none",))
SMALL = preset("small-cnn", TASK)


def design(*vary: str, base: TrialConfig = SMALL, cross: str | None = None, task: Task = TASK) -> Design:
    return make_design(base, vary, cross, task, max_epochs=30)


def arms(found: Design) -> dict[str, Arm]:
    return {arm.name: arm for arm in found.arms}


def changes(arm: Arm, base: TrialConfig) -> dict[str, Any]:
    """What an arm has other than the base, by path."""

    def flat(values: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(values, dict):
            return {path: values}
        return {
            key: value for name, one in values.items() for key, value in flat(one, f"{path}/{name}".strip("/")).items()
        }

    before = flat(base.to_dict())
    return {path: value for path, value in flat(arm.config.to_dict()).items() if value != before[path]}


@pytest.mark.parametrize("task", [TASK, DIGITS, replace(TASK, image_size=96), replace(TASK, device="cuda")])
@pytest.mark.parametrize("name", PRESETS)
def test_every_arm_of_the_standard_factors_is_another_configuration_than_the_base(name: str, task: Task) -> None:
    base = preset(name, task)
    found = design(base=base, task=task)
    trained = [arm.config for arm in found.trained]
    assert found.arms[0] == Arm(BASE, base)
    assert all(trained.count(config) == 1 for config in trained)
    assert len({arm.name for arm in found.arms}) == len(found.arms)
    assert {arm.control for arm in found.arms[1:]} <= {BASE, "lr-schedule=constant"}
    named = {factor.name for factor in found.factors} | {one.factor for one in found.left_out}
    assert named >= set(STANDARD[kind_of(base)])
    for arm in found.arms:
        assert trial_config(json.loads(json.dumps(arm.to_dict()))["config"], "here") == arm.config


def test_one_factor_moves_at_a_time_with_the_keys_that_belong_to_it() -> None:
    found = arms(design("norm=none", "optimizer=adamw", "kernel-size=5", "model/dropout=0.1", "augmentation=none"))
    assert changes(found["norm=none"], SMALL) == {"model/norm": "none"}
    assert changes(found["optimizer=adamw"], SMALL) == {"optimizer/name": "adamw", "optimizer/weight_decay": 0.01}
    assert changes(found["kernel-size=5"], SMALL) == {"model/kernel_sizes": [5, 5, 5]}
    assert changes(found["dropout=0.1"], SMALL) == {"model/dropout": 0.1}
    assert changes(found["augmentation=none"], SMALL) == {"augment/crop_padding": 0, "augment/flip": "none"}


def test_policy_colour_jitter_and_mixing_are_factors_of_their_own() -> None:
    found = design("policy", "color-jitter", "mix=mixup,cutmix", "augmentation=none")
    assert [arm.name for arm in found.arms[1:]] == [
        "policy=trivialaugment",
        "policy=randaugment",
        "color-jitter=0.2",
        "color-jitter=0.4",
        "mix=mixup",
        "mix=cutmix",
        "augmentation=none",
    ]
    assert [factor.base_level for factor in found.factors[:3]] == ["none", "0.0", "none"]
    assert changes(arms(found)["policy=randaugment"], SMALL) == {"augment/policy": "randaugment"}
    assert changes(arms(found)["color-jitter=0.4"], SMALL) == {"augment/color_jitter": 0.4}
    assert changes(arms(found)["mix=cutmix"], SMALL) == {"augment/mix": "cutmix"}
    assert changes(arms(design("augment/color_jitter=0.7"))["color-jitter=0.7"], SMALL) == {"augment/color_jitter": 0.7}
    mixed = replace(SMALL, augment=replace(SMALL.augment, mix="mixup"))
    assert arms(design("augmentation=none", base=mixed))["augmentation=none"].config.augment == AugmentConfig(
        mix="mixup"
    )


def test_a_head_on_kept_features_is_not_compared_where_images_are_mixed() -> None:
    frozen = preset("resnet18-frozen", TASK)
    left_out = design("mix", "optimizer=sgd", base=frozen).left_out
    assert [(one.factor, one.level) for one in left_out] == [("mix", "mixup"), ("mix", "cutmix")]
    assert left_out[0].reason.startswith("augment/mix 'mixup' needs images")
    tuned = preset("resnet18-finetune", TASK)
    jittered = replace(tuned, augment=AugmentConfig(color_jitter=0.4))
    head = arms(design("finetune=head", base=jittered))["finetune=head"]
    assert changes(head, jittered) == {"model/finetune": "head", "model/feature_views": 4}
    mixed = replace(tuned, augment=replace(tuned.augment, mix="cutmix"))
    assert [one.level for one in design("finetune", base=mixed).left_out] == ["head"]


def test_a_backbone_comes_with_what_it_can_have() -> None:
    base = preset("resnet18-finetune", TASK)
    found = arms(design(base=base))
    scratch = {"model/weights": "none", "model/backbone_lr": 1.0}
    assert changes(found["weights=none"], base) == scratch
    # Of a frozen backbone features are kept: several views of each image stand for its augmentation.
    assert changes(found["finetune=head"], base) == {"model/finetune": "head", "model/feature_views": 4}
    plain = replace(base, augment=AugmentConfig())
    assert changes(arms(design(base=plain))["finetune=head"], plain) == {"model/finetune": "head"}
    frozen = design(base=preset("resnet18-frozen", TASK))
    assert [(one.factor, one.level) for one in frozen.left_out] == [("weights", "none")]
    assert frozen.left_out[0].reason.startswith("finetune 'head' freezes a backbone of random weights")


def test_levels_that_would_change_nothing_are_left_out_and_named() -> None:
    simple = preset("simple-cnn", TASK)
    left_out = {(one.factor, one.level): one.reason for one in design(base=simple).left_out}
    assert left_out["norm-placement", "before_conv"] == "with norm none nothing is placed"
    assert left_out["residual", "true"] == "no block keeps its shape, so none has anything to add"
    evonorm = preset("evonorm-cnn", TASK)
    hidden = design("activation", base=evonorm)  # its hidden layer has the activation
    assert [arm.name for arm in hidden.arms[1:]] == ["activation=mish", "activation=silu", "activation=gelu"]
    bare = replace(evonorm, model=replace(evonorm.model, head_hidden=0))
    assert design("norm", "activation=mish", base=bare).left_out[0].reason == "evonorm_s0 is the activation too"
    digits = design("augmentation", base=preset("small-cnn", DIGITS), task=DIGITS)
    assert [arm.name for arm in digits.arms[1:]] == ["augmentation=crop", "augmentation=crop+cutout"]


def test_early_stopping_is_asked_of_a_schedule_that_does_not_anneal_and_trains_nothing() -> None:
    found = design("early-stopping")
    assert [arm.name for arm in found.trained] == [BASE, "lr-schedule=constant"]
    stopped = arms(found)["early-stopping=3"]
    assert (stopped.control, stopped.patience) == ("lr-schedule=constant", 3)
    assert stopped.config == arms(found)["lr-schedule=constant"].config
    with_others = design("early-stopping=4", "lr-schedule=cosine")
    assert [arm.name for arm in with_others.trained][1:] == ["lr-schedule=cosine", "lr-schedule=constant"]
    assert {factor.name: len(factor.levels) for factor in with_others.factors} == {
        "early-stopping": 1,
        "lr-schedule": 2,
    }
    constant = replace(SMALL, lr_schedule=LRScheduleConfig("constant"))
    assert arms(design("early-stopping=3", base=constant))["early-stopping=3"].control == BASE
    short = make_design(constant, ["early-stopping=3,40", "norm=none"], None, TASK, 30)
    assert [(one.level, one.reason) for one in short.left_out] == [("40", "a training has 30 epochs")]


def test_a_cross_has_every_combination_that_the_base_does_not_have() -> None:
    found = design("norm=none,group", "dropout=0.1,0.3", "optimizer=adamw", cross="norm,dropout")
    cells = [arm for arm in found.arms if arm.cells]
    assert len(cells) == 4
    cell = arms(found)["norm=none x dropout=0.3"]
    assert (cell.factor, cell.level, cell.control) == ("norm x dropout", "none x 0.3", BASE)
    assert dict(cell.cells) == {"norm": "none", "dropout": "0.3"}
    assert changes(cell, SMALL) == {"model/norm": "none", "model/dropout": 0.3}
    three = design("norm=none", "dropout=0.1", "optimizer=adamw", cross="norm,dropout,optimizer")
    assert sum(bool(arm.cells) for arm in three.arms) == 4  # three pairs and the triple
    impossible = design("norm=none", "norm-placement=before_conv", cross="norm,norm-placement")
    assert [one.factor for one in impossible.left_out] == ["norm x norm-placement"]


def test_any_key_can_be_varied_and_commas_in_brackets_do_not_part_levels() -> None:
    found = arms(design("model/widths=[16,32,64],[8, 16, 32]", "batch_size=32"))
    assert changes(found["model.widths=[16,32,64]"], SMALL) == {"model/widths": [16, 32, 64]}
    assert changes(found["batch_size=32"], SMALL) == {"batch_size": 32}


@pytest.mark.parametrize(
    "vary, cross, message",
    [
        (["foo"], None, "--vary: no factor 'foo'; take one of norm, norm-placement, dropout,"),
        (["norm=layer"], None, "--vary norm: no level 'layer'; take of none, batch, group, evonorm_s0"),
        (["finetune"], None, "--vary: the base, a cnn, has no finetune; it has norm,"),
        (["model/finetune=all"], None, "--vary: the base, a cnn, has no finetune; it has norm,"),
        (["model/depth=3"], None, "--vary model/depth=3: model/depth: no such key; model has widths, blocks,"),
        (["model/init"], None, "--vary model/init: give values of which one at least is not the base's"),
        (["model/init=dirac"], None, "--vary model/init: give values of which one at least is not the base's"),
        (["norm=batch"], None, "--vary norm: batch is what the base has; give another level as well"),
        (["dropout=7"], None, "--vary dropout=7: model/dropout: Input should be less than 1"),
        (["kernel-size=4"], None, "--vary kernel-size=4: model/kernel_sizes/0: Input should be 1, 3, 5 or 7"),
        (["mix=cutout"], None, "--vary mix: no level 'cutout'; take of none, mixup, cutmix"),
        (["policy=auto"], None, "--vary policy: no level 'auto'; take of none, trivialaugment, randaugment"),
        (
            ["color-jitter=2"],
            None,
            "--vary color-jitter=2: augment/color_jitter: Input should be less than or equal to",
        ),
        (["early-stopping=0"], None, "--vary early-stopping: no level '0'; take of 3, 5, 10"),
        (["early-stopping=30"], None, "--vary: nothing is left to vary: early-stopping: a training has 30 epochs"),
        (["norm", "model/norm=none"], None, "--vary: norm is given twice; give all of its levels at once"),
        (
            ["norm", "dropout"],
            "norm,optimizer",
            "--cross: optimizer is not varied; take of norm, dropout, or --vary it",
        ),
        (["norm", "dropout"], "norm", "--cross: give two factors or more, such as norm,dropout"),
        (["model/norm=" + "x" * 300], None, "--vary norm: no level 'xxx"),
    ],
)
def test_what_cannot_be_varied_is_told(vary: list[str], cross: str | None, message: str) -> None:
    with pytest.raises(InputError) as refused:
        design(*vary, cross=cross)
    assert str(refused.value).startswith(message)


def test_the_base_and_each_level_of_norm_and_optimizer_get_the_same_sweep() -> None:
    found = sweeps(design("norm=none", "optimizer=adamw", "dropout=0.1"))
    assert [sweep.arm.name for sweep in found] == [BASE, "norm=none", "optimizer=adamw"]
    assert found[0].rates == (0.0833, 0.25, 0.75) == found[1].rates
    assert found[2].rates == (0.001, 0.003, 0.009)  # about what is usual for it
    assert found[2].at(0.001).optimizer.lr == 0.001 and found[2].at(0.001).optimizer.name == "adamw"
    assert sweeps(design("dropout=0.1")) == []


def test_levels_are_compared_at_their_own_rates_with_the_base_at_its_own() -> None:
    found = design("norm=none,group", "optimizer=adamw")
    same = arms_at_own_rates(found, {BASE: 0.25, "norm=none": 0.75, "norm=group": 0.25, "optimizer=adamw": 0.003})
    assert [(arm.name, arm.control, arm.config.optimizer.lr) for arm in same] == [
        ("norm=none, own rate", BASE, 0.75),
        ("optimizer=adamw, own rate", BASE, 0.003),
    ]
    assert all(arm.rate == "own" for arm in same)
    other = arms_at_own_rates(found, {BASE: 0.75, "norm=none": 0.75, "norm=group": 0.25})
    assert [(arm.name, arm.control, arm.config.optimizer.lr) for arm in other] == [
        ("base, own rate", None, 0.75),
        ("norm=none, own rate", "base, own rate", 0.75),
        ("norm=group, own rate", "base, own rate", 0.25),
    ]
    assert arms_at_own_rates(found, {"norm=none": 0.75}) == []  # nothing to compare with


def test_any_backbone_has_the_factors_of_a_resnet() -> None:
    base, resnet = preset("mobilenet_v3_small-finetune", TASK), preset("resnet18-finetune", TASK)
    found, expected = design(base=base), design(base=resnet)
    assert {factor.name for factor in found.factors} == {"finetune", "weights", "image-size", "head"}
    assert {name: changes(config, base) for name, config in arms(found).items()} == {
        name: changes(config, resnet) for name, config in arms(expected).items()
    }
    with pytest.raises(InputError, match=r"the base, a mobilenetv3, has no norm; it has lr-schedule, .* finetune, "):
        design("norm", base=base)


def test_factors_and_levels_are_told_in_help() -> None:
    from cifar_ray.ablate import FACTORS, MORE_FACTORS

    told = FACTORS.replace(";", ",").replace("of a backbone ", "").split(", ")
    assert told == [*STANDARD["cnn"], *STANDARD["backbone"]] and set(told) <= set(KINDS)
    more = MORE_FACTORS.replace(" (augmentation by torchvision)", "").split(", ")
    assert sorted([*told, *more]) == sorted(KINDS)
