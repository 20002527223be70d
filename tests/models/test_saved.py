"""Saved models: what is written, what comes back, and what is told about a folder that is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cifar_ray.config import CNNConfig, TrialConfig
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import Classifier, build_model
from cifar_ray.models.saved import SavedModel, load_model, pack_weights, save_model

CONFIG = TrialConfig(
    model=CNNConfig(widths=[8, 12], blocks=[1, 2], kernel_sizes=[3, 1], residual=True, dropout=0.3, head_dropout=0.3)
)
CARD = {"class_names": ["cat", "dog", "eel"], "resize": {"channels": 3, "image_size": 8, "rule": "crop"}, "seed": 4}
IMAGES = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def some_model(config: TrialConfig = CONFIG) -> Classifier:
    """A model in the memory order of a trained one, whose buffers are no longer those of a fresh one."""
    torch.manual_seed(0)
    model = build_model(config, num_classes=3, channels=3, image_size=8)
    model.normalize.mean.copy_(torch.tensor([100.0, 110.0, 120.0]).view(1, 3, 1, 1))
    model.normalize.std.fill_(60.0)
    model = model.to(memory_format=torch.channels_last).train()
    for _ in range(3):
        model(IMAGES)  # moves the running statistics
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = tmp_path / "models" / "one-seed0"
    save_model(saved, pack_weights(some_model()), CONFIG, CARD)
    return saved


def told(folder: Path) -> str:
    """The message about a folder that is no saved model, held to one line that names the folder."""
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_saved_model_comes_back_with_the_same_logits(tmp_path: Path, norm: str) -> None:
    config = TrialConfig(model=CNNConfig(widths=[8], blocks=[2], kernel_sizes=[3], norm=norm))  # type: ignore[arg-type]
    model = some_model(config)
    save_model(tmp_path, pack_weights(model), config, CARD)
    loaded = load_model(str(tmp_path))
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_model_survives_the_way_through_bytes_alone() -> None:
    model = some_model()
    unpacked = SavedModel("one", pack_weights(model), CONFIG, CARD).build()
    assert torch.equal(unpacked(IMAGES), model(IMAGES))


def test_the_config_file_rebuilds_the_model_and_keeps_the_card(folder: Path) -> None:
    card = json.loads((folder / "config.json").read_text())
    assert card.pop("config") == CONFIG.to_dict()
    assert card == CARD


def test_the_weights_file_has_contiguous_tensors_under_plain_keys(folder: Path) -> None:
    state = some_model().state_dict()
    convolution = "network.blocks.0.layers.0.weight"
    assert not state[convolution].is_contiguous(), "channels-last weights are what has to be straightened"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    assert tensors.keys() == state.keys()
    assert not [name for name in tensors if name.startswith(("module.", "_orig_mod."))]
    assert {name.split(".")[0] for name in tensors} == {"normalize", "network"}
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), name
        assert torch.equal(tensor, state[name]), name


def test_packing_leaves_the_model_as_it_is() -> None:
    model = some_model()
    before = model(IMAGES)
    pack_weights(model)
    assert torch.equal(model(IMAGES), before)
    assert not model.state_dict()["network.blocks.0.layers.0.weight"].is_contiguous()


def test_saving_again_replaces_the_model(folder: Path) -> None:
    other = TrialConfig(model=CNNConfig(widths=[16], blocks=[1], kernel_sizes=[5]))
    model = some_model(other)
    save_model(folder, pack_weights(model), other, CARD)
    assert torch.equal(load_model(folder)(IMAGES), model(IMAGES))


def test_a_folder_that_is_absent_empty_or_a_file_is_told(tmp_path: Path) -> None:
    told(tmp_path / "absent")
    told(tmp_path)
    (tmp_path / "file").write_text("")
    told(tmp_path / "file")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_told_by_its_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in told(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"not a model\n" * 20], ids=["empty", "binary", "text"])
def test_a_broken_file_is_told(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    told(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_told(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * kept)])
    told(folder)


def change_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / "config.json").read_text())
    changed = change(card)
    (folder / "config.json").write_text(json.dumps(card if changed is None else changed))


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "widths": lambda card: card["config"]["model"].update(widths=[8, 16]),
    "stages": lambda card: card["config"]["model"].update(widths=[8], blocks=[1], kernel_sizes=[3]),
    "norm": lambda card: card["config"]["model"].update(norm="none"),
    "classes": lambda card: card["class_names"].append("fox"),
    "channels": lambda card: card["resize"].update(channels=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_weights_that_do_not_fit_the_configuration_are_told(
    folder: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    change_card(folder, change)
    told(folder)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda card: [card],
    "null": lambda card: "null",
    "no config": lambda card: card.pop("config") and None,
    "bare config": lambda card: card["config"],
    "no class names": lambda card: card.pop("class_names") and None,
    "class names": lambda card: card.update(class_names=3),
    "no resize": lambda card: card.pop("resize") and None,
    "resize": lambda card: card.update(resize=[3, 8]),
    "no channels": lambda card: card["resize"].pop("channels") and None,
    "channels": lambda card: card["resize"].update(channels="three"),
    "negative channels": lambda card: card["resize"].update(channels=-1),
    "image size": lambda card: card["resize"].update(image_size=None),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_card_that_lacks_what_a_model_needs_is_told(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_card(folder, change)
    told(folder)


def test_a_wrong_value_of_the_configuration_is_told_with_its_key(folder: Path) -> None:
    change_card(folder, lambda card: card["config"]["model"].update(norm="layer"))
    assert "model/norm" in told(folder)


def test_a_model_is_loaded_from_the_package_itself_and_by_its_older_name(folder: Path) -> None:
    import cifar_ray
    from cifar_ray.checkpoint import load_model as older_name

    assert cifar_ray.load_model is older_name is load_model
    assert not cifar_ray.load_model(folder).training
    with pytest.raises(AttributeError, match="nothing"):
        _ = cifar_ray.nothing
