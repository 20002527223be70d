"""Flags and settings: how texts become values, and how a run's settings are had again."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar_ray import __version__
from cifar_ray.cli.flags import (
    EvaluateSettings,
    PredictSettings,
    TrainSettings,
    TuneSettings,
)
from cifar_ray.cli.parser import parse_flags
from cifar_ray.cli.resume import run_settings
from cifar_ray.cli.values import count, seconds
from cifar_ray.errors import InputError
from cifar_ray.files import write_json
from cifar_ray.presets import PRESETS


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("150k", 150_000), ("1.5M", 1_500_000), ("2m", 2_000_000), ("1G", 10**9)]
)
def test_counts_take_a_suffix(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize("text", ["many", "", "0", "-5", "1.5.2", "1MM", "k", "0.1"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 150k or 1M"):
        count(text)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2m5s", 125)])
def test_durations_have_units(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["soon", "", "10", "0s", "5m1h", "-1m", "1d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s, 10m or 1h30m"):
        seconds(text)


def test_only_what_is_given_comes_back() -> None:
    assert parse_flags(TuneSettings, "tune", ["--trials", "5", "--dry-run"]) == {"trials": 5, "dry_run": True}
    assert parse_flags(TuneSettings, "tune", []) == {}


def test_a_flag_may_be_given_several_times_where_its_field_is_a_tuple() -> None:
    given = parse_flags(TrainSettings, "train", ["--preset", "a", "--config", "x.json", "--preset", "b"])
    assert given == {"preset": ("a", "b"), "config": (Path.cwd() / "x.json",)}


def test_positional_values_stand_alone() -> None:
    given = parse_flags(PredictSettings, "predict", ["model", "a.png", "b.png", "--json"])
    assert given == {"model": Path.cwd() / "model", "images": (Path("a.png"), Path("b.png")), "json": True}
    assert parse_flags(PredictSettings, "predict", ["model", "a.png", "--json", "b.png"]) == given
    with pytest.raises(InputError, match="MODEL"):
        parse_flags(PredictSettings, "predict", [])


def test_paths_are_made_absolute_so_that_a_run_can_be_taken_up_from_anywhere() -> None:
    given = parse_flags(TuneSettings, "tune", ["--space", "cnn,mine.py", "--data", "~/images", "--runs-dir", "r"])
    assert given["space"] == f"cnn,{Path.cwd() / 'mine.py'}"
    assert given["data"] == str(Path.home() / "images")
    assert given["runs_dir"] == Path.cwd() / "r"
    assert parse_flags(TuneSettings, "tune", ["--data", "digits"]) == {"data": "digits"}


def test_weights_are_a_name_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def parsed(text: str) -> Any:
        return parse_flags(TuneSettings, "tune", ["--weights", text])["weights"]

    for name in ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2", "none"):
        (tmp_path / name).touch()  # a file does not take the place of a name
        assert parsed(name) == name
    assert parsed("mine.pth") == str(tmp_path / "mine.pth")  # whether it is there is told when it is read
    assert parsed("../x.SAFETENSORS") == str(tmp_path.parent / "x.SAFETENSORS")
    assert parsed("~/x.pt") == str(tmp_path / "home" / "x.pt")
    (tmp_path / "imagenet1k_v2").touch()
    assert parsed("imagenet1k_v2") == str(tmp_path / "imagenet1k_v2")
    assert parse_flags(TrainSettings, "train", ["--weights", "none"]) == {"weights": "none"}
    assert TuneSettings().weights is None


@pytest.mark.parametrize("text", ["imagenet1k_v1", "None", "default", "IMAGENET1K_V3", "resnet18"])
def test_weights_that_are_neither_a_name_nor_a_file_are_refused(text: str) -> None:
    names = "DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, none or a file (.pth, .pt, .safetensors)"
    with pytest.raises(InputError) as error:
        parse_flags(TuneSettings, "tune", ["--weights", text])
    assert str(error.value) == f"--weights: must be {names}, not {text!r}"


def test_weights_are_not_empty() -> None:
    with pytest.raises(InputError, match="--weights: must not be empty"):
        parse_flags(TrainSettings, "train", ["--weights", ""])


def test_values_are_set_by_key_and_what_is_no_such_pair_is_refused() -> None:
    flags = ["--set", "model/dropout=0.2", "--set", "optimizer/name=adamw", "--set", "model/dropout=0.3"]
    settings = TuneSettings(**parse_flags(TuneSettings, "tune", [*flags, "--set", "model/weights=a=b"]))
    assert settings.fixed == {"model/dropout": "0.3", "optimizer/name": "adamw", "model/weights": "a=b"}
    assert TrainSettings().fixed == {}
    for text in ("model/dropout", "=0.2", "model/dropout=", ""):
        with pytest.raises(InputError) as error:
            parse_flags(TrainSettings, "train", ["--set", text])
        assert str(error.value) == f"--set: must be KEY=VALUE such as model/dropout=0.2, not {text!r}"


@pytest.fixture
def begun(tmp_path: Path) -> TuneSettings:
    """The settings of a run whose run.json lies in `tmp_path/runs/begun`."""
    settings = TuneSettings(
        data="digits",
        trials=7,
        time_budget=90.0,
        data_dir=tmp_path,
        runs_dir=tmp_path / "runs",
        set=("model/dropout=0.2", "batch_size=32"),
    )
    record = {"kind": "tune", "settings": dataclasses.asdict(settings)}
    write_json(tmp_path / "runs" / "begun" / "run.json", record)
    return settings


def resumed(*flags: str) -> Any:
    return run_settings(TuneSettings, "tune", parse_flags(TuneSettings, "tune", flags))


def test_a_resumed_run_has_the_settings_it_began_with(begun: TuneSettings, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "begun"
    expected = dataclasses.replace(begun, name="begun", resume=str(folder))
    assert resumed("--resume", str(folder)) == expected
    assert resumed("--resume", "begun", "--runs-dir", str(tmp_path / "runs"), "--trials", "7") == expected
    assert resumed("--resume", str(folder), "--address", "auto").address == "auto"


def test_a_search_is_extended_by_more_trials_or_time(begun: TuneSettings, tmp_path: Path) -> None:
    more = resumed("--resume", str(tmp_path / "runs" / "begun"), "--trials", "80", "--time-budget", "1h")
    assert (more.trials, more.time_budget) == (80, 3600.0)
    assert dataclasses.replace(more, trials=7, time_budget=90.0, name=begun.name, resume=None) == begun


def test_the_settings_of_a_training_come_back_with_their_types(tmp_path: Path) -> None:
    settings = TrainSettings(preset=("a", "b"), config=(tmp_path / "c.json",), runs_dir=tmp_path)
    write_json(tmp_path / "t" / "run.json", {"kind": "train", "settings": dataclasses.asdict(settings)})
    given = parse_flags(TrainSettings, "train", ["--resume", str(tmp_path / "t")])
    again = run_settings(TrainSettings, "train", given)
    assert again == dataclasses.replace(settings, name="t", resume=str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "6"], "--trials: 6 is less than the 7 of the run .*; a run can only be extended"),
        (["--time-budget", "80s"], "--time-budget: 80.0 is less than the 90.0 of the run"),
        (["--max-epochs", "90"], "--max-epochs: 90 contradicts 30"),
        (["--max-params", "1M"], "--max-params: 1000000 contradicts None"),
        (["--data", "cifar10"], "--data: cifar10 contradicts digits"),
        (["--name", "other"], "--name: other contradicts begun"),
        (["--dry-run"], "--dry-run: True contradicts False"),
        (
            ["--set", "batch_size=64"],
            r"--set: \('batch_size=64',\) contradicts \('model/dropout=0.2', 'batch_size=32'\)",
        ),
        (["--patience", "3"], "--patience: 3 contradicts None"),
    ],
)
def test_flags_that_contradict_a_resumed_run_are_refused(
    begun: TuneSettings, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resumed("--resume", str(tmp_path / "runs" / "begun"), *flags)


def test_what_is_no_run_or_was_begun_by_another_command_is_refused(begun: TuneSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume: no run in .*nosuch nor in .*nosuch: give the name"):
        resumed("--resume", "nosuch")
    flags = ["--resume", str(tmp_path / "runs" / "begun")]
    with pytest.raises(InputError, match=r"begun by cifar_ray\.tune: resume it with that"):
        run_settings(TrainSettings, "train", parse_flags(TrainSettings, "train", flags))
    write_json(tmp_path / "other" / "run.json", [])
    with pytest.raises(InputError, match=r"its run\.json is from elsewhere"):
        resumed("--resume", str(tmp_path / "other"))


@pytest.mark.parametrize("kind", [TuneSettings, TrainSettings, EvaluateSettings])
def test_every_flag_stands_under_one_heading_of_the_help(kind: Any) -> None:
    names = [name for names in kind.groups.values() for name in names]
    assert sorted(names) == sorted(set(names))
    assert {field.name for field in dataclasses.fields(kind)} <= set(names), "add the flag to RunSettings.groups"


@pytest.mark.parametrize("command", ["tune", "train", "evaluate", "report", "predict"])
def test_help_names_what_there_is_and_shows_two_examples(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"cifar_ray.{command}", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.count(f"\n  python -m cifar_ray.{command} ") == 2
    metrics = "accuracy, auc or f1"
    known = {"tune": ["cnn", "resnet", metrics], "train": list(PRESETS), "evaluate": [metrics]}
    assert all(name in done.stdout for name in known.get(command, []))
    if command in ("tune", "train"):
        headings = ["what to search or train:", "on what data:", "limits:", "where to run:", "what comes out:"]
        places = [done.stdout.find(heading) for heading in headings if command == "tune" or heading != "limits:"]
        assert -1 not in places and places == sorted(places)


def test_the_package_lists_its_commands_and_tells_its_version() -> None:
    shown = [
        subprocess.run([sys.executable, "-m", "cifar_ray", *args], capture_output=True, text=True, check=True).stdout
        for args in ([], ["--version"])
    ]
    assert all(f"python -m cifar_ray.{command} " in shown[0] for command in ("tune", "train", "predict"))
    assert shown[1] == f"cifar_ray {__version__}\n"
