"""What the commands refuse: with one line that says what, where and what to do, exit code 2, and no run folder.

Most cases run the command in this process, which spares them the seconds that torch and Ray take to import, and let
those that need Ray use the session of the other tests. Other files hold what is wrong with one part: a data folder in
`test_image_folder`, `--train-size` in `test_data`, a space's file in `test_spaces`, numbers in `test_settings`.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.images import make_tree
from helpers.launcher import error_line

from cifar_ray.cli.flags import TuneSettings
from cifar_ray.driver.run import Run
from cifar_ray.errors import InputError
from cifar_ray.files import write_json

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]
DIGITS = ("--data", "digits")


# ---- the whole command, up to each stage ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # Told before torch and Ray are imported; before Ray is started; after all of Ray's chatter.
        (["--trials", "0"], "--trials: must be a whole number of at least 1, not '0'"),
        (["--data", "cifar10"], "cifar10: cannot download cifar-10-python.tar.gz from https://"),
        (["--data", "digits", "--time-budget", "1s"], "--time-budget: 1 s is too short: "),
    ],
    ids=["flags", "data", "ray"],
)
def test_bad_input_is_one_line_and_leaves_no_run_folder(
    run_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there: no download, wherever the tests run
    done = run_command("tune", *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    line = error_line(done.stderr)
    assert line.startswith(message)
    assert "cifar10" not in flags or ("`--data digits`" in line and "`--data PATH`" in line)
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "runs").exists()


# ---- flags ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nosuch", "1"], "unrecognized arguments: --nosuch 1 (see --help)"),
        (["--trial", "1"], "unrecognized arguments: --trial 1 (see --help)"),  # flags are not abbreviated
        (["digits"], "unrecognized arguments: digits (see --help)"),
        (["--trials"], "argument --trials: expected one argument (see --help)"),
        (["--trials", "--max-epochs", "3"], "argument --trials: expected one argument (see --help)"),
        (["--trials", "many"], "--trials: must be a whole number of at least 1, not 'many'"),
        (["--trials", "1e3"], "--trials: must be a whole number of at least 1, not '1e3'"),
        (["--trials", "²"], "--trials: must be a whole number of at least 1, not '²'"),
        (["--trials", ""], "--trials: must be a whole number of at least 1, not ''"),
        (["--max-epochs", "-1"], "--max-epochs: must be a whole number of at least 1, not '-1'"),
        (["--max-epochs", "2.5"], "--max-epochs: must be a whole number of at least 1, not '2.5'"),
        (["--finalists", "0"], "--finalists: must be a whole number of at least 1, not '0'"),
        (["--finalists", "all"], "--finalists: must be a whole number of at least 1, not 'all'"),
        (["--train-size", "0"], "--train-size: must be a whole number of at least 1, not '0'"),
        (["--image-size", "0"], "--image-size: must be a whole number of at least 1, not '0'"),
        (["--workers-per-trial", "0"], "--workers-per-trial: must be a whole number of at least 1, not '0'"),
        (["--gpus-per-trial", "0.5"], "--gpus-per-trial: must be a whole number of at least 0, not '0.5'"),
        (["--seed", "-1"], "--seed: must be a whole number of at least 0, not '-1'"),
        (["--time-budget", "soon"], "--time-budget: must be a duration such as 90s, 10m or 1h30m, not 'soon'"),
        (["--max-params", "many"], "--max-params: must be a number above 0 such as 150k or 1M, not 'many'"),
        (["--metric", "top5"], "--metric: must be one of accuracy, auc, f1, not 'top5'"),
        (["--sampler", "grid"], "--sampler: must be one of mutation, tpe, random, not 'grid'"),
        (["--audit", "0.6"], "--audit: must be a share of the trials from 0 to 0.5, such as 0.1 or 10%, not '0.6'"),
        (["--audit", "few"], "--audit: must be a share of the trials from 0 to 0.5, such as 0.1 or 10%, not 'few'"),
        (["--precision", "fp8"], "--precision: must be one of auto, fp32, bf16, not 'fp8'"),
        (
            ["--set", "precision=bf16"],
            "--set: cannot give the precision; --precision bf16 does, to all models",
        ),
        (["--name", "../x"], "--name: must be the name of a folder, not a path: '../x'"),
        (["--name", "/abs"], "--name: must be the name of a folder, not a path: '/abs'"),
        (["--name", ".hidden"], "--name: must be the name of a folder, not a path: '.hidden'"),
        (["--name", ".."], "--name: must be the name of a folder, not a path: '..'"),
        (["--name", ""], "--name: must be the name of a folder, not a path: ''"),
        (["--name", "é" * 128], "--name: must be at most 255 bytes long, not 256"),
        # Of a shell variable that is not set; as a path it would be the working folder.
        (["--data", ""], "--data: must not be empty"),
        (["--runs-dir", ""], "--runs-dir: must not be empty"),
        (["--resume", ""], "--resume: must not be empty"),
        (["--address", ""], "--address: must not be empty"),
    ],
)
def test_a_flag_that_cannot_be_understood_is_refused(refused: Refused, flags: list[str], message: str) -> None:
    assert refused("tune", *flags) == message


def test_a_number_too_large_for_arithmetic_is_refused(refused: Refused) -> None:
    assert refused("tune", "--max-params", "9" * 400).startswith("--max-params: must be a number above 0 such as 150k")


# ---- data ----


def test_data_that_is_not_there_or_cannot_be_read_is_refused(refused: Refused, tmp_path: Path) -> None:
    names = "cifar10, cifar100, fashion-mnist, svhn, oxford-pets, flowers102, digits"
    hint = f"--data takes {names} or the path of a folder"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("no such data", "link", "DIGITS"):
        assert refused("tune", "--data", name) == f"{tmp_path / name}: no such folder; {hint}"
    make_tree(tmp_path / "my images", {"a": 5, "b": 5})
    image = tmp_path / "my images" / "a" / "0003.png"
    assert refused("tune", "--data", str(image)) == f"{image}: is a file; {hint}"
    image.write_bytes(image.read_bytes()[:60])
    line = refused("tune", "--data", "my images")
    assert line.startswith(f"{image}: ") and line.endswith("; repair or remove it, or pass --skip-bad-images")


def test_a_train_size_that_the_data_does_not_allow_is_refused(refused: Refused) -> None:
    assert refused("tune", *DIGITS, "--train-size", "19") == "--train-size 19: 10 classes need at least 20 images"
    assert refused("train", "--preset", "mish-cnn", *DIGITS, "--train-size", "798") == (
        "--train-size 798: digits has only 797 train and validation images"
    )


# ---- configurations ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "model/dropout"], "--set: must be KEY=VALUE such as model/dropout=0.2, not 'model/dropout'"),
        (["--set", "model/dropout=1.5"], "--set: mish-cnn: model/dropout: Input should be less than 1 (got 1.5)"),
        (["--set", "model/dropuot=0.2"], "--set: mish-cnn: model/dropuot: no such key; model has widths, blocks, "),
        # One of two models has no such value.
        (
            ["--preset", "resnet18-scratch", "--set", "model/norm=none"],
            "--set: resnet18-scratch: model/norm: no such key; model has backbone, weights, ",
        ),
        (
            ["--preset", "simple-cnn", "--patience", "3"],
            "--patience: the learning rate of mish-cnn anneals to the last epoch (one_cycle), and ending before that "
            "would cut it short; leave it out, or give --set lr_schedule/name=constant",
        ),
        (
            ["--set", "lr_schedule/name=cosine", "--patience", "3"],
            "--patience: the learning rate of mish-cnn anneals to the last epoch (cosine), ",
        ),
        (["--patience", "0"], "--patience: must be a whole number of at least 1, not '0'"),
    ],
)
def test_what_the_named_models_cannot_have_is_refused(refused: Refused, flags: list[str], message: str) -> None:
    assert refused("train", "--preset", "mish-cnn", *DIGITS, *flags).startswith(message)


def test_a_backbone_that_is_not_known_or_cannot_be_frozen_is_refused(refused: Refused) -> None:
    line = refused("train", *DIGITS, "--preset", "googlenet-frozen")
    assert line.startswith("--preset: no preset 'googlenet-frozen'; take one of ")
    line = refused("tune", *DIGITS, "--space", "resnet", "--set", "model/backbone=googlenet")
    assert line.startswith("--set: model: ")
    assert "backbone 'googlenet' is not known; take one of torchvision's alexnet..., convnext_..., " in line
    line = refused("train", *DIGITS, "--preset", "mobilenet_v3_small-frozen", "--set", "model/weights=none")
    assert line.startswith("--set: mobilenet_v3_small-frozen: model: ")
    assert "finetune 'head' freezes a backbone of random weights; use 'all', or weights" in line


def test_a_value_that_a_space_cannot_have_is_refused(refused: Refused) -> None:
    line = refused("tune", *DIGITS, "--set", "optimizer/name=adma")
    assert line == "--set: optimizer/name=adma: must be one of sgd, adamw, muon"


# ---- where the run is to lie ----


def test_a_run_folder_that_exists_is_left_alone(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs" / "my run").mkdir(parents=True)
    (tmp_path / "runs" / "my run" / "precious").write_text("results")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "nowhere")
    for name in ("my run", "link"):
        line = refused("tune", *DIGITS, "--name", name)
        assert line == f"--name: a run {name!r} exists in {tmp_path / 'runs'}; choose another name"


def test_a_runs_folder_that_cannot_be_used_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert refused("tune", *DIGITS, "--runs-dir", "link") == (
        f"--runs-dir: cannot write in {tmp_path / 'link'}: No such file or directory; choose another folder"
    )
    line = refused("tune", *DIGITS, "--runs-dir", "r" * 256)
    assert line.startswith("--runs-dir: cannot use ") and line.endswith(": File name too long; choose another folder")


def test_a_runs_folder_behind_one_that_may_not_be_entered_is_refused() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder, which only its owner may enter
        closed = Path(name) / "closed"
        closed.mkdir(mode=0)
        Path(name).chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)  # root may enter everything
            with pytest.raises(
                InputError, match=r"--runs-dir: cannot use .*closed.*: Permission denied; choose another"
            ):
                Run(TuneSettings(data="digits", runs_dir=closed / "runs"), "tune", "cnn")
        finally:
            os.seteuid(user)
            closed.chmod(0o755)


def test_a_long_name_of_a_data_folder_is_cut_in_the_name_of_the_run(tmp_path: Path) -> None:
    run = Run(TuneSettings(data=f"/{'図' * 80}", runs_dir=tmp_path), "tune", "cnn")
    run.folder.root.mkdir()
    assert run.folder.root.name.startswith("cnn-図図")


# ---- runs to go on with ----


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was interrupted: its run.json."""
    file = tmp_path / "runs" / "begun" / "run.json"
    write_json(file, {"kind": "tune", "settings": {"data": "digits", "trials": 7}})
    return file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON: Expecting value: line 1 column 1 (char 0); start a new run"),
        ('{"kind": "tune",', "is no JSON: Expecting property name enclosed in double quotes"),
        ("\0", "is no JSON: "),
        ('{"kind": "tune"}', "settings: Input should be a dictionary"),
        ('{"kind": "tune", "settings": [7]}', "settings: Input should be a dictionary"),
        ('{"kind": "tune", "settings": {"trials": "many"}}', "trials: Input should be a valid integer"),
        ('{"kind": "tune", "settings": {"runs_dir": 7}}', "runs_dir: Input is not a valid path"),
    ],
)
def test_a_run_whose_record_is_damaged_is_not_taken_up(
    refused: Refused, begun: Path, content: str, message: str
) -> None:
    begun.write_text(content)
    line = refused("tune", "--resume", "begun")
    assert line.startswith(f"--resume: {begun}: {message}") and line.endswith("; start a new run")


def test_what_is_no_run_is_not_taken_up(refused: Refused, begun: Path, tmp_path: Path) -> None:
    for name in ("nosuch", "r" * 256):
        line = refused("tune", "--resume", name)
        assert line == (
            f"--resume: no run in {tmp_path / name} nor in {tmp_path / 'runs' / name}: "
            "give the name or the folder of a run"
        )
    line = refused("train", "--resume", "begun")
    assert line.endswith("it was begun by cifar_ray.tune: resume it with that")
    line = refused("tune", "--resume", "begun", "--seed", "8")
    assert line == (f"--seed: 8 contradicts 0 of the run {begun.parent}; leave it out, or start a new run")


def test_a_run_is_not_extended_by_less(refused: Refused, begun: Path) -> None:
    line = refused("tune", "--resume", "begun", "--trials", "6")
    assert line == f"--trials: 6 is less than the 7 of the run {begun.parent}; a run can only be extended"
    line = refused("tune", "--resume", "begun", "--time-budget", "10m")
    assert line.startswith("--time-budget: 600.0 contradicts None of the run ")


def test_a_run_is_not_taken_up_where_nothing_can_be_written(
    refused: Refused, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    assert refused("tune", "--resume", "begun") == (
        f"--runs-dir: 5 MB are free in {begun.parent}, a run needs 200: make room there"
    )
    write_json(begun, {**json.loads(begun.read_text()), "end": "yesterday"})
    with contextlib.closing(Run(TuneSettings(trials=7), "tune", "cnn", resume=str(begun.parent))) as run:
        assert run.finished  # nothing more is written to it


# ---- spaces: what is found before Ray is started ----


def write_space(tmp_path: Path, source: str) -> str:
    (tmp_path / "my space.py").write_text(source)
    return str(tmp_path / "my space.py")


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ("nosuch", "--space: no space 'nosuch'; take one of cnn, module, resnet, or the path of a Python file"),
        ("cnn,", "--space: no space ''; take one of cnn, module, resnet, or the path of a Python file"),
        ("cnn, cnn", "--space: two spaces in 'cnn,cnn' have the same name; give one only, or rename its file"),
    ],
)
def test_spaces_that_cannot_be_found_are_refused(refused: Refused, spaces: str, message: str) -> None:
    assert refused("tune", *DIGITS, "--space", spaces) == message


def test_a_path_that_is_too_long_is_no_space(refused: Refused, tmp_path: Path) -> None:
    name = "s" * 256 + ".py"
    assert refused("tune", "--space", name).startswith(f"--space: no space '{tmp_path / name}'; take one of cnn")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def space(trial, task:\n    pass\n",
            " cannot be loaded: SyntaxError: '(' was never closed (my space.py, line 1)",
        ),
        ("x = 1\ny = x / 0\n", ":2 cannot be loaded: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", ":2 cannot be loaded: SystemExit: 0"),
        ("def sapce(trial, task):\n    return {}\n", " defines no function space(trial, task)"),
        (
            "def space(trial, task):\n    return {}\n\ndefault = {'x': 1}\n",
            ": default must be a function default(task), not {'x': 1}",
        ),
    ],
)
def test_a_space_that_cannot_be_loaded_is_refused(refused: Refused, tmp_path: Path, source: str, message: str) -> None:
    path = write_space(tmp_path, source)
    assert refused("tune", *DIGITS, "--space", path) == f"--space: {path}{message}"


# ---- what is found once Ray has told the devices ----


def test_devices_that_there_are_not_are_refused(refused_by_ray: Refused) -> None:
    line = refused_by_ray("tune", *DIGITS, "--gpus-per-trial", "64")
    assert line.startswith("--gpus-per-trial: 64 GPUs are more than the ") and line.endswith(" there are")
    line = refused_by_ray("tune", *DIGITS, "--cpus-per-trial", "3", "--gpus-per-trial", "0")
    assert line.startswith("--cpus-per-trial: no node has 3 CPUs for a trial (2 CPUs, ")


def test_a_key_that_a_space_does_not_know_is_refused(refused_by_ray: Refused) -> None:
    line = refused_by_ray("tune", *DIGITS, "--set", "model/stage3/kernel_size=3", "--set", "model/depth=3")
    assert line.startswith("--set: model/depth: no such key; model has widths, ")
    assert "; space cnn draws model/stages, model/blocks, " in line


def test_more_workers_than_there_are_are_refused(refused_by_ray: Refused) -> None:
    rest = "3 workers are more than the 2 that fit on 2 CPUs and "
    line = refused_by_ray("tune", *DIGITS, "--gpus-per-trial", "0", "--workers-per-trial", "3")
    assert line.startswith(f"--workers-per-trial: {rest}") and line.endswith("; give fewer, or fewer --cpus-per-trial")
    line = refused_by_ray("train", *DIGITS, "--gpus-per-trial", "0", "--workers", "3", "--preset", "mish-cnn")
    assert line.startswith(f"--workers: {rest}")


def test_batches_that_the_workers_cannot_share_are_refused(refused_by_ray: Refused, tmp_path: Path) -> None:
    flags = (*DIGITS, "--gpus-per-trial", "0")
    (tmp_path / "odd.json").write_text('{"batch_size": 33}')
    line = refused_by_ray("train", *flags, "--workers", "2", "--preset", "mish-cnn", "--config", "odd.json")
    assert line == "--workers: 2 workers cannot share batches of 33 images (odd); give a number that divides them"
    path = write_space(
        tmp_path, "def space(trial, task):\n    return {'batch_size': trial.suggest_int('batch_size', 32, 64)}\n"
    )
    line = refused_by_ray("tune", *flags, "--workers-per-trial", "2", "--space", path)
    assert line.startswith("--workers-per-trial: 2 workers cannot share batches of ")
    assert line.endswith(" images (as in space my space); give a number that divides them")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "configuration: Input should be a dictionary"),
        ("return [1, 2]", "configuration: Input should be a dictionary"),
        ("return {'batchsize': 64}", "batchsize: Unexpected keyword argument"),
        ("return {'model': {'widths': '8'}}", "model/widths: Input should be a valid list (got '8')"),
        ("return {'model': {'widths': [8, 16]}}", "model: Value error, widths, blocks and kernel_sizes need one entry"),
        ("return {'batch_size': '64 images'}", "batch_size: Input should be a valid integer"),
        (
            "return {'batch_size': task.batch_size}",
            "AttributeError: 'Task' object has no attribute 'batch_size' (FILE:2)",
        ),
        ("return {'batch_size': trial.suggest_int('batch_size', 64, 8)}", "ValueError: "),
        ("return {'batch_size': trial.suggest_categorical('batch_size', [])}", "ValueError: "),
        ("return {'batch_size': trial.suggest_int('batch_size')}", "TypeError: "),
        (
            "size = trial.suggest_int('x', 1, 9); return {'batch_size': trial.suggest_categorical('y', [size])}",
            "ValueError: CategoricalDistribution does not support dynamic value space. (FILE:2)",
        ),
    ],
)
def test_a_space_that_draws_no_configuration_is_refused(
    refused_by_ray: Refused, tmp_path: Path, body: str, message: str
) -> None:
    path = write_space(tmp_path, f"def space(trial, task):\n    {body}\n")
    line = refused_by_ray("tune", *DIGITS, "--space", path)
    assert line.startswith(f"space my space: {message}".replace("FILE", path))
    assert "Error" not in message or line.endswith(f" ({path}:2)")


def test_choices_that_the_study_cannot_keep_are_refused(refused_by_ray: Refused, tmp_path: Path) -> None:
    body = "return {'model': {'widths': list(trial.suggest_categorical('widths', [(8, 8, 8), (16, 16, 16)]))}}"
    path = write_space(tmp_path, f"def space(trial, task):\n    {body}\n")
    assert refused_by_ray("tune", *DIGITS, "--space", path) == (
        "space my space: 'widths' has the choice (8, 8, 8), which the study cannot keep: "
        f"choose among names or numbers, and look the value up ({path})"
    )


def test_a_space_with_other_arguments_is_refused(refused_by_ray: Refused, tmp_path: Path) -> None:
    path = write_space(tmp_path, "def space(trial):\n    return {}\n")
    line = refused_by_ray("tune", *DIGITS, "--space", path)
    assert line == f"space my space: TypeError: space() takes 1 positional argument but 2 were given ({path})"


SPACE = """def space(trial, task):
    name = trial.suggest_categorical("name", ["sgd", "adamw"])
    return {"optimizer": {"name": name}, "batch_size": trial.suggest_int("batch_size", 8, 64)}
"""


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (FILE:6)"),
        ("None", "default(task) must return a dict of parameter values, not None (FILE)"),
        ("{'name': 'sgd'}", "default(task) lacks 'batch_size', which the space draws then: add it (FILE)"),
        (
            "{'name': 'sgd', 'batch_size': 8, 'lr': 1}",
            "default(task) gives 'lr', which the space does not draw then: correct it (FILE)",
        ),
        (
            "{'name': 'lion', 'batch_size': 8}",
            "ValueError: 'lion' not in ('sgd', 'adamw'). (FILE:2), with the values that its default(task) gives",
        ),
        (
            "{'name': 'sgd', 'batch_size': 1000}",
            "default(task) gives a value that the space does not draw: The value 1000 of parameter 'batch_size' "
            "isn't contained in the distribution IntDistribution(high=64, log=False, low=8, step=1).",
        ),
    ],
)
def test_a_default_that_its_space_does_not_draw_is_refused(
    refused_by_ray: Refused, tmp_path: Path, default: str, message: str
) -> None:
    path = write_space(tmp_path, f"{SPACE}\ndef default(task):\n    return {default}\n")
    line = refused_by_ray("tune", *DIGITS, "--space", path)
    assert line == f"space my space: {message}".replace("FILE", path)
