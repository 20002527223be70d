"""The commands as Python functions: the flags they take, the run that they give back, notebooks, interruptions."""

import contextlib
import fcntl
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from helpers import launcher
from helpers.images import noise
from helpers.saved import save_untrained

from cifar_ray import api
from cifar_ray.api import Run, evaluate, predict, train, tune
from cifar_ray.cli.flags import AblateSettings, EvaluateSettings, TuneSettings
from cifar_ray.cli.parser import parse_flags
from cifar_ray.errors import InputError
from cifar_ray.files import read_json
from cifar_ray.models.saved import load_model

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run, which also takes their cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def parsed(kind: type, **flags: Any) -> dict[str, Any]:
    return parse_flags(kind, "command", api._arguments(kind, flags))


def test_values_become_what_the_flags_say() -> None:
    given = parsed(
        TuneSettings,
        space=["cnn", "resnet"],
        trials=7,
        dry_run=True,
        skip_bad_images=False,
        time_budget="2m",
        max_params=150_000,
        name=None,
        runs_dir=Path("/elsewhere"),
        set={"model/dropout": 0.2, "optimizer/name": "adamw", "model/widths": [32, 64], "model/residual": True},
    )
    assert given == {
        "space": "cnn,resnet",
        "trials": 7,
        "dry_run": True,
        "time_budget": 120,
        "max_params": 150_000,
        "runs_dir": Path("/elsewhere"),
        "set": ("model/dropout=0.2", "optimizer/name=adamw", "model/widths=[32, 64]", "model/residual=true"),
    }


def test_several_values_and_one() -> None:
    assert parsed(AblateSettings, vary="norm", cross=["norm", "dropout"]) == {
        "vary": ("norm",),
        "cross": "norm,dropout",
    }
    assert parsed(AblateSettings, vary=["norm", "model/dropout=0,0.2"])["vary"] == ("norm", "model/dropout=0,0.2")


@pytest.mark.parametrize("models", ["-odd/best", Path("-odd/best"), ["-odd/best"]])
def test_models_are_no_flags(models: Any) -> None:
    assert parsed(EvaluateSettings, models=models, data="digits") == {
        "models": (Path("-odd/best").absolute(),),
        "data": "digits",
    }


def test_signature_and_help_show_the_flags() -> None:
    assert "max_params=None" in str(inspect.signature(tune))
    assert "\n    max_params: only models of at most this many parameters: 150k, 1M\n" in str(tune.__doc__)


def test_bad_input_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(InputError, match="--trials: must be a whole number of at least 1, not '0'"):
        tune(trials=0)
    with pytest.raises(InputError, match="--resume: no run in "):
        train(resume="none-such")
    with pytest.raises(TypeError, match="max_epoch"):
        tune(max_epoch=3)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run"):
        Run(tmp_path)


def test_bad_input_that_the_command_finds_is_an_exception_too(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no preset 'none-such'"):
        train(preset="none-such", data="digits")
    assert "error" not in capfd.readouterr().out
    assert not (folder / "runs").exists()


def test_a_command_that_crashes_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        api._follow([sys.executable, "-c", "print('é'); raise SystemExit(3)"])
    assert capfd.readouterr().out == "é\n"


@pytest.mark.slow
def test_a_run_and_what_is_done_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data="digits", dry_run=True, trials=2) is None
    assert "digits" in capsys.readouterr().out, "what the command says is printed, not written past the notebook"
    run = train(preset=["simple-cnn", "mish-cnn"], data="digits", seeds=2, max_epochs=1)
    assert run is not None and run.folder.parent == folder / "runs" and run.folder.name.startswith("train-digits-")
    assert "report      " in capsys.readouterr().out
    assert sorted(run.results.config) == ["mish-cnn", "mish-cnn", "simple-cnn", "simple-cnn"]
    assert run.results.test_accuracy.between(0, 1).all()
    assert run.table("ablation/effects.csv").empty
    assert "<iframe srcdoc=" in run.report._repr_html_() and Path(run.report).is_file()
    assert run.best is not None and load_model(run.best).training is False
    again = evaluate([run.best], data="digits", name="again")
    assert len(again.results) == 1
    (best,) = again.results.test_accuracy
    assert best in run.results.test_accuracy.to_list()


CALL = "from cifar_ray import tune; tune(data='digits', trials=500, max_epochs=30, name='long')"


def start_call(folder: Path) -> "subprocess.Popen[str]":
    """A process that calls `tune`, in a group of its own, some trials on."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    caller = subprocess.Popen([sys.executable, "-c", CALL], text=True, start_new_session=True, **pipes)
    launcher.wait_for(caller, (folder / "runs" / "long" / "trials" / "0003" / "history.csv").exists)
    return caller


@pytest.mark.slow
def test_an_interrupted_call_ends_its_run_once(folder: Path) -> None:
    with start_call(folder) as caller:
        os.killpg(caller.pid, signal.SIGINT)  # Jupyter interrupts a whole group of processes
        out, err = caller.communicate(timeout=120)
    assert "resume      python -m cifar_ray.tune --resume" in out and out.count("interrupted: what was finished") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert read_json(folder / "runs" / "long" / "run.json")["end"] is None


@pytest.mark.slow
def test_a_run_ends_with_the_notebook_that_is_killed(folder: Path) -> None:
    with start_call(folder) as caller:
        caller.kill()
    lock = os.open(folder / "runs" / "long", os.O_RDONLY)  # a run holds it, and the system lets go of it

    def ended() -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    deadline = time.monotonic() + 120
    while not ended():
        assert time.monotonic() < deadline, "the run goes on, and nobody is told"
        time.sleep(0.2)
    os.close(lock)


@pytest.mark.slow
def test_the_notebook(folder: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert ["<iframe srcdoc=" in page for page in pages] == [False, True, False, True]
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    assert printed.count("report      ") == 2


def test_predict_gives_what_the_command_prints(folder: Path) -> None:
    save_untrained(folder / "model", ["a", "b", "c"])
    for number in range(3):
        noise(number, mode="L").save(folder / f"{number}.png")
    (folder / "broken.png").write_text("hello")
    rows = predict("model", [folder / "broken.png", folder], at_least=0.4)
    assert [Path(row["image"]).name for row in rows] == ["broken.png", "0.png", "1.png", "2.png", "broken.png"]
    assert "not an image" in rows[0]["error"] and set(rows[0]) == {"image", "error"}
    printed = launcher.run("predict", "model", ".", "--json", "--at-least", "0.4", folder=folder).stdout
    as_printed = [json.loads(line) for line in printed.splitlines()]
    assert [row["probabilities"] for row in as_printed] == [row["probabilities"] for row in rows if "error" not in row]
    with pytest.raises(InputError, match="no images in this folder"):
        predict("model", folder / "model")


def test_the_package_gives_the_functions_though_its_modules_have_their_names() -> None:
    code = "import cifar_ray; print(*[getattr(cifar_ray, name).__module__ for name in cifar_ray.__all__])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = ["cifar_ray.errors", *["cifar_ray.api"] * 3, "cifar_ray.models.saved", *["cifar_ray.api"] * 3]
    assert done.stdout.split() == modules


def test_one_name_for_all_commands(tmp_path: Path) -> None:
    def said(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "cifar_ray", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)

    assert "usage: python -m cifar_ray.predict [flags] MODEL IMAGE ..." in said("predict", "--help").stdout
    refused = said("tune", "--frob")
    assert (refused.returncode, refused.stderr) == (2, "error: unrecognized arguments: --frob (see --help)\n")
    refused = said("frob")
    assert refused.returncode == 2 and refused.stderr.startswith("error: no command 'frob'; take one of tune, train, ")
    assert "ablate" in said().stdout
