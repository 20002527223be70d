"""Configurations: what is valid comes back unchanged, what is not is told in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.config import AugmentConfig, TrialConfig, has_value, trial_config, with_values
from cifar_ray.errors import InputError
from cifar_ray.results.config_json import read_config

UNUSUAL: dict[str, Any] = {
    "family": "cnn",
    "model": {
        "widths": [8, 24],
        "blocks": [2, 1],
        "kernel_sizes": [5, 1],
        "whitening": True,
        "init": "dirac",
        "activation": "mish",
        "norm": "group",
        "norm_placement": "before_conv",
        "pool_placement": "after_norm",
        "residual": True,
        "dropout": 0.1,
        "head_pool": "max",
        "head_hidden": 16,
        "head_dropout": 0.2,
    },
    "image_size": 24,
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01, "momentum": 0.8, "lookahead": True},
    "lr_schedule": {"name": "cosine", "warmup": 0.1},
    "augment": {
        "crop_padding": 4,
        "flip": "random",
        "cutout": 8,
        "policy": "randaugment",
        "color_jitter": 0.4,
        "mix": "cutmix",
        "mix_alpha": 0.2,
    },
    "batch_size": 96,
    "label_smoothing": 0.15,
    "sync_batch_norm": True,
    "class_weights": "balanced",
    "tta": "flip",
    "precision": "bf16",
}
"""A configuration in which every value but the family differs from its default."""

UNUSUAL_RESNET: dict[str, Any] = {
    **UNUSUAL,
    "family": "resnet",
    "model": {
        "backbone": "resnet50",
        "weights": "IMAGENET1K_V2",
        "stem": "cifar",
        "finetune": "gradual",
        "backbone_lr": 0.3,
        "layer_decay": 0.5,
        "freeze_norm_statistics": True,
        "head_hidden": [64, 16],
        "head_dropout": 0.2,
        "feature_views": 1,
    },
}


@pytest.mark.parametrize(("saved", "flip"), [(True, "random"), (False, "none")])
def test_flips_of_configurations_that_were_saved_before_they_had_names(saved: bool, flip: str) -> None:
    assert trial_config({"augment": {"flip": saved}}, "here").augment.flip == flip


def test_a_configuration_that_was_saved_before_images_were_mixed_mixes_none() -> None:
    saved = {"augment": {"crop_padding": 4, "flip": "random", "cutout": 8}}
    assert trial_config(saved, "here").augment == AugmentConfig(4, "random", 8, "none", 0.0, "none")


def told(values: Any) -> str:
    """The message that a wrong configuration gives, held to one line that begins with where it came from."""
    with pytest.raises(InputError) as caught:
        trial_config(values, "here")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("here: ")
    return message


@pytest.mark.parametrize("values", [UNUSUAL, UNUSUAL_RESNET], ids=["cnn", "resnet"])
def test_a_configuration_survives_the_way_through_json(values: dict[str, Any]) -> None:
    config = trial_config(values, "here")
    assert config.to_dict() == values
    assert trial_config(json.loads(json.dumps(config.to_dict())), "here") == config


def test_the_unusual_configuration_has_no_default_value() -> None:
    default = TrialConfig().to_dict()
    for section, values in UNUSUAL.items():
        if isinstance(values, dict):
            assert set(values) == set(default[section])
            assert not [key for key, value in values.items() if value == default[section][key]]
        elif section != "family":
            assert values != default[section]


def test_what_is_left_out_takes_its_default() -> None:
    assert trial_config({}, "here") == TrialConfig()
    config = trial_config({"optimizer": {"lr": 0.2}}, "here")
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("section", "key", "names"),
    [
        ("model", "norm", ["none", "batch", "group", "evonorm_s0", "evonorm_b0"]),
        ("model", "activation", ["relu", "mish", "silu", "gelu"]),
        ("model", "head_pool", ["avg", "max", "flatten"]),
        ("optimizer", "name", ["sgd", "adamw", "muon"]),
        ("lr_schedule", "name", ["constant", "step", "cosine", "one_cycle", "plateau"]),
        ("augment", "policy", ["none", "trivialaugment", "randaugment"]),
        ("augment", "mix", ["none", "mixup", "cutmix"]),
    ],
)
def test_every_choice_is_taken(section: str, key: str, names: list[str]) -> None:
    for name in names:
        assert trial_config({section: {key: name}}, "here").to_dict()[section][key] == name


def test_two_configurations_share_no_lists() -> None:
    first, second = TrialConfig(), TrialConfig()
    assert first.model.widths is not second.model.widths
    first.to_dict()["model"]["widths"].append(1)
    assert first == second


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("family", "vit"),
        ("family", None),
        ("image_size", 4),
        ("image_size", 2000),
        ("model", None),
        ("model", [1]),
        ("model/widths", 32),
        ("model/widths/1", [8, 0, 8]),
        ("model/widths/0", ["wide", 8, 8]),
        ("model/blocks/2", [1, 1, -1]),
        ("model/blocks/0", [1.5, 1, 1]),
        ("model/kernel_sizes/0", [2, 3, 3]),
        ("model/activation", "tanh"),
        ("model/norm", "layer\nnorm"),
        ("model/norm_placement", "nowhere"),
        ("model/pool_placement", "nowhere"),
        ("model/residual", "maybe"),
        ("model/dropout", 1.0),
        ("model/dropout", -0.1),
        ("model/head_pool", "mean"),
        ("model/head_hidden", -1),
        ("model/head_hidden", 0.5),
        ("model/head_dropout", 1.5),
        ("optimizer/name", "lion"),
        ("optimizer/lr", 0.0),
        ("optimizer/lr", -1.0),
        ("optimizer/lr", float("nan")),
        ("optimizer/lr", float("inf")),
        ("optimizer/lr", "fast"),
        ("optimizer/weight_decay", -1e-9),
        ("optimizer/weight_decay", float("inf")),
        ("optimizer/momentum", 1.0),
        ("lr_schedule/name", "linear"),
        ("lr_schedule/warmup", 1.0),
        ("augment/crop_padding", -1),
        ("augment/crop_padding", 0.5),
        ("augment/flip", 2),
        ("augment/cutout", -1),
        ("augment/policy", "autoaugment"),
        ("augment/color_jitter", -0.1),
        ("augment/color_jitter", 1.1),
        ("augment/mix", "both"),
        ("augment/mix_alpha", 0),
        ("augment/mix_alpha", -1.0),
        ("augment/mix_alpha", 0.001),  # of whose draws float32 makes a half, where they should be zero or one
        ("augment/mix_alpha", float("nan")),
        ("batch_size", 0),
        ("batch_size", "many"),
        ("batch_size", None),
        ("label_smoothing", 1.0),
        ("class_weights", "inverse"),
        ("class_weights", [1.0, 2.0]),
    ],
)
def test_a_wrong_value_is_told_with_its_key(key: str, value: Any) -> None:
    section, *path = key.split("/")
    message = told({section: {path[0]: value}} if path else {section: value})
    assert message.startswith(f"here: {key}: ")
    assert "(got " in message


@pytest.mark.parametrize("section", ["", "model", "optimizer", "lr_schedule", "augment"])
def test_an_unknown_key_is_told(section: str) -> None:
    message = told({section: {"colour": 1}} if section else {"colour": 1})
    assert message.startswith(f"here: {section + '/' if section else ''}colour: ")


def test_a_key_with_a_line_break_is_told_in_one_line() -> None:
    assert "colour" in told({"colour\nof": 1})


def test_a_key_that_is_no_string_is_told() -> None:
    assert "7" in told({7: 1})


@pytest.mark.parametrize("values", [None, [], "cnn", 3, [{"model": {}}]])
def test_what_is_no_dictionary_is_told(values: Any) -> None:
    assert "dictionary" in told(values)


@pytest.mark.parametrize(
    "model",
    [
        {"widths": [], "blocks": [], "kernel_sizes": []},
        {"widths": [8, 8], "blocks": [1, 1], "kernel_sizes": [3]},
        {"widths": [8]},
    ],
)
def test_stages_of_unequal_number_or_none_are_told(model: dict[str, Any]) -> None:
    message = told({"model": model})
    assert message.startswith("here: model: ")
    assert "one entry per stage" in message


def test_a_long_wrong_value_is_cut_off_in_the_message() -> None:
    assert len(told({"optimizer": {"name": "x" * 10_000}})) < 300


@pytest.mark.parametrize("card", [UNUSUAL, {"config": UNUSUAL, "class_names": ["a", "b"]}], ids=["bare", "saved model"])
def test_a_configuration_is_read_from_a_file(tmp_path: Path, card: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(card))
    assert read_config(path)[0].to_dict() == UNUSUAL


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"cnn"',
        b'{"config": []}',
        b'{"config": {"colour": 1}}',
        b'{"optimizer": {"lr": NaN}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_file_that_is_no_configuration_is_told_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [".", "absent.json"], ids=["folder", "absent"])
def test_a_missing_file_or_a_folder_is_told_with_its_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({}, "model/backbone: "),
        ({"backbone": "resnet18", "finetune": "heads"}, "model/finetune: "),
        ({"backbone": "resnet18", "widths": [8]}, "model/widths: "),
        (
            {"backbone": "resnet18", "weights": "none", "finetune": "head"},
            "model: Value error, finetune 'head' freezes",
        ),
    ],
)
def test_what_is_wrong_with_a_resnet_is_told_with_its_key(model: dict[str, Any], says: str) -> None:
    assert told({"family": "resnet", "model": model}).startswith(f"here: {says}")


def test_a_model_belongs_to_its_family() -> None:
    assert told({"family": "resnet"}).startswith("here: configuration: Value error, family resnet needs a model")
    assert told({"family": "cnn", "model": {"backbone": "resnet18"}}).startswith("here: model/backbone: ")


# ---- values by their paths ----


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("model/dropout", "0.3", 0.3),
        ("model/widths", "[8, 16]", [8, 16]),
        ("model/residual", "false", False),
        ("model/residual", "False", False),
        ("model/norm", "none", "none"),
        ("optimizer/name", "sgd", "sgd"),
        ("optimizer/lr", "1e-3", 1e-3),
        ("image_size", "null", None),
        ("batch_size", "32", 32),
        ("augment", '{"cutout": 4}', TrialConfig().to_dict()["augment"] | {"cutout": 4}),
    ],
)
def test_a_value_is_changed_by_its_path_and_all_else_stays(path: str, text: str, value: Any) -> None:
    before = trial_config(UNUSUAL, "here")
    expected: dict[str, Any] = json.loads(json.dumps(UNUSUAL))
    *parents, key = path.split("/")
    (expected[parents[0]] if parents else expected)[key] = value
    assert with_values(before, {path: text}, "here").to_dict() == expected
    assert before.to_dict() == UNUSUAL


def test_the_family_follows_the_backbone() -> None:
    resnet = trial_config(UNUSUAL_RESNET, "here")
    other = with_values(resnet, {"model/backbone": "efficientnet_b0", "model/stem": "imagenet"}, "here")
    assert (other.family, other.model.backbone) == ("efficientnet", "efficientnet_b0")
    with pytest.raises(InputError, match="backbone 'nosuch' is not known; take one of torchvision's alexnet"):
        with_values(resnet, {"model/backbone": "nosuch"}, "here")
    with pytest.raises(InputError, match="resnet50 is of family resnet, not efficientnet"):
        with_values(resnet, {"family": "efficientnet"}, "here")


def test_values_that_are_valid_together_are_changed_together() -> None:
    texts = {"model/widths": "[8]", "model/blocks": "[1]", "model/kernel_sizes": "[3]"}
    assert with_values(TrialConfig(), texts, "here").to_dict()["model"]["widths"] == [8]
    with pytest.raises(InputError, match=r"here: model: .* one entry per stage"):
        with_values(TrialConfig(), {"model/widths": "[8]"}, "here")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model/dropuot", "1", "model/dropuot: no such key; model has widths, blocks, whitening, init, "),
        ("dropout", "1", "dropout: no such key; a configuration has family, model, image_size, optimizer, "),
        ("modle/dropout", "1", "modle/dropout: no such key; a configuration has family, model, "),
        ("model/dropout/rate", "1", "model/dropout/rate: no such key; model has widths, "),
        ("optimizer/", "1", "optimizer/: no such key; optimizer has name, lr, weight_decay, momentum, lookahead"),
        ("optimizer/name", "adma", "optimizer/name: Input should be 'sgd', 'adamw' or 'muon' (got 'adma')"),
        ("optimizer/lr", "fast", "optimizer/lr: Input should be a valid number, unable to parse string as a number"),
        ("optimizer/lr", "NaN", "optimizer/lr: Input should be "),
        ("model/dropout", "1", "model/dropout: Input should be less than 1 (got 1)"),
        ("model/dropout", "NaN", "model/dropout: Input should be "),
        ("model/widths", "8,16", "model/widths: Input should be a valid list (got '8,16')"),
    ],
)
def test_a_path_that_leads_nowhere_and_a_value_that_is_none_are_told(path: str, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        with_values(TrialConfig(), {path: text}, "here")
    assert str(caught.value).startswith(f"here: {message}")
    assert has_value(TrialConfig(), path) == ("no such key" not in message)
