"""Pretrained weights: from files that a test writes, from a local server in torchvision's place, and the real ones."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from helpers.images import REPOSITORY, flip_a_byte
from helpers.resnets import ALL_BACKBONES
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from cifar_ray.errors import InputError
from cifar_ray.models.families import POSITIONS, make_backbone
from cifar_ray.models.pretrained import (
    _layout,
    _matching_backbone,
    backbones_with,
    load_weights,
    published,
    weights_of_file,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet18() -> State:
    return random_state("resnet18", num_classes=7)


def random_state(backbone: str, num_classes: int) -> State:
    torch.manual_seed(0)
    return torchvision.models.get_model(backbone, num_classes=num_classes).state_dict()


def blank(backbone: str, dtype: torch.dtype = torch.float16) -> State:
    """The keys and shapes of a backbone, in a file of a few kilobytes: all numbers of a tensor are one."""
    with torch.device("meta"):
        state = torchvision.models.get_model(backbone).state_dict()
    return {key: torch.ones((), dtype=dtype).expand(tensor.shape) for key, tensor in state.items()}


def saved(content: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    """Why a file is refused: one line that begins with its path."""
    with pytest.raises(InputError) as error:
        weights_of_file(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and "\x1b" not in line and len(line) < 500 + len(str(path))
    return line.removeprefix(f"{path}: ")


def assert_same(found: dict[str, np.ndarray], state: State) -> None:
    expected = {key: tensor.numpy() for key, tensor in state.items() if not key.startswith("fc.")}
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape, key
        assert np.array_equal(found[key], array), key


# ---- what is taken ----


def test_a_file_of_torch_save(resnet18: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(resnet18, tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    found = weights_of_file(Path("mine.pth"))
    assert (found.backbone, found.source) == ("resnet18", str(path))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.tensors["conv1.weight"].dtype == np.float32
    assert_same(found.tensors, resnet18)
    assert load_weights("resnet18", "mine.pth").source == str(path)


def test_resnet50_in_half_precision_as_safetensors(tmp_path: Path) -> None:
    state = random_state("resnet50", num_classes=3)
    state["bn1.num_batches_tracked"] = torch.tensor(70_000)
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    found = weights_of_file(saved(half, tmp_path / "half.safetensors"))
    assert found.backbone == "resnet50"
    assert found.tensors["layer4.2.conv3.weight"].dtype == np.float16
    assert found.tensors["bn1.num_batches_tracked"] == 70_000
    assert_same(found.tensors, half)


@pytest.mark.parametrize("legacy", [False, True])
def test_other_ways_to_save_the_same(resnet18: State, tmp_path: Path, legacy: bool) -> None:
    state = {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in resnet18.items()}
    del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "x.PT", _use_new_zipfile_serialization=not legacy)
    assert_same(weights_of_file(tmp_path / "x.PT").tensors, resnet18)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16_becomes_float32(tmp_path: Path, suffix: str) -> None:
    found = weights_of_file(saved(blank("resnet18", torch.bfloat16), tmp_path / f"x{suffix}"))
    assert found.tensors["conv1.weight"].dtype == np.float32
    assert (found.tensors["conv1.weight"] == 1).all()


def test_the_number_of_batches_may_be_absent_or_cast(resnet18: State, tmp_path: Path) -> None:
    state = {key: value for key, value in resnet18.items() if not key.endswith("num_batches_tracked")}
    state["layer1.0.bn1.num_batches_tracked"] = torch.tensor(70_000).half()  # infinite
    found = weights_of_file(saved(state, tmp_path / "old.pth"))
    assert_same(found.tensors, resnet18)  # where it is 0, too
    assert sum(key.endswith("num_batches_tracked") for key in found.tensors) == 20


def test_weights_fit_the_module_of_torchvision(resnet18: State, tmp_path: Path) -> None:
    found = weights_of_file(saved(resnet18, tmp_path / "x.pth"))
    module = torchvision.models.get_model(found.backbone)
    keys = module.load_state_dict({key: torch.from_numpy(array) for key, array in found.tensors.items()}, strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys


@pytest.mark.parametrize("backbone", ALL_BACKBONES)
def test_every_backbone_is_known_by_its_shapes_without_building_another(backbone: str, tmp_path: Path) -> None:
    made = make_backbone(backbone)
    state = made.network.state_dict()
    whole = {
        **state,
        f"{made.classifier}.weight": torch.empty(10, made.width),
        f"{made.classifier}.bias": torch.empty(10),
    }
    _layout.cache_clear()
    for one in (state, whole, dict(sorted(whole.items()))):
        assert _matching_backbone(tmp_path, one) == backbone
    assert _layout.cache_info().misses == 1


def test_weights_of_other_families_are_read_as_they_are(tmp_path: Path) -> None:
    for backbone in ("mobilenet_v3_small", "swin_t"):  # this one has integers among them
        state = random_state(backbone, num_classes=3)
        path = saved({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "x.safetensors")
        assert refusal(path).startswith("its keys begin with 'module.'")
        found = weights_of_file(saved(state, tmp_path / "x.safetensors"))
        assert found.backbone == backbone
        network = make_backbone(backbone).network.to_empty(device="cpu")
        network.load_state_dict({key: torch.from_numpy(array) for key, array in found.tensors.items()})
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "pattern", "old"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),
        ("vit_b_32", r"\.mlp\.[03]\.", {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}),
    ],
)
def test_keys_that_torchvisions_own_files_have_by_older_names(
    backbone: str, pattern: str, old: str | dict[str, str], tmp_path: Path
) -> None:
    state = {key: torch.ones((), dtype=torch.float16).expand(shape) for key, shape in _layout(backbone).shapes.items()}
    replacement = old if isinstance(old, str) else lambda match: old[match[0]]
    older = {re.sub(pattern, replacement, key): tensor for key, tensor in state.items()}
    assert len(older.keys() - state.keys()) >= 48
    found = weights_of_file(saved(older, tmp_path / "x.pth"))
    assert (found.backbone, list(found.tensors)) == (backbone, list(state))


def test_a_vision_transformer_for_images_of_another_size_is_taken(tmp_path: Path) -> None:
    state = dict(make_backbone("vit_b_16", 224).network.state_dict())
    for num_patches, fits in ((4, True), (576, True), (196, True), (7, False), (0, False)):
        state[POSITIONS] = torch.empty(1, num_patches + 1, 768, device="meta")
        if fits:
            assert _matching_backbone(tmp_path, state) == "vit_b_16"
        else:
            with pytest.raises(InputError, match=rf"nearest is vit_b_16, but {POSITIONS} is \(1, {num_patches + 1}, "):
                _matching_backbone(tmp_path, state)


def test_what_a_space_may_draw(tmp_path: Path) -> None:
    usual = ("resnet18", "resnet50")
    assert backbones_with("DEFAULT", usual) == backbones_with("none", usual) == usual
    assert backbones_with("IMAGENET1K_V2", usual) == ("resnet50",)
    path = saved(blank("resnet34"), tmp_path / "x.pth")
    assert backbones_with(str(path), usual) == ("resnet34",)
    with pytest.raises(InputError, match="torchvision has none of that name for mobilenet_v3_small; use IMAGENET1K_V1"):
        backbones_with("IMAGENET1K_V2", ("mobilenet_v3_small",))


def test_what_torchvision_has() -> None:
    assert published("resnet18") == ("IMAGENET1K_V1",)
    assert published("resnet50") == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert published("vit_h_14") == ()  # its weights have other names, which are taken with DEFAULT
    for name in ("resnet19", "squeezenet1_0", ""):
        with pytest.raises(InputError, match=rf"torchvision has no '{name}'; take one of .*resnet18, "):
            published(name)
        with pytest.raises(InputError, match="torchvision has no"):
            load_weights(name, "DEFAULT")


def test_the_real_weights() -> None:
    folder = Path(os.environ.get("CIFAR_RAY_SHARED", REPOSITORY.parent / "shared")) / "weights"
    file = folder / "resnet18-tinyimagenet191.pth"
    if not file.is_file():
        pytest.skip(f"{file} is absent: set CIFAR_RAY_SHARED to a shared folder")
    found = load_weights("resnet18", str(file))
    assert found.backbone == "resnet18"
    assert f"{found.sha256}  {file.name}" in (folder / "SHA256SUMS").read_text().splitlines()
    assert found.tensors["conv1.weight"].dtype == np.float16
    assert found.tensors["bn1.running_var"].shape == (64,)
    assert len(found.tensors) == 120


# ---- files that are refused ----


def test_a_file_that_is_not_there_or_has_another_name(tmp_path: Path) -> None:
    hint = "weights are DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, none or the path of a file"
    assert refusal(tmp_path / "absent.pth") == f"no such file; {hint}"
    (tmp_path / "link.pth").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path / "link.pth") == f"no such file; {hint}"
    (tmp_path / "folder.pth").mkdir()
    assert refusal(tmp_path / "folder.pth") == "is a folder; give a file in it (.pth, .pt, .safetensors)"
    (tmp_path / "model.onnx").touch()
    assert refusal(tmp_path / "model.onnx").endswith("must end in .pth, .pt, .safetensors")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({}, tmp_path / "x.pth")

    def forbidden(self: Path, *mode: str) -> None:  # root, which tests may run as, reads everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert refusal(path).startswith("cannot be read (Permission denied); ")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_damaged_file(tmp_path: Path, kind: str) -> None:
    what = "safetensors file" if kind == "safetensors" else "file of torch.save"
    path = saved(blank("resnet18"), tmp_path / f"whole.{kind}")
    whole, cut = path.read_bytes(), tmp_path / f"cut.{kind}"
    for size in (len(whole) // 2, len(whole) - 1, 100, 5):
        cut.write_bytes(whole[:size])
        line = refusal(cut)
        assert line.startswith(f"is no whole {what} (damaged or something else") and line.endswith("anew")
    cut.write_bytes(b"")
    assert refusal(cut) == f"is no whole {what} (it is empty); copy or download it anew"
    for text in (b"hello world\n", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"):
        cut.write_bytes(text)
        assert refusal(cut).startswith(f"is no whole {what} (damaged or something else")


def test_a_damaged_file_of_an_old_torch(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-50])
    assert refusal(path).startswith("is no whole file of torch.save (damaged or something else: unexpected EOF")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    payload = {"conv1.weight": Payload(ran)}
    stream, legacy = io.BytesIO(), io.BytesIO()
    torch.save(payload, stream)
    torch.save(payload, legacy, _use_new_zipfile_serialization=False)
    plain = [pickle.dumps(payload, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    path = tmp_path / "evil.pth"
    for number, content in enumerate([stream.getvalue(), legacy.getvalue(), *plain]):
        path.write_bytes(content)
        line = refusal(path)
        # Protocols 0 and 1 of Python's own pickle, which torch never wrote, it does not even understand.
        assert "not opened for safety" in line or (number in (2, 3) and "is no whole file" in line), (number, line)
        assert not ran.exists()
    pickle.loads(plain[-1])
    assert ran.exists()  # so it would have run


def test_what_holds_more_than_tensors(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    line = refusal(saved(nn.Linear(2, 2), tmp_path / "model.pth"))
    assert line == (
        "holds more than tensors (torch.nn.modules.linear.Linear), which could run code, and was not opened for "
        "safety; save the state dict alone: torch.save(model.state_dict(), PATH)"
    )
    assert "(argparse.Namespace)" in refusal(saved({"args": argparse.Namespace()}, tmp_path / "args.pth"))
    script = torch.jit.script(nn.Linear(2, 2))
    recwarn.clear()
    script.save(str(tmp_path / "script.pt"))
    recwarn.clear()
    assert "not opened for safety" in refusal(tmp_path / "script.pt")
    assert not recwarn.list


def test_what_is_no_dict_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert refusal(saved([torch.ones(2)], path)).startswith("holds a list, not a dict of tensors by name; save the")
    assert refusal(saved(torch.ones(2), path)).startswith("holds a Tensor, not a dict of tensors by name; ")
    assert refusal(saved({}, path)).startswith("holds no tensors; ")
    state = blank("resnet18")
    assert refusal(saved({"epoch": 3, **state}, path)).startswith("'epoch' is a int, not a tensor with a name; ")
    assert refusal(saved({**state, 5: torch.ones(2)}, path)).startswith("5 is a Tensor, not a tensor with a name; ")
    assert "sparse" in refusal(saved({**state, "bn1.weight": torch.ones(64).to_sparse()}, path))
    assert "no values" in refusal(saved({**state, "bn1.weight": torch.ones(64, device="meta")}, path))


@pytest.mark.parametrize("key", ["state_dict", "model", "ema"])
def test_nested_weights_are_refused_with_the_key_to_extract(tmp_path: Path, key: str) -> None:
    state = blank("resnet18")
    path = saved({"optimizer": {"lr": 0.1}, "a": state, key: state, "epoch": 3}, tmp_path / "x.pth")
    if key == "ema":
        path = saved({"epoch": 3, key: state}, path)
    line = refusal(path)
    assert line.startswith(f"has the weights inside of '{key}'; save them alone: ")
    code = line.split("alone: ")[1].replace("PATH", repr(str(tmp_path / "alone.pth")))
    exec(code.replace(repr(path.name), repr(str(path))), {"torch": torch})
    assert weights_of_file(tmp_path / "alone.pth").backbone == "resnet18"


def test_keys_with_a_prefix_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "x.pth", blank("resnet18")
    line = refusal(saved({f"module.{key}": tensor for key, tensor in state.items()}, path))
    assert line.startswith("its keys begin with 'module.' (by DataParallel or DistributedDataParallel); save them")
    code = line.split("without: ")[1]
    assert eval(code, {"state_dict": torch.load(path)}).keys() == state.keys()
    line = refusal(saved({f"backbone.{key}": tensor for key, tensor in state.items()}, path))
    assert line.startswith("its keys begin with 'backbone.'; save them without: ")


def test_shapes_that_fit_no_backbone_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path, state = tmp_path / "x.pth", blank("resnet18")
    small = {**state, "conv1.weight": torch.ones(64, 3, 3, 3)}
    hint = "give weights with torchvision's keys and shapes"
    assert refusal(saved(small, path)) == (
        "fits no known backbone of torchvision; nearest is resnet18, but conv1.weight is (64, 3, 3, 3) instead of "
        f"(64, 3, 7, 7); {hint}"
    )
    del small["bn1.bias"]
    small["extra"] = torch.ones(1)
    expected = "(64, 3, 7, 7), bn1.bias is missing, 'extra' is unknown; "
    assert expected in refusal(saved(small, path))
    del small["layer4.1.bn2.weight"]
    expected = "(64, 3, 7, 7), bn1.bias is missing, layer4.1.bn2.weight is missing and 1 more; "
    assert expected in refusal(saved(small, path))
    cut = {key: tensor for key, tensor in blank("resnet101").items() if not key.startswith("layer3.22.")}
    line = refusal(saved(cut, path))
    assert "nearest is resnet101, but layer3.22.conv1.weight is missing, " in line and "and 12 more; " in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(resnet18: State, tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in resnet18.items()}
    state["fc.weight"][0, 0] = value  # of no concern
    assert weights_of_file(saved(state, tmp_path / "x.pth")).backbone == "resnet18"
    state["layer2.0.conv1.weight"][1, 2, 0, 1] = value
    assert refusal(saved(state, tmp_path / "x.pth")).startswith("layer2.0.conv1.weight has numbers that are not finite")


def test_other_types_of_numbers_are_refused(tmp_path: Path) -> None:
    path = saved({**blank("resnet18"), "bn1.weight": torch.ones(64).double()}, tmp_path / "x.pth")
    assert refusal(path) == "bn1.weight is of type torch.float64; save it as float32 or float16"


def test_the_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = saved(blank("resnet34"), tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        load_weights("resnet18", str(path))
    assert str(error.value) == (
        f"{path}: has the weights of resnet34, not of resnet18; give others, or use that backbone"
    )
    with pytest.raises(InputError, match=r"imagenet1k_v1: no such file; weights are DEFAULT, IMAGENET1K_V1, "):
        load_weights("resnet18", "imagenet1k_v1")


# ---- torchvision's own ----


class Published:
    """A small file with the keys of resnet18, served over HTTP in torchvision's place."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        content = saved(blank("resnet18"), folder / "x.pth").read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.file = (folder / "x.pth").rename(folder / f"resnet18-{self.sha256[:8]}.pth")
        self.cached = folder.parent / "torch home" / "hub" / "checkpoints" / self.file.name
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                outer.requests += 1
                return super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{self.file.name}"
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", self.url)
        monkeypatch.setenv("TORCH_HOME", str(folder.parent / "torch home"))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    published = Published(tmp_path / "served", monkeypatch)
    yield published
    published.close()


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_published_weights_are_downloaded_once(server: Published, capfd: pytest.CaptureFixture[str], name: str) -> None:
    found = load_weights("resnet18", name)
    assert (found.backbone, found.source, found.sha256) == ("resnet18", "IMAGENET1K_V1", server.sha256)
    out, err = capfd.readouterr()
    assert "100%" in err and not out  # the progress bar
    assert (found.tensors["conv1.weight"] == 1).all()
    assert [path.name for path in server.cached.parent.iterdir()] == [server.file.name]  # nothing half-done
    assert server.cached.read_bytes() == server.file.read_bytes()
    server.close()
    assert load_weights("resnet18", name).sha256 == server.sha256
    assert server.requests == 1


def test_published_weights_brought_by_hand(server: Published) -> None:
    server.cached.parent.mkdir(parents=True)
    shutil.copy(server.file, server.cached)
    assert load_weights("resnet18", "IMAGENET1K_V1").sha256 == server.sha256
    assert server.requests == 0


def test_the_default_is_the_one_that_torchvision_means(server: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(blank("resnet50"), server.file.parent / "resnet50.pth")
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V2.value, "url", server.url.replace(server.file.name, path.name))
    assert load_weights("resnet50", "DEFAULT").source == "IMAGENET1K_V2"


def test_a_name_that_a_backbone_does_not_have(server: Published) -> None:
    with pytest.raises(InputError) as error:
        load_weights("resnet18", "IMAGENET1K_V2")
    assert str(error.value) == (
        "weights IMAGENET1K_V2: torchvision has none of that name for resnet18; use IMAGENET1K_V1"
    )
    assert server.requests == 0


def assert_cannot_be_had(server: Published, reason: str) -> None:
    with pytest.raises(InputError) as error:
        load_weights("resnet18", "DEFAULT")
    line, url = str(error.value), ResNet18_Weights.IMAGENET1K_V1.value.url
    folder = server.cached.parent
    assert line.startswith(f"weights of resnet18: cannot download {url} to {folder} (") and reason in line
    assert f"put {os.path.basename(url)} into that folder" in line
    assert "`--weights PATH`" in line and "`--weights none`" in line and "\n" not in line
    assert not folder.is_dir() or list(folder.iterdir()) == []


def test_published_weights_without_network(server: Published) -> None:
    server.close()
    assert_cannot_be_had(server, "Connection refused")


def test_published_weights_that_the_server_does_not_have(server: Published) -> None:
    server.file.unlink()
    assert_cannot_be_had(server, "HTTP Error 404")


def test_published_weights_that_arrive_damaged(server: Published) -> None:
    flip_a_byte(server.file)
    assert_cannot_be_had(server, "invalid hash value")


def test_a_server_that_does_not_answer(server: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_ray.files.DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-00000000.pth"
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
        assert_cannot_be_had(server, "timed out")
    assert socket.getdefaulttimeout() is None


def test_a_cache_that_cannot_be_made(server: Published) -> None:
    (server.cached.parents[2]).write_text("")
    assert_cannot_be_had(server, "Not a directory")


def test_a_damaged_copy_in_the_cache_is_not_used(server: Published) -> None:
    load_weights("resnet18", "DEFAULT")
    flip_a_byte(server.cached)
    with pytest.raises(InputError) as error:
        load_weights("resnet18", "DEFAULT")
    assert str(error.value) == (f"{server.cached}: is damaged (wrong checksum); remove it to have it downloaded again")
    server.cached.unlink()
    assert load_weights("resnet18", "DEFAULT").sha256 == server.sha256
