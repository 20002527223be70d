"""`--module` as its user runs it: a network of their own trained, compared, searched, ablated, evaluated and used."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import launcher
from helpers.images import make_tree
from helpers.modules import EXAMPLES, VIEW, own_config
from PIL import Image

from cifar_ray.cli.flags import TrainSettings, TuneSettings
from cifar_ray.config import Task
from cifar_ray.driver.named import named_configs, read_named
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError
from cifar_ray.models.classifier import build_model
from cifar_ray.models.saved import load_model, pack_weights, save_model
from cifar_ray.presets import preset
from cifar_ray.results.config_json import read_config
from cifar_ray.results.records import RunFolder, read_csv, read_trials
from cifar_ray.train import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]
NET = f"{EXAMPLES / 'my_cnn.py'}:Net"
DIGITS = ("--data", "digits", "--max-epochs", "2")


# ---- a run of `train` and what comes after it ----

share_a_run = pytest.mark.xdist_group("module")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A network of one's own beside a preset: the folder that the command ran in, and what it printed."""
    folder = tmp_path_factory.mktemp("module")
    shutil.copy(EXAMPLES / "my_cnn.py", folder)
    flags = ["--module", "my_cnn.py:Net", "--preset", "simple-cnn", "--set", "model/params/width=8", "--seeds", "2"]
    done = launcher.run("train", *flags, *DIGITS, "--name", "mine", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "my_cnn.py").unlink()  # what is saved is whole without it
    return folder, done


@share_a_run
def test_a_network_of_ones_own_is_trained_and_compared_with_a_preset(trained: Any) -> None:
    folder, done = trained
    run = RunFolder(folder / "runs" / "mine")
    rows = {row["model"]: row for row in read_csv(run.results_csv)}
    assert list(rows) == ["simple-cnn-seed0", "simple-cnn-seed1", "my_cnn.Net-seed0", "my_cnn.Net-seed1"]
    assert [row["family"] for row in rows.values()] == ["cnn", "cnn", "module", "module"]
    assert all(row["test_accuracy"] > 0.15 and row["latency_ms_p50"] > 0 for row in rows.values())
    assert rows["my_cnn.Net-seed0"]["num_params"] == 9 * (8 + 8 * 16 + 16 * 32) + 2 * (8 + 16 + 32) + (32 + 1) * 10
    assert "my_cnn.Net" in done.stdout and "my_cnn.Net" in run.report_html.read_text()
    card = json.loads((run.model("my_cnn.Net-seed0") / "config.json").read_text())
    assert card["config"]["model"]["params"] == {"width": 8, "depth": 3, "dropout": 0.0}
    assert (run.model("my_cnn.Net-seed0") / "module.py").read_text() == (EXAMPLES / "my_cnn.py").read_text()


@share_a_run
def test_its_models_are_loaded_used_and_evaluated_where_their_code_is_trusted(
    trained: Any, run_command: Command, tmp_path: Path
) -> None:
    model = trained[0] / "runs" / "mine" / "models" / "my_cnn.Net-seed0"
    with pytest.raises(InputError, match="trust_code=True"):
        load_model(model)
    assert load_model(model, trust_code=True)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).shape == (1, 10)
    done = run_command("evaluate", str(model), "--trust-code", "--name", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = (read_csv(RunFolder(root / "runs" / name).results_csv) for root, name in
                    ((trained[0], "mine"), (tmp_path, "again")))  # fmt: skip
    assert [row["test_accuracy"] for row in again] == [
        row["test_accuracy"] for row in first if row["model"] == model.name
    ]
    best = tmp_path / "runs" / "again" / "best"
    assert "trust_code=True" in (best / "README.md").read_text()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    done = run_command("predict", str(best), "black.png", "--trust-code")
    assert done.returncode == 0 and "black.png" in done.stdout
    done = run_command("report", str(trained[0] / "runs" / "mine"))  # which runs no code, and needs no trust
    assert done.returncode == 0, done.stderr


@share_a_run
@pytest.mark.slow
def test_a_saved_network_is_trained_again_bit_for_bit(trained: Any, run_command: Command, tmp_path: Path) -> None:
    model = trained[0] / "runs" / "mine" / "models" / "my_cnn.Net-seed0"
    config = str(model / "config.json")
    done = run_command("train", "--config", config, "--trust-code", "--seeds", "1", "--name", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = (tmp_path / "runs" / "again" / "models").iterdir()
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (again / "module.py").read_bytes() == (model / "module.py").read_bytes()


# ---- search, ablation, several workers ----


@pytest.mark.slow
@pytest.mark.xdist_group("module-tune")
def test_a_space_searches_its_parameters(run_command: Command, tmp_path: Path) -> None:
    space = str(EXAMPLES / "my_space.py")
    flags = ["--space", f"{space},cnn", "--module", NET, "--trials", "8", "--finalists", "1", "--final-seeds", "1"]
    done = run_command("tune", *flags, *DIGITS, "--max-params", "20k", "--name", "mine")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "runs" / "mine")
    trials = [one for one in read_trials(run.trials_jsonl) if one["config"]["family"] == "module"]
    code = (EXAMPLES / "my_cnn.py").read_text()
    assert len(trials) >= 4 and {one["state"] for one in trials} <= {"complete", "pruned", "infeasible"}
    for one in trials:
        assert one["config"]["model"]["params"]["width"] == one["params"]["module/width"]
        assert "source" not in one["config"]["model"] and one["num_params"] > 0
        if one["epochs"]:
            config, card = read_config(run.trial(one["number"]) / "config.json")
            assert config.model.source == code and card is not None and card["config_name"] == one["name"]
    assert "module" in {row["family"] for row in read_csv(run.results_csv)}
    assert code.splitlines()[0] not in run.report_html.read_text()


@pytest.mark.slow
def test_an_ablation_varies_its_parameters(run_command: Command, tmp_path: Path) -> None:
    flags = ["--module", NET, "--vary", "model/params/depth=1,2", "--set", "model/params/width=8", "--seeds", "2"]
    done = run_command("ablate", *flags, *DIGITS, "--name", "mine")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "runs" / "mine")
    assert {row["arm"] for row in read_csv(run.runs_csv)} == {"base", "model.params.depth=1", "model.params.depth=2"}
    assert "model.params.depth" in run.report_md.read_text()


@pytest.mark.slow
def test_two_workers_train_it_together(run_command: Command, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(VIEW)  # of which a part is not used
    done = run_command("train", "--module", "my_net.py:Net", *DIGITS, "--workers", "2", "--seeds", "1", "--name", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_csv(RunFolder(tmp_path / "runs" / "two").results_csv)
    assert row["failure"] is None and row["test_accuracy"] > 0.15


# ---- what is refused ----


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("train", ["--module", "net"], "--module: must be FILE.py:NAME such as my_cnn.py:Net, not 'net'"),
        ("ablate", ["--module", "net.py"], "--module: must be FILE.py:NAME such as my_cnn.py:Net, not 'net.py'"),
        ("tune", ["--module", "net.py:"], "--module: must be FILE.py:NAME such as my_cnn.py:Net, not 'net.py:'"),
        ("train", ["--module", "nosuch.py:Net"], "--module: HERE/nosuch.py: cannot be read: No such file or directory"),
        ("ablate", ["--module", "net.py:Nett"], "--module: net.py defines no class or function 'Nett'; it has Net"),
        ("ablate", ["--module", "net.py:Net", "--preset", "small-cnn"], "--preset, --config, --module: give one base"),
        ("train", ["--module", "net.py:Net", "--module", "net.py:Net"], "--preset, --config, --module: two models are"),
        ("tune", ["--module", "net.py:Net"], "--module: nothing that cnn draws is of family module; give --space mod"),
        ("tune", ["--space", "module"], "space module: its family module needs a network: give --module FILE.py:NAME"),
        ("ablate", ["--module", "net.py:Net", "--vary", "norm"], "--vary: the base, a module, has no norm; it has lr-"),
        (
            "train",
            ["--preset", "mish-cnn", "--set", "model/params/a=1"],
            "--set: mish-cnn: model/params/a: no such key",
        ),
    ],
)
def test_what_is_no_network_is_refused_before_anything_begins(
    refused: Refused, tmp_path: Path, command: str, flags: list[str], message: str
) -> None:
    (tmp_path / "net.py").write_text(VIEW)
    assert refused(command, *DIGITS[:2], *flags).startswith(message.replace("HERE", str(tmp_path)))


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            "train",
            [],
            "net.py: Net(num_classes=10, channels=1, image_size=8, width=4) gives logits of shape (2, 9) for",
        ),
        ("ablate", ["--vary", "optimizer=sgd"], "net.py: Net(num_classes=10, channels=1, image_size=8, width=4) gives"),
        ("tune", ["--space", "module"], "net.py: Net(num_classes=10, channels=1, image_size=8, width=4) gives logits"),
        ("train", ["--set", "model/params/widht=8"], "net.py: Net(num_classes=10, channels=1, image_size=8, width=4, "),
    ],
)
def test_a_network_that_does_not_fit_the_images_is_refused(
    refused_by_ray: Refused, tmp_path: Path, command: str, flags: list[str], message: str
) -> None:
    (tmp_path / "net.py").write_text(VIEW.replace("num_classes)\n\n", "num_classes - 1)\n\n"))
    assert refused_by_ray(command, *DIGITS[:2], "--module", "net.py:Net", *flags).startswith(message)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model whose code must not be run."""
    resize = {"channels": 1, "image_size": 8, "rule": "native"}
    about = {"source": "digits", "fingerprint": "?", "train_size": 797}
    card: dict[str, Any] = {"name": "own-seed0", "config_name": "own", "class_names": ["a", "b"], "resize": resize}
    card |= {"data": about, "max_epochs": 1, "metric": "accuracy", "training_seed": 0}
    config = own_config(tmp_path / "code")
    weights = pack_weights(build_model(config, num_classes=2, channels=1, image_size=8))
    save_model(tmp_path / "own-seed0", weights, config, card)
    return tmp_path / "own-seed0"


def test_code_that_comes_with_a_model_is_not_run_unless_it_is_trusted(
    refused: Refused, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_ray.models.module._run", None)  # nothing is run
    make_tree(tmp_path / "images", {"a": 2, "b": 2})
    told = f"{saved / 'module.py'}: is code (SHA-256 "
    assert refused("predict", str(saved), str(tmp_path / "images")).startswith(told)
    assert refused("evaluate", str(saved), "--data", str(tmp_path / "images")).startswith(told)
    config = str(saved / "config.json")
    for command in ("train", "ablate"):
        line = refused(command, "--config", config, *DIGITS)
        assert line.startswith(told) and "let it be run: --trust-code" in line
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(own_values()))
    assert refused("train", "--config", str(bare), *DIGITS).startswith(f"{bare}: is code (SHA-256 ")


def own_values() -> dict[str, Any]:
    """A bare configuration, as `--show` prints it."""
    return {"family": "module", "model": {"file": "net.py", "name": "Net", "source": VIEW, "params": {"width": 4}}}


def test_a_run_is_not_taken_up_with_code_that_has_changed(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(VIEW)
    settings = TuneSettings(data="digits", runs_dir=tmp_path / "runs", name="begun", space="module")
    run = Run(settings, "tune", "module")
    run.check_unchanged(**{"the code of net.py": "1"})
    run.begin({})
    run.close()
    with contextlib.closing(Run(settings, "tune", "module", resume=str(run.folder.root))) as again:
        again.check_unchanged(**{"the code of net.py": "1"})
        with pytest.raises(InputError, match=r"^--resume: the code of net.py has changed since .*: bring it back, or"):
            again.check_unchanged(**{"the code of net.py": "2"})


# ---- what is trained ----


def test_parameters_that_are_set_are_those_of_the_own_networks_alone(tmp_path: Path) -> None:
    task = Task(10, 1, 8, 320, "cpu", flips=("none",))
    (tmp_path / "bare.json").write_text(json.dumps(own_values()))
    settings = TrainSettings(
        preset=("mish-cnn",),
        config=(tmp_path / "bare.json",),
        module=(NET,),
        set=("model/params/width=16", "batch_size=32"),
        trust_code=True,
    )
    configs = named_configs(settings, task, read_named(settings))
    assert list(configs) == ["mish-cnn", "bare", "my_cnn.Net"]
    assert {config.batch_size for config in configs.values()} == {32}
    assert configs["mish-cnn"].model == preset("mish-cnn", task).model
    assert [configs[name].model.params["width"] for name in ("bare", "my_cnn.Net")] == [16, 16]
    assert configs["my_cnn.Net"].augment.flip == "none"


def test_a_network_is_shown_as_json_that_config_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = []
    for flags in (["--module", NET, "--data", "digits"], ["--config", "shown.json", "--trust-code"]):
        assert main([*flags, "--show"]) == 0
        shown.append(capsys.readouterr().out)
        (tmp_path / "shown.json").write_text(shown[-1])
    assert shown[0] == shown[1] and json.loads(shown[0])["augment"]["flip"] == "none"
