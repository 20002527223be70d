"""Networks of the user's own: how they are read, what is refused in one line, and that they come back as they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.modules import EXAMPLES, VIEW, own_config, own_module

from cifar_ray.config import ModuleConfig, Task, TrialConfig, source_sha256, trial_config
from cifar_ray.errors import InputError
from cifar_ray.models.check import check_network
from cifar_ray.models.classifier import build_model, count_params
from cifar_ray.models.module import read_module
from cifar_ray.models.saved import load_model, pack_weights, save_model
from cifar_ray.results.config_json import read_card, read_config

TASK = Task(3, 1, 8, 100, "cpu")
CARD = {"class_names": ["a", "b", "c"], "resize": {"channels": 1, "image_size": 8, "rule": "native"}}
IMAGES = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

NET = """from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, channels, image_size, **params):
        super().__init__()
        self.out = nn.Linear(channels * image_size**2, num_classes)
        BUILD
    def forward(self, x):
        logits = self.out(x.flatten(1))
        FORWARD
        return logits
"""


def net(build: str = "pass", forward: str = "pass") -> str:
    return NET.replace("BUILD", build).replace("FORWARD", forward)


def refused(folder: Path, source: str, name: str = "Net") -> str:
    """The one line with which a network is refused, as it is read or as it is tried."""
    with pytest.raises(InputError) as caught:
        check_network(TrialConfig(family="module", model=own_module(folder, source, name)), TASK)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- reading ----


def test_the_parameters_of_a_network_are_the_defaults_of_its_signature() -> None:
    model = read_module(f"{EXAMPLES / 'my_cnn.py'}:Net")
    assert model == ModuleConfig(
        "my_cnn.py", "Net", (EXAMPLES / "my_cnn.py").read_text(), {"width": 32, "depth": 3, "dropout": 0.0}
    )
    assert model.source not in repr(model)


def test_defaults_that_json_cannot_hold_stay_the_code_s_own(tmp_path: Path) -> None:
    source = (
        "from torch import nn\ndef make(num_classes, channels, image_size, act=nn.ReLU, sizes=[3, 5], *, k=None): ..."
    )
    assert own_module(tmp_path, source, "make").params == {"sizes": [3, 5], "k": None}


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("import nosuch_package\n", "Net", "my_net.py:1 cannot be loaded: ModuleNotFoundError: No module named"),
        ("x = 1\n\ny = x / 0\n", "Net", "my_net.py:3 cannot be loaded: ZeroDivisionError: division by zero"),
        ("class Net(:\n", "Net", "my_net.py cannot be loaded: SyntaxError: "),
        ("raise SystemExit(3)\n", "Net", "my_net.py:1 cannot be loaded: SystemExit: 3"),
        (VIEW, "Nett", "my_net.py defines no class or function 'Nett'; it has Net"),
        (VIEW + "def make(): ...\n", "nn", "my_net.py defines no class or function 'nn'; it has Net, make"),
        ("x = 1\n", "x", "my_net.py defines no class or function 'x'; it has none"),
        ("import beside\n", "x", "my_net.py imports beside.py beside it, and one file alone is kept with a model: "),
        ("from .beside import x\n", "x", "my_net.py:1 cannot be loaded: ImportError: attempted relative import"),
    ],
)
def test_a_file_without_such_a_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str, message: str
) -> None:
    (tmp_path / "beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    if "import beside" in source:
        source += "x = print\n"
    assert refused(tmp_path, source, name).startswith(f"--module: {message}")


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--module: .*nosuch.py: cannot be read: No such file or directory$"):
        read_module(f"{tmp_path / 'nosuch.py'}:Net")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"^--module: .*binary.py: cannot be read: "):
        read_module(f"{tmp_path / 'binary.py'}:Net")


# ---- trying ----

CALL = "my_net.py: Net(num_classes=3, channels=1, image_size=8)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (net("1 / 0"), "cannot be built: ZeroDivisionError: division by zero (my_net.py:6)"),
        ("class Net: ...\n", "cannot be built: TypeError: Net() takes no arguments (my_net.py)"),
        ("def Net(**sizes): return 3\n", "gives a int, not an nn.Module"),
        (
            "from torch import nn\ndef Net(**sizes): return nn.Flatten()\n",
            "gives a network without parameters to train",
        ),
        (net("self.requires_grad_(False)"), "gives a network without parameters to train"),
        (net("self.lazy = nn.LazyLinear(3)"), "gives layers whose sizes are not known (nn.Lazy...): give their sizes"),
        (net(forward="return logits[:, :2]"), "gives logits of shape (2, 2) for images (2, 1, 8, 8), not (2, 3)"),
        (net(forward="return (logits, x)"), "gives a tuple, not a tensor of logits (2, 3)"),
        (net(forward="return logits / 0"), "gives logits that are not finite, for images of noise"),
        # Infinite where a square root is of zero.
        (
            net(forward="return logits + (0 * self.out.bias).abs().sqrt().sum()"),
            "gives gradients of out.bias that are not finite, in the first step",
        ),
        (net(forward="x @ x[:1, :, :3]"), "fails in train mode: RuntimeError: "),
        (net(forward="if not self.training: x.nosuch"), "fails in eval mode: AttributeError: "),
        # Only a single image shows this.
        (net(forward="return logits.squeeze()"), "gives logits of shape (3,) for images (1, 1, 8, 8), not (1, 3)"),
        (net(forward="return logits.detach()"), "fails in train mode: RuntimeError: element 0 of tensors does not"),
        (
            net(forward="self.register_buffer('seen', x[0])"),
            "has a state that cannot be saved and loaded again: RuntimeError: ",
        ),
        (net() + "one = Net(3, 1, 8)\ndef Net(**sizes): return one\n", "gives the same network each time it is called"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(tmp_path: Path, source: str, message: str) -> None:
    assert refused(tmp_path, source).startswith(f"{CALL} {message}")


def test_a_network_is_tried_with_its_parameters_at_the_size_that_it_works_at(tmp_path: Path) -> None:
    config = own_config(tmp_path, image_size=16)
    model = check_network(config, TASK)
    assert count_params(model) == 1 * 4 * 9 + 4 + 6 + 4 * 16**2 * 3 + 3
    with pytest.raises(InputError, match=r"image_size=16, width='wide'\) cannot be built: TypeError: "):
        check_network(replace(config, model=replace(config.model, params={"width": "wide"})), TASK)
    with pytest.raises(InputError, match="unexpected keyword argument 'widht'"):
        check_network(replace(config, model=replace(config.model, params={"widht": 8})), TASK)


def test_what_a_network_does_to_its_parameters_stays_with_it(tmp_path: Path) -> None:
    config = own_config(tmp_path, net("params['sizes'].pop()"))
    config = replace(config, model=replace(config.model, params={"sizes": [3, 5]}))
    check_network(config, TASK)
    assert config.model.params == {"sizes": [3, 5]}


def test_trying_leaves_the_random_state_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_network(own_config(tmp_path), TASK)
    assert torch.equal(torch.rand(3), expected)


def test_weights_come_from_the_random_state_whatever_seed_the_file_sets() -> None:
    source = f"import torch\ntorch.manual_seed(0)\n{VIEW}"  # which no test has run yet
    config = TrialConfig(family="module", model=ModuleConfig("seeded.py", "Net", source))

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_model(config, num_classes=3, channels=1, image_size=8).network.get_parameter("conv.weight")

    first = weights(1)  # runs the file
    assert torch.equal(weights(1), first) and not torch.equal(weights(2), first)


# ---- saving ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model whose file is gone."""
    saved = tmp_path / "models" / "mine-seed0"
    config = own_config(tmp_path / "code")
    torch.manual_seed(0)
    save_model(saved, pack_weights(build_model(config, num_classes=3, channels=1, image_size=8)), config, CARD)
    (tmp_path / "code" / "my_net.py").unlink()
    return saved


def test_a_saved_model_has_its_source_beside_it_and_comes_back_alone(folder: Path, tmp_path: Path) -> None:
    assert (folder / "module.py").read_text() == VIEW
    values = json.loads((folder / "config.json").read_text())["config"]
    sha256 = source_sha256(VIEW)
    assert values["model"] == {"file": "my_net.py", "name": "Net", "params": {"width": 4}, "sha256": sha256}
    loaded = load_model(folder, trust_code=True)
    torch.manual_seed(0)
    model = build_model(read_card(folder)[0], num_classes=3, channels=1, image_size=8).eval()
    assert not loaded.training and torch.equal(loaded(IMAGES), model(IMAGES))
    assert read_config(folder / "config.json")[0] == read_card(folder)[0]
    assert trial_config(model_config := read_card(folder)[0].to_dict(), "here").to_dict() == model_config


def test_code_is_not_run_unless_it_is_trusted(folder: Path) -> None:
    (folder / "module.py").write_text(trap := "raise SystemExit('it was run')\n")
    card = json.loads((folder / "config.json").read_text())
    card["config"]["model"]["sha256"] = source_sha256(trap)
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert str(caught.value) == (
        f"{folder / 'module.py'}: is code (SHA-256 {source_sha256(trap)[:12]}), and Net in it is the network: read it, "
        "and where you trust it let it be run: --trust-code (load_model: trust_code=True)"
    )
    with pytest.raises(InputError, match="it was run"):
        load_model(folder, trust_code=True)


def test_code_that_is_not_the_one_beside_the_model_is_refused(folder: Path) -> None:
    """What is read before it is trusted is what is run."""
    card = json.loads((folder / "config.json").read_text())
    inline = {**card["config"]["model"], "source": "raise SystemExit"}
    (folder / "config.json").write_text(json.dumps({**card, "config": {**card["config"], "model": inline}}))
    with pytest.raises(InputError, match="the source of its network must stand in module"):
        load_model(folder, trust_code=True)
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "module.py").write_text(VIEW + "\n")
    with pytest.raises(InputError, match="is not the one that it was saved with: bring that back"):
        load_model(folder, trust_code=True)
    (folder / "module.py").unlink()
    with pytest.raises(InputError, match=r"not a saved model: .*module.py: cannot read this record"):
        load_model(folder, trust_code=True)


def test_weights_that_two_names_share_are_saved_and_come_back(tmp_path: Path) -> None:
    config = own_config(tmp_path, net("self.again = self.out"))
    model = check_network(config, TASK).eval()
    save_model(tmp_path / "saved", pack_weights(model), config, CARD)
    loaded = load_model(tmp_path / "saved", trust_code=True)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert loaded.network.again.weight is loaded.network.out.weight
